"""How far a gradient of the misfit moves a chain: what the methods share that follow one."""

from math import sqrt

from torch import Tensor

from enkg.guidance.chains import each, finite
from enkg.guidance.reverse import Schedule


def damped(shift: Tensor, along: Tensor, level: Tensor) -> Tensor:
    """shift / (1 + lambda), lambda = along / (2 Phi), (J_r, *X); 0 in a row that is not finite.

    shift: -C g for a gradient g of the misfit and a conditional covariance C, (J_r, *X). along: g .
    C g, (J_r,). level: Phi, (J_r,). For a linear simulator A with Gaussian noise this is the first
    iterate of the conjugate gradients that solve (A C A^T + Gamma) w = y - A D for the exact shift
    C A^T w; the whitened residual r becomes r' with r . r' = |r|^2 / (1 + lambda) > 0, so that it
    does not overshoot on the whole. For other simulators and noise it is the same formula, which
    stops where the misfit, were it to fall along the shift as it begins to, would be below zero.
    """
    excess = (along / (2 * level)).clamp(min=0)
    return finite(shift / each(1 + excess, shift))


def in_prior_units(scale: float, schedule: Schedule, sigma: float, to: float) -> float:
    """A published step length for x. With variance-preserving levels the published update moves
    x / sqrt(1 + sigma^2), hence scale sqrt(1 + sigma^2) sqrt(1 + to^2)."""
    if schedule != "variance-preserving":
        return scale
    return scale * sqrt(1 + sigma**2) * sqrt(1 + to**2)
