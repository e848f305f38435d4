"""docs/programs.md: the files on the page are built, checked and run as they stand there."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg.__main__ import main
from enkg.check import check
from enkg.load import load
from enkg.scaffold import HERE

PAGE = (Path(__file__).parents[2] / "docs" / "programs.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S))
BLOCKS = re.findall(r"^```python(?: title=[^\n]*)?\n(.*?)^```$", PAGE, re.M | re.S)
LOOPS = {
    "rod_c": "c/enkg_worker.h",
    "rod_mpi": "c/enkg_worker.h",
    "rod_fortran": "fortran/enkg_worker.f90",
    "rod_python": "python/enkg_worker.py",
    "rod_julia": "julia/enkg_worker.jl",
}
NEEDED = {
    "rod_c": ("cc", "make"),
    "rod_fortran": ("gfortran", "make"),
    "rod_python": (),
    "rod_mpi": ("mpicc", "mpiexec", "make"),
    "rod_perl": ("perl",),
    "column": ("gfortran", "make"),
    "namelist": ("gfortran", "make"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, and those of enkg's that it says to put beside them."""
    root = tmp_path_factory.mktemp("programs")
    (root / "pyproject.toml").touch()
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for name, source in LOOPS.items():
        shutil.copy(HERE / "stubs" / source, root / name)
    return root


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """One thread; the tools beside this Python; modules of the page leave no trace."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name in ("rod", "rod_function") or name.startswith("enkg_experiment_"):
            del sys.modules[name]


def built(folder: Path, name: str) -> Path:
    missing = [tool for tool in NEEDED[name] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"there is no {missing[0]}")
    if (folder / name / "Makefile").is_file():
        subprocess.run(["make", "-s", "-C", folder / name], check=True)
    return folder / name


def made(root: Path, file: str, **given) -> enkg.Experiment:
    found = load(root / file)
    return found if isinstance(found, enkg.Experiment) else found(**given)


def small(experiment: enkg.Experiment) -> enkg.Experiment:
    return dataclasses.replace(experiment, guidance=enkg.EnKG(members=16, updates=3))


def posterior(experiment: enkg.Experiment) -> np.ndarray:
    tree = enkg.run(small(experiment))
    return next(iter(tree["posterior"].to_dataset().data_vars.values())).values


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    """The posterior by the function in this process."""
    sys.path.append(str(folder))
    try:
        experiment = made(folder, "with_pool.py")
    finally:
        sys.path.remove(str(folder))
    assert isinstance(experiment.simulator, enkg.Pool)
    return posterior(dataclasses.replace(experiment, simulator=experiment.simulator.function))


@pytest.mark.parametrize(
    "name", ["rod_c", "rod_fortran", "rod_python", "rod_mpi", "rod_perl", "column"]
)
def test_that_a_program_is_sound_and_gives_the_posterior(folder, expected, name):
    built(folder, name)
    experiment = made(folder, "rod.py", folder=name)
    report = check(experiment, draws=2)
    assert report.sound, report
    np.testing.assert_allclose(posterior(experiment), expected, atol=1e-4)


def test_that_the_commands_work(folder, monkeypatch, capsys):
    built(folder, "rod_c")
    monkeypatch.chdir(folder)
    assert main(["check", "rod.py", "--draws", "2"]) == 0
    assert "the simulator is sound" in capsys.readouterr().out


def test_that_parameters_go_into_a_namelist(folder):
    program = enkg.Program(built(folder, "namelist"), slots=1)
    x = np.array([[65.0, 0.07], [-50.0, 0.05]])
    expected = 20 + x[:, :1] * np.exp(-x[:, 1:] * np.arange(0, 60, 5))
    np.testing.assert_allclose(program(x), expected, atol=1e-4)


def test_that_a_function_runs_in_a_pool(folder, expected):
    experiment = made(folder, "with_pool.py")
    assert isinstance(experiment.simulator, enkg.Pool)
    experiment = dataclasses.replace(experiment, simulator=enkg.Pool(experiment.simulator.f, 1))
    assert check(experiment, draws=2).sound
    np.testing.assert_array_equal(posterior(experiment), expected)


def test_that_a_server_and_its_client_agree(folder, expected):
    pytest.importorskip("aiohttp")
    built(folder, "rod_c")
    command = [sys.executable, "-m", "enkg", "serve", "rod_c", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert line.startswith("serving forward at http://127.0.0.1:")
            experiment = made(folder, "with_server.py", url=line.split()[-1])
            assert check(experiment, draws=2).sound
            np.testing.assert_allclose(posterior(experiment), expected, atol=1e-4)
        finally:
            server.terminate()
    assert server.returncode == 0


def test_that_the_julia_manifest_is_right_but_for_a_missing_julia(folder):
    if shutil.which("julia"):
        assert enkg.Program(folder / "rod_julia").manifest.output.order == "F"
    else:
        with pytest.raises(enkg.InputError, match="no program 'julia' on the PATH"):
            enkg.Program(folder / "rod_julia")


def test_that_the_rest_is_python():
    assert BLOCKS
    for block in BLOCKS:
        compile(block, "programs.md", "exec")


def test_that_all_keys_of_the_manifest_are_on_the_page():
    from enkg.execute import manifest

    told = set(re.findall(r"`(?:\w+\.)?(\w+)`", PAGE))
    for table in ("Manifest", "Port", "OneShot", "Worker", "Mpi", "Environment"):
        for field in dataclasses.fields(getattr(manifest, table)):
            if (table, field.name) != ("Manifest", "folder"):
                assert field.name in told or f"[{field.name}]" in PAGE, (table, field.name)
    for word in manifest.PLACEHOLDERS:
        assert f"`{{{word}}}`" in PAGE
