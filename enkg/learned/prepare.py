"""What is done once before a training: samples, units, base, network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from enkg.errors import InputError
from enkg.learned.base import Base, fitted
from enkg.learned.denoiser import Preconditioned
from enkg.learned.generated import Generated
from enkg.learned.sources import Samples, check, split
from enkg.learned.symmetry import symmetrised
from enkg.learned.training import Training
from enkg.units import Affine, Log

FITTED = 8192
"""Samples from which units and base are taken, symmetric copies included."""
MEASURED = 1024
"""Held-out samples that the figures of merit use."""

SKETCHED = 64
"""Samples that a fingerprint looks at."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """samples: all of them. learnt, held_out: indices. The module has untrained weights."""

    samples: Samples
    learnt: np.ndarray
    held_out: np.ndarray
    units: Affine | Log
    base: Base
    module: Preconditioned

    def rows(self, indices: np.ndarray) -> Tensor:
        """These samples in the prior's numbers, float32."""
        return self.units.to_prior(torch.from_numpy(self.samples.rows(indices)))

    def reference(self, which: str) -> Tensor:
        """Up to `MEASURED` of the held-out or the learnt samples, in the prior's numbers."""
        indices = self.held_out if which == "held_out" else self.learnt
        return self.rows(evenly(indices, MEASURED))


def prepare(training: Training, data: Path, progress: Progress | None = None) -> Prepared:
    """Draws, checks and splits the samples, fits units and base, builds the network.

    data: where generated samples are kept. Weights depend on the seed alone.
    """
    found = training.samples
    if isinstance(found, Generated):
        found = found.materialised(training.data or data, progress)
    check(found)
    learnt, held_out = split(len(found), training.held_out, training.seed)
    some = evenly(learnt, FITTED)
    physical = torch.from_numpy(found.rows(some))
    units = training.units or _standard(physical)
    x = units.to_prior(physical)
    if not bool(x.isfinite().all()):
        raise InputError("the units make NaN or infinity of some samples")
    if training.symmetries:
        generator = torch.Generator().manual_seed(training.seed)
        copies = max(1, FITTED // len(x))
        x = symmetrised(x.repeat(copies, *(1,) * (x.dim() - 1)), training.symmetries, generator)
    base = fitted(training.base, x, training.components)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        module = Preconditioned(training.network.build(found.shape, 2), base, found.shape)
    return Prepared(found, learnt, held_out, units, base, module)


def evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of them, spread over all."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]


def fingerprint(samples: Samples) -> str:
    """Tells other samples from these: a SHA-256 of their shape and of some of them."""
    some = samples.rows(evenly(np.arange(len(samples)), SKETCHED))
    told = f"{len(samples)} {tuple(samples.shape)}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(some).tobytes()).hexdigest()


def _standard(x: Tensor) -> Affine:
    mean, std = float(x.double().mean()), float(x.double().std())
    if not std > 0:
        raise InputError("all values of the samples are equal; there is nothing to learn")
    return Affine(scale=float(f"{std:.6g}"), offset=float(f"{mean:.6g}"))
