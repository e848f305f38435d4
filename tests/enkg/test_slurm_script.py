"""The batch script: what it asks for, what it starts, and how it ends. Run here by bash alone."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from enkg.slurm_options import margin
from enkg.slurm_script import script
from tests.enkg.submitting import (
    LISTENING,
    NASTY,
    executed,
    header,
    line,
    make_fakes,
    make_project,
    parsed,
    standing_in,
)
from tests.slurm.fakes import Fakes


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


@pytest.fixture
def fakes(tmp_path):
    return make_fakes(tmp_path)


def test_the_whole_script_of_many_ranks(here):
    words = "--nodes 4 --ranks-per-node 8 --cpus-per-rank 2 --gpus-per-node 4 --time 4:00:00 "
    words += "--partition gpu --account me --qos high --memory 64G --mpi pmi2 --seed 3"
    text = script(*parsed(*words.split(), "--setup", "module load gcc", "--sbatch", "exclusive"))
    assert header(text) == [
        "--job-name=enkg-file",
        "--nodes=4",
        "--ntasks-per-node=8",
        f'--output="{str(here).replace("%", "%%")}/runs/file/job-%j.log"',
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
        *("--open-mode=append", "--output=${out//%/%%}/job-rank-%t.log", "${run[@]}", "</dev/null"),
    ]
    run = line(text, "run=")
    assert run[:3] == [f"run=({sys.executable}", "-m", "enkg"]
    assert run[3:] == ["run", f"{here}/file.py", "--seed", "3", "--out", "$out", "--resume)"]
    assert text.index("module load gcc") < text.index("srun")


def test_that_a_single_process_needs_no_launcher():
    text = script(*parsed())
    assert "srun" not in text
    assert "mpiexec" not in text
    assert line(text, '"${run')[-2:] == [">>$out/job-rank-0.log", "2>&1"]


def test_that_options_of_enkg_run_are_handed_on():
    words = ("--ranks-per-node", "9", "--mpi", "pmi2", "--controller", "--guidance", "eks")
    run = line(script(*parsed(*words, "--comm", "mpi", "--seed", "1")), "run=")
    assert run[5:] == [
        *("--guidance", "eks", "--comm", "mpi", "--controller", "--seed", "1"),
        *("--out", "$out", "--resume)"),
    ]


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
    code = executed(tmp_path, text)
    out = f"{here}/my runs/it's 1%"
    assert code == 0
    assert (tmp_path / "said.json").read_text() == json.dumps(
        ["run", f"{here}/file.py", *NASTY, "--out", out, "--resume"]
    )
    assert (Path(out) / "job-rank-0.log").exists()
    assert (Path(out) / "job.rc").read_text() == "0\n"
    assert not list(tmp_path.rglob("evil"))


def test_that_each_run_of_a_grid_gets_its_values(here, tmp_path):
    options, rest = parsed("--vary", "seed=0,1", "--vary", "range='0 1',-2 3", "--data", "a b")
    program = (sys.executable, str(here / "echo.py"))
    text = script(options, rest, [0, 3], program)
    assert "--array=0,3" in header(text)
    task = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    assert executed(tmp_path, text, **task) == 0
    assert json.loads((tmp_path / "said.json").read_text()) == [
        *("run", f"{here}/file.py", "--data", "a b", "--seed=1", "--range=-2", "3"),
        *("--out", f"{here}/runs/file/0003", "--resume"),
    ]
    task["SLURM_ARRAY_TASK_ID"] = "1"  # finished, so not submitted
    assert executed(tmp_path, text, **task) == 1


def test_that_a_run_that_is_not_finished_is_queued_again(tmp_path, fakes, here):
    text = standing_in(tmp_path, "import sys; sys.exit(75)", "--requeues", "2")
    assert executed(tmp_path, text) == 75
    assert executed(tmp_path, text, SLURM_RESTART_COUNT="1") == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]] * 2
    assert executed(tmp_path, text, SLURM_RESTART_COUNT="2") == 75
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
    assert executed(tmp_path, text) == code
    assert fakes.calls("scontrol") == []
    assert (here / "runs/file/job.rc").read_text() == f"{code}\n"
    assert ("last words" in capfd.readouterr().err) == (code != 0)


def test_that_the_run_is_told_that_its_time_is_nearly_up(tmp_path, fakes):
    text = standing_in(tmp_path, LISTENING)
    assert executed(tmp_path, text, signal.SIGUSR1) == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]]


def test_that_a_run_that_could_not_listen_yet_is_queued_again(tmp_path, fakes):
    deaf = LISTENING.replace("signal.signal", "(lambda *_: 0)")
    assert executed(tmp_path, standing_in(tmp_path, deaf), signal.SIGUSR1) == 75
    assert fakes.calls("scontrol") == [["requeue", "17"]]


def test_that_a_cancelled_job_is_not_queued_again(tmp_path, fakes):
    text = standing_in(tmp_path, LISTENING)
    assert executed(tmp_path, text, signal.SIGTERM) == 75
    assert fakes.calls("scontrol") == []


def test_that_the_code_survives_several_signals(tmp_path, fakes):
    slow = LISTENING.replace("sys.exit(75))", "None)", 1).replace("time.sleep(60)", "time.sleep(1)")
    text = standing_in(tmp_path, slow + "sys.exit(75)")
    signals = [signal.SIGUSR1] * 3
    assert executed(tmp_path, text, *signals) == 75


def test_that_the_margin_leaves_half_of_a_short_limit():
    assert margin(parsed("--time", "4:00:00")[0]) == 300
    assert margin(parsed("--time", "5:00")[0]) == 150
    assert margin(parsed("--margin", "60")[0]) == 60
