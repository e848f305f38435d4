"""PiGDM: pseudo-inverse guidance. The covariance of x_0 given x is taken for a number, r^2 I.

For a prior N(m, s2 I) the number is r^2 = s2 sigma^2 / (s2 + sigma^2), and for data y = A x_0 +
N(0, Gamma)

    g = J_D^T A^T (r^2 A A^T + Gamma)^-1 (y - A D),    D = D(x, sigma),

with the Jacobian J_D of the denoiser. Of other priors `prior_variance` s2 is a guess at the
variance.

form="denoiser" (default): the guided denoiser D_y = D + sigma^2 g in any sampler. Exact if and only
if the prior is N(m, s2 I): where the prior has other variances, those that the data see come out
too small or too large.

form="published", one discrete step of the paper (its algorithm 1, written with x = x_0 + sigma n):

    x_s = D + s_dn (x - D) / sigma + s_up z + w r^2 g,    s_up = eta s sqrt(1 - (s / sigma)^2),

with s_dn^2 = s^2 - s_up^2 and w = 1. For the same g, Bayes asks w (s2 + sigma^2) / s2 for w = 1 -
s_dn / sigma, so this is a weighting of its own and not a posterior's. noise="fixed" puts s_dn =
s sqrt(1 - eta^2) and s_up = eta s, as in arXiv 2503.11043; such steps do not become the prior's own
however fine the levels.

inverse: how g is found.

    svd      sum over the singular values, s_i / (r^2 s_i^2 + sigma_y^2); the noise must be of one
             standard deviation
    cg       conjugate gradients with A and A^T, for any noise (`enkg.guidance.guided`)
    pinv     for simulators that are not linear, with a surrogate inverse h of G (JPEG: the
             identity): J_D^T (h(y) - h(G(D))) / (r^2 + sigma_y^2), as if all singular values were
             one. Only D is differentiated, G and h are called

`noise_std` replaces the standard deviation sigma_y of the observation (svd and pinv); zero is the
noiseless rule, A^+ (y - A D) / r^2.

Cost, for E evaluations (form="denoiser" by Heun's rule 2 levels - 1, else levels) and J chains: E J
simulator calls, denoiser calls and products with J_D^T, and one of the latter; by conjugate
gradients with K iterations E K J simulator calls and one for G(0), and E K J with A^T.

References: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR;
weights of the public code: arXiv 2405.17673.
"""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    check_choices,
    each,
    finite,
    misfit_per_datum,
    operator,
    pulled_back,
)
from enkg.guidance.guided import (
    At,
    Guided,
    System,
    check_iterations,
    evaluated,
    solved,
    stepped,
)
from enkg.guidance.restoration import replaced
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import reverse_step


@dataclass(frozen=True)
class PiGDM(Guided):
    """Guidance with r^2 I for the covariance. Cost: `levels` calls a member, twice by Heun."""

    posterior_law: ClassVar[str | None] = None

    sigma_max: float = 80.0
    """Highest noise level, in prior units; large against the prior's own spread."""
    sigma_min: float = 0.002
    """Lowest noise level before zero; small against the finest scale of the prior."""
    form: Literal["denoiser", "published"] = "denoiser"
    """Whether the gradient guides the denoiser, as Bayes asks, or is added to a step, as published
    (then `sampler` is not used)."""
    inverse: Literal["svd", "cg", "pinv"] = "svd"
    """How the data are inverted: by the singular values, by conjugate gradients, or by a surrogate
    inverse of a nonlinear simulator."""
    prior_variance: float = 1.0
    """s2: variance of the prior, in prior units squared."""
    noise_std: float | None = None
    """Standard deviation of the noise; None takes that of the observation, 0 is noiseless. Not for
    inverse="cg". For inverse="pinv", that of the inverse of the data, in prior units."""
    weight: float = 1.0
    """w: factor of the gradient."""
    eta: float = 1.0
    """Share of fresh noise in a published step, 0 to 1."""
    noise: Literal["ancestral", "fixed"] = "ancestral"
    """Which fresh noise a published step has."""
    iterations: int = 16
    """Most iterations of the conjugate gradients in each evaluation."""
    tolerance: float = 1e-3
    """Share of the whitened residual at which a chain's solve ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "form", "inverse", "noise")
        check_iterations(self.iterations, self.tolerance)
        if not (self.prior_variance > 0 and self.weight > 0 and 0 <= self.eta <= 1):
            raise InputError(
                f"prior_variance is {self.prior_variance}, weight {self.weight} and eta "
                f"{self.eta}; expected positive numbers, and 0 <= eta <= 1"
            )
        check_noise_std(self.noise_std)
        if self.noise_std is not None and self.inverse == "cg":
            raise InputError(
                'noise_std is not for inverse="cg", which takes the noise of the observation'
            )

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("adjoint",) if self.inverse == "cg" else (self.inverse,)

    @property
    def evaluations(self) -> int:
        return self.levels if self.form == "published" else super().evaluations

    @property
    def sweeps(self) -> int:
        if self.inverse != "cg":
            return self.evaluations
        return self.evaluations * self.iterations

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        self._std(observation)  # raises before anything is simulated
        if self.form == "denoiser":
            return super().step(state, prior, forward, observation)
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        at = evaluated(state, x, sigma, prior, forward, observation)
        if self.noise == "ancestral":
            moved, up = reverse_step(x, at.clean, sigma, to, self.eta)
        else:
            down, up = to * (1 - self.eta**2) ** 0.5, to * self.eta
            moved = at.clean + down / sigma * (x - at.clean)
        moved = moved + finite(self._covariance(sigma) / sigma**2 * self.shift(at)).to(x)
        if up > 0:
            z = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
            moved = moved + up * z.to(x)
        return stepped(self, state, moved, to), Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit_per_datum(at.everyone, observation),
            evaluated=((at.clean, at.everyone),),
        )

    def shift(self, at: At) -> Tensor:
        found = self._inverted(at)
        return self.weight * at.sigma**2 * pulled_back(at.prior, at.x, at.sigma, found)

    def _covariance(self, sigma: float) -> float:
        """r^2."""
        return self.prior_variance * sigma**2 / (self.prior_variance + sigma**2)

    def _std(self, observation: Observation) -> float:
        """sigma_y; not used by conjugate gradients."""
        if self.inverse == "cg" or self.noise_std is not None:
            return self.noise_std or 0.0
        return observation.scale

    def _inverted(self, at: At) -> Tensor:
        """A^T (r^2 A A^T + Gamma)^-1 (y - A D), (J_r, *X), float64; zero for a failed chain."""
        op, spread = operator(at.forward), self._covariance(at.sigma)
        if self.inverse == "cg":
            system = System(spread, op.adjoint, lambda v: v, op.linear)
            return solved(at, system, self.iterations, self.tolerance)
        std = self._std(at.observation)
        seen = at.observation.y.to(at.y.device)
        if self.inverse == "svd":
            svd = op.svd
            s = svd.s.to(at.x.device)
            found = svd.v(s / (spread * s**2 + std**2) * svd.ut(seen - at.y.double()))
        else:
            found = replaced(at.y, at.forward, at.observation) / (spread + std**2)
        found = finite(found.double())
        return torch.where(each(at.alive, found), found, 0.0)


def check_noise_std(noise_std: float | None) -> None:
    """Raises InputError for a standard deviation that is none."""
    if noise_std is not None and not (noise_std >= 0 and isfinite(noise_std)):
        raise InputError(f"noise_std is {noise_std}; expected None, 0 or a positive number")
