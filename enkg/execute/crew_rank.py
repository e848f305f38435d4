"""Controller mode on the ranks that simulate: one call at a time, as rank 0 sends them.

The main thread calls the simulator. The thread of the post meanwhile looks for word that the call
shall end, and tells rank 0 when a program that had to be started has begun to work.
"""

import contextlib
import dataclasses
import json
import logging
import math
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure, InputError
from enkg.execute.cache import Cached
from enkg.execute.function import Function, as_evaluator, exception, opened
from enkg.execute.mail import Kind, Letter, Mail
from enkg.execute.parcel import Opened, answer
from enkg.execute.slots import Driver, Job, Slots, Starting
from enkg.failure import Cause, Failure, FailurePolicy, MemberFailed
from enkg.simulator import Evaluator, Opening

GLANCE = 0.1
"""Seconds between two attempts to end a call."""

log = logging.getLogger("enkg")


@dataclass(frozen=True)
class About:
    """What rank 0 has to know of a simulator that only the other ranks have opened.

    batch: rows of one call. minimum, maximum: of the numbers that are believed. timed: its adapter
    keeps the time limit and can end a call. starting: a call may begin with a program's start.
    """

    batch: int = 1
    minimum: float | None = None
    maximum: float | None = None
    timed: bool = False
    starting: bool = False


class Seat(Protocol):
    """A simulator, ready for single calls."""

    about: About

    @property
    def since(self) -> float | None:
        """When the call began to work, where `about.starting`."""
        ...

    def call(self, x: ndarray, job: Job) -> ndarray:
        """x: (B, *X) to (B, *Y), not judged. Raises MemberFailed, and InputError if unusable."""
        ...

    def interrupt(self) -> None:
        """Called from another thread: ends the call, if that is possible. Returns at once."""
        ...


def serve(comm: Any, simulator: Any, policy: FailurePolicy, folder: Path | None) -> None:
    """What the ranks other than 0 do: simulate what they are sent, until rank 0 ends it.

    comm: as for `Crew`. simulator, policy, folder: as for `enkg.execute.opened`; of the policy,
    only the time limit matters here, and a cache is rank 0's affair. A simulator that is unusable
    is told to rank 0, which raises; this returns all the same. To be called by the main thread.

    Whatever else is raised here, such as the KeyboardInterrupt of a signal handler, aborts the MPI
    job, as rank 0 would wait for ever. So that rank 0 can end the job in order when all ranks get a
    signal, the others need handlers that do nothing (not SIG_IGN, which programs would inherit).
    """
    while isinstance(simulator, Cached):
        simulator = simulator.simulator
    try:
        desk = _Desk(comm)
        with desk.mail:
            try:
                with _seated(simulator, policy, folder) as seat:
                    desk.work(seat)
            except Exception as error:  # a simulator may raise anything
                if desk.broken is not None:
                    raise
                desk.refuse(error)
            desk.mail.send(0, Letter(Kind.BYE))
    except BaseException as error:
        log.critical("rank %d of the crew ends the job", comm.rank, exc_info=error)
        comm.Abort(1)
        raise


class _Desk:
    """Takes the letters of rank 0."""

    def __init__(self, comm: Any) -> None:
        self.mail = Mail(comm, self._receive, self._broke, self._look)
        self.broken: Exception | None = None
        self._letters: queue.SimpleQueue[Letter | None] = queue.SimpleQueue()
        self._ended = False
        self._seat: Seat | None = None
        self._number = 0  # of the call that runs
        self._told = 0  # the last one whose beginning was told
        self._stopped = 0.0  # calls up to this one shall end
        self._interrupted = 0.0

    def work(self, seat: Seat) -> None:
        """Until rank 0 ends it."""
        self._seat = seat
        self.mail.send(0, Letter(Kind.READY, words=json.dumps(dataclasses.asdict(seat.about))))
        while (letter := self._next()) is not None:
            self.mail.send(0, self._reply(seat, letter))

    def refuse(self, error: Exception) -> None:
        """Tells why there is no simulator, and waits for the end."""
        if self._ended:
            log.warning("at its end, the simulator raised %s", exception(error).detail)
            return
        self.mail.send(0, _letter(error, 0))
        while self._next() is not None:
            pass

    def _next(self) -> Letter | None:
        letter = self._letters.get()
        if self.broken is not None:
            raise self.broken
        self._ended = letter is None
        return letter

    def _reply(self, seat: Seat, letter: Letter) -> Letter:
        assert letter.array is not None
        letter.array.setflags(write=False)
        self._number = letter.number
        try:
            if letter.number <= self._stopped:
                raise MemberFailed(Cause.CUT, "ended on request")
            y = np.ascontiguousarray(seat.call(letter.array, letter.job))
            if letter.number <= self._stopped:  # rank 0 may be gone, and receive nothing large
                raise MemberFailed(Cause.CUT, "ended on request")
            return Letter(Kind.ANSWER, letter.number, array=y)
        except (Exception, SystemExit) as error:  # an adapter may be wrong itself
            return _letter(error, letter.number)
        finally:
            self._number = 0

    def _receive(self, _: int, letter: Letter) -> None:
        if letter.kind is Kind.CALL:
            self._letters.put(letter)
        else:
            end = letter.kind is Kind.END
            self._stopped = math.inf if end else max(self._stopped, letter.number)
            if end:
                self._letters.put(None)

    def _broke(self, error: Exception) -> None:
        self.broken = error
        self._letters.put(None)

    def _look(self) -> None:
        number, seat = self._number, self._seat
        if not number or seat is None:
            return
        now = time.monotonic()
        if number <= self._stopped:
            if now > self._interrupted + GLANCE:  # again and again: it may be about to begin
                self._interrupted = now
                seat.interrupt()
        elif self._told != number and seat.since is not None:
            self._told = number
            self.mail.send(0, Letter(Kind.BEGUN, number))


def _letter(error: Exception | SystemExit, number: int) -> Letter:
    if isinstance(error, MemberFailed):
        f = error.failure
        words = json.dumps([f.cause, f.detail, str(f.kept) if f.kept else None])
        return Letter(Kind.FAILED, number, words=words)
    if isinstance(error, InputError):
        return Letter(Kind.UNUSABLE, number, words=str(error))
    log.error("the simulator's adapter raised", exc_info=error)
    return Letter(Kind.BROKEN, number, words=f"{type(error).__name__}: {error}")


@contextmanager
def _seated(simulator: Any, policy: FailurePolicy, folder: Path | None) -> Iterator[Seat]:
    """A simulator opened for single calls, which rank 0 repeats and judges."""
    simulator = simulator if isinstance(simulator, Opening) else as_evaluator(simulator)
    if isinstance(simulator, Function):
        yield _FunctionSeat(simulator)
        return
    policy = dataclasses.replace(policy, retries=0, straggler=0.0)
    with opened(simulator, policy, folder) as evaluator:
        slots = evaluator if isinstance(evaluator, Slots) else getattr(evaluator, "slots", None)
        if isinstance(slots, Slots):
            yield _SlotSeat(evaluator, slots)
        else:
            yield _EvaluatorSeat(evaluator)


class _FunctionSeat:
    """A function, called by the main thread."""

    since = None

    def __init__(self, function: Function) -> None:
        batch = function.chunk if function.batched and function.chunk else 1
        self.about = About(batch)
        self._function, self._opened = function, Opened()

    def call(self, x: ndarray, job: Job) -> ndarray:
        return self._opened.rows(answer(self._function, x), job.batch)

    def interrupt(self) -> None: ...


class _EvaluatorSeat:
    """An evaluator of whatever kind, given one member at a time."""

    since = None
    about = About()

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def call(self, x: ndarray, job: Job) -> ndarray:
        try:
            result = self._evaluator.evaluate(x)
        except EnsembleFailure as error:
            failure = next(iter(error.failures), Failure(Cause.EXCEPTION, str(error)))
        else:
            failure = result.failures[0]
            if failure is None:
                return result.y
        raise MemberFailed(failure.cause, failure.detail, failure.kept)

    def interrupt(self) -> None: ...


class _CallFailedError(Exception):
    """Ends an evaluation at once, where MemberFailed would make the slots think about it."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class _SlotSeat:
    """The first driver of an evaluator that has slots. Nothing but the check of the members that
    comes before them is left to the evaluator; rank 0 has slots itself.
    """

    def __init__(self, evaluator: Evaluator, slots: Slots) -> None:
        self._evaluator, self._drivers = evaluator, slots.drivers
        self._driver: Driver = slots.drivers[0]
        self.about = About(
            slots.batch, slots.minimum, slots.maximum, True, isinstance(self._driver, Starting)
        )
        self._job = Job(0, 0, 0)
        self._y: ndarray | None = None
        slots.drivers = (_Named(self),)

    @property
    def since(self) -> float | None:
        return self._driver.since if isinstance(self._driver, Starting) else None

    def call(self, x: ndarray, job: Job) -> ndarray:
        self._job, self._y = job, None
        try:
            with contextlib.suppress(EnsembleFailure):  # rank 0 judges the numbers
                self._evaluator.evaluate(x)
        except _CallFailedError as error:
            f = error.failure
            raise MemberFailed(f.cause, f.detail, f.kept) from None
        assert self._y is not None
        return self._y

    def interrupt(self) -> None:
        self._driver.interrupt()

    def drive(self, x: ndarray, timeout: float | None) -> ndarray:
        """The call itself, under the member's true name, by which its files are known."""
        try:
            self._y = self._driver.call(x, self._job, timeout)
        except MemberFailed as error:
            raise _CallFailedError(error.failure) from None
        return self._y

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()


class _Named:
    """What a seat's slots take for their driver."""

    def __init__(self, seat: _SlotSeat) -> None:
        self._seat = seat

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        return self._seat.drive(x, timeout)

    def interrupt(self) -> None:
        self._seat.interrupt()

    def close(self) -> None:
        self._seat.close()
