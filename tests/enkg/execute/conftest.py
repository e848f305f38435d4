"""Fixtures for tests that start programs."""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from enkg.execute.process import Process
from enkg.execute.worker import WorkerDriver
from tests.enkg.execute.processes import living
from tests.enkg.execute.stub_programs import STUBS, compiled


def traces() -> tuple[int, set[str], set[int]]:
    """Open descriptors, named leftovers and descendants of this process."""
    ours = f"enkg-{os.getuid()}-{os.getpid()}-*"
    named = {str(p) for d in (tempfile.gettempdir(), "/dev/shm") for p in Path(d).glob(ours)}
    living = {p.pid for p in psutil.Process().children(recursive=True) if p.status() != "zombie"}
    return len(os.listdir("/dev/fd")), named, living


@pytest.fixture(scope="session")
def guard():
    """Starts the orphan guard, which stays."""
    with Process(["true"], cwd=Path("/"), env=dict(os.environ)) as process:
        process.wait(10)


@pytest.fixture
def nothing_left(guard, tmp_path):
    """Fails if the test leaves a process, a descriptor or a file behind."""
    before = traces()
    yield
    if traces() != before:
        gc.collect()  # the frames of an exception hold shared memory
    fds, named, living = traces()
    assert fds == before[0]
    assert named <= before[1]
    assert living <= before[2]
    detached = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]
    assert not detached


@pytest.fixture
def drive(nothing_left):
    """Makes worker drivers that are closed after the test, when nothing may be left of them."""
    drivers = []

    def make(*arguments, **options) -> WorkerDriver:
        drivers.append(WorkerDriver(*arguments, **options))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a source beside the stub of its language, once; returns the command."""
    made = {}

    def make(language: str, source: str | None = None, *options: str) -> tuple[str, ...]:
        key = (language, source, options)
        if key not in made:
            folder = tmp_path_factory.mktemp(language)
            for file in (STUBS / language).iterdir():
                if file.is_file():
                    shutil.copy(file, folder)
            made[key] = compiled(language, folder, source, options)
        return made[key]

    return make


@pytest.fixture
def mark(tmp_path):
    """The mark of one test's programs; nothing may be left of them."""
    yield tmp_path
    left = living(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def no_descriptor_left():
    before = len(os.listdir("/proc/self/fd"))
    yield
    # The guard's pipe may be new.
    assert len(os.listdir("/proc/self/fd")) <= before + 1
