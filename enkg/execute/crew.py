"""Controller mode: rank 0 of an MPI world guides, and the other ranks, its crew, simulate.

Rank 0 hands out one call at a time to whichever rank is free, so a slow member holds nobody up.
It counts, judges, repeats and cuts; the ranks only call. Every letter names its call by a number.
"""

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.crew_rank import About, serve
from enkg.execute.identity import identity_of
from enkg.execute.mail import Kind, Letter, Mail
from enkg.execute.slots import Job, Slots
from enkg.failure import Cause, FailurePolicy, MemberFailed
from enkg.simulator import Evaluator

__all__ = ["Crew", "serve"]

GLANCE = 0.1
"""Seconds between two looks at what sends no word: a signal, a time that is over."""
FAREWELL = 5.0
"""Seconds that ranks get to end which may be inside a call that cannot be ended."""

log = logging.getLogger("enkg")


@dataclass(frozen=True)
class Crew:
    """The simulator, for rank 0: its members are simulated by the other ranks.

    comm: an mpi4py communicator of all ranks, such as COMM_WORLD. While this is open, every other
    rank must be in `serve`, with the same communicator, simulator and policy. simulator: the
    user's; it is not called here. For a cache, put the crew into it:
    `Cached(Crew(comm, simulator), directory)`.

    A call takes as many members as one call of the simulator's own: one, the batch of a worker, or
    the chunk of a function that has one. Where an adapter can end a call, a time limit and a
    straggler cut end it on its rank; a function goes on, and its rank takes no other call until it
    returns. A simulator that is unusable on a rank raises the same InputError here. A rank that
    dies takes the MPI job with it.

    Costs two messages a call, which hold the numbers, beside the simulator's adapter.
    """

    comm: Any
    simulator: Any
    stuck: list[int] = field(default_factory=list, init=False, compare=False)
    """Ranks that have not ended with the crew: all as long as it was not opened and closed, then
    those whose function has not returned. MPI would wait for them for ever: end the job by an abort
    once everything is written."""

    def __post_init__(self) -> None:
        self.stuck[:] = range(1, self.comm.size)

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """The crew at work; `serve` returns on the other ranks when this ends.

        folder: not used here; the ranks keep the files of failed members.
        """
        if self.comm.size < 2:
            raise InputError(
                "controller mode needs at least two ranks, one to guide and one to simulate; MPI "
                "counts one. Start it with mpiexec -n 2 or more"
            )
        with _Bridge(self.comm) as bridge:
            try:
                about = bridge.await_ready()
                slots = Slots(
                    [CrewDriver(bridge) for _ in range(bridge.count)],
                    policy,
                    batch=about.batch,
                    minimum=about.minimum,
                    maximum=about.maximum,
                )
                try:
                    yield slots
                finally:
                    slots.close()
            finally:
                self.stuck[:] = bridge.dismiss()

    def identity(self) -> str:
        """What the answers depend on; for the cache."""
        return identity_of(self.simulator)


@dataclass(eq=False)
class _Call:
    """A call on its way, from the moment a driver wants it."""

    news: threading.Event = field(default_factory=threading.Event)
    since: float | None = None
    letter: Letter | None = None
    cut: bool = False
    given_up: bool = False


class CrewDriver:
    """See `enkg.execute.slots.Driver`. It takes whichever rank is free."""

    def __init__(self, bridge: "_Bridge") -> None:
        self._bridge = bridge
        self._call: _Call | None = None

    @property
    def since(self) -> float | None:
        call = self._call
        return None if call is None else call.since

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        call = self._call = _Call()
        try:
            return self._bridge.call(call, x, job, timeout)
        finally:
            self._call = None

    def interrupt(self) -> None:
        call = self._call
        if call is not None:
            self._bridge.cut(call)

    def close(self) -> None: ...


class _Bridge:
    """The crew as rank 0 sees it. Everything shared is touched under `news`."""

    def __init__(self, comm: Any) -> None:
        self.count = comm.size - 1
        self.news = threading.Condition()
        self._mail = Mail(comm, self._receive, self._broke)
        self._about: dict[int, About] = {}
        self._free: deque[int] = deque()
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._gone: set[int] = set()
        self._shape: tuple[int, tuple[int, ...]] = (-1, ())
        self._error: Exception | None = None
        self._deaf = False  # MPI itself has failed
        self._timed = False  # the ranks keep the time limit

    def __enter__(self) -> "_Bridge":
        self._mail.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._mail.__exit__(*details)

    def await_ready(self) -> About:
        """What all ranks say about the simulator. Raises InputError if one cannot open it."""
        with self.news:
            while len(self._about) < self.count:
                if self._error is not None:
                    raise self._error
                self.news.wait(GLANCE)
            about = self._about[1]
            for rank, other in self._about.items():
                if other != about:
                    raise InputError(
                        f"rank {rank} has another simulator than rank 1: {other}, not {about}. "
                        "Every rank must be given the same experiment"
                    )
            self._timed = about.timed
            return about

    def call(self, call: _Call, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        """One call, as for a driver."""
        limit = None if self._timed else timeout
        rank, number = self._taken(call, limit)
        x = np.ascontiguousarray(x)
        if not self._about[rank].starting:
            call.since = time.monotonic()
        self._mail.send(rank, Letter(Kind.CALL, number, job, array=x))
        if not call.news.wait(limit):
            self._give_up(call, rank, number)
            raise MemberFailed(
                Cause.TIMEOUT,
                f"ran longer than {limit:g} s; a function cannot be ended, so it keeps rank {rank} "
                "until it returns",
            )
        if self._error is not None:
            raise self._error
        letter = call.letter
        if letter is None:
            self._give_up(call, rank, number)
            raise MemberFailed(Cause.CUT, "ended on request")
        return self._read(letter, rank, job)

    def cut(self, call: _Call) -> None:
        """Ends a call that somebody waits for."""
        with self.news:
            call.cut = True
            call.news.set()
            self.news.notify_all()

    def dismiss(self) -> list[int]:
        """Ends the crew; the ranks that do not end."""
        for rank in range(1, self.count + 1):
            self._mail.send(rank, Letter(Kind.END))
        late = time.monotonic() + FAREWELL
        with self.news:
            while len(self._gone) < self.count and not self._deaf:
                if time.monotonic() > late and not self._timed:
                    break
                self.news.wait(GLANCE)
        stuck = [rank for rank in range(1, self.count + 1) if rank not in self._gone]
        if stuck:
            log.warning("still inside a call that cannot be ended: ranks %s", stuck)
        return stuck

    def _taken(self, call: _Call, limit: float | None) -> tuple[int, int]:
        """A free rank, taken for this call, and the call's number."""
        begin = time.monotonic()
        with self.news:
            while not self._free:
                if self._error is not None:
                    raise self._error
                if call.cut:
                    raise MemberFailed(Cause.CUT, "ended on request")
                lost = all(other.given_up for other in self._calls.values())
                if limit is not None and lost and time.monotonic() - begin > limit:
                    raise MemberFailed(
                        Cause.LOST,
                        "all ranks are inside calls that were given up, and cannot be ended",
                    )
                self.news.wait(GLANCE if limit is not None else None)
            number = next(self._numbers)
            self._calls[number] = call
            return self._free.popleft(), number

    def _give_up(self, call: _Call, rank: int, number: int) -> None:
        """Nobody waits for it any more. Its rank is free once it answers."""
        with self.news:
            call.given_up = True
        self._mail.send(rank, Letter(Kind.STOP, number))

    def _read(self, letter: Letter, rank: int, job: Job) -> ndarray:
        if letter.kind is Kind.FAILED:
            cause, detail, kept = json.loads(letter.words)
            raise MemberFailed(Cause(cause), detail, Path(kept) if kept else None)
        y = letter.array
        if y is None:
            raise _error(letter, rank)
        with self.news:
            batch, shape = self._shape
            if batch != job.batch:
                shape = y.shape[1:]
                self._shape = job.batch, shape
        if y.shape[1:] != shape:
            shapes = sorted({shape, y.shape[1:]})
            raise InputError(f"the simulator returned members of different shapes: {shapes}")
        return y

    def _receive(self, rank: int, letter: Letter) -> None:
        with self.news:
            call = self._calls.get(letter.number)
            if letter.kind is Kind.READY:
                self._about[rank] = About(**json.loads(letter.words))
                self._free.append(rank)
            elif letter.kind is Kind.BYE:
                self._gone.add(rank)
            elif letter.kind is Kind.BEGUN:
                if call is not None:
                    call.since = time.monotonic()
                return
            elif call is None:
                self._error = self._error or _error(letter, rank)
            else:
                del self._calls[letter.number]
                self._free.append(rank)
                call.letter = letter
                call.news.set()
            self.news.notify_all()

    def _broke(self, error: Exception) -> None:
        with self.news:
            self._error, self._deaf = error, True
            for call in self._calls.values():
                call.news.set()
            self.news.notify_all()


def _error(letter: Letter, rank: int) -> Exception:
    if letter.kind is Kind.UNUSABLE:
        return InputError(letter.words)
    return RuntimeError(f"rank {rank} of the crew: {letter.words}")
