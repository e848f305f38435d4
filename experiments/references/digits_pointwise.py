"""Exact posteriors of operators that act on each point of a digit by itself.

Kernels of the prior are diagonal, so given a component the points are independent. A point with
prior N(m, h^2) and datum y of standard deviation s falls on one of the pieces of the line on which
the operator is flat or straight; on each its density is a truncated normal. For `hdr`,
y = clip(2 x, -1, 1) + noise, there are three:

    x < -1/2        weight Phi((-1/2 - m) / h) N(y; -1, s^2)              N(m, h^2)
    |x| <= 1/2      weight N(y; 2 m, s^2 + 4 h^2) P(|x| <= 1/2)           N(mu, t^2)
    x > 1/2         weight Phi((m - 1/2) / h) N(y; 1, s^2)                N(m, h^2)

with 1 / t^2 = 1 / h^2 + 4 / s^2 and mu = t^2 (m / h^2 + 2 y / s^2). For `quantise` there is one for
each level l, from a to b, all flat:

    a < x < b       weight P(a < x < b) N(y; l, s^2)                      N(m, h^2)

The sum of the weights is the evidence of the point, and the product over points that of the
component. `poisson`, counts y of mean r(x) = R max((x + 1) / 2, e), has no such pieces: there

    Z = int N(x; m, h^2) r(x)^y exp(-r(x)) dx,

the moments and the distribution function are sums on a fine grid of x, for each of the 17 values
that a centre can have at a point.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from scipy.special import log_ndtr, logsumexp, ndtri_exp

from experiments.digits.setting import Setting
from experiments.references.digits import Reference, choose, class_weights
from priors import digits
from simulators import images, small_images

KNEE = 0.5
GRID = 4001
LEVELS = small_images.QUANTISE.levels
EDGES = ((-np.inf, -KNEE), (-KNEE, KNEE), (KNEE, np.inf))


@dataclass(frozen=True, eq=False)
class Pieces:
    """Truncated normals; all fields have the pieces on axis 0: (K, *shape).

    log_weight: with the evidence in it. mean, std: of the normal that is truncated to [low, high].
    """

    log_weight: ndarray
    mean: ndarray
    std: ndarray
    low: ndarray
    high: ndarray


def clipped(m: ndarray, y: ndarray, h: float, s: float) -> Pieces:
    """`hdr`: of points with prior N(m, h^2) and datum y of standard deviation s, any one shape."""
    t = 1 / np.sqrt(1 / h**2 + 4 / s**2)
    mu = t**2 * (m / h**2 + 2 * y / s**2)
    mean, std = np.stack([m, mu, m]), np.stack([np.full_like(m, v) for v in (h, t, h)])
    low, high = (np.stack([np.full_like(m, edge[k]) for edge in EDGES]) for k in (0, 1))
    evidence = np.stack(
        [
            log_normal(y, -1.0, s),
            log_normal(y, 2 * m, np.sqrt(s**2 + 4 * h**2)),
            log_normal(y, 1.0, s),
        ]
    )
    inside = log_mass((low - mean) / std, (high - mean) / std)
    return Pieces(evidence + inside, mean, std, low, high)


def quantised(m: ndarray, y: ndarray, h: float, s: float, levels: int = LEVELS) -> Pieces:
    """`quantise`: the same for so many evenly spaced levels from -1 to 1."""
    level = np.linspace(-1, 1, levels)
    between = (level[1:] + level[:-1]) / 2
    along = (levels, *(1,) * m.ndim)
    low = np.concatenate([[-np.inf], between]).reshape(along)
    high = np.concatenate([between, [np.inf]]).reshape(along)
    inside = log_mass((low - m) / h, (high - m) / h)
    weight = log_normal(y, level.reshape(along), s) + inside
    same = [np.broadcast_to(v, weight.shape) for v in (m, np.asarray(h), low, high)]
    return Pieces(weight, *same)


PIECES: Mapping[str, Callable[[ndarray, ndarray, float, float], Pieces]] = {
    "hdr": clipped,
    "quantise": quantised,
}


class Law(Protocol):
    """The posterior of points given their components; y is that of one image, (d,)."""

    def log_evidence(self, m: ndarray) -> ndarray:
        """log p(y | component) up to a constant, (N, d) to (N,)."""
        ...

    def moments(self, m: ndarray) -> tuple[ndarray, ndarray]:
        """First and second moment of each point, (N, d) to (N, d) each."""
        ...

    def sample(self, m: ndarray, generator: Generator) -> ndarray:
        """One draw of each point, (N, d)."""
        ...


@dataclass(frozen=True, eq=False)
class Piecewise:
    """Truncated normals on pieces; y: (d,); h and s: widths of kernel and noise."""

    pieces: Callable[[ndarray, ndarray, float, float], Pieces]
    y: ndarray
    h: float
    s: float

    def _points(self, m: ndarray) -> Pieces:
        return self.pieces(m, np.broadcast_to(self.y, m.shape), self.h, self.s)

    def log_evidence(self, m: ndarray) -> ndarray:
        return np.asarray(logsumexp(self._points(m).log_weight, axis=0)).sum(axis=1)

    def moments(self, m: ndarray) -> tuple[ndarray, ndarray]:
        return moments(self._points(m))

    def sample(self, m: ndarray, generator: Generator) -> ndarray:
        return sample(self._points(m), generator)


@dataclass(frozen=True, eq=False)
class Gridded:
    """Any likelihood on a grid. values: (K,), all that m can be; log_likelihood: (d, points)."""

    values: ndarray
    log_likelihood: ndarray
    grid: ndarray
    h: float

    @cached_property
    def _mass(self) -> tuple[ndarray, ndarray]:
        """log Z, (K, d), and the shares of the grid's points, (K, d, points)."""
        prior = log_normal(self.grid, self.values[:, None], self.h)
        both = prior[:, None] + self.log_likelihood + np.log(self.grid[1] - self.grid[0])
        total = np.asarray(logsumexp(both, axis=2))
        return total, np.exp(both - total[:, :, None])

    def _places(self, m: ndarray) -> tuple[ndarray, ndarray]:
        k = np.searchsorted(self.values, m)
        return k, np.broadcast_to(np.arange(m.shape[1]), m.shape)

    def log_evidence(self, m: ndarray) -> ndarray:
        return self._mass[0][self._places(m)].sum(axis=1)

    def moments(self, m: ndarray) -> tuple[ndarray, ndarray]:
        first, second = (self._mass[1] @ self.grid**power for power in (1, 2))
        return first[self._places(m)], second[self._places(m)]

    def sample(self, m: ndarray, generator: Generator) -> ndarray:
        values, points = self._places(m)
        u, x = generator.random(m.shape), np.empty(m.shape)
        step = self.grid[1] - self.grid[0]
        for k, j in {*zip(values.ravel().tolist(), points.ravel().tolist(), strict=True)}:
            here = (values == k) & (points == j)
            x[here] = np.interp(u[here], self._mass[1][k, j].cumsum(), self.grid + step / 2)
        return x


def counted(setting: Setting) -> Gridded:
    """`poisson`: the law of a setting."""
    operator = setting.simulator
    assert isinstance(operator, images.Intensity)
    reach = 1 + 8 * setting.bandwidth
    grid = np.linspace(-reach, reach, GRID)
    rate = operator.peak * np.maximum((grid + 1) / 2, operator.least)
    y = setting.observation.y.flatten().numpy()
    values = np.unique(digits.centres().images.numpy())
    return Gridded(values, y[:, None] * np.log(rate) - rate, grid, setting.bandwidth)


def law(setting: Setting) -> Law:
    """Of a setting of `hdr`, `quantise` or `poisson`."""
    if setting.problem == "poisson":
        return counted(setting)
    y = setting.observation.y.flatten().numpy()
    return Piecewise(PIECES[setting.problem], y, setting.bandwidth, setting.noise)


def posterior(setting: Setting, draws: int, generator: Generator) -> Reference:
    """The posterior of a setting of `hdr`, `quantise` or `poisson`."""
    centres, points = digits.centres().images.flatten(1).numpy(), law(setting)
    weights = torch.softmax(torch.from_numpy(points.log_evidence(centres)), dim=0)
    kept = np.flatnonzero(weights.numpy() > 1e-14 * float(weights.max()))
    first, second = points.moments(centres[kept])
    w = (weights[kept] / weights[kept].sum()).numpy()
    mean = w @ first
    which = choose(weights, draws, generator).numpy()
    x = points.sample(centres[which], generator)
    std = np.sqrt(w @ second - mean**2)
    shape = (8, 8)
    return Reference(
        torch.from_numpy(mean).reshape(shape),
        torch.from_numpy(std).reshape(shape),
        class_weights(weights),
        torch.from_numpy(x).reshape(-1, *shape),
        closed=True,
    )


def moments(p: Pieces) -> tuple[ndarray, ndarray]:
    """First and second moment of each point."""
    a, b = (p.low - p.mean) / p.std, (p.high - p.mean) / p.std
    mass = log_mass(a, b)
    at_a, at_b = (np.exp(log_normal(edge, 0.0, 1.0) - mass) for edge in (a, b))
    first = at_a - at_b
    second = 1 + _product(a, at_a) - _product(b, at_b)
    share = np.exp(p.log_weight - logsumexp(p.log_weight, axis=0))
    seen = share > 1e-15  # elsewhere the mass may be too small to divide by
    one = np.where(seen, p.mean + p.std * first, 0)
    two = np.where(seen, p.mean**2 + 2 * p.mean * p.std * first + p.std**2 * second, 0)
    return (share * one).sum(axis=0), (share * two).sum(axis=0)


def _product(edge: ndarray, density: ndarray) -> ndarray:
    return np.where(np.isfinite(edge), edge, 0) * density


def sample(p: Pieces, generator: Generator) -> ndarray:
    """One draw of each point."""
    share = np.exp(p.log_weight - logsumexp(p.log_weight, axis=0)).cumsum(axis=0)
    piece = (generator.random(share.shape[1:]) > share[:-1]).sum(axis=0)[None]
    mean, std, low, high = (
        np.take_along_axis(v, piece, axis=0)[0] for v in (p.mean, p.std, p.low, p.high)
    )
    a, b = (low - mean) / std, (high - mean) / std
    mirrored = a + b > 0  # the lower tail keeps its digits
    a, b = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
    u = generator.random(a.shape)
    log_p = np.logaddexp(log_ndtr(a) + np.log1p(-u), log_ndtr(b) + np.log(u))
    z = np.clip(ndtri_exp(log_p), a, b)
    return mean + std * np.where(mirrored, -z, z)


def log_normal(x: ndarray, mean: ndarray | float, std: ndarray | float) -> ndarray:
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def log_mass(a: ndarray, b: ndarray) -> ndarray:
    """log of P(a < Z < b) for a standard normal Z."""
    mirrored = a + b > 0
    a, b = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
    top = log_ndtr(b)
    return top + np.log1p(-np.exp(log_ndtr(a) - top))
