"""Shared memory that MPI programs leave behind when they crash or are killed.

MPICH removes its segments when a program ends in order; otherwise 2 MiB of memory stay in use until
somebody deletes a file. With thousands of failed members that fills a node.
"""

import contextlib
import os
import threading
import time
from glob import glob

PATTERNS = (
    "/dev/shm/mpich_shm_*",
    "/dev/shm/ucx_shm_posix_*",
    "/dev/shm/vader_segment.*",  # Open MPI 4
    "/dev/shm/sm_segment.*",  # Open MPI 5
    "/tmp/hydra_hwloc_xmlfile_*",  # MPICH again, a small file
)
AGE = 60.0
"""Seconds. A program opens its segments by name when it starts, so younger files are let be."""
PAUSE = 10.0
"""Seconds between two sweeps."""

_begun = time.time()
_sweeps = [-PAUSE]  # when the last one was
_lock = threading.Lock()


def sweep() -> None:
    """Deletes such files of ours, made since enkg began, that no process has in use.

    Called after every failure of a launched program; most calls return at once.
    """
    if not os.path.isdir("/dev/shm") or not _lock.acquire(blocking=False):
        return
    try:
        if time.monotonic() - _sweeps[0] < PAUSE:
            return
        _sweeps[0] = time.monotonic()
        stale = [path for pattern in PATTERNS for path in glob(pattern) if _stale(path)]
        used = _mapped() if stale else b""
        for path in stale:
            if path.encode() not in used:
                with contextlib.suppress(OSError):
                    os.unlink(path)
    finally:
        _lock.release()


def _stale(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == os.getuid() and _begun <= status.st_ctime <= time.time() - AGE


def _mapped() -> bytes:
    """The memory maps of all processes that we may look into."""
    texts = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/maps", "rb") as file:
            texts.append(file.read())
    return b"\n".join(texts)
