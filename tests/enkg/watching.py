"""Small runs that tell how they stand, held or ended where a test wants them."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import enkg
from enkg import beat, status, store
from enkg.beat import PROGRESS
from enkg.status import GridStatus, Status
from enkg.stop import Stopped
from tests.enkg.problems import small_problem

PROBLEM = small_problem()
MEMBERS, UPDATES = 16, 3
HERE = socket.gethostname()


def experiment(simulator: Any = PROBLEM.simulate, **changes: Any) -> enkg.Experiment:
    fields: dict[str, Any] = {
        "prior": PROBLEM.gaussian,
        "simulator": enkg.Function(simulator, chunk=4),
        "observation": PROBLEM.observation,
        "guidance": enkg.ESMDA(members=MEMBERS, updates=UPDATES),
        "double": True,
    }
    return enkg.Experiment(**(fields | changes))


def watched(what: enkg.Experiment, folder: Path, **options: Any) -> None:
    """A run that often says how it stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beat, "EVERY", 0.01)
        enkg.run(what, folder, **options)


class Gate:
    """A simulator that waits at its n-th call, of four members, until it is opened."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.calls == self.number:
            self.reached.set()
            assert self.opened.wait(120)
        return PROBLEM.simulate(x)


@contextmanager
def held(folder: Path, number: int) -> Iterator[Gate]:
    """A run that waits in its n-th call while the block looks at it, and then ends."""
    gate = Gate(number)
    thread = threading.Thread(target=watched, args=(experiment(gate), folder))
    thread.start()
    try:
        until(lambda: gate.reached.is_set() or not thread.is_alive())
        assert gate.reached.is_set(), "the run ended early"
        yield gate
    finally:
        gate.opened.set()
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that other threads or processes do."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def one(folder: Path) -> Status:
    found = status.read(folder)
    assert isinstance(found, Status)
    return found


def shown(what: Status | GridStatus) -> str:
    console = Console(file=StringIO(), width=160, color_system=None)
    status.show(what, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def change(folder: Path, **changes: Any) -> None:
    file = folder / PROGRESS
    store.write_json(file, json.loads(file.read_text()) | changes)


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def interrupted(folder: Path) -> Path:
    """The directory of a run that was stopped in its second sweep."""
    count = 0

    def simulator(x):
        nonlocal count
        count += 1
        if count == 6:
            raise Stopped("stopped by SIGTERM")
        return PROBLEM.simulate(x)

    with pytest.raises(Stopped):
        watched(experiment(simulator), folder)
    return folder


def place(folder: Path) -> tuple[int, int]:
    """The sweep, and how many of its members are done, as far as the run has said."""
    if not (folder / PROGRESS).exists():
        return 0, 0
    told = one(folder).told
    return told["sweep"], told["members_done"]
