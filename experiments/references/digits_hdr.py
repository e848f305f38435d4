"""The exact posterior of high dynamic range, y = clip(2 x, -1, 1) + noise, on digits.

Kernels of the prior are diagonal and the operator acts on each point, so given a component the
points are independent. A point with prior N(m, h^2) and datum y of standard deviation s falls on
one of three pieces of the line; on each its density is a truncated normal:

    x < -1/2        weight Phi((-1/2 - m) / h) N(y; -1, s^2)              N(m, h^2)
    |x| <= 1/2      weight N(y; 2 m, s^2 + 4 h^2) P(|x| <= 1/2)           N(mu, t^2)
    x > 1/2         weight Phi((m - 1/2) / h) N(y; 1, s^2)                N(m, h^2)

with 1 / t^2 = 1 / h^2 + 4 / s^2 and mu = t^2 (m / h^2 + 2 y / s^2). The sum of the three weights
is the evidence of the point, and the product over points that of the component.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from scipy.special import log_ndtr, logsumexp, ndtri_exp

from experiments.digits.setting import Setting
from experiments.references.digits import Reference, choose, class_weights
from priors import digits

KNEE = 0.5
EDGES = ((-np.inf, -KNEE), (-KNEE, KNEE), (KNEE, np.inf))


@dataclass(frozen=True, eq=False)
class Pieces:
    """Truncated normals; all fields have the pieces on axis 0: (3, *shape).

    log_weight: with the evidence in it. mean, std: of the normal that is truncated to [low, high].
    """

    log_weight: ndarray
    mean: ndarray
    std: ndarray
    low: ndarray
    high: ndarray


def pieces(m: ndarray, y: ndarray, h: float, s: float) -> Pieces:
    """Of points with prior N(m, h^2) and datum y of standard deviation s, any one shape."""
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


def posterior(setting: Setting, draws: int, generator: Generator) -> Reference:
    """The posterior of a setting of `hdr`."""
    centres = digits.centres().images.flatten(1).numpy()
    y = setting.observation.y.flatten().numpy()
    h, s = setting.bandwidth, setting.noise
    weights = torch.softmax(torch.from_numpy(log_evidence(centres, y, h, s)), dim=0)
    kept = np.flatnonzero(weights.numpy() > 1e-14 * float(weights.max()))
    first, second = moments(pieces(centres[kept], np.broadcast_to(y, (len(kept), 64)), h, s))
    w = (weights[kept] / weights[kept].sum()).numpy()
    mean = w @ first
    which = choose(weights, draws, generator).numpy()
    x = sample(pieces(centres[which], np.broadcast_to(y, (draws, 64)), h, s), generator)
    std = np.sqrt(w @ second - mean**2)
    shape = (8, 8)
    return Reference(
        torch.from_numpy(mean).reshape(shape),
        torch.from_numpy(std).reshape(shape),
        class_weights(weights),
        torch.from_numpy(x).reshape(-1, *shape),
        closed=True,
    )


def log_evidence(centres: ndarray, y: ndarray, h: float, s: float) -> ndarray:
    """log p(y | component), (N, d) and (d,) to (N,)."""
    points = pieces(centres, np.broadcast_to(y, centres.shape), h, s)
    return np.asarray(logsumexp(points.log_weight, axis=0)).sum(axis=1)


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
    piece = (generator.random(share.shape[1:]) > share[:2]).sum(axis=0)[None]
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
