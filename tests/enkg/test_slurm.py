"""enkg submit: what the script says, how it ends, and what becomes of a submission."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from enkg.errors import InputError, StoreError
from enkg.slurm import Submit, submit
from enkg.slurm_script import margin, script, seconds
from tests.slurm.cluster import until
from tests.slurm.fakes import Fakes

NASTY = ["--name", "two words", '--quote=it\'s "so"', "--evil", "; touch evil; $(touch evil) `x`"]
ECHO = """\
import json, os, sys
json.dump(sys.argv[1:], open(os.environ["SAID"], "w"))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A project in a folder with an awkward name, with nothing on the PATH but what must be."""
    project = tmp_path / "my 100% project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "file.py").write_text("")
    (project / "echo.py").write_text(ECHO)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("SAID", str(tmp_path / "said.json"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return project


@pytest.fixture
def fakes(tmp_path):
    """A SLURM that takes every job as number 17, and has none in its queue."""
    fakes = Fakes(tmp_path / "bin")
    fakes.make("sbatch", out="17\n")
    fakes.make("squeue", err="slurm_load_jobs error: Invalid job id specified", code=1)
    fakes.make("scontrol", code=1)  # else the script waits for SLURM to end it
    return fakes


def parsed(*words: str) -> tuple[Submit, list[str]]:
    return tyro.cli(Submit, args=["file.py", *words], return_unknown_args=True)


def said(*words: str) -> str:
    """What enkg submit prints."""
    console = Console(file=io.StringIO(), width=40)
    assert submit(*parsed(*words), console) == 0
    return console.file.getvalue()


def header(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]


def line(text: str, start: str) -> list[str]:
    """The words of the command that begins like this."""
    text = text.replace("\\\n", " ")
    found = next(line for line in text.splitlines() if line.startswith(start))
    return shlex.split(found.removesuffix("&"))


def executed(
    tmp_path: Path, text: str, signals: tuple[int, ...] = (), **environment: str
) -> subprocess.Popen:
    """The script at its end, run by bash as SLURM runs it; signals are sent once it is at work."""
    file = tmp_path / "script"
    file.write_text(text)
    env = {**os.environ, "SLURM_JOB_ID": "17", **environment}
    started = tmp_path / "started"
    process = subprocess.Popen(["bash", str(file)], env=env)
    for number in signals:
        until(started.exists, 30, lambda: "the run")
        process.send_signal(number)
    process.wait(30)
    return process


def standing_in(tmp_path: Path, source: str, *words: str) -> str:
    """A script whose run is a Python program."""
    program = tmp_path / "run.py"
    program.write_text(source.replace("STARTED", repr(str(tmp_path / "started"))))
    return script(*parsed(*words), program=(sys.executable, str(program)))


LISTENING = """\
import pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(STARTED).touch()
time.sleep(60)
"""


def test_the_whole_script_of_many_ranks(here):
    words = "--nodes 4 --ranks-per-node 8 --cpus-per-rank 2 --gpus-per-node 4 --time 4:00:00 "
    words += "--partition gpu --account me --qos high --memory 64G --mpi pmi2 --seed 3"
    text = script(*parsed(*words.split(), "--setup", "module load gcc", "--sbatch", "exclusive"))
    assert header(text) == [
        "--job-name=enkg-file",
        "--nodes=4",
        "--ntasks-per-node=8",
        f'--output="{str(here).replace("%", "%%")}/runs/file/slurm-%j.log"',
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--cpus-per-task=2",
        "--gpus-per-node=4",
        "--time=4:00:00",
        "--partition=gpu",
        "--account=me",
        "--qos=high",
        "--mem=64G",
        "--exclusive",
    ]
    assert line(text, "srun") == [
        *("srun", "--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=2"),
        *("--gpus-per-node=4", "--mpi=pmi2", "--kill-on-bad-exit=0", "--wait=20"),
        *("--open-mode=append", "--output=${out//%/%%}/log-rank-%t.txt", "${run[@]}", "</dev/null"),
    ]
    run = line(text, "run=")
    assert run[:3] == [f"run=({sys.executable}", "-m", "enkg"]
    assert run[3:] == ["run", f"{here}/file.py", "--seed", "3", "--out", "$out", "--resume)"]
    assert text.index("module load gcc") < text.index("srun")


def test_that_a_single_process_needs_no_launcher():
    text = script(*parsed())
    assert "srun" not in text
    assert "mpiexec" not in text
    assert line(text, '"${run')[-2:] == [">>$out/log-rank-0.txt", "2>&1"]


def test_that_one_process_for_all_nodes_takes_whole_nodes():
    text = script(*parsed("--nodes", "3", "--ranks-per-node", "0"))
    assert "--exclusive" in header(text)
    assert "srun" not in text
    some = script(*parsed("--nodes", "3", "--ranks-per-node", "0", "--cpus-per-rank", "16"))
    assert "--exclusive" not in header(some)
    assert "--cpus-per-task=16" in header(some)


@pytest.mark.parametrize(
    "words",
    [
        ("--ranks-per-node", "2", "--mpi", "pmi2"),
        ("--ranks-per-node", "2", "--launcher", "mpiexec"),
        ("--vary", "seed=0,1", "--vary", "name='a b;$(x)'", "--at-once", "1"),
        ("--job-name", 'a "b" c; #d', *NASTY),
    ],
)
def test_that_bash_and_shellcheck_find_no_mistake(tmp_path, words):
    file = tmp_path / "job.sh"
    options, rest = parsed(*words)
    file.write_text(script(options, rest, [0, 1] if options.vary else ()))
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck"):
        found = ["shellcheck", "--severity=warning", str(file)]
        assert subprocess.run(found, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.parametrize("launcher", ["alone", "mpiexec"])
def test_that_arguments_arrive_as_they_were_given(here, tmp_path, launcher, monkeypatch):
    Fakes(tmp_path / "bin").write("mpiexec", "os.execvp(sys.argv[3], sys.argv[3:])")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))  # no mpiexec beside it
    words = () if launcher == "alone" else ("--ranks-per-node", "2", "--launcher", "mpiexec")
    options, rest = parsed("--out", "my runs/it's 1%", *words, *NASTY)
    text = script(options, rest, program=(shutil.which("python3") or "", str(here / "echo.py")))
    process = executed(tmp_path, text)
    out = f"{here}/my runs/it's 1%"
    assert process.returncode == 0
    assert (tmp_path / "said.json").read_text() == json.dumps(
        ["run", f"{here}/file.py", *NASTY, "--out", out, "--resume"]
    )
    assert (Path(out) / "log-rank-0.txt").exists()
    assert (Path(out) / "job.rc").read_text() == "0\n"
    assert not list(tmp_path.rglob("evil"))


def test_that_each_run_of_a_grid_gets_its_values(here, tmp_path):
    options, rest = parsed("--vary", "seed=0,1", "--vary", "range='0 1',-2 3", "--data", "a b")
    program = (sys.executable, str(here / "echo.py"))
    text = script(options, rest, [0, 3], program)
    assert "--array=0,3" in header(text)
    task = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    assert executed(tmp_path, text, **task).returncode == 0
    assert json.loads((tmp_path / "said.json").read_text()) == [
        *("run", f"{here}/file.py", "--data", "a b", "--seed=1", "--range=-2", "3"),
        *("--out", f"{here}/runs/file/0003", "--resume"),
    ]
    task["SLURM_ARRAY_TASK_ID"] = "1"  # finished, so not submitted
    assert executed(tmp_path, text, **task).returncode == 1


def test_that_a_run_that_is_not_finished_is_queued_again(tmp_path, fakes, here):
    text = standing_in(tmp_path, "import sys; sys.exit(75)", "--requeues", "2")
    assert executed(tmp_path, text).returncode == 75
    assert executed(tmp_path, text, SLURM_RESTART_COUNT="1").returncode == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]] * 2
    assert executed(tmp_path, text, SLURM_RESTART_COUNT="2").returncode == 75
    assert len(fakes.calls("scontrol")) == 2
    assert (here / "runs/file/job.rc").read_text() == "75\n"


def test_that_a_task_of_an_array_is_queued_again_by_its_own_number(tmp_path, fakes):
    (tmp_path / "run.py").write_text("import sys; sys.exit(75)")
    program = (sys.executable, str(tmp_path / "run.py"))
    text = script(*parsed("--vary", "seed=0,1"), [0, 1], program)
    task = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "18"}
    executed(tmp_path, text, **task)
    assert fakes.calls("scontrol") == [["requeue", "17_1"]]


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_that_every_other_end_is_the_end(tmp_path, fakes, code, here, capfd):
    text = standing_in(tmp_path, f"import sys; print('last words'); sys.exit({code})")
    assert executed(tmp_path, text).returncode == code
    assert fakes.calls("scontrol") == []
    assert (here / "runs/file/job.rc").read_text() == f"{code}\n"
    assert ("last words" in capfd.readouterr().err) == (code != 0)


def test_that_the_run_is_told_that_its_time_is_nearly_up(tmp_path, fakes):
    text = standing_in(tmp_path, LISTENING)
    assert executed(tmp_path, text, (signal.SIGUSR1,)).returncode == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]]


def test_that_a_run_that_could_not_listen_yet_is_queued_again(tmp_path, fakes):
    deaf = LISTENING.replace("signal.signal", "(lambda *_: 0)")
    assert executed(tmp_path, standing_in(tmp_path, deaf), (signal.SIGUSR1,)).returncode == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]]


def test_that_a_cancelled_job_is_not_queued_again(tmp_path, fakes):
    text = standing_in(tmp_path, LISTENING)
    assert executed(tmp_path, text, (signal.SIGTERM,)).returncode == 75
    assert fakes.calls("scontrol") == []


def test_that_the_code_survives_several_signals(tmp_path, fakes):
    slow = LISTENING.replace("sys.exit(75))", "None)", 1).replace("time.sleep(60)", "time.sleep(1)")
    text = standing_in(tmp_path, slow + "sys.exit(75)")
    signals = (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR1)
    assert executed(tmp_path, text, signals).returncode == 75


def test_that_a_submission_is_told_and_can_be_followed(fakes, here):
    text = said("--nodes", "2", "--ranks-per-node", "4", "--mpi", "none", "--time", "10")
    folder = here / "runs/file"
    assert fakes.calls("sbatch") == [["--parsable", str(folder / "job.sh")]]
    assert os.access(folder / "job.sh", os.X_OK)
    assert (folder / "job.id").read_text() == "17\n"
    for part in ("job 17", "2 nodes and 8 ranks", "enkg status runs/file\n", "squeue -j 17\n"):
        assert part in text
    for part in ("runs/file/slurm-17.log", "runs/file/log-rank-R.txt", "scancel 17\n"):
        assert part in text


def test_that_a_dry_run_prints_the_script_and_does_nothing_else(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    options, rest = parsed("--dry-run", "--seed", ":smile: [bold]x[/]")
    console = Console(file=io.StringIO(), width=20)
    assert submit(options, rest, console) == 0
    assert console.file.getvalue() == script(options, rest)
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
        ("--time tomorrow", "--time is 'tomorrow'"),
        ("--time 0:00:00", "no time at all"),
        ("--at-once 2", "--vary as well"),
        ("--mpi pmi2", "only one process"),
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


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("4:00:00", 14400),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-0:0:1", 86401),
    ],
)
def test_that_time_is_read_as_slurm_reads_it(time, expected):
    assert seconds(time) == expected


def test_that_the_margin_leaves_half_of_a_short_limit():
    assert margin(parsed("--time", "4:00:00")[0]) == 300
    assert margin(parsed("--time", "5:00")[0]) == 150
    assert margin(parsed("--margin", "60")[0]) == 60
