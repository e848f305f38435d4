"""One reverse step of a diffusion from a clean estimate that the caller may have guided.

A step from noise level sigma to s < sigma, given the clean estimate D of x and standard normal z:

    ancestral         x_s = D + (s / sigma)^2 (x - D) + s sqrt(1 - (s / sigma)^2) z
    Euler-Maruyama    x_s = x + f (D - x) / sigma^2 + sqrt(f) z,  f = 2 sigma (sigma - s)

The first has the right variance at any step length (Song, Meng and Ermon 2021, arXiv 2010.02502,
eta = 1); the second is what the public code of arXiv 2503.11043 does. Both tend to the reverse SDE.
"""

from math import sqrt
from typing import Literal

from torch import Tensor

from enkg.errors import InputError
from enkg.sample import reverse_step
from enkg.schedule import geometric, karras, vp

Schedule = Literal["karras", "geometric", "variance-preserving"]


def noise_levels(
    schedule: Schedule, levels: int, sigma_max: float, sigma_min: float
) -> list[float]:
    """The levels of a run, highest first, with zero at the end; `levels + 1` of them.

    The variance-preserving levels do not depend on sigma_max and sigma_min.
    """
    if schedule == "karras":
        return [*karras(levels, sigma_max, sigma_min).tolist(), 0.0]
    if schedule == "geometric":
        return [*geometric(levels, sigma_max, sigma_min).tolist(), 0.0]
    if schedule != "variance-preserving":
        raise InputError(
            f"schedule is {schedule!r}; expected karras, geometric or variance-preserving"
        )
    return [*vp(levels).tolist(), 0.0]


def ancestral_step(x: Tensor, clean: Tensor, sigma: float, to: float, noise: Tensor) -> Tensor:
    """x at the level `to`; all of shape (J, *X), noise standard normal."""
    x, up = reverse_step(x, clean, sigma, to)
    return x + up * noise.to(x)


def euler_maruyama_step(x: Tensor, clean: Tensor, sigma: float, to: float, noise: Tensor) -> Tensor:
    """x at the level `to`; all of shape (J, *X), noise standard normal."""
    factor = diffused(sigma, to)
    return x + factor / sigma**2 * (clean - x) + sqrt(factor) * noise.to(x)


def diffused(sigma: float, to: float) -> float:
    """The factor f of an Euler-Maruyama step."""
    return 2 * sigma * (sigma - to)
