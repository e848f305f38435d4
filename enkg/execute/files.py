"""Files that a program wrote, opened without trusting the program."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, NoReturn

from enkg.failure import Cause, MemberFailed

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


def fail(cause: Cause, path: Path, what: str) -> NoReturn:
    """The member fails because of this file."""
    raise MemberFailed(cause, f"{path.name} {what}")


def open_below(path: Path, root: Path) -> BinaryIO:
    """Opens a regular file for reading; no part of its path below root may be a symbolic link.

    Raises MemberFailed: MISSING if there is no such file, MALFORMED if it is anything else.
    """
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if not parts or ".." in parts:
        fail(Cause.MALFORMED, path, "lies outside of the run directory")
    try:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        fail(Cause.MISSING, path, "is gone, and the run directory with it")
    try:
        for folder in parts[:-1]:
            inner = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        opened = os.open(parts[-1], _FLAGS | os.O_NONBLOCK, dir_fd=here)
    except FileNotFoundError:
        fail(Cause.MISSING, path, "was not written")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            fail(Cause.MALFORMED, path, "is a symbolic link or behind one; expected a file")
        fail(Cause.MALFORMED, path, f"cannot be opened: {error.strerror}")
    finally:
        os.close(here)
    kind = os.fstat(opened).st_mode
    if not stat.S_ISREG(kind):
        os.close(opened)
        what = "a directory" if stat.S_ISDIR(kind) else "a pipe or a device"
        fail(Cause.MALFORMED, path, f"is {what}; expected a file")
    return os.fdopen(opened, "rb", buffering=0)


def read_all(file: BinaryIO, size: int) -> bytes:
    """The next `size` bytes, or what there is of them; one call of read may return fewer."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def free(path: Path) -> int:
    """Bytes free where a path lies, whether or not it exists yet."""
    info = os.statvfs(path if path.exists() else path.parent)
    return info.f_bavail * info.f_frsize


def no_room(path: Path) -> str:
    """One line that says where there is no room, and how much there is."""
    try:
        room = f"{free(path) // 1024} KiB free"
    except OSError:
        room = "free space unknown"
    return f"no space left for {path} ({room})"


def one_line(text: object, width: int = 200) -> str:
    """Printable characters of a text, in one line."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= width else line[: width - 3] + "..."
