"""A slot of the pool: one task at a time for an executor, which runs it wherever it does.

Only `submit` and the futures of `concurrent.futures` are used, and they tell little: not when a
task really began, nor which of them broke the executor; and no running task can be ended. So a task
leaves a mark on the disk when it begins; where that is not seen, the executor is believed. A task
that is given up keeps its place until it ends, if it ever does. After a break, the tasks that had
begun are run again one at a time.
"""

import itertools
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.function import Function, exception
from enkg.execute.parcel import Answer, Opened, Parcel, pack_for, probe, task
from enkg.execute.slots import Job
from enkg.failure import Cause, MemberFailed

GLANCE = 0.02
"""Seconds between two looks whether a task has begun, or there is room for one."""
INNOCENT = 3
"""Breaks after which a task is suspected that seems not to have begun."""
WATCH = 2.0
"""Seconds between two looks whether the executor's processes live."""
PATIENCE = 60.0
"""Seconds after which a first task that has not ended is worth a warning."""
STARTUP = 60.0
"""Seconds after which a task is taken to have begun though it left no mark."""
UNKNOWN = 128
"""Tasks under way in an executor of which nobody says how many it runs at once."""

log = logging.getLogger("enkg")

Source = Executor | Callable[[], Executor]


def width_of(executor: Any) -> int | None:
    """How many tasks it runs at once, if it tells; those of Python, loky and mpi4py do."""
    for name in ("num_workers", "max_workers", "_max_workers"):
        width = getattr(executor, name, None)
        if isinstance(width, int) and width > 0:
            return width
    return None


class _Overlooked(Exception):
    """The executor broke and has not noticed."""


class BrokenError(Exception):
    """The executor broke under a task. begun: the task may have caused it."""

    def __init__(self, error: Exception, begun: bool) -> None:
        self.begun = begun
        super().__init__(exception(error).detail)


@dataclass(eq=False)
class _Life:
    """An executor, and how many tasks somebody waits for."""

    executor: Any
    tasks: int = 0
    over: bool = False
    """No more tasks go into it."""
    hung: bool = False
    """It holds a task that was given up."""

    def processes(self) -> list[Any]:
        """The executors of Python and loky know their processes; others keep a hanging task."""
        return list((getattr(self.executor, "_processes", None) or {}).values())

    def bereft(self) -> bool:
        """A process has died, which Python's executor overlooks if that happens as it starts."""
        return any(process.exitcode not in (None, 0) for process in self.processes())


class Shop:
    """The executor that the slots of one pool share.

    source: an executor, which is never shut down here; or a function that makes one, which is, and
    after which another is made when it broke. width: how many tasks it runs at once.
    """

    def __init__(self, source: Any, function: Function, width: int | None) -> None:
        self.ours = not hasattr(source, "submit")
        self.function = function
        self.killers: set[tuple[int, int]] = set()
        self.repeated = 0
        self.marks = Path(tempfile.mkdtemp(prefix=f"enkg-{os.getuid()}-{os.getpid()}-"))
        self.marked = self.running = True  # how a task shows that it began
        self._source = source
        self._calls = itertools.count()
        self._news = threading.Condition()
        self._lives: list[_Life] = []
        self._alone = 0  # tasks that wait for, or have, the executor for themselves
        self._held = 0  # places taken by tasks that were given up
        executor = self._current().executor
        self.parcel: Parcel = pack_for(executor, function)
        self.width = width or width_of(executor) or UNKNOWN
        self.width_known = bool(width or width_of(executor))

    def probe(self) -> None:
        """Runs a first task. Raises InputError if the executor cannot run the function."""
        begin, seen, warned = time.monotonic(), False, False
        mark = self.marks / "probe"
        try:
            future = self._current().executor.submit(probe, self.parcel, str(mark))
            while not future.done():
                seen |= future.running()
                time.sleep(GLANCE)
                if not warned and time.monotonic() - begin > PATIENCE:
                    log.warning("the executor has run nothing in %g s; still waiting", PATIENCE)
                    warned = True
            unusable = future.result()
        except Exception as error:  # an executor may raise anything
            raise InputError(
                f"the executor cannot run {self.function.f!r}: {type(error).__name__}: {error}. "
                "The function must be importable where it runs, and a script that starts "
                'processes needs: if __name__ == "__main__":'
            ) from error
        if unusable:
            raise InputError(unusable)
        self.marked, self.running = mark.exists(), seen

    def new_mark(self) -> Path:
        return self.marks / str(next(self._calls))

    def begun(self, mark: Path, future: Future, waited: float) -> bool:
        """Whether a task has begun that was handed over so many seconds ago."""
        if self.marked and waited < STARTUP:
            return mark.exists()
        return future.running() or not self.running

    @contextmanager
    def place(self, alone: bool, check: Callable[[], None]) -> Iterator[_Life]:
        """An executor with room for one more task; without any other task, if alone."""
        with self._news:
            self._alone += alone
            try:
                while self._busy(alone):
                    check()
                    self._news.wait(GLANCE)
                life = self._current()
            except BaseException:
                self._alone -= alone
                raise
            life.tasks += 1
        try:
            yield life
        finally:
            with self._news:
                life.tasks -= 1
                self._alone -= alone
                self._retire()
                self._news.notify_all()

    def stuck(self) -> bool:
        """All places are taken by tasks that were given up."""
        return self._held >= self.width

    def broke(self, life: _Life, hung: bool) -> None:
        with self._news:
            life.over, life.hung = self.ours, life.hung or hung

    def given_up(self, life: _Life, future: Future, begun: bool) -> None:
        """Nobody waits for this task any more, but it may run on."""
        # dask would cancel a task that has begun, and then hand others to its busy worker.
        if future.done() or (not begun and future.cancel()):
            return
        with self._news:
            if self.ours:  # the others end in it; those to come go into a new one
                life.over = life.hung = True
                return
            self._held += 1
        future.add_done_callback(self._freed)

    def close(self) -> None:
        with self._news:
            lives, self._lives = self._lives, []
        for life in lives:
            if self.ours:
                life.executor.shutdown(wait=True)
        shutil.rmtree(self.marks, ignore_errors=True)

    def _current(self) -> _Life:
        if not self._lives or self._lives[-1].over:
            self._lives.append(_Life(self._source() if self.ours else self._source))
        return self._lives[-1]

    def _busy(self, alone: bool) -> bool:
        count = sum(life.tasks for life in self._lives)
        return count > 0 if alone else self._alone > 0 or count + self._held >= self.width

    def _freed(self, _: Future) -> None:
        with self._news:
            self._held -= 1
            self._news.notify_all()

    def _retire(self) -> None:
        """Shuts down what has ended and, where it can be done, kills what hangs."""
        for life in [life for life in self._lives if life.over and not life.tasks]:
            self._lives.remove(life)
            processes = life.processes()
            with suppress(Exception):  # it is broken
                life.executor.shutdown(wait=False)
            for process in processes if life.hung else ():
                if process.exitcode is None:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)


class ExecutorDriver:
    """See `enkg.execute.slots.Driver`. timed: it matters when a call begins."""

    def __init__(self, shop: Shop, opened: Opened, timed: bool) -> None:
        self.shop, self.opened, self.timed = shop, opened, timed
        self.since: float | None = None
        self._ended = False
        self._news = threading.Event()

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        self._ended, self.since = False, None
        shop, member = self.shop, (job.batch, job.member)
        alone = member in shop.killers
        for turn in itertools.count():
            try:
                return self.opened.rows(self._run(x, timeout, alone), job.batch)
            except BrokenError as error:
                if not shop.ours:
                    raise MemberFailed(
                        Cause.LOST,
                        f"the executor broke ({error}) and can run nothing more. Pass a function "
                        "that makes an executor, and it is replaced",
                    ) from None
                if alone:
                    shop.killers.add(member)
                    raise MemberFailed(Cause.LOST, str(error)) from None
                shop.repeated += len(x) * error.begun
                alone = error.begun or turn >= INNOCENT
        raise AssertionError

    def interrupt(self) -> None:
        self._ended = True
        self._news.set()

    def close(self) -> None: ...

    def _run(self, x: ndarray, timeout: float | None, alone: bool) -> Answer:
        shop = self.shop
        begin = time.monotonic()

        def check() -> None:
            self._go_on()
            late = timeout is not None and time.monotonic() - begin > timeout
            if late and shop.stuck():
                raise MemberFailed(
                    Cause.LOST,
                    "all processes of the executor are busy with calls that were given up, and it "
                    "cannot end them. Pass a function that makes an executor, and it is replaced",
                )

        mark = shop.new_mark()
        with shop.place(alone, check) as life:
            future = None
            try:
                future = life.executor.submit(task, shop.parcel, x, str(mark))
                self._await(life, future, timeout, mark)
                return future.result()
            except (BrokenExecutor, _Overlooked) as error:
                shop.broke(life, isinstance(error, _Overlooked))
                begun = future is not None and (mark.exists() or not shop.marked)
                raise BrokenError(error, begun) from None
            except MemberFailed:
                raise
            except CancelledError:
                raise MemberFailed(Cause.LOST, "the executor cancelled its task") from None
            except Exception as error:  # an executor may raise anything
                raise MemberFailed(
                    Cause.LOST, f"the executor raised {exception(error).detail}"
                ) from error
            finally:
                mark.unlink(missing_ok=True)

    def _await(self, life: _Life, future: Future, timeout: float | None, mark: Path) -> None:
        news = self._news = threading.Event()  # its own: a call given up may end at any time
        future.add_done_callback(lambda _: news.set())
        self.since, bereft = None, False
        handed = time.monotonic()
        look = handed + WATCH
        try:
            while not future.done():
                self._go_on()
                now = time.monotonic()
                if now >= look:
                    if bereft:  # and that long after
                        raise _Overlooked("one of its processes died")
                    bereft, look = life.bereft(), now + WATCH
                if self.since is None and self.timed:
                    begun = self.shop.begun(mark, future, now - handed)
                    self.since = now if begun else None
                left = GLANCE if self.since is None and self.timed else WATCH
                if timeout is not None and self.since is not None:
                    left = min(left, self.since + timeout - now)
                    if left <= 0:
                        raise MemberFailed(
                            Cause.TIMEOUT,
                            f"ran longer than {timeout:g} s; the executor may run it on",
                        )
                news.wait(left)
        except _Overlooked:
            raise
        except BaseException:
            self.shop.given_up(life, future, self.since is not None or mark.exists())
            raise

    def _go_on(self) -> None:
        if self._ended:
            raise MemberFailed(Cause.CUT, "ended on request")
