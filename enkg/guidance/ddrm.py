"""DDRM: denoising diffusion restoration along the singular vectors of a linear simulator.

The step, its two kinds of noise, and ybar, t_i are in `enkg.guidance.restoration`. A chain starts
at the highest level sigma_0 as

    t_i < sigma_0     ybar_i + sqrt(sigma_0^2 - t_i^2) z
    others            a prior sample + sigma_0 z

and ends with D at the last level. G itself is never evaluated.

noise="ancestral" (default) is not the published rule. A datum ybar_i is x_0 with noise t_i, hence
the state of that coordinate at the noise level t_i. So down to t_i the coordinate is the datum and
the noise that is left, and below t_i it goes on like one without a datum. Law: exact as the levels
are refined, for noisy data, if the prior is Gaussian and its covariance commutes with A^T A. Else
the coordinates with data are not drawn given those without, and the two disagree by a bias that
does not fall with the levels.

noise="ddrm" is the published rule. Below t_i it gathers around the datum with too small a spread,
and where there is no datum fresh noise of one size at every level leaves about three quarters of
the variance.

Levels below the smallest t_i are needed: a run that ends above ends with the spread of its level.

Cost, for N levels and J chains: N J denoiser calls and those of the start; no simulator call but
one for G(0); no gradient. Needs svd, noise sigma_y^2 I and no missing data.

Reference: Kawar, Elad, Ermon and Song 2022, "Denoising diffusion restoration models", arXiv
2201.11793 (eta = .85, eta_b = 1, 20 steps).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from enkg.abilities import Ability
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices
from enkg.guidance.restoration import (
    Components,
    Injection,
    Rule,
    check_shares,
    components,
    drawn,
    info,
)
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream


@dataclass(frozen=True)
class DDRM(Chains):
    """Restoration by singular vectors. Cost: no simulator call but one, for G(0)."""

    noise: Injection = "ancestral"
    """Fresh noise by the length of a step, or of one size at every level, as published."""
    eta: float = 1.0
    """Share of fresh noise: 1 is all that the level allows."""
    eta_b: float = 1.0
    """Trust in the datum while the level is above its noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "noise")
        check_shares(eta=self.eta, eta_b=self.eta_b)

    @property
    def sweeps(self) -> int:
        return 0

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("svd",)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i = state.step
        sigma, to = self.sigmas[i : i + 2]
        parts = components(forward, observation, state.x)
        x = self._begun(state, prior, parts) if i == 0 else state.x
        clean = prior.denoise(x, sigma)
        rule = Rule(self.noise, self.eta, self.eta_b)
        moved = rule.step(x, clean, (sigma, to), drawn(state, prior), parts)
        after = replace(
            state, x=moved.to(state.x), step=i + 1, sigma=to, finished=i + 1 == self.levels
        )
        misfit = parts.misfit(state, clean, observation)
        return after, info(state, self.levels, misfit)

    def _begun(self, state: State, prior: Prior, parts: Components) -> Tensor:
        """The chains at the highest level, with the data in them."""
        z, old = parts.of(drawn(state, prior, Stream.RENOISE)), parts.of(state.x)
        left = (state.sigma**2 - parts.t**2).clamp(min=0).sqrt()
        new = torch.where(parts.t < state.sigma, parts.y + left * z, old)
        return parts.replaced(state.x, old, new).to(state.x)
