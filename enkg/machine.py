"""What a rank has of its node: cores, threads and a GPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from enkg.comm import Comm, share
from enkg.errors import InputError

log = logging.getLogger("enkg")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Linear algebra of this block on so many threads.

    What mixes members runs on one: the last bits of products and factorisations depend on the
    number of threads, and so would the result.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_cores(comm: Comm) -> Iterator[None]:
    """This rank's part of the cores of its node, for the threads and programs of this block.

    Launchers that bind their ranks are left alone. Where all ranks of a node may use the same
    cores, each takes an equal part, as long as there are enough.
    """
    if comm.local_size == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = sorted(os.sched_getaffinity(0))
    others = comm.gather((os.uname().nodename, before))
    same = [cores for node, cores in others if node == os.uname().nodename]
    if len(before) < comm.local_size or any(cores != before for cores in same):
        yield
        return
    mine = share(len(before), comm.local_size, comm.local_rank)
    count = torch.get_num_threads()
    os.sched_setaffinity(0, before[mine.start : mine.stop])
    torch.set_num_threads(max(1, min(count, len(mine))))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(count)


def device(name: str, comm: Comm) -> torch.device:
    """The device of this rank: `cuda` means one GPU for each rank of a node.

    Raises InputError where the device cannot be used, or where there are fewer GPUs than ranks.
    """
    try:
        chosen = torch.device(name)
        if chosen.type == "cuda" and chosen.index is None and comm.local_size > 1:
            chosen = torch.device("cuda", _gpu(comm))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {error}") from error
    if comm.size > 1:
        log.info("rank %d of %d on %s: %s", comm.rank, comm.size, os.uname().nodename, chosen)
    return chosen


def _gpu(comm: Comm) -> int:
    """Index of this rank's GPU among those that it sees."""
    visible = torch.cuda.device_count()
    if visible == 1:  # the launcher has given each rank its own
        return 0
    if visible < comm.local_size:
        raise InputError(
            f"{comm.local_size} ranks of this node see {visible} GPUs; start one rank for each "
            "GPU, or give device='cuda:0' to let ranks share one"
        )
    return comm.local_rank
