"""Lives of a run that is killed: its experiment, its processes, and what must be the same after.

The simulator appends a line to `notes` when an evaluation begins and one when it ends, with a
digest of its input; so every evaluation of every life is counted where it happens.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import enkg
from tests.enkg import mortal
from tests.enkg.execute.processes import MARK, become, living
from tests.enkg.ranks import ROOT, launcher

PATIENCE = 120.0
"""Seconds for a life on a busy machine."""
LINE = 32
"""Bytes of a note."""


@dataclass(frozen=True)
class Note:
    """What the simulator noted of which member, in which process: `begun`, `ended`, `wrong`."""

    what: str
    member: str
    pid: int


def notes(project: Path) -> list[Note]:
    """All notes, of all lives."""
    file = project / "notes"
    words = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Note(what, member, int(pid)) for what, member, pid in words]


def begun(project: Path) -> Counter[str]:
    """How often each member was begun."""
    return Counter(note.member for note in notes(project) if note.what == "begun")


def running(told: list[Note]) -> Counter[str]:
    """What each process had in hand when it ended: the last member that it began."""
    last = {note.pid: note.member for note in told if note.what == "begun"}
    return Counter(last.values())


def repeated(project: Path, reference: Path) -> Counter[str]:
    """What was begun more often than in the run that nobody disturbed."""
    return begun(project) - begun(reference)


# --- processes -------------------------------------------------------------------------------


class Nursery:
    """A process that has imported enkg, and whose children run `enkg` on from there."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.enkg.nursery"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **words: object) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@dataclass
class Life:
    """One `enkg run` or `enkg resume`, alone or under a launcher."""

    project: Path
    pid: int
    poll: Callable[[], int | None]
    mark: str
    output: Path
    first: int
    """Number of notes before it."""
    last: int | None = None
    """Number of notes at its end."""

    @property
    def alive(self) -> bool:
        return self.poll() is None

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.read_text()

    @property
    def notes(self) -> list[Note]:
        return notes(self.project)[self.first : self.last]

    def wait(self) -> int:
        """The exit code; nothing of it is left running then."""
        assert become(lambda: not self.alive, PATIENCE), f"it does not end\n{self.text}"
        assert become(lambda: not living(self.mark), 20), f"left: {words(living(self.mark))}"
        code = self.poll()
        assert code is not None
        self.last = len(notes(self.project))
        return code

    def signal(self, number: int) -> None:
        """To the process that was started."""
        os.kill(self.pid, number)

    def until(self, event: Callable[[], bool]) -> bool:
        """Waits for an event; whether it came before the end of this life."""
        end = time.monotonic() + PATIENCE
        while not event():
            if not self.alive:
                return event()
            assert time.monotonic() < end, f"it never came\n{self.text}"
            time.sleep(0.001)
        return True

    def until_noted(self, count: int) -> bool:
        """Waits until there are so many notes of this life."""
        size = LINE * (self.first + count)
        file = self.project / "notes"
        return self.until(lambda: file.exists() and file.stat().st_size >= size)

    def rank(self, number: int) -> int | None:
        """The process of a rank; None while it has not started."""
        return self._named(b"-m\0enkg\0", f"PMI_RANK={number}".encode())

    def worker(self) -> int | None:
        """The program that stays up."""
        return self._named(rb"python[0-9.]*\0.*worker[.]py", b"ENKG_RANKS=1")

    def _named(self, command: bytes, variable: bytes) -> int | None:
        for pid in living(self.mark):
            try:
                line = Path("/proc", str(pid), "cmdline").read_bytes()
                set_ = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if variable in set_ and re.search(command, line):
                return pid
        return None


def words(pids: list[int]) -> list[str]:
    """Command lines, for a message."""
    found = []
    for pid in pids:
        try:
            found.append(Path("/proc", str(pid), "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


class Project:
    """A folder with the experiment, in which a run lives and dies.

    arguments: of `enkg run`. fails: what the members of the program do (see `mortal.MODEL`).
    """

    def __init__(
        self, folder: Path, nursery: Nursery, *arguments: str, fails: str = "never"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.nursery, self.arguments = folder, nursery, arguments
        self.out = folder / "out"
        self.lives = 0
        mortal.write(folder, fails)

    def run(self, *more: str, **how: Any) -> Life:
        """`enkg run` with this project's arguments; how: see `start`."""
        return self.start("run", "experiment.py", "--out", "out", *self.arguments, *more, **how)

    def resume(self, *more: str, **how: Any) -> Life:
        return self.start("resume", "out", *more, **how)

    def start(self, *given: str, ranks: int = 0, **variables: str) -> Life:
        """ranks: 0 for a child of the nursery, 1 for a new process, else under mpiexec."""
        self.lives += 1
        mark, output = f"{self.folder}-{self.lives}", self.folder / f"said-{self.lives}.txt"
        first = len(notes(self.folder))
        variables[MARK] = mark
        if ranks == 0:
            asked = {"argv": given, "cwd": str(self.folder), "env": variables, "out": str(output)}
            pid = self.nursery.ask(**asked)
            assert pid is not None
            return Life(self.folder, pid, _poll(self.nursery, pid), mark, output, first)
        mpich = launcher("mpich")
        argv = [sys.executable, "-m", "enkg", *given]
        with output.open("w") as file:
            process = subprocess.Popen(
                argv if ranks == 1 else mpich.argv(ranks, *argv[1:]),
                env=mpich.environment(**variables),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Life(self.folder, process.pid, process.poll, mark, output, first)

    def change(self, before: str, after: str, file: str = "experiment.py") -> None:
        """Changes the text of a file."""
        text = (self.folder / file).read_text()
        assert before in text
        (self.folder / file).write_text(text.replace(before, after))

    def go_on(self, *more: str, **how: Any) -> Life:
        """`enkg resume`, or `enkg run` where the run died before it had left a trace."""
        if (self.out / "experiment.json").exists():
            return self.resume(*more, **how)
        refused = self.resume()
        assert refused.wait() == 1
        assert "is not a run directory" in refused.text
        return self.run(*more, **how)


def _poll(nursery: Nursery, pid: int) -> Callable[[], int | None]:
    codes: list[int] = []

    def poll() -> int | None:
        if not codes and (code := nursery.ask(wait=pid)) is not None:
            codes.append(code)
        return codes[0] if codes else None

    return poll


# --- what must be the same -------------------------------------------------------------------

TIMES = ("seconds", "simulator_seconds")


def assert_same(one: Path, two: Path, calls: bool = True) -> None:
    """Two finished runs have the same bits in all arrays, and the same numbers, but for times.

    calls: also the same number of simulator calls.
    """
    free = TIMES if calls else (*TIMES, "calls")
    a, b = enkg.open(one).load(), enkg.open(two).load()
    assert set(a.children) == set(b.children)
    for group in a.children:
        first, second = (tree[group].to_dataset() for tree in (a, b))
        assert set(first.variables) == set(second.variables)
        for name in set(first.variables) - set(free):
            assert _bits(first[name]) == _bits(second[name]), f"{group}/{name} differs"
    ours, theirs = enkg.summary(one), enkg.summary(two)
    assert {k: v for k, v in ours.items() if k not in free} == {
        k: v for k, v in theirs.items() if k not in free
    }


def _bits(array: xr.DataArray) -> tuple[object, ...]:
    values = np.ascontiguousarray(array.values)
    return values.dtype.str, values.shape, values.tobytes()


def assert_clean(out: Path, figures: bool) -> None:
    """Nothing is left of what an unfinished run keeps, and nothing is missing."""
    left = {path.name for path in out.iterdir()}
    assert not left & {"checkpoint", "first", "answers", "progress.json", ".lock"}
    assert not [name for name in left if name.endswith(".partial")]
    assert (out / "figures" / "trace.png").exists() == figures


# --- what most tests do ----------------------------------------------------------------------

LATE = 150
"""Notes at which a run is killed: in the third sweep."""


def code(life: Life) -> int:
    """Of its end. What it printed is in the report of a test that fails."""
    found = life.wait()
    print(life.text)
    return found


def undisturbed(folder: Path, nursery: Nursery, *arguments: str, fails: str = "never") -> Project:
    """A run to compare with."""
    project = Project(folder, nursery, *arguments, fails=fails)
    life = project.run()
    assert code(life) == 0
    assert len(life.notes) > LATE
    return project


def cut_off(project: Project, ranks: int = 0, noted: int = LATE) -> Life:
    """A life that is killed after so many notes."""
    life = project.run(ranks=ranks)
    assert life.until_noted(noted), life.text
    life.signal(signal.SIGKILL)
    life.wait()
    return life


def assert_goes_on(project: Project, reference: Project, *lives: Life, **how: Any) -> None:
    """Resumed, it ends as the reference did, and repeats only what was in hand."""
    assert code(project.resume(**how)) == 0
    assert_same(project.out, reference.out)
    assert_clean(project.out, figures=False)
    lost = sum((running(life.notes) for life in lives), start=Counter())
    again = repeated(project.folder, reference.folder)
    assert again <= lost, (again, lost)
