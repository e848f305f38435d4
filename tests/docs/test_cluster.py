"""docs/cluster.md and docs/resume.md: their files are used, and their commands run, as they stand.

Ranks are started by the mpiexec beside this Python; srun, sbatch, squeue and qsub are programs that
only note how they were called, or run what they were given in one process.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg.scaffold import HERE
from tests.enkg.ranks import PATIENCE, finished, launcher
from tests.slurm.fakes import Fakes

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("cluster", "resume", "programs")}
OURS = PAGES["cluster"] + PAGES["resume"]
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", OURS, re.M | re.S)).splitlines()

ALONE = (
    "enkg run aquifer.py --seconds 0.05 --time-limit 0:00:03",
    "enkg status runs/aquifer",
    "enkg resume runs/aquifer",
    "enkg run aquifer.py --out runs/again --resume",
)
RANKS = (
    "mpiexec -n 4 enkg run aquifer.py",
    "mpiexec -n 3 enkg run aquifer.py --controller --out runs/crew",
)
MOVED = (
    "mpiexec -n 2 enkg run aquifer.py --seconds 0.05 --time-limit 0:00:03 --out runs/moved",
    "mpiexec -n 3 enkg resume runs/moved",
)
TORCH = "torchrun --nproc-per-node 2 -m enkg run aquifer.py --out runs/by-torchrun"
SRUN = "srun -n 4 --mpi=pmi2 enkg run aquifer.py --out runs/by-srun"
NESTED = "mpiexec -n 2 enkg run rod.py --folder rod_mpi --out runs/nested"
EXECUTOR = "mpiexec -n 3 python with_ranks.py"
LOOKS = ("python -m mpi4py --mpi-lib-version", "mpiexec -n 2 python -m mpi4py.bench helloworld")
SUBMITTED = tuple(line for line in CONSOLE if line.startswith("enkg submit"))
GRID = "enkg status runs/grid"


def files(page: str) -> dict[str, str]:
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGES[page], re.M | re.S))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of both pages, and those of the page on programs that they name."""
    (tmp_path / "pyproject.toml").touch()
    for name, text in {**files("programs"), **files("cluster")}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(HERE / "stubs" / "c" / "enkg_worker.h", tmp_path / "rod_mpi")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    found = Fakes(tmp_path / "fakes")
    found.folder.mkdir()
    found.make("sbatch", out="7\n")
    found.make("squeue")
    return found


def run(line: str, folder: Path, fakes: Fakes | None = None, **more: str):
    """A command of the page, in its folder; the tools beside this Python are on the PATH."""
    form = launcher("mpich") if "mpiexec" in line else launcher("torchrun")
    beside = [str(fakes.folder)] if fakes else []
    path = os.pathsep.join([*beside, str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env=form.environment(PATH=path, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = finished(process, 2 * PATIENCE)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def posterior(directory: Path) -> np.ndarray:
    return next(iter(enkg.open(directory)["posterior"].to_dataset().data_vars.values())).values


def test_that_every_command_of_the_pages_is_tried_here():
    tried = {*ALONE, *RANKS, *MOVED, TORCH, SRUN, NESTED, EXECUTOR, *LOOKS, *SUBMITTED, GRID}
    assert set(CONSOLE) == tried


def test_that_a_run_is_stopped_looked_at_and_resumed(folder):
    first, status, resume, again = ALONE
    stopped = run(first, folder)
    assert stopped.returncode == 75, stopped.stderr
    assert "enkg resume" in stopped.stderr
    assert "(by the time limit); `enkg resume runs/aquifer` goes on" in run(status, folder).stdout
    resumed = run(resume, folder)
    assert resumed.returncode == 0, resumed.stderr
    for _ in range(2):  # the second one finds a finished run
        assert run(again, folder).returncode == 0
    np.testing.assert_array_equal(posterior(Path("runs/aquifer")), posterior(Path("runs/again")))


@pytest.mark.slow
@pytest.mark.parametrize("line", [*RANKS, TORCH])
def test_that_ranks_give_the_posterior_of_one_process(folder, line):
    done = run(line, folder)
    assert done.returncode == 0, done.stderr
    assert run(ALONE[3], folder).returncode == 0
    directory = re.search(r"results in (\S+)/", done.stdout)
    assert directory is not None
    np.testing.assert_array_equal(posterior(Path(directory[1])), posterior(Path("runs/again")))


@pytest.mark.slow
def test_that_a_run_moves_to_other_ranks(folder):
    assert run(MOVED[0], folder).returncode == 75
    moved = run(MOVED[1], folder)
    assert moved.returncode == 0, moved.stderr
    assert run(ALONE[3], folder).returncode == 0
    np.testing.assert_array_equal(posterior(Path("runs/moved")), posterior(Path("runs/again")))


def test_that_srun_is_called_as_on_the_page(folder, fakes):
    fakes.srun()
    done = run(f"{SRUN} --guidance.members 8 --guidance.updates 2", folder, fakes)
    assert done.returncode == 0, done.stderr
    assert fakes.calls("srun")[0][:4] == ["-n", "4", "--mpi=pmi2", "enkg"]
    assert len(posterior(Path("runs/by-srun"))) == 8


def test_that_members_may_be_mpi_programs_inside_of_ranks(folder):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    launcher("mpich")
    assert run("make -s -C rod_mpi", folder).returncode == 0
    done = run(f"{NESTED} --guidance.members 9 --guidance.updates 2", folder)
    assert done.returncode == 0, done.stderr
    assert len(posterior(Path("runs/nested"))) == 9


@pytest.mark.slow
def test_that_an_executor_of_mpi4py_takes_the_calls(folder):
    done = run(EXECUTOR, folder)
    assert done.returncode == 0, done.stderr
    assert enkg.summary("runs/executor")["calls"] == 896


def test_that_the_two_looks_at_mpi4py_work(folder):
    version, world = (run(line, folder) for line in LOOKS)
    assert "MPICH" in version.stdout
    assert "process 1 of 2" in world.stdout


@pytest.mark.parametrize("line", SUBMITTED)
def test_that_a_job_is_submitted_as_on_the_page(folder, fakes, line):
    if "--folder" in line:  # the data are simulated when the file is read, so make the program
        name = line.split()[line.split().index("--folder") + 1]
        for tool in ("make", {"rod_mpi": "mpicc", "column": "gfortran"}[name]):
            if (
                shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
                is None
            ):
                pytest.skip(f"there is no {tool}")
        fakes.srun()
        assert run(f"make -s -C {name}", folder).returncode == 0
    done = run(line, folder, fakes)
    assert done.returncode == 0, done.stderr
    if "--dry-run" in line:
        assert done.stdout.startswith("#!/bin/bash\n#SBATCH")
        assert not fakes.calls("sbatch")
        return
    [[_, script]] = fakes.calls("sbatch")
    text = Path(script).read_text()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    for given in re.findall(r'--sbatch (\S+)|--setup "([^"]+)"', line):
        assert "".join(given) in text
    if "--vary" in line:
        assert "--array=0-5%2" in text
        assert "6 configurations" in run(GRID, folder).stdout


@pytest.mark.slow
def test_that_the_template_for_pbs_goes_on_until_the_run_is_finished(folder, fakes):
    launcher("mpich")
    fakes.make("qsub")
    script = files("cluster")["aquifer.pbs"]
    assert "-n 64" in script
    assert "--time-limit 3:50:00" in script
    script = script.replace("-n 64", "-n 2").replace("aquifer.py", "aquifer.py --seconds 0.05")
    codes = []
    for limit in ("0:00:01", "1:00:00"):
        (folder / "aquifer.pbs").write_text(script.replace("3:50:00", limit))
        done = run("bash aquifer.pbs # mpiexec", folder, fakes, PBS_O_WORKDIR=str(folder))
        codes.append(done.returncode)
    assert codes == [75, 0], done.stderr
    assert fakes.calls("qsub") == [["aquifer.pbs"]]


def test_that_the_refusals_are_those_of_the_pages(folder):
    known = " ".join(OURS.split())
    cuda = run("mpiexec -n 2 enkg run aquifer.py --device cuda", folder)
    assert "2 ranks of this node see 0 GPUs" in known
    assert cuda.returncode == 1
    assert " ".join(cuda.stderr.splitlines()[0].split()) in known
