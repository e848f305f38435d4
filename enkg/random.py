"""Random numbers keyed by (seed, stream, member, step).

Each member of the ensemble has its own counter of one Philox generator (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"), so a draw does not depend on the order of the
members, on the chunk size, or on the process that makes it. Draws are made in float64 on the CPU
and then cast, so that every dtype and device sees the same numbers.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import prod

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from torch import Tensor

from enkg.errors import InputError


class Stream(IntEnum):
    """Purposes that must never share random numbers."""

    INITIAL = 0
    SAMPLER = 1
    OBSERVATION = 2
    RESAMPLE = 3
    COMPONENT = 4
    SYNTHETIC = 5
    START = 6
    DIRECTION = 7
    CANDIDATE = 8
    CONDITIONAL = 9
    RENOISE = 10
    CHOICE = 11
    TRUTH = 12
    REFERENCE = 13
    LANGEVIN = 14
    PROPOSAL = 15
    ACCEPT = 16


def generators(seed: int, stream: Stream, members: Sequence[int], step: int) -> list[Generator]:
    """One independent generator per member; 2^128 draws apart from each other."""
    if seed < 0:
        raise InputError(f"seed is {seed}; expected a whole number that is not negative")
    key = SeedSequence((seed, int(stream))).generate_state(2, np.uint64)
    return [Generator(Philox(key=key, counter=[0, 0, step, member])) for member in members]


def normal(
    shape: Sequence[int], seed: int, stream: Stream, members: Sequence[int], step: int
) -> Tensor:
    """Standard normal draws, shape (len(members), *shape), float64."""
    size = prod(shape)
    draws = [g.standard_normal(size) for g in generators(seed, stream, members, step)]
    return torch.from_numpy(np.stack(draws)).reshape(len(members), *shape)


def choose(count: int, seed: int, stream: Stream, members: Sequence[int], step: int) -> Tensor:
    """One index below `count` for each member, shape (len(members),), uniform."""
    draws = [int(g.integers(count)) for g in generators(seed, stream, members, step)]
    return torch.tensor(draws)
