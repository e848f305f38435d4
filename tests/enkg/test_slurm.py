"""enkg submit: what is refused, what is written, what SLURM is told, and what the user is told."""

import os

import pytest

from enkg.errors import InputError, StoreError
from enkg.slurm_script import script
from tests.enkg.submitting import make_fakes, make_project, parsed, said


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


@pytest.fixture
def fakes(tmp_path):
    return make_fakes(tmp_path)


def test_that_a_submission_is_told_and_can_be_followed(fakes, here):
    text = said("--nodes", "2", "--ranks-per-node", "4", "--mpi", "none", "--time", "10")
    folder = here / "runs/file"
    assert fakes.calls("sbatch") == [["--parsable", str(folder / "job.sh")]]
    assert os.access(folder / "job.sh", os.X_OK)
    assert (folder / "job.id").read_text() == "17\n"
    for part in ("job 17", "2 nodes and 8 ranks", "enkg status runs/file\n", "squeue -j 17\n"):
        assert part in text
    for part in ("runs/file/job-17.log", "runs/file/job-rank-R.log", "scancel 17\n"):
        assert part in text


def test_that_a_dry_run_prints_the_script_and_does_nothing_else(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    options, rest = parsed("--dry-run", "--seed", ":smile: [bold]x[/]")
    assert said("--dry-run", "--seed", ":smile: [bold]x[/]") == script(options, rest)
    assert not (here / "runs").exists()


def test_that_a_machine_without_slurm_is_an_error(here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"no sbatch on the PATH.*--dry-run"):
        said()
    assert not (here / "runs").exists()


def test_that_the_words_of_a_refusal_are_told(fakes):
    fakes.make("sbatch", err="sbatch: error: invalid partition specified: gpu\n", code=1)
    with pytest.raises(InputError, match="refuses the job: invalid partition specified: gpu"):
        said("--partition", "gpu")


def test_that_the_name_of_a_cluster_is_no_part_of_the_number(fakes, here):
    fakes.make("sbatch", out="17;big\n")
    said()
    assert (here / "runs/file/job.id").read_text() == "17\n"


def test_that_a_job_that_is_in_the_queue_is_not_submitted_twice(fakes):
    said()
    fakes.make("squeue", out="PENDING\n")
    with pytest.raises(StoreError, match=r"job 17 is already in the queue.*scancel 17"):
        said()
    fakes.make("squeue", out="")
    said()
    assert len(fakes.calls("sbatch")) == 2


def test_that_a_finished_run_is_not_submitted(fakes, here):
    folder = here / "runs/file"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    with pytest.raises(StoreError, match="finished run"):
        said()


def test_that_a_folder_of_others_is_left_alone(fakes, here):
    with pytest.raises(StoreError, match="no run of enkg wrote"):
        said("--out", str(here))
    with pytest.raises(StoreError, match="is a file"):
        said("--out", "file.py")


def test_that_only_the_missing_runs_of_a_grid_are_submitted(fakes, here):
    words = ("--vary", "seed=0,1,2,3", "--out", "grid")
    assert "job 17, 4 runs" in said(*words)
    for index in (1, 2):
        (here / f"grid/000{index}").mkdir()
        (here / f"grid/000{index}/summary.json").write_text("{}")
    assert "2 of 4 runs are finished" in said(*words)
    assert "#SBATCH --array=0,3\n" in (here / "grid/job.sh").read_text()
    assert "#SBATCH --array=0,3%1\n" in said(*words, "--at-once", "1", "--dry-run")
    for index in (0, 3):
        (here / f"grid/000{index}").mkdir()
        (here / f"grid/000{index}/summary.json").write_text("{}")
    assert "all 4 runs" in said(*words)
    assert len(fakes.calls("sbatch")) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--vary", "seed=0,1,2"),
        ("--vary", "seed=0,1", "--members", "8"),
        ("--vary", "seed=0,1", "--guidance", "eks"),
    ],
)
def test_that_another_grid_in_the_same_folder_is_refused(fakes, words):
    said("--out", "grid", "--vary", "seed=0,1")
    with pytest.raises(StoreError, match="another grid"):
        said("--out", "grid", *words)


def test_that_a_grid_and_a_single_run_do_not_mix(fakes, here):
    said("--out", "grid", "--vary", "seed=0,1")
    with pytest.raises(StoreError, match="holds a grid"):
        said("--out", "grid")
    (here / "run").mkdir()
    (here / "run/experiment.json").write_text("{}")
    with pytest.raises(StoreError, match="holds a single run"):
        said("--out", "run", "--vary", "seed=0,1")


@pytest.mark.parametrize("words", [("--seed", "3"), ("--seed=3",)])
def test_that_an_argument_is_not_given_and_varied(fakes, words):
    with pytest.raises(InputError, match="seed is given and varied"):
        said("--vary", "seed=0,1", *words)
    with pytest.raises(InputError, match="guidance is given and varied"):
        said("--vary", "guidance=eks,enkg", "--guidance", "eks")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nodes 0", "--nodes is 0; expected at least 1"),
        ("--ranks-per-node -1", "--ranks-per-node is -1"),
        ("--cpus-per-rank 0", "--cpus-per-rank is 0"),
        ("--margin 0", "--margin is 0"),
        ("--time tomorrow", "'tomorrow' is no length of time"),
        ("--time 0:00:00", "'0:00:00' is no length of time"),
        ("--at-once 2", "--vary as well"),
        ("--mpi pmi2", "only one process"),
        ("--controller", "only one process"),
        ("--nodes 2 --mpi pmi2 --launcher mpiexec", "--launcher is mpiexec"),
        ("--sbatch --", "--sbatch is '--'"),
        ("--out a\\b", "backslash"),
        ("--out a\nb", "line end"),
        ("--partition a\nb", "line end"),
    ],
)
def test_that_what_no_job_can_have_is_refused(fakes, words, message):
    name, *rest = words.split(" ")
    with pytest.raises(InputError, match=message):
        said(*([f"{name}=--"] if name == "--sbatch" else [name, *rest]))
