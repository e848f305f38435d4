"""The way between enkg and a worker program: two byte streams and, if wanted, shared memory.

A program that is started directly inherits pipes. One behind an MPI launcher, which closes
everything inherited, opens named pipes, and so must run on this machine. All names vanish as soon
as both sides hold what they name.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import select
import time
from collections.abc import Callable

from enkg.execute.frames import LONGEST_TEXT, SIZE, BadFrameError, Frame, Kind, unpack
from enkg.execute.process import Process, Wake
from enkg.execute.scratch import Scratch

NOTHING = memoryview(b"")
LARGEST_PIPE = 1 << 20
"""Bytes; what Linux allows everybody."""
CONNECT = 0.005
"""Seconds between two looks whether the program has opened its named pipe."""
LAST_BREATH = 5.0
"""Seconds that a program may take to end after it has closed its side: time for a core dump."""

_SEALS = sum(getattr(fcntl, f"F_SEAL_{name}", 0) for name in ("SEAL", "SHRINK", "GROW"))


class NoAnswerError(Exception):
    """The program has not answered: it ended (EXIT), is late (TIMEOUT) or was cut (INTERRUPT).

    received: bytes of the answer that had come.
    """

    def __init__(self, wake: Wake, received: int = 0) -> None:
        self.wake, self.received = wake, received
        super().__init__(wake.value)


class Channel:
    """Streams to one program, from before its start to after its end.

    named: named pipes. payload: bytes of the largest payload, for the size of the pipes. shared:
    bytes of shared memory, 0 for none; `memory` stays None where the system refuses it.
    """

    def __init__(self, named: bool, payload: int, shared: int) -> None:
        self.named, self.payload = named, payload
        self.variables: dict[str, str] = {}
        self.memory: mmap.mmap | None = None
        self._names: Scratch | None = None
        self._theirs: list[int] = []
        self._rx = self._tx = -1
        self._poll = select.poll()
        self._room: select.epoll | None = None
        self._header = bytearray(SIZE)
        memfd = hasattr(os, "memfd_create") and not named
        try:
            if named or (shared and not memfd):
                self._names = Scratch(None, shared)
            self._make_pipes()
            if shared:
                self._share(shared, memfd)
        except BaseException:
            self.close()
            raise

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return tuple(self._theirs)

    def connect(self, process: Process, deadline: float) -> None:
        """Opens our ends, once the program has started; raises NoAnswerError."""
        self._close_theirs()
        if self.named:
            assert self._names is not None
            while self._tx < 0:
                try:
                    self._tx = os.open(self._names.path / "in", os.O_WRONLY | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # nobody reads yet
                        raise
                    wake = process.wait(CONNECT)
                    if wake is Wake.TIMEOUT and time.monotonic() < deadline:
                        continue
                    raise NoAnswerError(wake) from None
            self._rx = os.open(self._names.path / "out", os.O_RDONLY | os.O_NONBLOCK)
        self._poll.register(self._rx, select.POLLIN)
        os.set_blocking(self._tx, False)
        os.set_blocking(self._rx, False)
        for fd in (self._rx, self._tx):
            self._enlarge(fd)

    def settle(self, shared: bool) -> None:
        """Removes the names, and the memory if the program does not use it."""
        if self._names is not None:
            self._names.close()
            self._names = None
        if not shared:
            self.memory = None

    def quiet(self) -> bool:
        """Nothing has come: neither the end of the stream nor bytes that nobody asked for."""
        return not self._poll.poll(0)

    def send(
        self, process: Process, deadline: float | None, frame: Frame, payload: memoryview = NOTHING
    ) -> None:
        """Writes a frame; raises NoAnswerError, or BadFrameError if the program speaks first."""
        parts = [memoryview(frame.pack()), payload] if len(payload) else [memoryview(frame.pack())]
        while parts:
            try:
                sent = os.writev(self._tx, parts)
            except BlockingIOError:
                self._await_room(process, deadline)
                continue
            except BrokenPipeError:
                raise self._hung_up(process, deadline, 0) from None
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][sent:]

    def receive(
        self,
        process: Process,
        deadline: float | None,
        into: memoryview,
        check: Callable[[Frame], None],
    ) -> tuple[Frame, str]:
        """Reads a frame and, of ERROR, the text; raises NoAnswerError or BadFrameError.

        into: where the payload of other frames goes. check: called with the header before the
        payload is awaited; raises for a frame that was not due.
        """
        header = memoryview(self._header)
        got = 0
        while got < SIZE:
            parts = [header[got:], into] if len(into) else [header[got:]]
            got += self._read(process, deadline, parts, got)
        frame = unpack(header)
        got -= SIZE
        if frame.kind != Kind.ERROR:
            check(frame)
            if frame.nbytes != len(into):
                raise BadFrameError(
                    f"the answer has {frame.nbytes} bytes of payload; expected {len(into)}"
                )
        elif not got <= frame.nbytes <= LONGEST_TEXT:
            raise BadFrameError(f"an error text of {frame.nbytes} bytes")
        else:
            text = bytearray(frame.nbytes)
            text[:got] = into[:got]
            into = memoryview(text)
        while got < frame.nbytes:
            got += self._read(process, deadline, [into[got:]], SIZE + got)
        return frame, bytes(into).decode(errors="replace") if frame.kind == Kind.ERROR else ""

    def goodbye(self) -> None:
        """Asks the program to end, if it listens."""
        if self._tx >= 0:
            with contextlib.suppress(OSError):
                os.write(self._tx, Frame(Kind.BYE).pack())
            os.close(self._tx)
            self._tx = -1

    def close(self) -> None:
        self._close_theirs()
        for fd in (self._rx, self._tx):
            if fd >= 0:
                os.close(fd)
        self._rx = self._tx = -1
        if self._room is not None:
            self._room.close()
            self._room = None
        self.settle(shared=False)

    def _make_pipes(self) -> None:
        if self.named:
            assert self._names is not None
            for name in ("in", "out"):
                path = self._names.path / name
                os.mkfifo(path, 0o600)
                self.variables[f"ENKG_{name.upper()}"] = str(path)
            return
        theirs, self._tx = os.pipe()
        self._theirs.append(theirs)
        self.variables["ENKG_IN"] = f"/dev/fd/{theirs}"
        self._rx, theirs = os.pipe()
        self._theirs.append(theirs)
        self.variables["ENKG_OUT"] = f"/dev/fd/{theirs}"

    def _share(self, size: int, memfd: bool) -> None:
        try:
            if memfd:
                # It has no name, so nothing is left behind even if we are killed. The seals keep
                # the program from shrinking it under us.
                fd = os.memfd_create("enkg", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                path = f"/dev/fd/{fd}"
            else:
                assert self._names is not None
                path = str(self._names.path / "memory")
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._theirs.append(fd)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)  # no room is an error now, not a crash later
            else:
                os.ftruncate(fd, size)
            if memfd and _SEALS:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self.memory = mmap.mmap(fd, size)
        except OSError:
            return  # the numbers go through the pipe
        self.variables["ENKG_SHM"] = path

    def _close_theirs(self) -> None:
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()

    def _enlarge(self, fd: int) -> None:
        """A pipe that holds a whole frame saves switching to and fro while it is written."""
        wanted = min(SIZE + self.payload, LARGEST_PIPE)
        if wanted > 65536 and hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, wanted)

    def _read(self, process: Process, deadline: float | None, parts: list, received: int) -> int:
        """Waits for bytes and reads them, at least one."""
        while True:
            wake = process.wait(_left(deadline), (self._rx,))
            if wake is not Wake.READABLE:
                raise NoAnswerError(wake, received)
            try:
                got = os.readv(self._rx, parts)
            except BlockingIOError:
                continue
            if got:
                return got
            raise self._hung_up(process, deadline, received)

    def _await_room(self, process: Process, deadline: float | None) -> None:
        """Waits until the program has read something."""
        if not self.quiet():
            if os.read(self._rx, SIZE):
                raise BadFrameError("the program answered before it had read its input")
            raise self._hung_up(process, deadline, 0)
        if hasattr(select, "epoll"):
            if self._room is None:  # readable when there is room in the pipe
                self._room = select.epoll()
                self._room.register(self._tx, select.EPOLLOUT)
            wake = process.wait(_left(deadline), (self._room.fileno(), self._rx))
        else:
            wake = process.wait(0.001, (self._rx,))
            if wake is Wake.TIMEOUT and (deadline is None or time.monotonic() < deadline):
                return
        if wake is not Wake.READABLE:
            raise NoAnswerError(wake)

    def _hung_up(self, process: Process, deadline: float | None, received: int) -> Exception:
        """What is to be raised for a program that has closed its side."""
        limit = time.monotonic() + LAST_BREATH
        late = deadline is not None and deadline < limit
        wake = process.wait(_left(deadline if late else limit))
        if wake is Wake.TIMEOUT and not late:
            return BadFrameError("the program closed its channel and runs on")
        return NoAnswerError(wake, received)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
