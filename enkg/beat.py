"""The sign of life of a run: progress.json in its directory, for `enkg status`.

A thread of its own writes the file, so that a slow disk holds up no simulator call, and so that a
run whose calls take hours still says that it lives.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from enkg import store
from enkg.comm import ALONE, Comm
from enkg.errors import StoreError
from enkg.experiment import Experiment
from enkg.guidance import Info

log = logging.getLogger("enkg")

PROGRESS = "progress.json"
FORMAT = 1
EVERY = 2.0
"""Seconds from one write to the next, where there is news."""
QUIET = 20.0
"""Seconds from one write to the next, where there is none."""
PATIENCE = 5.0
"""Seconds that the end of a run waits for a write that hangs."""


class State(StrEnum):
    """How a run stands. A run itself writes the first three; the rest is what others find."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"
    KILLED = "killed"
    SILENT = "silent"
    MISSING = "missing"
    BROKEN = "unreadable"


class Observer(Protocol):
    """Sees a run and never steers it."""

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None: ...

    def stepped(self, info: Info, row: Mapping[str, float]) -> None: ...

    def ended(self) -> None: ...


class Silent:
    """Watches nothing."""

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None: ...

    def stepped(self, info: Info, row: Mapping[str, float]) -> None: ...

    def ended(self) -> None: ...


class Counts(Protocol):
    """What a run has spent so far (`enkg.forward.Count`)."""

    @property
    def batches(self) -> int: ...

    @property
    def calls(self) -> int: ...

    @property
    def failed(self) -> int: ...

    @property
    def causes(self) -> Mapping[str, int]: ...


class Beat:
    """Writes progress.json, and passes on all that it sees (an `Observer` around another).

    folder: the run directory; None writes nothing, and no rank but the first does. A disk that
    refuses is reported once in the log and tried again; it never ends the run.

    Cost: one small file every `EVERY` seconds at most, written by a thread of its own.
    """

    def __init__(
        self,
        folder: Path | None,
        inner: Observer | None = None,
        comm: Comm = ALONE,
        *,
        every: float | None = None,
    ) -> None:
        self.file = folder / PROGRESS if folder is not None and comm.rank == 0 else None
        self.inner: Observer = inner or Silent()
        self.ranks, self.every = comm.size, EVERY if every is None else every
        self.counts: Counts | None = None
        """Set it to have failures told by cause, and the sweeps of a resumed run exactly."""
        self._facts: dict[str, Any] = {}  # replaced as a whole: the thread reads it
        self._doing = "starting"
        self._done = self._total = 0  # members of the sweep now simulated
        self._swept = self._within = 0  # sweeps up to the last step, and whole ones since
        self._share = self._shown = self._from = 0.0
        self._spent = 0.0  # seconds of the run at `_since`
        self._begin = self._since = self._at = time.monotonic()
        self._news = self._warned = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, resumed: bool = False) -> None:
        """The first sign of life, at once. resumed: go on from the numbers already in the file."""
        if self.file is None:
            return
        self._facts = {"started": _now()}
        if resumed:
            with suppress(StoreError, FileNotFoundError):
                before = load(self.file)
                self._facts = {k: before[k] for k in _KEPT if k in before}
                self._swept = before["sweep"] - bool(before["members_total"])
                self._share = self._shown = self._from = before["share"]
                self._spent = before["seconds"]
        self._begin = self._since = self._at = time.monotonic()
        self._write(State.RUNNING)
        self._thread = threading.Thread(target=self._loop, name="beat", daemon=True)
        self._thread.start()

    def started(self, experiment: Experiment, sweeps: int) -> None:
        method = experiment.guidance
        self._facts = self._facts | {
            "method": type(method).__name__,
            "members": method.members,
            "sweeps": sweeps,
        }
        self._doing = ""
        self._news = True
        self.inner.started(experiment, sweeps)

    def simulating(self, done: int, total: int) -> None:
        if done < self._done or (self._total and self._done == self._total):  # the next sweep
            self._within += 1
            self._count()
        self._done, self._total = done, total
        self._at = time.monotonic()
        self._news = True
        self.inner.simulating(done, total)

    def stepped(self, info: Info, row: Mapping[str, float]) -> None:
        self._share = max(self._share, info.progress)
        self._swept += len(info.evaluated)
        if self.counts is not None:
            self._swept = self.counts.batches
        self._within = self._done = self._total = 0
        self._spent, self._since = row["seconds"], time.monotonic()
        self._at = self._since
        seen = {"beta": info.beta, "sigma": info.sigma}
        seen |= {k: row[k] for k in ("misfit_per_datum", "spread") if isfinite(row[k])}
        calls = {k: int(row[k]) for k in ("calls", "failed", "low_calls") if k in row}
        self._facts = self._facts | seen | calls | {"step": info.step + 1}
        self._count()
        if self._share >= 1:
            self._doing = "simulating the data of the posterior"
        self._news = True
        self.inner.stepped(info, row)

    def ended(self) -> None:
        self._doing = "writing the results"
        self._news = True
        self.inner.ended()

    def end(self, state: State, reason: str = "") -> None:
        """The last sign of life: FINISHED takes the file away, since summary.json says more."""
        if self.file is None or self._thread is None:
            return
        self._wake.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():  # the disk hangs: another write would hang as well
            return
        self._thread = None
        if state is State.FINISHED:
            for file in (self.file, self.file.with_name(PROGRESS + ".partial")):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            return
        self._doing = ""
        self._count()
        self._write(state, reason)

    def _count(self) -> None:
        if self.counts is not None:
            found = {"calls": self.counts.calls, "failed": self.counts.failed}
            self._facts = self._facts | found | {"causes": dict(self.counts.causes)}

    def _loop(self) -> None:
        written = time.monotonic()
        while not self._wake.wait(self.every):
            if self._news or time.monotonic() - written > QUIET:
                self._news = False
                self._write(State.RUNNING)
                written = time.monotonic()

    def _write(self, state: State, reason: str = "") -> None:
        assert self.file is not None
        try:
            store.write_json(self.file, self._told(state, reason))
        except OSError as error:
            if not self._warned:
                log.warning("cannot write %s, so enkg status knows little: %s", PROGRESS, error)
            self._warned = True

    def _told(self, state: State, reason: str) -> dict[str, Any]:
        now = time.monotonic()
        done, total = self._done, self._total
        sweeps = self._facts.get("sweeps", 0)
        if sweeps and total:
            self._shown = max(self._shown, self._share + (self._within + done / total) / sweeps)
        self._shown = min(1.0, max(self._shown, self._share))
        gained, left = self._shown - self._from, None
        if gained > 0 and state is State.RUNNING:
            left = max(0.0, (self._at - self._begin) * (1 - self._shown) / gained - now + self._at)
        return {
            "format": FORMAT,
            "state": str(state),
            "reason": reason,
            "doing": self._doing,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "ranks": self.ranks,
            "updated": _now(),
            **_NOTHING,
            **self._facts,
            "sweep": self._swept + self._within + bool(total),
            "members_done": done,
            "members_total": total,
            "share": self._shown,
            "seconds": self._spent + now - self._since,
            "seconds_left": left,
        }


_NOTHING = {"method": "", "members": 0, "step": 0, "sweeps": 0, "calls": 0, "failed": 0} | {
    "low_calls": 0,
    "causes": {},
    "misfit_per_datum": None,
    "beta": None,
    "sigma": None,
    "spread": None,
}
_KEPT = (*_NOTHING, "started")
_REAL = int | float
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("state", "reason", "doing", "host", "started", "updated", "method"), str),
    **dict.fromkeys(("pid", "ranks", "members", "step", "sweep", "sweeps", "calls", "failed"), int),
    **dict.fromkeys(("members_done", "members_total", "low_calls"), int),
    **dict.fromkeys(("share", "seconds"), _REAL),
    **dict.fromkeys(("misfit_per_datum", "beta", "sigma", "spread"), _REAL | None),
    "seconds_left": _REAL | None,
    "causes": dict,
}
_ADVICE = "remove the file, log.txt beside it tells how far the run came"


def load(file: Path) -> dict[str, Any]:
    """What a run last said of itself.

    Raises FileNotFoundError where it said nothing, StoreError where the file is no progress.json of
    this version of enkg.
    """
    try:
        told = json.loads(file.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}; {_ADVICE}") from error
    if not isinstance(told, dict):
        raise StoreError(f"{file} holds a {type(told).__name__}, not an object; {_ADVICE}")
    told.setdefault("low_calls", 0)  # version 0.3 did not write it
    if told.get("format") != FORMAT:
        raise StoreError(
            f"{file} has format {told.get('format')!r}, and this enkg reads format {FORMAT}; look "
            "at the run with the version of enkg that runs it"
        )
    wrong = [key for key, kind in _KINDS.items() if not isinstance(told.get(key, ...), kind)]
    try:
        State(told["state"])
        datetime.fromisoformat(told["updated"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        wrong.append("state or updated")
    if wrong:
        raise StoreError(
            f"{file} was not written by a run of enkg: {', '.join(wrong)} missing or of the wrong "
            f"kind; {_ADVICE}"
        )
    return told


def clock(seconds: float) -> str:
    """
    >>> clock(250), clock(3725)
    ('4:10', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
