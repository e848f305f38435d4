"""An ensemble is a tensor whose axis 0 counts the members; these are its statistics.

A member is dead when its simulated data hold anything but finite numbers.
"""

import torch
from torch import Tensor

from enkg.arrays import rows

TILE = 4096
"""Elements that are widened to float64 at once."""


def alive(y: Tensor) -> Tensor:
    """Members whose row of `y`, shape (J, *Y), holds finite numbers only; bool, shape (J,)."""
    return rows(y).isfinite().all(dim=1)


def anomalies(x: Tensor) -> Tensor:
    """Differences from the ensemble mean, shape (J, *X)."""
    return x - x.mean(dim=0, keepdim=True)


def cross_covariance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased sample covariance between flattened members, shape (d, m).

    Only for small d and m: the methods themselves stay in ensemble space.
    """
    dx, dy = rows(anomalies(x)), rows(anomalies(y))
    return dx.T @ dy / (len(x) - 1)


def variance(x: Tensor) -> Tensor:
    """Unbiased variance over the members of each element of the unknown, shape X, float64."""
    return x.double().var(dim=0, unbiased=True)


def spread(x: Tensor) -> float:
    """Root-mean-square of the standard deviation over the elements of the unknown."""
    return float(variance(x).mean().sqrt())


def effective_rank(x: Tensor) -> float:
    """Participation ratio (sum l)^2 / sum l^2 of the eigenvalues of the sample covariance.

    Number of directions in which the members, (J, *X), differ: d where all are alike, 1 where there
    is but one, at most J - 1. J draws from a law of ratio R give about 1 / (1 / R + 1 / J), so only
    ensembles of one size compare. Cost: one product of (J, d) and (d, J) matrices, by tiles.
    """
    flat = rows(x)
    j, d = flat.shape
    gram = flat.new_zeros((j, j) if j <= d else (d, d), dtype=torch.float64)
    if j <= d:
        for tile in flat.split(TILE, dim=1):
            part = anomalies(tile.double())
            gram += part @ part.T
    else:
        part = anomalies(flat.double())
        gram += part.T @ part
    total = gram.square().sum()
    return float(gram.trace() ** 2 / total) if float(total) > 0 else 0.0


def resample_dead(x: Tensor, survivors: Tensor, noise: Tensor) -> Tensor:
    """Replaces each dead member by a draw with the survivors' mean and covariance.

    x: ensemble, shape (J, *X). survivors: bool, shape (J,), G of them true. noise: standard normal
    numbers, shape (J - G, G). The draw is mean + sum_k z_k x'_k / sqrt(G - 1) over the survivors:
    one matrix product, no d x d covariance (Lopez-Gomez et al. 2022 sample failed members from the
    successful ones in the same spirit).
    """
    if bool(survivors.all()):
        return x
    good = x[survivors]
    weights = noise.to(x) / (len(good) - 1) ** 0.5
    draws = good.mean(dim=0).flatten() + weights @ rows(anomalies(good))
    x = x.clone()
    x[~survivors] = draws.reshape(-1, *x.shape[1:])
    return x
