"""A project from which jobs are submitted, and a SLURM that is none."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import tyro
from rich.console import Console

from enkg.slurm import Submit, submit
from enkg.slurm_script import script
from tests.slurm.cluster import until
from tests.slurm.fakes import Fakes

NASTY = ["--name", "two words", '--quote=it\'s "so"', "--evil", "; touch evil; $(touch evil) `x`"]
ECHO = """\
import json, os, sys
json.dump(sys.argv[1:], open(os.environ["SAID"], "w"))
"""
LISTENING = """\
import pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(STARTED).touch()
time.sleep(60)
"""


def make_project(tmp_path: Path, monkeypatch) -> Path:
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


def make_fakes(tmp_path: Path) -> Fakes:
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
    file = io.StringIO()
    assert submit(*parsed(*words), Console(file=file, width=20)) == 0
    return file.getvalue()


def header(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]


def line(text: str, start: str) -> list[str]:
    """The words of the command that begins like this."""
    text = text.replace("\\\n", " ")
    found = next(line for line in text.splitlines() if line.startswith(start))
    return shlex.split(found.removesuffix("&"))


def executed(tmp_path: Path, text: str, *signals: int, **environment: str) -> int:
    """The script's exit code; bash runs it as SLURM does, and signals come once it is at work."""
    file = tmp_path / "script"
    file.write_text(text)
    env = {**os.environ, "SLURM_JOB_ID": "17", **environment}
    started = tmp_path / "started"
    process = subprocess.Popen(["bash", str(file)], env=env)
    for number in signals:
        until(started.exists, 30, lambda: "the run")
        process.send_signal(number)
    return process.wait(30)


def standing_in(tmp_path: Path, source: str, *words: str) -> str:
    """A script whose run is a Python program."""
    program = tmp_path / "run.py"
    program.write_text(source.replace("STARTED", repr(str(tmp_path / "started"))))
    return script(*parsed(*words), program=(sys.executable, str(program)))
