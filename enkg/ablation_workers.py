"""Processes on this machine that run the cells of an ablation, several at once.

Each process is started anew (no fork) and stays for the next cell. One that dies, because its
simulator crashed or memory ran out, costs its cell alone: another one takes its place. When the
work is to end early, each is asked to stop by SIGTERM, so that its run can go on later.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from enkg import stop
from enkg.errors import EnkgError

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 30.0
"""Seconds for a run to stop in order before its process is killed."""
THREADS = "OMP_NUM_THREADS"


class WorkerDied(EnkgError, RuntimeError):
    """The process that ran a cell ended before the cell did."""


class Workers(Executor):
    """So many processes, each with its share of the cores for its threads. A context manager.

    What is submitted, and what it returns, must be picklable by the names of the modules.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(max(1, torch.get_num_threads() // count)) for _ in range(count)]
        for worker in self._all:
            self._free.put(worker)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; those that are at work stop in order."""
        for worker in self._all:
            worker.ask_to_stop()
        self._threads.shutdown(wait, cancel_futures=True)
        for worker in self._all:
            worker.end()

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        worker = self._free.get()
        try:
            return worker.call(fn, args, kwargs)
        finally:
            self._free.put(worker)


class _Worker:
    """One process, started when it is first needed."""

    def __init__(self, threads: int) -> None:
        self.threads, self.over = threads, False
        self.lock = threading.Lock()
        self.process: Any = None
        self.pipe: Connection | None = None

    def call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self.lock:
            if self.over:
                raise stop.Stopped("stopped before it began")
            pipe = self._started()
        try:
            pipe.send((fn, args, kwargs))
            kind, value = pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            code, self.process = self.process.exitcode, None
            if self.over:
                raise stop.Stopped("stopped") from error
            raise WorkerDied(f"its process {_ended(code)}") from error
        if kind == "raised":
            raise value
        return value

    def _started(self) -> Connection:
        if self.process is None:
            self.pipe, theirs = SPAWN.Pipe()
            self.process = SPAWN.Process(target=_serve, args=(theirs,), name="enkg-cell")
            with _threads(self.threads):
                self.process.start()
            theirs.close()
        assert self.pipe is not None
        return self.pipe

    def ask_to_stop(self) -> None:
        with self.lock:
            self.over = True
            process = self.process
        if process is not None:
            process.terminate()
            threading.Thread(target=_kill_later, args=(process,), daemon=True).start()

    def end(self) -> None:
        if self.process is not None and self.pipe is not None:
            self.pipe.close()  # it waits for work no more
            self.process.join()
            self.process = None


def _kill_later(process: Any) -> None:
    if not wait([process.sentinel], PATIENCE):
        process.kill()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes that start in this block get so many threads, unless their user says otherwise."""
    given = os.environ.get(THREADS)
    if given is None:
        os.environ[THREADS] = str(count)
    try:
        yield
    finally:
        if given is None:
            del os.environ[THREADS]


def _ended(code: int) -> str:
    """'was killed by SIGKILL; ...'"""
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            memory = "; memory may have run out" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}"
    return f"ended with exit code {code}"


def _serve(pipe: Connection) -> None:
    """Does what is asked until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process tells us
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    with suppress(EOFError):
        while True:
            fn, args, kwargs = pipe.recv()
            try:
                with stop.signals():
                    answer = ("done", fn(*args, **kwargs))
            except BaseException as error:  # a stop as well: it is told to who asked
                answer = ("raised", error)
            pipe.send(answer)
            if isinstance(answer[1], KeyboardInterrupt):
                return


def _follow(sentinel: int) -> None:
    """Stops in order when the process that gives the work is gone."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
