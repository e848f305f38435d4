"""Drivers of the rogue worker, for tests."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from enkg.execute.manifest import Manifest, Port, Worker
from enkg.execute.slots import Job
from enkg.execute.worker import WorkerDriver
from enkg.failure import MemberFailed
from tests.enkg.execute.rogue import MODES

ROGUE = Path(__file__).with_name("rogue.py")
JOB = Job(0, 3, 0)
N = 1000


def manifest(tmp_path: Path, start="", *, n=N, startup=20.0, batch=1, **changes) -> Manifest:
    """Of the rogue worker; start: how it starts. It notes each start in the file `started`."""
    command = (sys.executable, "-I", "-S", str(ROGUE), start, str(tmp_path / "started"))
    worker = Worker(command, startup=startup, batch=batch)
    plain = Manifest("rogue", Port((n,)), Port((n,)), worker=worker, grace=0.2, folder=tmp_path)
    return dataclasses.replace(plain, **changes)


def member(mode: str, n: int = N, rows: int = 1) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(rows, n))
    x[0, 0] = MODES.index(mode)
    return x


def starts(tmp_path) -> int:
    return len((tmp_path / "started").read_text().split())


def failure(driver: WorkerDriver, mode: str, timeout: float = 10.0, n: int = N):
    with pytest.raises(MemberFailed) as caught:
        driver.call(member(mode, n), JOB, timeout)
    return caught.value.failure
