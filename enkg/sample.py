"""Sampling from a prior: the probability-flow ODE and the reverse SDE.

In the variance-exploding form the flow is dx/dsigma = (x - D(x, sigma)) / sigma. It carries the
distribution at one noise level to that at any other, one to one. Stochastic steps follow Song et
al. 2021 (DDIM; eta = 1 is DDPM).

References: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364, algorithm 1
(Heun); Song, Meng and Ermon 2021, arXiv 2010.02502.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from enkg import random
from enkg.errors import InputError
from enkg.prior import Drawable, Flowing, Prior
from enkg.random import Stream
from enkg.schedule import karras

Solver = Callable[[Prior, Tensor, Sequence[float]], Tensor]
RHO = 7.0


def score(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """Gradient of log p_sigma at x, shape (J, *X). One denoiser call a member."""
    return (prior.denoise(x, sigma) - x) / sigma**2


def euler(prior: Prior, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """First-order steps of the flow along `sigmas` (descending, 0 allowed last).

    One denoiser call a member and step.
    """
    for sigma, to in pairwise(sigmas):
        x = x + (to - sigma) / sigma * (x - prior.denoise(x, sigma))
    return x


def heun(prior: Prior, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Second-order steps of the flow; a step to zero is an Euler step.

    Two denoiser calls a member and step, one for a step to zero.
    """
    for sigma, to in pairwise(sigmas):
        slope = (x - prior.denoise(x, sigma)) / sigma
        ahead = x + (to - sigma) * slope
        if to > 0:
            slope = 0.5 * (slope + (ahead - prior.denoise(ahead, to)) / to)
            ahead = x + (to - sigma) * slope
        x = ahead
    return x


@dataclass(frozen=True)
class Flow:
    """Carries an ensemble between noise levels along the probability flow.

    Exact where the prior knows its own map (`Flowing`), else `solver` on Karras levels: as many
    steps as the stretch holds of a grid of `levels` from 80 to `sigma_min`, at least `fewest`.
    """

    solver: Solver = heun
    levels: int = 40
    fewest: int = 1
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        if self.levels < 1 or self.fewest < 1 or not self.sigma_min > 0:
            raise InputError(
                f"a flow with levels={self.levels}, fewest={self.fewest}, "
                f"sigma_min={self.sigma_min}; expected at least one step and a positive level"
            )

    def __call__(self, prior: Prior, x: Tensor, sigma: float, to: float) -> Tensor:
        if sigma == to:
            return x
        if isinstance(prior, Flowing):
            return prior.flow(x, sigma, to)
        return self.solver(prior, x, self.grid(sigma, to))

    def grid(self, sigma: float, to: float) -> list[float]:
        """The noise levels visited between sigma and to, both included."""
        if to > sigma:
            raise InputError(f"the flow goes down in noise; asked from {sigma} to {to}")
        last = to if to > 0 else min(self.sigma_min, sigma)
        whole = 80.0 ** (1 / RHO) - self.sigma_min ** (1 / RHO)
        share = (sigma ** (1 / RHO) - last ** (1 / RHO)) / whole
        steps = max(self.fewest, ceil(share * self.levels))
        sigmas = karras(steps + 1, sigma, last, RHO).tolist() if last < sigma else [sigma]
        return sigmas if to > 0 else [*sigmas, 0.0]


def ancestral(
    prior: Prior,
    x: Tensor,
    sigmas: Sequence[float],
    seed: int,
    members: Sequence[int],
    eta: float = 1.0,
) -> Tensor:
    """The reverse SDE along `sigmas` (descending, 0 allowed last); eta = 0 is the Euler flow.

    x_to = D + s_dn / sigma (x - D) + s_up z with s_up^2 = eta^2 to^2 (sigma^2 - to^2) / sigma^2
    and s_dn^2 = to^2 - s_up^2. One denoiser call a member and step.
    """
    for step, (sigma, to) in enumerate(pairwise(sigmas)):
        x, up = reverse_step(x, prior.denoise(x, sigma), sigma, to, eta)
        if up > 0:
            x = x + up * random.normal(prior.shape, seed, Stream.SAMPLER, members, step).to(x)
    return x


def reverse_step(
    x: Tensor, denoised: Tensor, sigma: float, to: float, eta: float = 1.0
) -> tuple[Tensor, float]:
    """One step of `ancestral`: where it leads without its noise, and the noise's deviation s_up."""
    up = eta * to * (1 - (to / sigma) ** 2) ** 0.5
    down = (to**2 - up**2) ** 0.5
    return denoised + down / sigma * (x - denoised), up


def start(
    prior: Prior,
    sigma: float,
    seed: int,
    members: Sequence[int],
    like: Tensor,
    sigma_max: float = 80.0,
    flow: Flow | None = None,
) -> Tensor:
    """Draws from p_sigma, shape (len(members), *X), with the dtype and device of `like`.

    Exact for a prior that gives samples. Otherwise pure noise at `sigma_max` around D(0,
    sigma_max), carried down by the flow; then the prior's own spread must be small against
    `sigma_max`. sigma = 0 gives prior samples.
    """
    noise = random.normal(prior.shape, seed, Stream.START, members, 0).to(like)
    if isinstance(prior, Drawable):
        return prior.draw(seed, members, 0).to(like) + sigma * noise
    centre = prior.denoise(torch.zeros_like(noise), sigma_max)
    return (flow or Flow())(prior, centre + sigma_max * noise, sigma_max, sigma)
