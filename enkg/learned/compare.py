r"""Two sets of samples compared: drawn from a prior, and held out from its training.

All are tensors (N, *X) in the prior's numbers. No prior is asked.

spectrum      E(k), the mean square of the waves between k - 1/2 and k + 1/2 to the longer side;
              all E(k) sum to the mean square of the field.
values        The law of the value at a point, all points together.
energy        Energy distance (`enkg.metrics.energy_distance`) over the mean distance of two
              held-out samples. In many dimensions it sees mean and spread well and fine detail
              hardly: for that there is the spectrum.
memory        How near samples are to the training set, against held-out data: a network that has
              learned its training set by heart passes all other tests.

Each but the last comes with a floor: what real data score in the place of the samples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.errors import InputError
from enkg.metrics import energy_distance
from enkg.random import Stream

PAIRS = 1000
"""Samples of a kind whose distances to one another are taken, at most."""
VALUES = 2_000_000
"""Values of a kind whose distribution is taken, at most."""
SPLITS = 200
"""Random halves that the floor of the energy distance is the 95 % quantile of."""
ENERGY = 0.999
"""Share of the energy of held-out data in the wave numbers that are compared."""
SHARES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
NEAR = 0.01
BLOCK = 4096

Copies = Callable[[Tensor], Iterable[Tensor]]
"""Members (B, *X) to their images under each symmetry, (B, *X) each, themselves among them."""


@dataclass(frozen=True)
class Spectrum:
    """E(k) of samples and held-out data; mean and largest |ln ratio| over `compared`, the k
    that hold 99.9 % of the energy of held-out data, and the same of training data."""

    k: tuple[float, ...]
    samples: tuple[float, ...]
    held_out: tuple[float, ...]
    compared: tuple[float, ...]
    mean_error: float
    max_error: float
    mean_floor: float
    max_floor: float


@dataclass(frozen=True)
class Moments:
    """Of the values at all points; skewness and kurtosis of a normal law are 0 and 3."""

    mean: float
    std: float
    skewness: float
    kurtosis: float


@dataclass(frozen=True)
class Values:
    """quantiles at `shares`. wasserstein: distance of order 1 in held-out standard deviations."""

    samples: Moments
    held_out: Moments
    shares: tuple[float, ...]
    samples_quantiles: tuple[float, ...]
    held_out_quantiles: tuple[float, ...]
    wasserstein: float
    floor: float


@dataclass(frozen=True)
class Energy:
    """value: 0 in expectation for equal laws. floor: below it are 95 % of the values of two sets of
    real data of that many `rows` each."""

    value: float
    floor: float
    rows: int


@dataclass(frozen=True)
class Memory:
    """ratio: median distance to the nearest training sample, of samples over held-out data; NaN
    where half of the held-out data are in the training set. share: of samples that are nearer than
    all but 1 % of held-out data. A prior that generalises has 1 and 0.01."""

    ratio: float
    share: float


def spectrum(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """k and E(k), float64, of fields (N, H, W); None for members of another rank.

    k counts the waves to the longer side; the corners of the Fourier plane, beyond its half, are
    in. sum_k E(k) is the mean square of the field, its mean included.
    """
    if x.dim() != 3:
        return None
    longer = max(x.shape[1:])
    ky, kx = (longer * torch.fft.fftfreq(n, dtype=torch.float64) for n in x.shape[1:])
    shell = torch.hypot(ky[:, None], kx[None]).round().long().flatten().to(x.device)
    power = torch.zeros_like(x[0], dtype=torch.float64)
    for part in x.split(64):
        power += torch.fft.fft2(part.double(), norm="forward").abs().square().sum(dim=0)
    binned = torch.zeros(int(shell.max()) + 1, dtype=torch.float64, device=x.device)
    binned.index_add_(0, shell, power.flatten() / len(x))
    return torch.arange(len(binned), dtype=torch.float64), binned.cpu()


def energetic(held_out: Tensor) -> Tensor:
    """The fewest wave numbers that hold 99.9 % of a spectrum E(k), ascending.

    Without k = 0: a field with a large mean would have no other.
    """
    waves = held_out[1:]
    order = waves.argsort(descending=True)
    before = waves[order].cumsum(0) - waves[order]
    return 1 + order[before < ENERGY * waves.sum()].sort().values


def spectrum_error(samples: Tensor, held_out: Tensor) -> tuple[float, float]:
    """Mean and largest |ln ratio| of two spectra E(k) where the second has its energy."""
    kept = energetic(held_out)
    if not len(kept):  # fields without waves
        return 0.0, 0.0
    gap = (samples[kept] / held_out[kept]).log().abs()
    return float(gap.mean()), float(gap.max())


def spectra(samples: Tensor, held_out: Tensor, training: Tensor) -> Spectrum | None:
    """Compares spectra of (N, H, W); `training`, as many as samples, gives the floor."""
    ours, data, real = (spectrum(x) for x in (samples, held_out, training))
    if ours is None or data is None or real is None:
        return None
    errors = (*spectrum_error(ours[1], data[1]), *spectrum_error(real[1], data[1]))
    columns = [tuple(x.tolist()) for x in (data[0], ours[1], data[1], energetic(data[1]))]
    return Spectrum(columns[0], columns[1], columns[2], columns[3], *errors)


def moments(x: Tensor) -> Moments:
    """Of all values of a tensor."""
    x = x.double()
    mean, std = x.mean(), x.std(correction=0)
    z = (x - mean) / std
    return Moments(*(float(v) for v in (mean, std, z.pow(3).mean(), z.pow(4).mean())))


def values(samples: Tensor, held_out: Tensor, training: Tensor, seed: int = 0) -> Values:
    """Compares the values at all points; `training`, as many as samples, gives the floor."""
    from scipy.stats import wasserstein_distance

    arrays = []
    for step, x in enumerate((samples, held_out, training)):
        few = subset(x.flatten(), VALUES, seed, 10 + step)
        arrays.append(few.double().cpu().numpy())
    ours, data, real = arrays
    theirs = moments(held_out)
    return Values(
        moments(samples),
        theirs,
        SHARES,
        tuple(np.quantile(ours, SHARES).tolist()),
        tuple(np.quantile(data, SHARES).tolist()),
        float(wasserstein_distance(ours, data)) / theirs.std,
        float(wasserstein_distance(real, data)) / theirs.std,
    )


def energy(samples: Tensor, held_out: Tensor, training: Tensor, seed: int = 0) -> Energy:
    """Energy distance of samples and held-out data, in mean distances of held-out samples.

    The floor is from random halves of held-out and training data together, twice as many rows. All
    three are cut to the smallest of them, at most `PAIRS`.
    """
    n = min(len(samples), len(held_out), len(training), PAIRS)
    kinds = enumerate((samples, held_out, training))
    ours, data, real = (rows(subset(x, n, seed, 20 + i)).double() for i, x in kinds)
    real = real.to(data)
    pool = torch.cat([data, real])
    gaps = torch.cdist(pool, pool).fill_diagonal_(0)
    scale = float(gaps[:n, :n].sum()) / (n * (n - 1))
    if not scale > 0:
        raise InputError(f"the {n} held-out samples are copies of one; hold out different ones")
    generator = random.generators(seed, Stream.CHOICE, [0], 30)[0]
    left = torch.zeros(SPLITS, 2 * n, dtype=torch.float64)
    for row in left:
        row[torch.from_numpy(generator.permutation(2 * n)[:n])] = 1
    left = left.to(gaps)
    right, toward = 1 - left, left @ gaps
    across = (toward * right).sum(dim=1) / n**2
    within = ((toward * left).sum(dim=1) + (right @ gaps * right).sum(dim=1)) / (n * (n - 1))
    floor = float((across - within / 2).quantile(0.95))
    return Energy(energy_distance(ours.to(data), data) / scale, floor / scale, n)


def nearest(x: Tensor, training: Tensor, copies: Copies | None = None) -> Tensor:
    """Distance of each of x, (N, *X), to the nearest training sample, (N,) float64.

    Root mean square over the points. copies: all images of members under the symmetries that the
    training used; the nearest of them counts. Training data are read `BLOCK` rows at a time.
    """
    least = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for copy in [x] if copies is None else copies(x):
        for block in training.split(BLOCK):
            gaps = torch.cdist(rows(copy).double(), rows(block).to(x.device).double())
            least = torch.minimum(least, gaps.amin(dim=1))
    return least / x[0].numel() ** 0.5


def memory(
    samples: Tensor,
    held_out: Tensor,
    training: Tensor,
    copies: Copies | None = None,
    seed: int = 0,
) -> Memory:
    """Are samples nearer to the training set than held-out data are? At most `PAIRS` of each."""
    ours, data = (
        nearest(subset(x, PAIRS, seed, 40 + i), training, copies)
        for i, x in enumerate((samples, held_out))
    )
    typical = float(data.median())
    ratio = float(ours.median()) / typical if typical > 0 else nan
    return Memory(ratio, float((ours < data.quantile(NEAR)).double().mean()))


def subset(x: Tensor, count: int, seed: int, step: int) -> Tensor:
    """At most `count` rows of x at random, in their order; those beyond are not read."""
    if len(x) <= count:
        return x
    generator = random.generators(seed, Stream.CHOICE, [0], step)[0]
    chosen = generator.choice(len(x), count, replace=False, shuffle=False)
    return x[torch.from_numpy(chosen).sort().values.to(x.device)]
