"""How much of the likelihood each update uses.

A tempered Bayes step uses the likelihood to the power `power` (1/alpha in the literature of
ensemble smoothers); the powers of a run add up to one.
"""

from math import sqrt

from torch import Tensor

from enkg.errors import InputError


def adaptive_power(misfit: Tensor, size: int, beta: float, cap: float = 1.0) -> float:
    """The data-misfit controller: min(max(m / (2 mean Phi), sqrt(m / (2 var Phi))), cap, 1 - beta).

    misfit: Phi of the living members, shape (G,). size: number m of independent data. beta: power
    spent so far. It keeps the symmetrised Kullback-Leibler divergence between two successive
    posteriors of order one (Iglesias and Yang 2021, "Adaptive regularisation for ensemble Kalman
    inversion", Inverse Problems 37, 025008).
    """
    mean, variance = float(misfit.mean()), float(misfit.var(unbiased=True))
    by_mean = size / (2 * mean) if mean > 0 else float("inf")
    by_variance = sqrt(size / (2 * variance)) if variance > 0 else float("inf")
    return min(max(by_mean, by_variance), cap, 1.0 - beta)


def fixed_powers(updates: int, ratio: float = 1.0) -> list[float]:
    """`updates` powers in geometric progression, adding up to one; ratio 1 makes them equal.

    ratio > 1 starts with small steps, where the ensemble is far from the data.
    """
    if updates < 1 or not ratio > 0:
        raise InputError(f"{updates} updates with ratio {ratio}; expected at least 1 and positive")
    powers = [ratio**k for k in range(updates)]
    total = sum(powers)
    return [p / total for p in powers]
