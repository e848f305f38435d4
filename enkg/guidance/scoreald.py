"""Score-ALD: annealed Langevin dynamics with an annealed likelihood.

At each level sigma_i, highest first, `inner` Langevin steps with the score of the prior at that
level and the gradient of the misfit at x itself, not at a clean estimate of it,

    x += a_i [ (D(x, sigma_i) - x) / sigma_i^2  +  J_G(x)^T (Gamma + gamma_i^2)^-1 (y - G(x)) ]
         + sqrt(2 a_i) z,        a_i = step_size sigma_i^2,  gamma_i = gamma sigma_i.

The published step is step (sigma_i / sigma_L)^2 with the last level sigma_L: step_size is step /
sigma_L^2. gamma_i is the noise that x's own noise makes in the data, so gamma is best the norm of
the simulator's Jacobian: prior units to units of the data. Then both terms allow the same step; a
linear simulator A is stable for step_size (1 + (|A| / gamma)^2) < 2. As a guard, the gradient g of
the annealed misfit Phi_i is divided by max(1, a_i |g|^2 / (2 Phi_i)). For a linear simulator this
is 1 wherever step_size (|A| / gamma)^2 <= 1. Beyond, it keeps chains from running away, and the
law below does not hold. (The public code sets the weight of the likelihood by hand, in proportion
to 1 / sigma_i^2.)

Law at one level, for a Gaussian prior N(m, S), A and scalar or other Gamma: the chain samples the
Gaussian N(m, S + sigma_i^2) N(y; A x, Gamma + gamma_i^2) / Z with precision H, but for the length
of its steps, which give the covariance (H - a_i H^2 / 2)^-1 in place of H^-1. So over all levels
the end is the posterior of the last level, widened by its noise, if the chain keeps up with it: the
slow directions need of the order of (|H| / eigenvalue of H) / step_size steps.

The simulator is called at noisy states. With an `enkg.Poisson` observation the likelihood is its
Gaussian approximation, because gamma_i is Gaussian.

Cost, for N levels and J chains: simulator calls, products with J_G and denoiser calls N inner J
each, and the denoiser calls of the start; no product with J_D.

References: Jalal et al. 2021, "Robust compressed sensing MRI with deep generative priors", NeurIPS,
arXiv 2108.01368; Song and Ermon 2019, arXiv 1907.05600 (annealed Langevin dynamics).
"""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, Slope, dots, each, finite, misfit_per_datum, slope
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import score


@dataclass(frozen=True)
class ScoreALD(Chains):
    """Score-ALD. Cost: `levels` x `inner` simulator calls and as many gradients a member."""

    inner: int = 5
    """Langevin steps at each level."""
    step_size: float = 0.2
    """Length of a Langevin step over the square of the noise level."""
    gamma: float = 1.0
    """Noise added to that of the data, over the noise level; the norm of the simulator's Jacobian
    is a good choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1:
            raise InputError(f"{self.inner} inner steps; expected at least 1")
        if not 0 < self.step_size < 2:
            raise InputError(
                f"step_size is {self.step_size}; Langevin steps are stable between 0 and 2"
            )
        if not self.gamma >= 0:
            raise InputError(f"gamma is {self.gamma}; expected a number that is not negative")

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("vjp",)

    @property
    def sweeps(self) -> int:
        return self.levels * self.inner

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigma = self.sigmas[i // self.inner]
        found = slope(state, x, forward, annealed(observation, self.gamma * sigma))
        length = self.step_size * sigma**2
        noise = random.normal(prior.shape, state.seed, Stream.LANGEVIN, state.members, i)
        drift = score(prior, x, sigma).double() - _guarded(found, length)
        moved = x + (length * drift).to(x) + sqrt(2 * length) * noise.to(x)
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.sweeps,
            misfit=misfit_per_datum(found.everyone, observation),
            evaluated=((x, found.everyone),),
        )
        finished = i + 1 == self.sweeps
        after = self.sigmas[(i + 1) // self.inner]
        return replace(state, x=moved, step=i + 1, sigma=after, finished=finished), info


def _guarded(found: Slope, length: float) -> Tensor:
    """The gradient, shortened where a step of that length along it would overshoot."""
    gradient = found.gradient
    excess = length * dots(gradient, gradient) / (2 * found.misfit)
    return finite(gradient / each(excess.nan_to_num(0.0).clamp(min=1), gradient))


def annealed(observation: Observation, gamma: float) -> Observation:
    """The same data with the noise Gamma + gamma^2, as Gaussian noise."""
    y, mask = observation.y, observation.mask
    if observation.covariance is None:
        return Observation(y, std=(observation.std.square() + gamma**2).sqrt(), mask=mask)
    eye = torch.eye(y.numel(), dtype=torch.float64)
    return Observation(y, covariance=observation.covariance + gamma**2 * eye, mask=mask)
