"""Run directories: where they are made, what is kept of them, what dead processes left behind."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

from enkg.errors import InputError
from enkg.execute.files import free, open_below
from enkg.failure import MemberFailed

MEMORY = Path("/dev/shm")
"""Files here stay in memory."""
LEAST_ROOM = 64 * 2**20
"""Bytes that must be free in memory before run directories are made there."""
KEPT = 20
"""Run directories of failed members that are kept, at most, and as many of good ones."""
KEPT_BYTES = 256 * 2**20
"""Bytes of those that failed, at most, and as many of the good ones."""

_keeping = threading.Lock()


class Scratch:
    """A folder of our own, mode 0700, for run directories.

    where: made if need be; None takes memory if 4 times `needed` bytes fit there, else the system's
    temporary folder. The folder goes when it is closed, or with the process; those of processes
    that were killed go when the next one is made beside them.
    """

    def __init__(self, where: Path | None, needed: int) -> None:
        where = where or choose(needed)
        try:
            where.mkdir(parents=True, exist_ok=True)
            sweep(where)
            name = tempfile.mkdtemp(prefix=f"enkg-{os.getuid()}-{os.getpid()}-", dir=where)
        except OSError as error:
            raise InputError(
                f"run directories cannot be made in {where}: {error.strerror}; "
                f"name another folder as `scratch`"
            ) from error
        self.path = Path(name)
        held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # without locks, `sweep` lets everything be
            fcntl.flock(held, fcntl.LOCK_SH)
        self.close = weakref.finalize(self, _close, self.path, held, os.getpid())


def _close(path: Path, held: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        remove(path)
        os.close(held)


def choose(needed: int) -> Path:
    """Memory if it has ample room, else the temporary folder."""
    try:
        if os.access(MEMORY, os.W_OK | os.X_OK) and free(MEMORY) >= max(4 * needed, LEAST_ROOM):
            return MEMORY
    except OSError:
        pass
    return Path(tempfile.gettempdir())


def sweep(where: Path) -> None:
    """Removes the folders of our own processes that are gone.

    A process is gone if there is no process of that number and nobody holds the folder's lock: the
    number may belong to another machine or container that shares the folder.
    """
    for path in where.glob(f"enkg-{os.getuid()}-*-*"):
        number = path.name.split("-")[2]
        if not number.isdigit() or _alive(int(number)):
            continue
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held).st_uid == os.getuid():
                remove(path)
        except OSError:
            pass
        finally:
            os.close(held)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    """Deletes a folder and all in it, folders without write permission included."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        _open_up(path)
        for inner, folders, _ in os.walk(path):
            for name in folders:
                _open_up(Path(inner, name))
        shutil.rmtree(path, ignore_errors=True)


def _open_up(folder: Path) -> None:
    if not folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.chmod(0o700)


def keep(run: Path, folder: Path, notes: Mapping[str, str], failed: bool) -> Path | None:
    """Copies a run directory into `folder`, with notes as further files; None if nothing is kept.

    What does not fit into KEPT_BYTES, and what is no regular file, is left out and listed in
    left_out.txt. A copy that does not succeed, as on a full disk, leaves nothing.
    """
    target = folder / run.name
    part = folder / f".{run.name}.part"
    with _keeping:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [
                path
                for path in folder.iterdir()
                if path not in (target, part) and path.is_dir()
                if (path / "failure.txt").exists() == failed
            ]
            room = KEPT_BYTES - sum(_size(path) for path in others)
            if len(others) >= KEPT or room <= 0:
                return None
            remove(part)
            part.mkdir(mode=0o700)
            left_out = _copy(run, part, room)
            if left_out:
                notes = {**notes, "left_out.txt": "\n".join(left_out) + "\n"}
            for name, text in notes.items():
                own = part / name
                if own.exists():  # the program has a file of that name
                    own = part / f"enkg-{name}"
                own.write_text(text, errors="replace")
            remove(target)
            part.rename(target)
        except OSError:
            remove(part)
            return None
    return target


def _size(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(inner, name)).st_size
        for inner, _, names in os.walk(folder)
        for name in names
    )


def _copy(run: Path, part: Path, room: int) -> list[str]:
    """Copies the smallest files first; returns what was left out."""
    files: list[tuple[int, Path]] = []
    left_out = []
    for inner, folders, names in os.walk(run):
        here = Path(inner)
        for name in folders:
            if not (here / name).is_symlink():
                (part / (here / name).relative_to(run)).mkdir()
        for name in (*names, *(f for f in folders if (here / f).is_symlink())):
            info, path = os.lstat(here / name), (here / name).relative_to(run)
            if stat.S_ISLNK(info.st_mode):
                (part / path).symlink_to(os.readlink(here / name))
            else:
                files.append((info.st_size, path))
    for size, path in sorted(files):
        if size > room:
            left_out.append(f"{path}: {size} bytes")
            continue
        try:
            with open_below(run / path, run) as source, open(part / path, "wb") as copy:
                shutil.copyfileobj(source, copy)
        except MemberFailed as error:
            left_out.append(f"{path}: {error.failure.detail}")
            continue
        room -= size
    return left_out
