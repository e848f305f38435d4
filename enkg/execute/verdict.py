"""Why a program failed, from its exit status and from what it printed.

A launcher's exit status hides the cause: MPICH's mpiexec returns the bare number of the signal that
killed a rank (9, as if the program had said exit(9)), Open MPI's and srun return 128 more. What
they print tells, so it is read for numbers, and left out of the message.
"""

import errno
import functools
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from enkg.failure import Cause, Failure

WIDTH = 200
"""Characters of a program's message that are shown."""
LAUNCHERS = ("mpiexec", "mpirun", "srun", "flux", "prterun", "orterun")
SHELLS = ("sh", "bash", "dash", "zsh", "ksh")

STARVED = re.compile(
    r"\bMemoryError\b|std::bad_alloc|out of memory|OutOfMemory|cannot allocate memory"
    r"|oom[_-]kill|allocation would exceed memory limit",
    re.IGNORECASE,
)
RANK_SIGNAL = (
    re.compile(r"TERMINATED WITH THE EXIT STRING: .*\(signal (\d+)\)"),  # MPICH
    re.compile(r"KILLED BY SIGNAL: (\d+)"),  # Intel MPI
    re.compile(r"exited on\s+signal (\d+)"),  # Open MPI
)
RANK_NAMED = re.compile(
    r"^srun: error: .*: tasks? [\d,-]+: ([A-Z][\w ]+?)(?: \(core dumped\))?$", re.M
)
RANK_EXIT = (
    re.compile(r"^srun: error: .*: tasks? [\d,-]+: Exited with exit code (\d+)", re.M),
    re.compile(r"^\s*Exit code:\s+(\d+)", re.M),  # Open MPI
)
NAMED = {signal.strsignal(number): number for number in signal.valid_signals()}

UNLAUNCHED = (
    (
        re.compile(r"attempt to run as root"),
        "Open MPI's mpiexec refuses to run as root; set OMPI_ALLOW_RUN_AS_ROOT=1 and "
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 under [environment.set] if that is meant",
    ),
    (
        re.compile(r"not enough slots available"),
        "mpiexec counts fewer slots than ranks; give it a host file under mpi.arguments",
    ),
    (
        re.compile(r"execvp error on file (\S+) \((.*?)\)"),
        "mpiexec could not start {0}: {1}",
    ),
    (
        re.compile(r"prterun was unable to find the specified executable file[^.]*\.", re.S),
        "mpiexec could not find the program",
    ),
    (
        # srun waits and tries again; what fails after that is the program.
        re.compile(
            r"step creation temporarily disabled(?!.*Step created)|Unable to create step[^\n]*",
            re.DOTALL,
        ),
        "srun found no room for another step in this allocation; use fewer slots",
    ),
    (
        re.compile(r"^(?:srun|slurmstepd): error: execve\(\): (\S+): (.*)$", re.M),
        "srun could not start {0}: {1}",
    ),
)
"""A launcher that could not start the ranks: what it prints, and what we say."""

PLAIN = {
    errno.EMFILE: "too many open files; use fewer slots or raise the limit with ulimit -n",
    errno.ENFILE: "too many open files on this machine; use fewer slots",
    errno.ENOEXEC: "it is neither a program for this machine nor a script that begins with #!",
    errno.ETXTBSY: "it is open for writing in another process",
    errno.EAGAIN: "too many processes; use fewer slots or raise the limit with ulimit -u",
    errno.ENOMEM: "the memory is used up; use fewer slots",
    errno.E2BIG: "its arguments and environment are too long together",
}
"""What is wrong, and what to do, by the error's number."""

BANNER = re.compile(
    r"[=\-*\s]+$|=   |YOUR APPLICATION TERMINATED|This typically refers to a problem|"
    r"Please see the FAQ page|slurmstepd: |srun: |\[?mpiexec@|\[proxy:|"
    r"Primary job  terminated|a non-zero exit code|Your job will|per user-direction"
)
"""Lines of launchers that say nothing of the cause."""
BLOCK = re.compile(r"^-{70,}\n.*?^-{70,}\n?", re.M | re.S)
"""How Open MPI frames its messages."""
FRAME = re.compile(
    r"#\d+\s+(0x|in )|\s*\[\d+\] \S|\s+@ |Stacktrace:|in expression starting at|"
    r"Error termination\. Backtrace|Backtrace for this error|Note: The following floating-point|"
    r"\s+at \S+:\d+|\s+File \".*\", line \d+|\s*[\^~]+$|IEEE_\w+( IEEE_\w+)*$|"
    r"\d+\s+\S+\s+0x[0-9a-f]+ |Could not print backtrace"
)
"""Lines of backtraces: gfortran's, Julia's, Python's, macOS's."""
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
ABORT = re.compile(
    r"Abort\(\d+\)|application called MPI_Abort|MPI_ABORT was invoked|internal_Abort"
)
"""Said after the program's own last line."""


def read(
    argv: Sequence[str],
    code: int,
    stdout: str,
    stderr: str,
    memory: int = 0,
    starved: bool = False,
) -> Failure | None:
    """The failure of a program that ended; None for exit status 0.

    code: the exit status, or minus the signal. memory: its limit in MiB, 0 for none. starved: the
    system killed some process for want of memory meanwhile.
    """
    if code == 0:
        return None
    line = last_line(stderr) or last_line(stdout)
    printed = f"{stdout}\n{stderr}"
    for pattern, message in UNLAUNCHED if code > 0 else ():
        if match := pattern.search(printed):
            return Failure(Cause.LAUNCH, message.format(*match.groups()))
    number = -code if code < 0 else _rank_signal(argv, code, printed)
    if number == signal.SIGKILL and starved:
        return Failure(Cause.MEMORY, _detail("killed by the system", line))
    if match := STARVED.search("\n".join(stderr.splitlines()[-40:])):
        limit = f"limit {memory} MiB" if memory else ""
        return Failure(Cause.MEMORY, _detail(limit, line or match[0]))
    if number:
        about = f" (memory limit {memory} MiB)" if memory and number in _CRASHES else ""
        return Failure(Cause.SIGNAL, _detail(_name(number) + about, line))
    status = _rank_exit(argv, code, printed)
    hint = f" (as after {_name(status - 128)})" if status - 128 in _CRASHES else ""
    return Failure(Cause.EXIT, _detail(f"{status}{hint}", line))


def last_line(text: str) -> str:
    """The last line that says something, without backtraces and the launchers' banners."""
    second = ""
    for line in reversed(BLOCK.sub("", COLOUR.sub("", text)).splitlines()):
        if not line.strip() or BANNER.match(line) or FRAME.match(line):
            continue
        if ABORT.match(line):
            second = second or line
            continue
        return _short(line)
    return _short(second)


def is_launcher(argv: Sequence[str]) -> bool:
    """Whether the program is mpiexec or its like."""
    return _base(argv) in LAUNCHERS


def not_started(argv: Sequence[str], cwd: Path, error: Exception) -> str:
    """What is wrong with a program that the system would not start."""
    program = str(argv[0]) if argv else "an empty command"
    if not isinstance(error, OSError):  # of subprocess: a NUL or = where none may be
        return f"cannot start {_short(program)!r}: {error} in an argument or a variable"
    path = Path(cwd, program)
    here = "/" in program
    named = error.filename
    why = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case number if number in PLAIN:
            why = PLAIN[number]
        case _ if named is not None and str(named) not in (program, str(cwd)):
            why = f"{named}: {why}"
        case errno.ENOENT | errno.ENOTDIR | errno.EACCES if str(named) == str(cwd):
            why = f"its working directory {cwd} cannot be entered ({why})"
        case errno.ENOENT if here and path.exists():
            why = f"{_interpreter(path)} is missing, which its first line or its linking asks for"
        case errno.ENOENT:
            why = "there is no such file" if here else "there is no such program on the PATH"
        case errno.EACCES if path.is_dir():
            why = "it is a folder"
        case errno.EACCES if here and not os.access(path, os.X_OK):
            why = f"it is not executable; chmod +x {path}"
    return f"cannot start {program}: {why}"


def oom_kills() -> int:
    """How often the system killed a process of our control group for want of memory."""
    path, field = _counter()
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        words = os.read(fd, 65536).split()
        return int(words[words.index(field) + 1])
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        os.close(fd)


_CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL)
)


@functools.cache
def _counter() -> tuple[str, bytes]:
    """The file and the word in it: control groups version 2, version 1, or the whole system."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for path in (
            f"/sys/fs/cgroup{group}/memory.events" if not controllers else "",
            f"/sys/fs/cgroup/memory{group}/memory.oom_control"
            if "memory" in controllers.split(",")
            else "",
        ):
            if path and os.access(path, os.R_OK):
                return path, b"oom_kill"
    return "/proc/vmstat", b"oom_kill"


def _rank_signal(argv: Sequence[str], code: int, printed: str) -> int:
    """The signal that killed a rank; 0 if none did."""
    numbers = [int(n) for pattern in RANK_SIGNAL for n in pattern.findall(printed)]
    numbers += [NAMED[name] for name in RANK_NAMED.findall(printed) if name in NAMED]
    if numbers:
        # The first rank to die takes the others with it, by SIGKILL or SIGTERM.
        late = (signal.SIGKILL, signal.SIGTERM)
        return next((n for n in numbers if n not in late), min(numbers))
    wrapped = _base(argv) in (*LAUNCHERS, *SHELLS)
    return code - 128 if wrapped and 128 < code < 128 + signal.NSIG else 0


def _rank_exit(argv: Sequence[str], code: int, printed: str) -> int:
    if is_launcher(argv):
        for pattern in RANK_EXIT:
            if match := pattern.search(printed):
                return int(match[1]) or code
    return code


def _base(argv: Sequence[str]) -> str:
    return os.path.basename(argv[0]).split(".")[0]


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _detail(what: str, line: str) -> str:
    return f"{what}: {line}" if what and line else what or line


def _short(line: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _interpreter(path: Path) -> str:
    with path.open("rb") as file:
        first = file.readline(256)
    if first.startswith(b"#!") and first.endswith(b"\r\n"):
        return f"{first[2:].decode(errors='replace').strip()} with a Windows line end"
    if first.startswith(b"#!"):
        return first[2:].decode(errors="replace").strip() or "an interpreter"
    return "the loader"
