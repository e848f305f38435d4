"""Noise levels, highest first.

`x_sigma = x_0 + sigma n` with standard normal `n` (variance-exploding form, scale 1).
"""

import torch
from torch import Tensor

from enkg.errors import InputError


def karras(levels: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Tensor:
    """Levels equally spaced in sigma^(1/rho), shape (levels,), float64.

    Karras et al. 2022, "Elucidating the design space of diffusion-based generative models",
    equation 5, without the final zero. One level gives `sigma_max`.
    """
    _check(levels, sigma_max, sigma_min)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = torch.linspace(*ends, levels, dtype=torch.float64)
    return _with_exact_ends(ramp**rho, sigma_max, sigma_min)


def geometric(levels: int, sigma_max: float, sigma_min: float) -> Tensor:
    """Levels equally spaced in log sigma, shape (levels,), float64."""
    _check(levels, sigma_max, sigma_min)
    logs = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).log()
    ramp = torch.linspace(float(logs[0]), float(logs[1]), levels, dtype=torch.float64)
    return _with_exact_ends(ramp.exp(), sigma_max, sigma_min)


def vp(levels: int, beta_slope: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """Levels of the variance-preserving diffusion, equal steps of time; shape (levels,), float64.

    sigma(t)^2 = exp(beta_slope t^2 / 2 + beta_min t) - 1 for t from 1 down to 0.001: from 152 to
    0.010 (Song et al. 2021, arXiv 2011.13456, appendix C). One level gives the highest.
    """
    if levels < 1:
        raise InputError(f"{levels} noise levels given; at least 1 is needed")
    t = torch.linspace(1.0, 1e-3, levels, dtype=torch.float64)
    return torch.expm1(beta_slope * t.square() / 2 + beta_min * t).sqrt()


def _with_exact_ends(sigmas: Tensor, sigma_max: float, sigma_min: float) -> Tensor:
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max
    return sigmas


def _check(levels: int, sigma_max: float, sigma_min: float) -> None:
    if levels < 1:
        raise InputError(f"{levels} noise levels given; at least 1 is needed")
    if not 0 < sigma_min <= sigma_max < float("inf"):
        raise InputError(
            f"noise levels from {sigma_max} down to {sigma_min}; "
            "expected 0 < sigma_min <= sigma_max, both finite"
        )
