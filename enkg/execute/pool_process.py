"""A slot of the pool: one Python process of our own, which runs the function.

The process is started anew, not forked, so it shares no lock and no MPI world with this one. It
ends after its last call, when it is killed, and when this process ends in any way (see
`enkg.execute.guard`). A call costs some 0.3 ms at 128 KiB in and out.
"""

import contextlib
import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.environment import environment
from enkg.execute.manifest import Environment
from enkg.execute.parcel import Answer, Opened, Parcel, answer
from enkg.execute.process import Process, Wake
from enkg.execute.slots import Job
from enkg.failure import Cause, Failure, MemberFailed

STARTUP = 300.0
"""Seconds that a process may take to import the function."""
GRACE = 1.0
"""Seconds between the request to end and the kill."""
PAUSE = 0.05
"""Seconds between two looks at a process that does not read."""
LAST_BREATH = 5.0
"""Seconds that a process gets to end that has closed its side, or whose side was closed."""
BUFFER = 1 << 20
"""Bytes on their way that need not wait for the reader."""

MAIN = Path(__file__).with_name("pool_main.py")


class ProcessDriver:
    """See `enkg.execute.slots.Driver`. The process starts at the first call."""

    def __init__(self, parcel: Parcel, opened: Opened, threads: int) -> None:
        self.parcel, self.opened, self.threads = parcel, opened, threads
        self._process: Process | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # held while the next three change
        self._calling = self._interrupted = False
        self.since: float | None = None
        self._wake: Callable[[], None] | None = None

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        with self._lock:
            self._calling, self._interrupted, self.since = True, False, None
        try:
            process, wire = self._running()
            limit = _Limit(timeout)
            self.since = time.monotonic()
            _send(wire, (list(x.shape), x.dtype.str), x, self._patience(process, limit))
            found = self._answer(process, wire, limit)
        except BaseException:  # the process can be anywhere
            self._stop()
            raise
        finally:
            with self._lock:
                self._calling = False
                late = self._interrupted
        if late:  # the answer was faster, but the process would end the next call
            self._stop()
        return self.opened.rows(found, job.batch)

    def interrupt(self) -> None:
        with self._lock:
            if self._calling:
                self._interrupted = True
                if self._wake is not None:
                    self._wake()

    def part(self) -> None:
        """Lets an idle process end by itself, in its own time."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self.part()
        if self._process is not None:
            self._process.wait(LAST_BREATH)
        self._stop()

    def _running(self) -> tuple[Process, socket.socket]:
        if self._process is not None and self._socket is not None:
            if self._process.wait(0, (self._socket.fileno(),)) is Wake.TIMEOUT:
                return self._process, self._socket
            self._stop()  # it ended after its last answer
        return self._start()

    def _start(self) -> tuple[Process, socket.socket]:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            process = Process(
                [sys.executable, "-P", str(MAIN), str(theirs.fileno()), *self.parcel.path],
                cwd=Path.cwd(),
                env=environment(Environment(), {}, self.threads),
                pass_fds=(theirs.fileno(),),
                grace=GRACE,
            )
        with self._lock:
            self._process, self._wake = process, process.interrupt
            if self._interrupted:
                process.interrupt()
        limit = _Limit(STARTUP)
        about = {"files": self.parcel.files, "main": self.parcel.main, "argv": sys.argv}
        try:
            _send(ours, about, self.parcel.data, self._patience(process, limit))
            kind, value = self._answer(process, ours, limit)
        except MemberFailed as error:
            if error.failure.cause is Cause.CUT:
                raise
            raise MemberFailed(
                Cause.LAUNCH, f"a worker process could not be started: {error.failure}"
            ) from None
        if kind == "unusable":
            raise InputError(value)
        return process, ours

    def _answer(self, process: Process, wire: socket.socket, limit: "_Limit") -> Answer:
        try:
            (kind, value), data = _receive(wire, self._patience(process, limit, wire))
        except EOFError:
            if process.wait(LAST_BREATH) is Wake.EXIT:
                raise _ended(process) from None
            raise MemberFailed(
                Cause.PROTOCOL, "the worker process closed its channel and runs on"
            ) from None
        if kind != "rows":
            return kind, value
        shape, dtype = value
        return kind, np.frombuffer(data, dtype).reshape(shape)

    def _patience(
        self, process: Process, limit: "_Limit", reading: socket.socket | None = None
    ) -> Callable[[], None]:
        """What to do before each read, or after a write that found no room."""
        readable = () if reading is None else (reading.fileno(),)

        def wait() -> None:
            wake = process.wait(limit.left() if reading else 0.0, readable)
            if wake is Wake.EXIT:
                raise _ended(process)
            if wake is Wake.INTERRUPT:
                raise MemberFailed(Cause.CUT, "ended on request")
            if wake is Wake.TIMEOUT and limit.left() == 0.0:
                raise MemberFailed(Cause.TIMEOUT, f"ran longer than {limit.seconds:g} s")

        return wait

    def _stop(self) -> None:
        with self._lock:
            process, self._process, self._wake = self._process, None, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.kill()


def _ended(process: Process) -> MemberFailed:
    failure = process.failure() or Failure(Cause.EXIT, "0, without an answer")
    return MemberFailed(failure.cause, failure.detail)


class _Limit:
    """A time that runs out."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


# A message: the lengths of its two parts; a part in JSON; numbers.
HEAD = struct.Struct("<QQ")


def _send(
    wire: socket.socket, about: Any, numbers: Any = b"", wait: Callable[[], None] | None = None
) -> None:
    """numbers: an array, or bytes. wait: called where the other side does not read."""
    text = json.dumps(about).encode()
    data = memoryview(np.frombuffer(numbers, np.uint8))  # type: ignore[arg-type]
    parts = [memoryview(HEAD.pack(len(text), len(data)) + text), data]
    wire.setblocking(wait is None)
    while parts:
        try:
            parts[0] = parts[0][wire.send(parts[0]) :]
        except BlockingIOError:
            assert wait is not None
            room = select.poll()
            room.register(wire, select.POLLOUT)
            room.poll(PAUSE * 1000)
            wait()
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended; who waits for its answer will see how
        if not parts[0]:
            del parts[0]


def _receive(wire: socket.socket, wait: Callable[[], Any] = lambda: None) -> tuple[Any, bytearray]:
    """wait: called before each read. Raises EOFError."""
    text_size, data_size = HEAD.unpack(_read(wire, HEAD.size, wait))
    return json.loads(_read(wire, text_size, wait)), _read(wire, data_size, wait)


def _read(wire: socket.socket, size: int, wait: Callable[[], Any]) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        wait()
        try:
            got = wire.recv_into(left)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            got = 0
        if not got:
            raise EOFError
        left = left[got:]
    return data


def serve(fd: int) -> None:
    """What the process does: it loads the function and answers until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping is the other side's business
    wire = socket.socket(fileno=fd)
    wire.set_inheritable(False)
    with contextlib.suppress(EOFError):
        about, data = _receive(wire)
        sys.argv = about["argv"]
        files, main = (tuple(map(tuple, about[name])) for name in ("files", "main"))
        try:
            function = Parcel(bytes(data), files=files, main=main).unpack()
        except InputError as error:
            _send(wire, ("unusable", str(error)))
            return
        _send(wire, ("ready", None))
        while True:
            (shape, dtype), data = _receive(wire)
            kind, value = answer(function, np.frombuffer(data, dtype).reshape(shape))
            if kind == "rows":
                y = np.ascontiguousarray(value)
                _send(wire, (kind, (y.shape, y.dtype.str)), y)
            else:
                _send(wire, (kind, value))
