"""Batches of samples, keyed by (seed, step): a training that goes on sees what it would have seen.

Samples are shuffled anew in each pass over them, and none comes twice in a pass. The place of step
t in this endless row is t * batch, whatever happened before.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from enkg.errors import InputError
from enkg.learned.sources import Held, Indices, Samples, held

MEMORY = 2 << 30
"""Bytes of samples (as float32) that are kept in the memory."""
SHUFFLE = 2
"""Purpose of the random numbers; `enkg.learned.sources` has another."""


def batches(
    samples: Samples,
    indices: Indices,
    batch: int,
    seed: int,
    first_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Tensor]:
    """The batches of the steps first_step, ..., steps - 1: (batch / size, *X), float32, CPU.

    indices: of the samples to learn from. The batch of a step depends on (indices, batch, seed,
    step) alone; `rank` of `size` ranks has its own part of it, and the parts make up the whole.
    workers: processes that read ahead, worth it where files are slow (on a network, compressed).
    Samples of up to 2 GB are read once, here, and need none. Raises InputError for numbers that do
    not fit.
    """
    indices = np.asarray(indices, dtype=np.intp)
    if not len(indices) or indices.min() < 0 or indices.max() >= len(samples):
        raise InputError(
            f"{len(indices)} indices were given to draw batches from; expected some, between 0 and "
            f"{len(samples) - 1}"
        )
    if size < 1 or not 0 <= rank < size:
        raise InputError(f"rank {rank} of {size} ranks; expected one from 0 to {size - 1}")
    if batch < 1 or batch % size:
        raise InputError(
            f"a batch of {batch} samples for {size} ranks; {size} must divide it, so that each has "
            f"as many: {max(batch // size, 1) * size} would do"
        )
    if not 0 <= first_step <= steps:
        raise InputError(f"first_step is {first_step} of {steps} steps; expected 0 to {steps}")
    if len(samples) * 4 * np.prod(samples.shape, dtype=float) <= MEMORY:
        samples = held(samples)
    loader = DataLoader(
        _Rows(samples),
        sampler=_Keyed(indices, batch, seed, range(first_step, steps), rank, size),
        batch_size=None,  # the sampler gives the indices of a whole batch
        num_workers=0 if isinstance(samples, Held) else workers,
        generator=torch.Generator(),  # so that the loader draws nothing from the global one
    )
    return iter(loader)


def order(count: int, batch: int, seed: int, step: int) -> ndarray:
    """Places in a list of `count` samples that make up the batch of a step, (batch,)."""
    places = step * batch + np.arange(batch)
    passes, places = np.divmod(places, count)
    shuffles = [_shuffled(count, seed, number) for number in range(passes[0], passes[-1] + 1)]
    return np.stack(shuffles)[passes - passes[0], places]


def _shuffled(count: int, seed: int, number: int) -> ndarray:
    """The order of one pass. Cost: one permutation, 2 ms for 100,000 samples."""
    return np.random.default_rng((seed, SHUFFLE, int(number))).permutation(count)


class _Rows(Dataset):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, indices: ndarray) -> Tensor:
        return torch.from_numpy(self.samples.rows(indices))


class _Keyed(Sampler):
    """The indices of one rank's part of each batch."""

    def __init__(
        self, indices: ndarray, batch: int, seed: int, steps: range, rank: int, size: int
    ) -> None:
        self.indices, self.batch, self.seed, self.steps = indices, batch, seed, steps
        share = batch // size
        self.part = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[ndarray]:
        for step in self.steps:
            yield self.indices[order(len(self.indices), self.batch, self.seed, step)[self.part]]
