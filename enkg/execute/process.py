"""Programs started, watched and ended, with everything that descends from them.

A program runs in a session of its own, without a shell, and with its standard output and error read
as they come, so that it never waits for a reader. It carries a tag in its environment by which its
descendants are found again (see `enkg.execute.guard`). Starting and awaiting one costs about 0.2 ms
beside what the system needs for it; one look at a running one, 10 microseconds.
"""

import contextlib
import errno
import logging
import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path

from enkg.execute import guard, leftovers, verdict
from enkg.execute.environment import environment
from enkg.execute.printed import Printed
from enkg.failure import Cause, Failure, MemberFailed

LEFT_BEHIND = 0.5
"""Seconds that processes get to end which a program left behind when it ended by itself."""

HOUR = 3600.0
"""Longest wait for one event, in seconds."""

log = logging.getLogger("enkg")
__all__ = ["Process", "Wake", "environment"]


class Wake(Enum):
    """Why `Process.wait` returned."""

    EXIT = "exit"
    READABLE = "readable"
    TIMEOUT = "timeout"
    INTERRUPT = "interrupt"


class Process:
    """A started program and everything that descends from it.

    argv: the program (a path, or a name found on the PATH of `env`) and its arguments. stdin: a
    file; None gives the program an empty input. pass_fds: descriptors that stay open in it. memory:
    MiB of address space that each of its processes may have, 0 for no limit; Linux only, and set
    right after the start, so that what a program takes in its first millisecond may be more. grace:
    seconds between the request to end and the kill.

    Raises MemberFailed (launch failure) if the program cannot be started. `kill`, or the end of a
    `with` block, leaves no process and no descriptor behind; so does `wait` that returned EXIT.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: Path | None = None,
        pass_fds: Sequence[int] = (),
        memory: int = 0,
        grace: float = 5.0,
    ) -> None:
        self.argv = tuple(map(str, argv))
        self._memory = memory
        self._grace = grace
        self._owner = os.getpid()
        self._tag = guard.new_tag()
        self._turn = threading.Lock()  # held by the thread that waits or kills
        self._lock = threading.Lock()  # held while the wake-up descriptor is used
        self._interrupted = False
        self._ended = False
        self._killed = False
        self._returncode: int | None = None
        self._readable: tuple[int, ...] = ()
        self._oom = verdict.oom_kills()
        self._fds: list[int] = []
        try:
            self._start(cwd, guard.tagged(env, self._tag), stdin, pass_fds)
        except BaseException:
            self._close()
            raise

    def _start(
        self, cwd: Path, env: dict[str, str], stdin: Path | None, pass_fds: Sequence[int]
    ) -> None:
        theirs: list[int] = []
        try:
            try:
                source = os.open(stdin or os.devnull, os.O_RDONLY)
                theirs.append(source)
                # The leash is never written to. It ends when the last descendant is gone.
                self._leash, leash = self._pipe(theirs)
                out, stdout = self._pipe(theirs)
                err, stderr = self._pipe(theirs)
                self._alarm, self._bell = _alarm(self._fds)
            except OSError as error:
                raise MemberFailed(
                    Cause.LAUNCH, verdict.not_started(self.argv, cwd, error)
                ) from None
            self._popen = _popen(
                self.argv,
                cwd,
                stdin=source,
                stdout=stdout,
                stderr=stderr,
                env=env,
                pass_fds=(*pass_fds, leash),
            )
        finally:
            for fd in theirs:
                os.close(fd)
        self.pid = self._popen.pid
        self._outputs = {out: Printed(), err: Printed()}
        self._stdout, self._stderr = self._outputs[out], self._outputs[err]
        self._start_time = guard.started(self.pid) or 0.0
        guard.watch(self.pid, self._start_time, self._grace)
        if self._memory and hasattr(resource, "prlimit"):
            limit = self._memory << 20
            with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
                resource.prlimit(self.pid, resource.RLIMIT_AS, (limit, limit))
        self._poll = select.poll()
        for fd in (out, err):
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        self._pidfd = -1
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self.pid)
            self._fds.append(self._pidfd)
            self._poll.register(self._pidfd, select.POLLIN)
        self._poll.register(self._alarm, select.POLLIN)

    def _pipe(self, theirs: list[int]) -> tuple[int, int]:
        reader, writer = os.pipe()
        self._fds.append(reader)
        theirs.append(writer)
        return reader, writer

    @property
    def stdout(self) -> str:
        """What the program printed: the first and the last 64 KiB."""
        return self._stdout.text()

    @property
    def stderr(self) -> str:
        """What the program printed to its standard error: the first and the last 64 KiB."""
        return self._stderr.text()

    def forget(self) -> None:
        """What it printed so far is dropped, so that later words are about what comes next."""
        with self._turn:
            if not self._ended:
                self._look(0.0)
            self._stdout.clear()
            self._stderr.clear()

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the number of the signal. None: not ended, or not known."""
        return self._returncode

    def wait(self, timeout: float | None = None, readable: Sequence[int] = ()) -> Wake:
        """Waits for the exit, or for a descriptor of `readable` with data or at its end.

        timeout: seconds; None waits for ever. Data come before the exit: after the exit READABLE is
        returned as long as a descriptor has something to read. After EXIT all that the program
        left running has been ended. INTERRUPT: `interrupt` was called, now or earlier.
        """
        readable = tuple(readable)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._turn:
            if readable != self._readable:
                self._watch(readable)
            while True:
                if self._interrupted:
                    return Wake.INTERRUPT
                if self._ended:
                    return Wake.READABLE if readable and self._poll.poll(0) else Wake.EXIT
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left < 0:
                    left = 0.0
                ready, over = self._look(left)
                if self._interrupted:
                    continue
                if ready:
                    return Wake.READABLE
                if over:
                    if readable and self._look(0.0)[0]:
                        return Wake.READABLE
                    self._finish()
                elif deadline is not None and time.monotonic() >= deadline:
                    return Wake.TIMEOUT

    def interrupt(self) -> None:
        """Called from another thread: `wait` returns INTERRUPT."""
        with self._lock:
            self._interrupted = True
            if self._fds and os.getpid() == self._owner:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._bell, b"\1\0\0\0\0\0\0\0")

    def kill(self) -> None:
        """Ends the program and all that descends from it, within the grace and a moment.

        The program is asked to end (SIGTERM), and so may stop its ranks or write a last file; after
        the grace it and its descendants are killed. Safe to call from any thread, and again.
        """
        if os.getpid() != self._owner or self._ended:
            return
        self.interrupt()
        with self._turn:
            if not self._ended:
                self._killed = True
                self._watch(())
                self._end(self._grace)
                self._finish()
            self._interrupted = False

    def failure(self) -> Failure | None:
        """Why the program failed, once it has ended; None for success (exit status 0)."""
        if self._returncode is None:
            return Failure(
                Cause.LOST,
                "its exit status was taken by another part of this Python program, which ignores "
                "SIGCHLD or calls os.wait"
                if self._ended
                else "it has not ended",
            )
        starved = not self._killed and verdict.oom_kills() > self._oom
        return verdict.read(
            self.argv, self._returncode, self.stdout, self.stderr, self._memory, starved
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _watch(self, readable: tuple[int, ...]) -> None:
        for fd in self._readable:
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)
        for fd in readable:
            self._poll.register(fd, select.POLLIN)
        self._readable = readable

    def _look(self, timeout: float | None) -> tuple[bool, bool]:
        """Waits for events once; reads the outputs. Returns (descriptor readable, exited)."""
        if self._pidfd < 0:
            timeout = 0.01 if timeout is None else min(timeout, 0.01)
        ready = over = False
        for fd, _ in self._poll.poll(None if timeout is None else min(timeout, HOUR) * 1000):
            if fd in self._readable:
                ready = True
            elif fd in self._outputs:
                self._drain(fd)
            elif fd == self._pidfd:
                over = self._reap()
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 8)
        return ready, over or (self._pidfd < 0 and self._reap())

    def _drain(self, fd: int) -> bool:
        """Reads one piece of an output. False: there was none."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if data:
            self._outputs[fd].add(data)
        else:
            self._poll.unregister(fd)
            del self._outputs[fd]
        return bool(data)

    def _reap(self) -> bool:
        """Takes the exit status if there is one. True: the program is gone."""
        if self._returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._returncode = os.waitstatus_to_exitcode(status)
        return True

    def _end(self, grace: float) -> None:
        """Ends what there is, and takes the exit status."""
        left: Iterable[int] = ()
        try:
            start = self._start_time or guard.started(self.pid) or 0.0
            roots = {} if self._reap() else {self.pid: start}
            left = guard.end(self._tag, roots, grace, self._idle)
        except OSError as error:  # too many open files to look for descendants
            log.error("%s: its descendants could not be looked for: %s", self.argv[0], error)
        for _ in range(100):
            if self._reap():
                break
            os.kill(self.pid, signal.SIGKILL)
            self._idle(0.01)
        else:
            left = {self.pid, *left}
        if left:
            log.error("%s: processes %s could not be killed", self.argv[0], sorted(left))

    def _idle(self, seconds: float) -> None:
        if self._returncode is None:
            self._look(seconds)
            return
        time.sleep(seconds)

    def _finish(self) -> None:
        """After the exit: the last output is read, what was left behind is ended."""
        leash = select.poll()
        leash.register(self._leash, 0)
        for fd in list(self._outputs):
            for _ in range(16):  # what a pipe can hold; descendants may write for ever
                if fd not in self._outputs or not self._drain(fd):
                    break
        for _ in range(10):  # who holds the other end may fork while it is looked for
            if leash.poll(0):
                break
            self._end(min(LEFT_BEHIND, self._grace))
        self._close()
        self._ended = True
        self._popen.returncode = self._returncode or 0  # it shall not wait again
        guard.release(self.pid)
        if self._returncode and verdict.is_launcher(self.argv):
            leftovers.sweep()

    def _close(self) -> None:
        with self._lock:
            for fd in self._fds:
                with contextlib.suppress(AttributeError, KeyError):
                    self._poll.unregister(fd)
                os.close(fd)
            self._fds.clear()
            self._outputs = {}


def _alarm(fds: list[int]) -> tuple[int, int]:
    """Two ends of something to wake a poll with."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        fds.append(fd)
        return fd, fd
    reader, writer = os.pipe()
    fds += [reader, writer]
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _popen(argv: Sequence[str], cwd: Path, **options) -> subprocess.Popen:
    for pause in (0.002, 0.01, 0.05, None):
        try:
            return subprocess.Popen(argv, cwd=cwd, start_new_session=True, **options)
        except (OSError, ValueError, TypeError) as error:
            # A file just written is busy while another thread's child, not yet become its own
            # program, still holds it open.
            if pause is None or getattr(error, "errno", None) != errno.ETXTBSY:
                raise MemberFailed(Cause.LAUNCH, verdict.not_started(argv, cwd, error)) from None
        time.sleep(pause)
    raise AssertionError
