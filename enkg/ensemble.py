"""An ensemble is a tensor whose axis 0 counts the members; these are its statistics.

A member is dead when its simulated data hold anything but finite numbers.
"""

from torch import Tensor

from enkg.arrays import rows


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
