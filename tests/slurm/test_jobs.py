"""Real jobs: submitted, stopped by the time limit, queued again, finished; arrays; MPI under srun.

The run of these jobs is a stand-in that obeys the contract of `enkg run --resume`.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from enkg.errors import InputError
from enkg.slurm import Submit, in_queue, submit
from tests.slurm.cluster import Job, ask, until

pytestmark = pytest.mark.usefixtures("slurm")

RUN = """\
# Counts to --count, a number each 0.1 s, in DIR/counted; goes on where it stopped.
import pathlib, signal, sys, time
given = lambda name: sys.argv[sys.argv.index(name) + 1]
out, count = pathlib.Path(given("--out")), int(given("--count"))
stop = []
signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
counted = out / "counted"
(out / "lives").open("a").write("life ")
while not counted.exists() or len(counted.read_text()) < count:
    if stop:
        print("stopped in order")
        sys.exit(75)
    counted.open("a").write(".")
    time.sleep(0.1)
(out / "summary.json").write_text("{}")
print("finished", *sys.argv)
"""
WORLD = """\
import pathlib, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
print("rank", world.rank, "of", world.size)
assert world.size == int(sys.argv[sys.argv.index("--want") + 1])
"""
MPI = subprocess.run(
    [sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, check=False
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with an awkward name, in which jobs run."""
    folder = tmp_path / 'it\'s 100% "mine"; yes'
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "file.py").write_text("")
    yield folder
    for file in folder.glob("*/job.id"):
        cancel = ["scancel", "--quiet", file.read_text().strip()]
        subprocess.run(cancel, check=False, capture_output=True)


def submitted(source: str, *words: str) -> Job:
    """A job whose run is this program; every job has a short limit, lest it outlive its test."""
    Path("run.py").write_text(source)
    console = Console(file=io.StringIO())
    options, rest = tyro.cli(
        Submit, args=["file.py", "--out", "runs", *words], return_unknown_args=True
    )
    assert submit(options, rest, console, (sys.executable, os.path.abspath("run.py"))) == 0
    return Job(Path("runs/job.id").read_text().strip())


def test_that_a_job_runs_to_its_end(project):
    job = submitted(RUN, "--time", "2", "--count", "1")
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0")
    assert Path("runs/job.rc").read_text() == "0\n"
    assert "finished" in Path("runs/job-rank-0.log").read_text()
    assert Path(f"runs/job-{job.number}.log").read_text() == ""
    assert not in_queue(job.number)


def test_that_a_run_that_is_told_to_stop_is_queued_again_and_finishes(project):
    job = submitted(RUN, "--time", "5", "--count", "30")
    until(Path("runs/counted").exists, 60, job.facts().__str__)
    ask("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert Path("runs/lives").read_text() == "life life "
    assert Path("runs/counted").read_text() == "." * 30
    log = Path("runs/job-rank-0.log").read_text()
    assert log.index("stopped in order") < log.index("finished")
    assert "queued again (restart 1)" in Path(f"runs/job-{job.number}.log").read_text()


@pytest.mark.slow
def test_that_the_time_limit_stops_a_run_in_order(project):
    job = submitted(RUN, "--time", "1", "--margin", "20", "--count", "600")
    until(lambda: job.facts()["Restarts"] == "1", 90, job.facts().__str__)
    assert "stopped in order" in Path("runs/job-rank-0.log").read_text()
    ask("scancel", job.number)
    assert job.wait()["JobState"] == "CANCELLED"


def test_that_ranks_are_told_to_stop_and_end_one_after_another(project):
    slow = RUN.replace("sys.exit(75)", "time.sleep(2 * int(rank)); sys.exit(75)")
    slow = slow.replace(
        "stop = []",
        'import os; rank = os.environ["SLURM_PROCID"]; stop = []\n'
        'out = out / f"rank{rank}"; out.mkdir(exist_ok=True)',
    )
    ranks = ("--ranks-per-node", "2", "--mpi", "none")
    job = submitted(slow, "--time", "5", "--count", "30", *ranks)
    both = [Path(f"runs/rank{k}/counted") for k in (0, 1)]
    until(lambda: all(file.exists() for file in both), 60, job.facts().__str__)
    ask("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    for k in (0, 1):
        log = Path(f"runs/job-rank-{k}.log").read_text()
        assert log.index("stopped in order") < log.index("finished")


@pytest.mark.slow
def test_that_a_dead_rank_ends_the_job(project):
    dying = "import os, time; os.environ['SLURM_PROCID'] == '1' and os.kill(os.getpid(), 9)\n"
    job = submitted(
        dying + "time.sleep(100)", "--time", "5", "--ranks-per-node", "2", "--mpi", "none"
    )
    assert job.wait()["JobState"] == "FAILED"
    assert "task 1: Killed" in Path(f"runs/job-{job.number}.log").read_text()
    assert Path("runs/job.rc").read_text() == "137\n"


def test_that_a_cancelled_job_is_not_queued_again(project):
    job = submitted(RUN, "--time", "5", "--count", "600")
    until(Path("runs/counted").exists, 60, job.facts().__str__)
    ask("scancel", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


def test_that_an_array_runs_each_configuration_and_submits_only_what_is_missing(project):
    grid = ("--time", "2", "--count", "1", "--vary", "seed=5,6,7", "--at-once", "2")
    array = submitted(RUN, *grid)
    for index in range(3):
        assert Job(f"{array.number}_{index}").wait()["JobState"] == "COMPLETED"
        log = Path(f"runs/000{index}/job-rank-0.log").read_text()
        assert f"--seed={5 + index}" in log
        assert Path(f"runs/job-{array.number}_{index}.log").exists()
    Path("runs/0001/summary.json").unlink()
    again = submitted(RUN, *grid)
    assert Job(f"{again.number}_1").wait()["JobState"] == "COMPLETED"
    assert not Path(f"runs/job-{again.number}_0.log").exists()


def test_that_a_task_of_an_array_is_queued_again(project):
    job = submitted(RUN, "--time", "5", "--count", "30", "--vary", "seed=5,6")
    files = [Path(f"runs/000{k}/counted") for k in (0, 1)]
    until(files[1].exists, 60, job.facts().__str__)
    ask("scancel", "--batch", "--signal=USR1", f"{job.number}_1")
    assert Job(f"{job.number}_0").wait()["Restarts"] == "0"
    facts = Job(f"{job.number}_1").wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert Path("runs/0001/lives").read_text() == "life life "


ABORTED = """\
import os, sys
from mpi4py import MPI
MPI.COMM_WORLD.barrier()
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    os._exit(75)
"""


@pytest.mark.skipif(MPI.returncode != 0, reason="needs mpi4py: pip install 'enkg[mpi]'")
def test_that_shared_memory_of_an_earlier_start_is_not_in_the_way(project):
    job = submitted(ABORTED, "--time", "5", "--ranks-per-node", "2")
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")


@pytest.mark.skipif(MPI.returncode != 0, reason="needs mpi4py: pip install 'enkg[mpi]'")
@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_that_ranks_are_one_world(project, launcher):
    words = ("--time", "2", "--ranks-per-node", "2", "--launcher", launcher, "--want", "2")
    assert submitted(WORLD, *words).wait()["JobState"] == "COMPLETED"
    for k in (0, 1):
        assert Path(f"runs/job-rank-{k}.log").read_text() == f"rank {k} of 2\n"


def test_that_the_words_of_a_refusal_of_slurm_are_told(project):
    with pytest.raises(InputError, match=r"refuses the job: .*invalid partition"):
        submitted(RUN, "--partition", "nowhere")
