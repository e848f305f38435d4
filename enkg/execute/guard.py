"""The orphan guard: programs end with enkg, however enkg ends.

enkg may be killed in mid-call, without a chance to stop what it started. So the first program that
it starts is preceded by a guard: a small process that holds the read end of a pipe. When enkg is
gone, by whatever cause, the pipe ends, and the guard ends every program that is still there.

A program is found by the tag in its environment, which all its descendants inherit, those that
detached themselves included, and by its place in the tree of processes. This file is also the
guard's own program, so it imports the standard library alone.

Guard and tags cost a program 0.1 ms; ending one reads the table of processes, a few milliseconds.
"""

import atexit
import contextlib
import itertools
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

TAG = "ENKG_TAG"
"""Environment variable with the tags of a process, one for each enkg above it, by commas."""
ROUNDS = 200
"""How often processes are looked for and killed before those left are given up."""


class Seen(NamedTuple):
    """A living process: its parent, when it started (ticks, or seconds), and its tags."""

    parent: int
    start: float
    tags: str


def started(pid: int) -> float | None:
    """When the process started; with the pid this names it for ever. None: it is gone."""
    seen = _stat(pid) if _PROC else _other(pid)
    return None if seen is None else seen.start


def family(tag: str, roots: Mapping[int, float]) -> dict[int, float]:
    """The living processes that carry the tag, the roots, and all their descendants.

    Both ways are (pid: start). A zombie is not living.
    """
    look = _stat if _PROC else _other
    seen = {pid: process for pid in _pids() if (process := look(pid, True)) is not None}
    children: dict[int, list[int]] = {}
    found = set()
    for pid, process in seen.items():
        children.setdefault(process.parent, []).append(pid)
        if roots.get(pid) == process.start or (process.tags and _carries(process.tags, tag)):
            found.add(pid)
    stack = list(found)
    while stack:
        new = [pid for pid in children.get(stack.pop(), ()) if pid not in found]
        found.update(new)
        stack += new
    found.discard(os.getpid())
    return {pid: seen[pid].start for pid in found}


def end(
    tag: str, roots: Mapping[int, float], grace: float, idle: Callable[[float], object]
) -> dict[int, float]:
    """Ends the roots and everything that descends from them. Returns what could not be ended.

    The roots alone are asked first: a launcher such as mpiexec then stops its ranks in order, and
    killed without warning may leave them behind. Then those left are asked, and after the grace all
    are killed. idle: waits for up to so many seconds.
    """
    known = family(tag, roots)
    asked = set(roots)
    _send(signal.SIGTERM, roots)
    deadline = time.monotonic() + grace
    pause = 0.001
    while known and time.monotonic() < deadline:
        idle(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(1.5 * pause, 0.05)
        if any(_alive(pid, start) for pid, start in roots.items()):
            continue
        left = _left(tag, known, idle)
        known |= left
        if not left:
            return {}
        _send(signal.SIGTERM, {pid: start for pid, start in left.items() if pid not in asked})
        asked |= set(left)
    left = known
    for _ in range(ROUNDS):
        left = _left(tag, known, idle)
        known |= left
        if not left:
            return {}
        _send(signal.SIGKILL, left)
        idle(0.005)
    return left


def _left(
    tag: str, known: Mapping[int, float], idle: Callable[[float], object]
) -> dict[int, float]:
    """The family, looked for twice before there is none.

    A process that forks and ends while the table is read is not in it, and nor is its child.
    """
    left = family(tag, known)
    if not left:
        idle(0.002)
        left = family(tag, known)
    return left


def new_tag() -> str:
    """A tag for one program, unique on this machine. The guard is there before the program."""
    with _state.lock:
        if _state.pipe < 0:
            _start()
    return f"{_state.host}.{next(_state.numbers)}"


def tagged(env: Mapping[str, str], tag: str) -> dict[str, str]:
    """The environment with the tag beside those of the enkg processes above this one."""
    outer = os.environ.get(TAG)
    return {**env, TAG: f"{outer},{tag}" if outer else tag}


def watch(pid: int, start: float, grace: float) -> None:
    """Has the guard end this program, should enkg be gone before `release`."""
    with _state.lock:
        _state.live[pid] = f"{pid} {start} {grace}\n".encode()
        _write(_state.live[pid])


def release(pid: int) -> None:
    """The program is gone."""
    with _state.lock:
        if _state.live.pop(pid, None):
            _write(f"{pid}\n".encode())


def _pids() -> list[int]:
    if _PROC:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    import psutil

    return psutil.pids()


def _stat(pid: int, tags: bool = False) -> Seen | None:
    """A living process by Linux's /proc."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if fields[0] in b"ZX" and int(fields[17]) <= 1:  # 17: its threads, which may go on alone
            return None
        parent, start = int(fields[1]), int(fields[19])
    except (OSError, IndexError):
        return None
    text = ""
    if tags and parent != 2:  # 2 is the parent of the kernel's own threads
        with contextlib.suppress(OSError):  # another user's process
            all_of_it = b"\0" + _read(f"/proc/{pid}/environ")
            text = all_of_it.partition(_MARK)[2].partition(b"\0")[0].decode(errors="replace")
    return Seen(parent, start, text)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _other(pid: int, tags: bool = False) -> Seen | None:
    """A living process where there is no /proc, as on macOS."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        parent, start, text = process.ppid(), process.create_time(), ""
    except (psutil.Error, OSError):
        return None
    if tags:
        with contextlib.suppress(psutil.Error, OSError):
            text = process.environ().get(TAG, "")
    return Seen(parent, start, text)


def _carries(tags: str, tag: str) -> bool:
    return any(one == tag or one.startswith(f"{tag}.") for one in tags.split(","))


def _alive(pid: int, start: float) -> bool:
    return started(pid) == start


def _send(number: signal.Signals, processes: Mapping[int, float]) -> None:
    for pid, start in processes.items():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _alive(pid, start):  # a pid may be another's by now
                os.kill(pid, number)


_PROC = os.path.exists("/proc/self/stat")
_MARK = f"\0{TAG}=".encode()


class _State:
    """The guard of this process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.lock = threading.Lock()
        self.host = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.numbers = itertools.count()
        self.live: dict[int, bytes] = {}
        self.pipe = -1
        self.process: subprocess.Popen | None = None


_state = _State()


def _write(line: bytes) -> None:
    """Tells the guard; starts it if there is none, or if it was killed. The lock is held."""
    for _ in range(2):
        if _state.pipe >= 0:
            try:
                os.write(_state.pipe, line)
                return
            except BlockingIOError:  # the guard is stopped, and nobody shall wait for it
                return
            except BrokenPipeError:
                os.close(_state.pipe)
                _state.pipe = -1
                if _state.process is not None:
                    _state.process.poll()
        if not _state.live:
            return
        _start()
        line = b"".join(_state.live.values())


def _start() -> None:
    flags = ["-I", "-S"] if _PROC else ["-I"]
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    try:
        reader, writer = os.pipe()
    except OSError:
        return
    try:
        _state.process = subprocess.Popen(
            [
                sys.executable or "python3",
                *flags,
                os.path.abspath(__file__),
                _state.host,
                str(os.getpid()),
            ],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in keep if name in os.environ},
            start_new_session=True,
        )
    except OSError:  # then programs outlive a killed enkg, but all else works
        os.close(writer)
        return
    finally:
        os.close(reader)
    os.set_blocking(writer, False)
    _state.pipe = writer


def _leave() -> None:
    """enkg ends: the guard ends what is left, and is waited for if there is something left."""
    with _state.lock:
        if _state.pipe < 0 or _state.process is None:
            return
        os.close(_state.pipe)
        _state.pipe = -1
        if _state.live:
            longest = max(float(line.split()[2]) for line in _state.live.values())
            with contextlib.suppress(subprocess.TimeoutExpired):
                _state.process.wait(longest + 2)
        _state.process.returncode = 0  # it ends by itself


def _forked() -> None:
    """A forked child has a guard of its own; its parent's must not wait for it."""
    if _state.pipe >= 0:
        os.close(_state.pipe)
    if _state.process is not None:
        _state.process.returncode = 0
    _state.begin()


def _guard(host: str, parent: int) -> None:
    """The guard's own work: until the pipe ends or the parent is gone, then all are ended."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(0, False)
    gone = select.poll()
    gone.register(0, 0)  # reports the end of the pipe alone
    news = select.poll()
    news.register(0, select.POLLIN)
    try:
        pidfd = os.pidfd_open(parent)
        gone.register(pidfd, select.POLLIN)
        news.register(pidfd, select.POLLIN)
    except (AttributeError, OSError):  # not Linux, or gone already: then the pipe ends
        pass
    lines: dict[int, tuple[float, float]] = {}
    rest = b""
    over = os.getppid() != parent
    while True:
        over = over or any(fd != 0 for fd, _ in news.poll(None))
        with contextlib.suppress(BlockingIOError):
            while part := os.read(0, 65536):
                *whole, rest = (rest + part).split(b"\n")
                _note(whole, lines)
            over = True
        if over:
            break
        gone.poll(50)  # many short programs shall not wake the guard for each of them
    roots = {pid: start for pid, (start, _) in lines.items()}
    for pause in (0.3, 0.0):  # enkg may have died in the midst of a start
        end(host, roots, _longest(lines.values()), time.sleep)
        time.sleep(pause)


def _note(whole: list[bytes], lines: dict[int, tuple[float, float]]) -> None:
    for line in whole:
        match line.split():
            case [pid, start, grace]:
                lines[int(pid)] = (float(start), float(grace))
            case [pid]:
                lines.pop(int(pid), None)


def _longest(known: Collection[tuple[float, float]]) -> float:
    return max((grace for _, grace in known), default=1.0)


if __name__ == "__main__":
    _guard(sys.argv[1], int(sys.argv[2]))
else:
    os.register_at_fork(after_in_child=_forked)
    atexit.register(_leave)
