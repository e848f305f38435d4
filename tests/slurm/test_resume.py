"""enkg submit on a real SLURM: a run stopped in its middle ends as the one that was left alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from enkg import store
from tests.slurm.cluster import Job, ask, until

pytestmark = pytest.mark.usefixtures("slurm")

FILE = """\
import time
import torch
import enkg

MEMBERS = 24


def simulator(x):
    with open("calls", "a") as file:
        for _ in x:
            time.sleep(SLEEP)
            file.write(".")
    return x[:, :2]


experiment = enkg.Experiment(
    prior=enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,))),
    simulator=enkg.Function(simulator, chunk=1),
    observation=enkg.Observation(torch.ones(2), std=0.5),
    guidance=enkg.ESMDA(members=MEMBERS, updates=3),
)
"""
CALLS = 24 * 4
MPI = subprocess.run(
    [sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, check=False
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "file.py").write_text(FILE.replace("SLEEP", "0"))
    called(folder, "run", "file.py", "--out", "out")
    return posterior(folder / "out")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "file.py").write_text(FILE.replace("SLEEP", "0.1"))
    yield tmp_path
    for file in tmp_path.glob("*/job.id"):
        cancel = ["scancel", "--quiet", file.read_text().strip()]
        subprocess.run(cancel, check=False, capture_output=True)


def called(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "enkg", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def posterior(out: Path) -> np.ndarray:
    tree = store.open_run(out)
    return np.asarray(tree["posterior"].to_dataset().to_dataarray())


def calls(folder: Path) -> int:
    file = folder / "calls"
    return len(file.read_text()) if file.exists() else 0


def submitted(folder: Path, *words: str) -> Job:
    text = called(folder, "submit", "file.py", "--out", "out", *words)
    found = re.search(r"submitted job (\d+)", text)
    assert found is not None, text
    return Job(found[1])


@pytest.mark.parametrize(
    "ranks",
    [
        (),
        pytest.param(
            ("--ranks-per-node", "2"),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    MPI.returncode != 0, reason="needs mpi4py: pip install mpi4py mpich"
                ),
            ],
        ),
    ],
    ids=["one", "two"],
)
def test_that_a_run_stopped_in_its_middle_ends_as_if_it_was_not(project, alone, ranks):
    job = submitted(project, "--time", "5", *ranks)
    until(lambda: calls(project) > CALLS // 4, 90, job.facts().__str__)
    ask("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.wait(180)
    logs = "".join(file.read_text() for file in (project / "out").glob("job*.log"))
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), logs
    assert np.array_equal(posterior(project / "out"), alone)
    assert calls(project) <= CALLS + 2  # a call of each rank may have been cut short
    assert called(project, "run", "file.py", "--out", "out", "--resume")
    assert os.access(project / "out/job.sh", os.X_OK)


def test_that_each_run_of_a_grid_is_the_one_of_its_values(project, alone):
    (project / "file.py").write_text(FILE.replace("SLEEP", "0"))
    job = submitted(project, "--time", "5", "--vary", "seed=0,1", "--vary", "double=False")
    for index in (0, 1):
        facts = Job(f"{job.number}_{index}").wait(180)
        assert facts["JobState"] == "COMPLETED"
    assert np.array_equal(posterior(project / "out/0000"), alone)
    assert not np.array_equal(posterior(project / "out/0001"), alone)
