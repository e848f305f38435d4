"""A SLURM to which tests submit real jobs, and what they ask of it."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

STARTER = Path(__file__).parent / "single-node"
HOME = Path(tempfile.gettempdir()) / f"enkg-slurm-tests-{os.getuid()}"
CONFIGURATION = HOME / "slurm.conf"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


def ready() -> bool:
    """Whether there is a SLURM whose one node is this machine, in working order."""
    if not any(process.info["name"] == "slurmd" for process in psutil.process_iter(["name"])):
        return False  # sinfo would wait for it
    try:
        lines = ask("sinfo", "--noheader", "--Node", "--format=%n %t").splitlines()
    except (OSError, subprocess.SubprocessError):
        return False
    name, _, state = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
    return name == socket.gethostname().split(".")[0] and state in ("idle", "mix", "alloc")


@contextmanager
def lent() -> Iterator[None]:
    """A SLURM that runs here; one of our own is started if there is none, and stopped at the end.

    Several processes may ask: the first starts it, the last stops it.
    """
    if not shutil.which("sbatch"):
        pytest.skip("needs SLURM; on Debian, as root: make tools")
    HOME.mkdir(mode=0o700, exist_ok=True)
    users = os.open(HOME / "users", os.O_RDWR | os.O_CREAT, 0o600)
    before = os.environ.get("SLURM_CONF")
    try:
        with alone():
            if not ready():
                start()
            fcntl.flock(users, fcntl.LOCK_SH)
        yield
    finally:
        with alone():
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                subprocess.run([STARTER, "stop", HOME], check=False, capture_output=True)
            except BlockingIOError:  # others are at it
                pass
            os.close(users)
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before


def start() -> None:
    os.environ["SLURM_CONF"] = str(CONFIGURATION)
    if CONFIGURATION.exists() and ready():
        return
    for name in ("slurmctld", "slurmd", "munged"):
        if not shutil.which(name):
            pytest.skip(f"no SLURM runs here, and there is no {name} to start one: make tools")
    if os.getuid() != 0:
        pytest.skip("no SLURM runs here, and only root can start one")
    done = subprocess.run([STARTER, "start", HOME], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        subprocess.run([STARTER, "stop", HOME], check=False, capture_output=True)
        pytest.skip(f"SLURM does not start here: {done.stderr.strip()}")


@contextmanager
def alone() -> Iterator[None]:
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Job:
    """One job, or one task of an array, by its number."""

    def __init__(self, number: str) -> None:
        self.number = number

    def facts(self) -> dict[str, str]:
        text = ask("scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self) -> str:
        return self.facts()["JobState"]

    def wait(self, limit: float = 120) -> dict[str, str]:
        """Until the job is over; a job that is queued again starts some 6 s later."""
        queued: list[float] = []

        def over() -> bool:
            facts = self.facts()
            if facts["JobState"] == "PENDING" and facts["Restarts"] != "0":
                queued.append(time.monotonic())
                if queued[-1] > queued[0] + 6:  # a SLURM that is not ours
                    words = ["scontrol", "update", f"JobId={self.number}", "StartTime=now"]
                    subprocess.run(words, check=False, capture_output=True)
            return facts["JobState"] in OVER

        until(over, limit, lambda: f"job {self.number}: {self.facts()}")
        return self.facts()


def until(true: Callable[[], object], limit: float, about: Callable[[], str]) -> None:
    """Looks again and again; fails the test after `limit` seconds."""
    end = time.monotonic() + limit
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"still waiting after {limit:g} s: {about()}")
        time.sleep(0.2)
