"""Slots: members handed out, one call each, to programs that run side by side.

Each slot has a thread and a driver. The threads take members from one queue, so a slow member holds
nobody up but itself. What took longest in the batch before is handed out first, so that it is not
what everybody waits for at the end.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import Protocol, runtime_checkable

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure
from enkg.failure import Cause, Failure, FailurePolicy, MemberFailed
from enkg.simulator import Announce, Progress, Result

UNFINISHED = Failure(Cause.UNFINISHED, "too few members could still succeed")
GLANCE = 0.1
"""Seconds between two looks at stragglers and at the progress."""


@dataclass(frozen=True)
class Job:
    """One call: which batch of the run, which member of the batch, which attempt (from 0)."""

    batch: int
    member: int
    attempt: int

    def __str__(self) -> str:
        return f"batch{self.batch:04d}-member{self.member:05d}-attempt{self.attempt}"


class Driver(Protocol):
    """Runs one call at a time."""

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        """x: (B, *X) to (B, *Y), finite or not. Raises MemberFailed.

        The timeout is in seconds from the moment the program begins to work.
        """
        ...

    def interrupt(self) -> None:
        """Called from another thread: ends the call now being made, which raises MemberFailed.

        Does nothing between two calls, and returns at once.
        """
        ...

    def close(self) -> None:
        """Stops what is running. After this the driver is not used again."""
        ...


@runtime_checkable
class Starting(Protocol):
    """A driver that may spend a part of a call on the start of its program."""

    since: float | None
    """When the program began to work, by time.monotonic; None while it does not."""


class Slots:
    """An evaluator over drivers.

    timeout: seconds of one call where the policy sets none. batch: rows of one call; every call has
    exactly this many, the last filled up by repeating. minimum, maximum: members with numbers
    outside have failed.
    """

    def __init__(
        self,
        drivers: Sequence[Driver],
        policy: FailurePolicy,
        *,
        timeout: float | None = None,
        batch: int = 1,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> None:
        self.drivers, self.policy, self.batch = tuple(drivers), policy, batch
        self.timeout = timeout if policy.timeout is None else policy.timeout
        self.minimum, self.maximum = minimum, maximum
        self._threads = ThreadPoolExecutor(len(self.drivers), thread_name_prefix="slot")
        self.announce: Announce | None = None
        """See `enkg.simulator.Announcing`; called by the slots' threads."""
        self.others: tuple[int, int] = (0, 0)
        """See `enkg.simulator.Judging`."""
        self.seconds = np.empty(0)
        """What each member of the last batch took."""
        self._batches = 0
        self._work: _Work | None = None

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """See `Evaluator`. Raises EnsembleFailure if no member at all gave an answer."""
        work = self._work = _Work(self, x, self._batches)
        self._batches += 1
        loops = [self._threads.submit(work.loop, driver) for driver in self.drivers]
        try:
            work.watch(progress)
        finally:
            work.stop()
            for loop in loops:
                loop.result()
        self.seconds = work.seconds
        return work.result()

    def stop(self) -> None:
        """Called from another thread: ends the batch being evaluated; its open members fail."""
        if self._work is not None:
            self._work.stop()

    def close(self) -> None:
        """Stops all drivers, one after another."""
        self._threads.shutdown(cancel_futures=True)
        for driver in self.drivers:
            driver.close()


@dataclass(frozen=True)
class _Task:
    """Rows of the batch that go into one call."""

    rows: tuple[int, ...]
    attempt: int = 0
    not_before: float = 0.0


@dataclass
class _Work:
    """One batch on its way through the slots. Everything shared is touched under `news`."""

    slots: Slots
    x: ndarray
    number: int
    news: Condition = field(default_factory=Condition)

    def __post_init__(self) -> None:
        count, width = len(self.x), self.slots.batch
        self.x = np.ascontiguousarray(self.x)
        tasks = [
            _Task(tuple(range(first, min(first + width, count))))
            for first in range(0, count, width)
        ]
        if len(before := self.slots.seconds) == count:
            tasks.sort(key=lambda task: -before[list(task.rows)].max())
        self.queue = deque(tasks)
        self.seconds = np.zeros(count)
        self.spent = np.zeros(count, dtype=int)
        self.y: ndarray | None = None  # (J, *Y), once the first answer shows its shape
        self.answered = np.zeros(count, dtype=bool)
        self.failures: list[Failure | None] = [None] * count
        self.running: dict[_Task, tuple[Driver, float]] = {}
        self.cut: set[_Task] = set()
        self.walls: list[float] = []
        self.settled = self.good = self.calls = 0
        self.fresh: list[tuple[int, ndarray | None]] = []  # settled, and not yet announced
        self.error: BaseException | None = None
        self.stopped = False
        self._give_up()

    def loop(self, driver: Driver) -> None:
        """What a slot's thread does: one task after another, until none can come any more."""
        while True:
            with self.news:
                task = self._take()
                if task is None:
                    return
                begin = time.monotonic()
                self.running[task] = driver, begin
                self.calls += len(task.rows)
                self.spent[list(task.rows)] += 1
            try:
                y = driver.call(self._rows(task), self._job(task), self.slots.timeout)
                done: ndarray | Failure = y
            except MemberFailed as error:
                done = error.failure
            except BaseException as error:  # ends the batch; raised again by `watch`
                self._broke(error, task)
                return
            with self.news:
                del self.running[task]
                now = time.monotonic()
                self.seconds[list(task.rows)] = now - _began(driver, begin)
                if isinstance(done, Failure):
                    self._failed(task, done)
                else:
                    self.walls.append(now - begin)
                    self._answered(task, done)
                fresh, self.fresh = self.fresh, []
                over = self.stopped or self.settled == len(self.x)
                if over or self.queue or not self.running:
                    self.news.notify_all()
            try:
                self._tell(fresh)  # takes its time, in which the other slots go on
            except BaseException as error:
                self._broke(error)
                return

    def watch(self, progress: Progress | None) -> None:
        """Waits for the end, reports how far it is, and cuts stragglers."""
        total, told = len(self.x), -1
        while True:
            with self.news:
                if self.settled < total and not self.stopped:
                    self.news.wait(GLANCE)
                settled, over = self.settled, self.stopped or self.settled == total
                if not over:
                    self._cut_stragglers()
            if progress is not None and settled != told:
                progress(settled, total)
                told = settled
            if over:
                break
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Nothing new is started, and what runs is ended."""
        with self.news:
            self.stopped = True
            self.queue.clear()
            self.news.notify_all()
            while self.running:  # again and again: a call may be about to begin
                for driver, _ in self.running.values():
                    driver.interrupt()
                self.news.wait(GLANCE)

    def result(self) -> Result:
        tried = [failure for failure in self.failures if failure not in (None, UNFINISHED)]
        for j in np.flatnonzero(~self.answered):
            self.failures[j] = self.failures[j] or UNFINISHED
        if self.y is None:
            if not len(self.x):
                raise EnsembleFailure("the batch is empty")
            first = next(iter(tried), UNFINISHED)
            given_up = "" if len(tried) == len(self.x) else f" that were tried, of {len(self.x)}"
            raise EnsembleFailure(
                f"the simulator failed for all {len(tried)} members{given_up}; first: {first}",
                self.failures,
                self.calls,
            )
        self.y[~self.answered] = np.nan
        return Result(self.y, tuple(self.failures), self.calls)

    def _broke(self, error: BaseException, task: _Task | None = None) -> None:
        with self.news:
            if task is not None:
                del self.running[task]
            self.error = self.error or error
            self.stopped = True
            self.news.notify_all()

    def _tell(self, settled: list[tuple[int, ndarray | None]]) -> None:
        if self.slots.announce is not None:
            for j, row in settled:
                self.slots.announce(j, row, self.failures[j], int(self.spent[j]))

    def _take(self) -> _Task | None:
        """The next task, once it is due; None when there can be none any more."""
        while not self.stopped:
            now = time.monotonic()
            for _ in range(len(self.queue)):
                task = self.queue.popleft()
                if task.not_before <= now:
                    return task
                self.queue.append(task)
            if self.queue:
                self.news.wait(max(0.0, min(t.not_before for t in self.queue) - now))
            elif self.running:  # it may fail and come back
                self.news.wait()
            else:
                return None
        return None

    def _rows(self, task: _Task) -> ndarray:
        first, last = task.rows[0], task.rows[-1]
        missing = self.slots.batch - len(task.rows)
        rows = self.x[first : last + 1]  # no copy: the rows of a task follow each other
        return np.concatenate([rows, *[rows[-1:]] * missing]) if missing else rows

    def _job(self, task: _Task) -> Job:
        return Job(self.number, task.rows[0], task.attempt)

    def _answered(self, task: _Task, y: ndarray) -> None:
        for j, row in zip(task.rows, y, strict=False):  # y may have repeated rows at its end
            failure = self._unsound(row)
            if failure is None:
                failure = self._store(j, row)
            self.good += failure is None
            self.failures[j] = failure
            self.fresh.append((j, None if failure else row))
            self.settled += 1
        self._give_up()

    def _store(self, j: int, row: ndarray) -> Failure | None:
        if self.y is None:
            self.y = np.empty((len(self.x), *row.shape), dtype=row.dtype)
        if row.shape != self.y.shape[1:]:
            return Failure(Cause.SHAPE, f"{row.shape}, where another member has {self.y.shape[1:]}")
        if row.dtype != self.y.dtype:
            self.y = self.y.astype(np.result_type(self.y, row))
        self.y[j] = row
        self.answered[j] = True
        return None

    def _unsound(self, row: ndarray) -> Failure | None:
        finite = np.isfinite(row)
        if not finite.all():
            row = row[finite]
            if not row.size:
                return Failure(Cause.NONFINITE, "all values are NaN or infinite")
        low, high = self.slots.minimum, self.slots.maximum
        if low is not None and row.min() < low:
            return Failure(Cause.RANGE, f"{row.min():g} is below the minimum, {low:g}")
        if high is not None and row.max() > high:
            return Failure(Cause.RANGE, f"{row.max():g} is above the maximum, {high:g}")
        return None

    def _failed(self, task: _Task, failure: Failure) -> None:
        policy = self.slots.policy
        if task in self.cut:
            failure = Failure(Cause.CUT, f"took more than {policy.straggler:g} times the median")
        elif self.stopped and failure.cause is Cause.CUT:  # by `stop`
            failure = UNFINISHED
        elif self.stopped and len(task.rows) > 1:
            return
        elif len(task.rows) > 1:  # who of them was it?
            self.queue.extend(_Task((j,), task.attempt) for j in task.rows)
            return
        elif self._again(task, failure):
            wait = min(0.2 * 4**task.attempt, 60) if failure.cause is Cause.LAUNCH else 0.0
            self.queue.append(_Task(task.rows, task.attempt + 1, time.monotonic() + wait))
            return
        for j in task.rows:
            self.failures[j] = failure
        if not self.stopped:  # else the end of the batch may be what ended its program
            self.fresh += [(j, None) for j in task.rows]
        self.settled += len(task.rows)
        self._give_up()

    def _again(self, task: _Task, failure: Failure) -> bool:
        policy = self.slots.policy
        more = task.attempt < policy.retries and not self.stopped
        return more and failure.cause in policy.retry_on

    def _give_up(self) -> None:
        """No more calls once too few members can succeed."""
        left = len(self.x) - self.settled
        good, bad = self.slots.others
        if left and good + self.good + left < self._needed(len(self.x) + good + bad):
            self.stopped = True

    def _needed(self, count: int) -> int:
        return min(count, max(2, math.ceil(self.slots.policy.minimum_success * count)))

    def _cut_stragglers(self) -> None:
        factor = self.slots.policy.straggler
        if not factor or self.good < self._needed(len(self.x)) or not self.walls:
            return
        limit = time.monotonic() - factor * statistics.median(self.walls)
        for task, (driver, begin) in self.running.items():
            since = begin
            if isinstance(driver, Starting):  # its program may have to be started first
                since = driver.since or math.inf
            if since < limit:
                self.cut.add(task)
                driver.interrupt()


def _began(driver: Driver, begin: float) -> float:
    """When the call began, without the start of the program."""
    since = driver.since if isinstance(driver, Starting) else None
    return begin if since is None else max(begin, since)
