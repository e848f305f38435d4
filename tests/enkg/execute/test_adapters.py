"""One experiment through every adapter: the same posterior."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import enkg
from enkg.execute.function import opened
from tests.enkg.execute.linear import (
    MANIFEST,
    build,
    experiment,
    posterior,
    simulate,
    simulate_all,
)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return posterior(experiment(simulate_all))


def with_manifest(program: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    text = MANIFEST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    shutil.copy(program / "faulty", folder)
    (folder / "simulator.toml").write_text(text)
    return folder


PYTHON = """
import sys
import numpy as np
suffix = sys.argv[1].rsplit(".", 1)[1]
if suffix == "npy":
    x = np.load(sys.argv[1])
elif suffix == "txt":
    x = np.loadtxt(sys.argv[1])
else:
    from scipy.io import netcdf_file
    with netcdf_file(sys.argv[1], mmap=False) as file:
        x = file.variables["x"][:].copy()
y = x[:3] + 0.5 * x[1:]
if suffix == "npy":
    np.save(sys.argv[2], y)
elif suffix == "txt":
    np.savetxt(sys.argv[2], y, fmt="%.17g")
else:
    with netcdf_file(sys.argv[2], "w") as file:
        file.createDimension("datum", 3)
        file.createVariable("y", "f8", ("datum",))[:] = y
"""


def python_program(folder: Path, form: str) -> Path:
    (folder / "model.py").write_text(PYTHON)
    (folder / "simulator.toml").write_text(
        f"""
        name = "model"
        [input]
        shape = [4]
        format = "{form}"
        [output]
        shape = [3]
        format = "{form}"
        [oneshot]
        command = ["python", "{{folder}}/model.py", "{{input}}", "{{output}}"]
        """
    )
    return folder


ADAPTERS = {
    "function": lambda program, tmp: enkg.Function(simulate_all),
    "function in chunks": lambda program, tmp: enkg.Function(simulate_all, chunk=7),
    "function of one member": lambda program, tmp: enkg.Function(simulate, batched=False),
    "pool": lambda program, tmp: enkg.Pool(simulate, processes=2),
    "pool of threads": lambda program, tmp: enkg.Pool(
        simulate_all, executor=ThreadPoolExecutor(2), batched=True, chunk=3, processes=2
    ),
    "worker, pipe": lambda program, tmp: enkg.Program(program, slots=2),
    "worker, shared memory": lambda program, tmp: enkg.Program(
        with_manifest(program, tmp, ("[worker]", '[worker]\nmemory = "shared"'))
    ),
    "worker, several members a call": lambda program, tmp: enkg.Program(
        with_manifest(program, tmp, ("[worker]", "[worker]\nbatch = 7"))
    ),
    "one-shot": lambda program, tmp: enkg.Program(program, slots=2, mode="oneshot"),
    "cache": lambda program, tmp: enkg.Cached(simulate_all, tmp / "cache"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_that_the_posterior_does_not_depend_on_the_adapter(adapter, program, reference, tmp_path):
    found = posterior(experiment(ADAPTERS[adapter](program, tmp_path)))
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["npy", "text", "netcdf"])
def test_that_the_posterior_does_not_depend_on_the_files(form, tmp_path):
    guidance = enkg.EnKG(members=4, updates=1)
    expected = posterior(experiment(simulate_all, guidance=guidance))
    simulator = enkg.Program(python_program(tmp_path, form), slots=2)
    found = posterior(experiment(simulator, guidance=guidance))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


NAMELIST = """
import json, sys
x = json.load(open("case.json"))["x"]
y = [a + 0.5 * b for a, b in zip(x[:3], x[1:])]
open(sys.argv[1], "w").write(" ".join(map(repr, y)) + "\\n")
"""


def test_that_a_template_may_hold_the_numbers_themselves(tmp_path):
    (tmp_path / "model.py").write_text(NAMELIST)
    (tmp_path / "case.json").write_text('{"case": {"n": 4}, "x": [{x0}, {x1}, {x2}, {x3}]}')
    (tmp_path / "simulator.toml").write_text(
        """
        name = "model"
        [input]
        shape = [4]
        [output]
        shape = [3]
        format = "text"
        [oneshot]
        command = ["python", "{folder}/model.py", "{output}"]
        templates = ["case.json"]
        """
    )
    x = np.random.default_rng(0).normal(size=(2, 4))
    np.testing.assert_array_equal(enkg.Program(tmp_path)(x), simulate_all(x))


def test_that_an_mpi_program_gives_the_same(program, tmp_path):
    if not (Path(sys.executable).with_name("mpiexec").exists() or shutil.which("mpiexec")):
        pytest.skip("no mpiexec is here")
    guidance = enkg.EnKG(members=4, updates=1)
    expected = posterior(experiment(simulate_all, guidance=guidance))
    folder = with_manifest(program, tmp_path, ("[worker]", "[mpi]\nranks = 2\n[worker]"))
    simulator = enkg.Program(folder, slots=1, mode="oneshot")  # two ranks write the same file
    found = posterior(experiment(simulator, guidance=guidance))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@contextlib.contextmanager
def served(folder: Path):
    """The address of `enkg serve` in another process."""
    pytest.importorskip("aiohttp")
    command = [sys.executable, "-m", "enkg", "serve", str(folder), "--port", "0"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            yield line.split(" at ")[1].strip()
        finally:
            server.terminate()
            assert server.wait(30) == 0


def test_that_a_served_model_gives_the_same(program, reference):
    with served(program) as url:
        found = posterior(experiment(enkg.UMBridge(url, shape_in=(4,))))
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adapter", ["pool", "worker, pipe", "one-shot"])
@pytest.mark.parametrize("count", [1, 5])
def test_that_rows_follow_their_members(adapter, count, program, tmp_path):
    x = np.random.default_rng(0).normal(size=(count, 4))
    with opened(ADAPTERS[adapter](program, tmp_path)) as evaluator:
        whole = evaluator.evaluate(x).y
        turned = evaluator.evaluate(x[::-1].copy()).y
        twice = evaluator.evaluate(np.concatenate([x, x])).y
    np.testing.assert_array_equal(whole, simulate_all(x))
    np.testing.assert_array_equal(turned, whole[::-1])
    np.testing.assert_array_equal(twice, np.concatenate([whole, whole]))


def test_that_programs_may_be_called_like_functions(program):
    x = np.ones((3, 4))
    np.testing.assert_array_equal(enkg.Program(program)(x), simulate_all(x))


def test_that_a_member_of_the_wrong_shape_is_refused_by_its_key(program):
    prior = enkg.Gaussian(torch.zeros(5), torch.ones(5), enkg.Identity((5,)))
    with pytest.raises(enkg.InputError, match=r"shape \(5,\), but `input.shape` in .* is \[4\]"):
        enkg.run(experiment(enkg.Program(program), prior=prior))


def test_that_a_mode_that_is_not_there_is_refused(program, tmp_path):
    text = MANIFEST.split("[worker]")[0]
    shutil.copy(program / "faulty", tmp_path)
    (tmp_path / "simulator.toml").write_text(text)
    with pytest.raises(enkg.InputError, match=r"mode is 'worker'.*has only \[oneshot\]"):
        enkg.Program(tmp_path, mode="worker")


def test_that_interrupted_batches_return_soon(program):
    begin = time.monotonic()

    def pressed(done, total):
        raise KeyboardInterrupt

    with opened(enkg.Program(program, slots=2)) as evaluator, pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(np.ones((500, 4)), pressed)
    assert time.monotonic() - begin < 20


def test_that_what_is_paid_for_is_cached_before_the_batch_is_over(program, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4))

    def pressed(done, total):
        raise KeyboardInterrupt

    simulator = enkg.Cached(enkg.Program(program, slots=1), tmp_path / "cache")
    with opened(simulator) as evaluator, pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(x, pressed)
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept > 0
    with opened(simulator) as evaluator:
        result = evaluator.evaluate(x)
    np.testing.assert_array_equal(result.y, simulate_all(x))
    assert result.calls == len(x) - kept + 1  # one is simulated again, to be sure
