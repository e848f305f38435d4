"""Samples to learn from: arrays, files larger than the memory, and what is held out of them.

    samples(array)                          # (N, *X), a NumPy array or a tensor
    samples("fields.npy")                   # the same in a file, read as needed
    samples("fields.nc", "vorticity")       # NetCDF or HDF5, one variable of it
    samples("fields.zarr", "run/h", sample_dim="time")  # Zarr, a variable in a group
    samples("fields/")                      # a folder of .npy files, each one sample
    samples("fields/", stacked=True)        # each with several samples, (n, *X)

Numbers are the user's own: units are the business of the training.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.errors import InputError

BLOCK = 1 << 26
"""Bytes of samples that are read at once, about."""
SPLIT = 1
"""Purpose of the random numbers of `split`; `enkg.learned.batches` has others."""

Indices = Sequence[int] | ndarray


@runtime_checkable
class Samples(Protocol):
    """A number of samples of one shape, of which any can be had. Picklable, for the workers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape X of one sample."""
        ...

    def __len__(self) -> int: ...

    def rows(self, indices: Indices) -> ndarray:
        """These samples, in that order, (n, *X), float32, in the user's units."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Samples in the memory, (N, *X), of any real type. The array is not copied."""

    array: ndarray

    def __post_init__(self) -> None:
        check_array("the samples", self.array.shape, self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, indices: Indices) -> ndarray:
        return single(self.array[np.asarray(indices, dtype=np.intp)])


def samples(
    source: Any, variable: str | None = None, sample_dim: str | None = None, stacked: bool = False
) -> Samples:
    """Samples of an array, a tensor, a file, a folder, or `Samples` themselves.

    The first axis counts the samples. Of a NetCDF, HDF5 or Zarr source: variable: its name, or
    "group/name"; None where there is one alone. sample_dim: the dimension that counts the samples;
    None for the first. Of a folder of .npy files, in the order of their names: stacked: whether
    each holds several samples, (n, *X), or is one. Files are read when rows are asked for. Raises
    InputError for what is missing, empty, ambiguous, or not real numbers; whether the numbers are
    finite says `check`.
    """
    if isinstance(source, str | os.PathLike):
        from enkg.learned.files import opened

        return opened(Path(source), variable, sample_dim, stacked)
    if variable is not None or sample_dim is not None or stacked:
        raise InputError(
            "variable, sample_dim and stacked choose within files; the samples are given as "
            f"{type(source).__name__}, whose first axis counts them"
        )
    if isinstance(source, Samples):
        check_array("the samples", (len(source), *source.shape), np.dtype(np.float32))
        return source
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source
        return Held(source.resolve_conj().resolve_neg().numpy())
    array = np.asarray(source)
    if array.dtype == object:
        raise InputError(
            f"samples are given as {type(source).__name__}; expected an array or tensor (N, *X), "
            "the path of a file or folder, or an object with shape, len() and rows(indices). A "
            "Generated becomes one by its materialised(folder)"
        )
    return Held(array)


def check(samples: Samples, progress: Callable[[int, int], None] | None = None) -> None:
    """Reads all samples once, block by block; raises InputError unless they can be learned from.

    progress: called with how many are read, and of how many.
    """
    bad: list[int] = []
    numbers, different, first = 0, False, np.empty(0)
    for start, block in blocks(samples):
        first = block[:1] if start == 0 else first
        wrong = ~np.isfinite(block.reshape(len(block), -1))
        bad += (start + np.flatnonzero(wrong.any(axis=1))).tolist()
        numbers += int(wrong.sum())
        different = different or bool((block != first).any())
        if progress is not None:
            progress(start + len(block), len(samples))
    if bad:
        raise InputError(
            f"{len(bad)} of {len(samples)} samples hold NaN or infinity (as float32), {numbers} "
            f"numbers in all; the first is sample {bad[0]}. Leave these samples out, or fill what "
            "is missing"
        )
    if not different:
        raise InputError(
            f"all {len(samples)} samples are the same; there is nothing to learn from them. Is the "
            "first axis the one that counts the samples?"
        )


def blocks(samples: Samples) -> Iterator[tuple[int, ndarray]]:
    """All samples in order, as (number of the first, (n, *X)), about 64 MB at a time.

    Raises InputError where `rows` does not give what was asked for.
    """
    size = max(1, BLOCK // (4 * prod(samples.shape)))
    for start in range(0, len(samples), size):
        wanted = np.arange(start, min(start + size, len(samples)))
        block, expected = samples.rows(wanted), (len(wanted), *samples.shape)
        if block.shape != expected or block.dtype != np.float32:
            raise InputError(
                f"rows(indices) of {type(samples).__name__} gave shape {block.shape}, type "
                f"{block.dtype}; expected {expected}, float32"
            )
        yield start, block


def held(samples: Samples) -> Held:
    """All samples in the memory, as one float32 array; those that already are stay as they are."""
    if isinstance(samples, Held):
        return samples
    whole = np.empty((len(samples), *samples.shape), dtype=np.float32)
    for start, block in blocks(samples):
        whole[start : start + len(block)] = block
    return Held(whole)


def split(count: int, held_out: float | int, seed: int = 0) -> tuple[ndarray, ndarray]:
    """Which of `count` samples to learn from and which to hold out, (n,) each, in order.

    held_out: a share below 1, or a whole number of samples; 0 for none. Drawn at random: times of
    one simulation that follow each other are alike, so where the samples are such, hold out a
    stretch of them instead.
    """
    whole = float(held_out).is_integer() and held_out >= 2  # a command line makes 200.0 of 200
    number = int(held_out) if isinstance(held_out, int) or whole else -1
    if isinstance(held_out, float) and 0 <= held_out < 1:
        number = max(round(held_out * count), int(held_out > 0))
    if number < 0 or count - number < 2:
        raise InputError(
            f"held_out is {held_out} of {count} samples; expected a share from 0 to below 1, or a "
            "whole number of samples, that leaves at least two to learn from"
        )
    order = np.random.default_rng((seed, SPLIT)).permutation(count)
    return np.sort(order[number:]), np.sort(order[:number])


def check_array(name: str, shape: Sequence[int], dtype: np.dtype) -> None:
    """Raises InputError unless this can be an array of samples."""
    if dtype.kind not in "fiub":
        raise InputError(
            f"{name} hold numbers of type {dtype}; expected real ones. Complex data go in as real "
            "and imaginary parts"
        )
    if len(shape) < 2:
        raise InputError(
            f"{name} have shape {tuple(shape)}; expected (N, *X), the first axis to count them"
        )
    if 0 in shape:
        raise InputError(f"{name} have shape {tuple(shape)}; there are no numbers in them")
    if shape[0] < 2:
        raise InputError(
            f"{name} have shape {tuple(shape)}, so there is one alone, and one tells nothing of "
            "how they vary. The first axis counts them: is it missing?"
        )


def single(array: ndarray) -> ndarray:
    """As float32; what float32 cannot hold becomes infinity, which `check` finds."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
