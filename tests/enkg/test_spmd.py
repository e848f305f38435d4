"""The same posterior, to the last bit, on any number of ranks of any kind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import enkg
from enkg.comm import ALONE
from tests.enkg import spmd
from tests.enkg.ranks import ROOT, launcher

SCRIPT = ROOT / "tests" / "enkg" / "spmd.py"


def on_ranks(form, ranks, tmp_path, *what) -> dict:
    done = launcher(form).run(ranks, SCRIPT, tmp_path / "found.json", *what)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found.json").read_text())


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    return spmd.found([], ALONE)


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        *(("mpich", 1), ("mpich", 2), ("mpich", 4), ("openmpi", 3), ("torchrun", 2)),
        pytest.param("mpich", 3, marks=pytest.mark.slow),
    ],
)
def test_that_every_method_gives_the_same_bits_on_any_ranks(form, ranks, alone, tmp_path):
    assert on_ranks(form, ranks, tmp_path) == {"ranks": ranks, **alone}


@pytest.mark.parametrize(("form", "ranks"), [("mpich", 2), ("openmpi", 2)])
def test_that_navier_stokes_gives_the_same_bits_on_two_ranks(form, ranks, tmp_path):
    pytest.importorskip("jax")
    expected = on_ranks("mpich", 1, tmp_path, "navier-stokes")
    found = on_ranks(form, ranks, tmp_path, "navier-stokes")
    assert found == {**expected, "ranks": ranks}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_that_navier_stokes_gives_the_same_bits_on_more_ranks(ranks, tmp_path):
    expected = on_ranks("mpich", 1, tmp_path, "navier-stokes")
    found = on_ranks("mpich", ranks, tmp_path, "navier-stokes")
    assert found == {**expected, "ranks": ranks}


ALONE_ON_RANK_1 = """
import os, sys
if os.environ.get("PMI_RANK") == "1":
    sys.exit("no licence here")
import enkg
"""
COMPUTED = """
import time
import numpy as np
import enkg

cells = np.arange(64)
prior = enkg.Gaussian.from_covariance(
    np.zeros(64), np.exp(-0.5 * ((cells[:, None] - cells) / 6) ** 2)
)
truth = prior.draw(seed=1, members=[0], step=0)[0]


def simulator(x):
    time.sleep(0.02)
    return x[::4].astype(float)


experiment = enkg.Experiment(
    prior=prior,
    simulator=enkg.Function(simulator, batched=False),
    observation=enkg.Observation(truth[::4], std=0.05),
    guidance=enkg.EnKG(members=40),
    truth=truth,
)
"""


@pytest.mark.parametrize("words", [["nowhere.py"], ["alone.py"], ["plain.py", "--nosuch", "3"]])
def test_that_a_mistake_ends_all_ranks_and_is_told_once(words, tmp_path, monkeypatch):
    (tmp_path / "alone.py").write_text(ALONE_ON_RANK_1)
    (tmp_path / "plain.py").write_text(COMPUTED)
    monkeypatch.chdir(tmp_path)
    done = launcher("mpich").run(2, "-m", "enkg", "run", *words)
    assert done.returncode in (1, 2)
    assert done.stderr.count("error:") + done.stderr.count("Unrecognized options:") == 1


def test_that_a_run_begun_alone_goes_on_under_mpiexec_whatever_the_threads(tmp_path, monkeypatch):
    # MPICH's mpiexec makes MKL take one thread, so what the file computes is rounded otherwise.
    (tmp_path / "computed.py").write_text(COMPUTED)
    monkeypatch.chdir(tmp_path)
    mpich = launcher("mpich")
    free = {k: v for k, v in mpich.environment().items() if k != "OMP_NUM_THREADS"}
    run = [sys.executable, "-m", "enkg", "run", "computed.py"]
    subprocess.run([*run, "--out", "whole"], env=free, check=True)
    begun = subprocess.run([*run, "--out", "parts", "--time-limit", "0:02"], env=free, check=False)
    assert begun.returncode == 75
    done = mpich.run(2, "-m", "enkg", "resume", "parts", OMP_NUM_THREADS=os.cpu_count())
    assert done.returncode == 0, done.stderr
    whole, parts = (enkg.open(name)["posterior"]["x"].values for name in ("whole", "parts"))
    np.testing.assert_array_equal(parts, whole)
    assert enkg.summary("parts")["calls"] == enkg.summary("whole")["calls"]
