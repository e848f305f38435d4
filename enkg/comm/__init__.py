"""The ranks of a run: alone, under an MPI launcher, or under torchrun.

base                what ranks say to each other, and what is built on that
world               which ranks there are: the launcher is asked, and its word is checked
mpi                 mpi4py
wait                how ranks wait for one another
distributed         torch.distributed: gloo, or NCCL where there are GPUs
"""

from enkg.comm.base import (
    ALONE,
    TILE,
    Alone,
    Comm,
    across,
    at_root,
    by_unknown,
    is_common,
    once,
    one_for_all,
    raised_by_all,
    share,
    together,
)
from enkg.comm.world import Kind, world

__all__ = [
    "ALONE",
    "TILE",
    "Alone",
    "Comm",
    "Kind",
    "across",
    "at_root",
    "by_unknown",
    "is_common",
    "once",
    "one_for_all",
    "raised_by_all",
    "share",
    "together",
    "world",
]
