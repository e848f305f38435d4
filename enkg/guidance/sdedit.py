"""SDEdit: noise on a guess, and the unguided reverse process from there.

    x_start = guide + sigma_max n,   then  x_s = D + (s_dn / sigma) (x - D) + s_up z

down the levels below sigma_max, with the guide A^+ y, A^T y or one that the user gives. The data
enter by the guide alone: no likelihood, no noise level, and no simulator call. sigma_max is the one
choice: more noise, nearer to the prior and farther from the data.

Law, for an exact denoiser, eta = 1 and fine levels: the result is a draw of p(x0 | x_start). For a
Gaussian prior N(m, S) and J = S (S + sigma^2)^-1 at sigma = sigma_max it is

    N(m + J (guide - m), sigma^2 J + sigma^2 J^2),

which is no posterior.

With the variance-preserving schedule the levels are those of it that are not above sigma_max: half
of them at 3.41, its level at time 1/2. A guide in the data space of a latent prior is encoded.

Cost, for N levels and J chains: denoiser calls J times the levels below sigma_max; one A^+ or A^T
in all (A^T counts as one product with the simulator's Jacobian); no simulator call.

Reference: Meng et al. 2022, "SDEdit: guided image synthesis and editing with stochastic
differential equations", arXiv 2108.01073.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows, tensor
from enkg.comm import ALONE, Comm, once
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices, operator
from enkg.guidance.restoration import check_complete
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import reverse_step


@dataclass(frozen=True)
class SDEdit(Chains):
    """SDEdit. Cost: `levels` denoiser calls a member, no simulator call."""

    guide: Literal["pinv", "adjoint"] = "pinv"
    """What is noised: the simulator's pseudo-inverse or its transpose, applied to the data."""
    given: Any = field(default=None, compare=False)
    """An array in place of that, shape X, in prior units; then the simulator is not asked."""
    sigma_max: float = 3.41
    """Noise on the guide, in prior units: the highest level."""
    eta: float = 1.0
    """Noise of a step: 1 the reverse diffusion, 0 the probability-flow ODE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "guide")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta}; expected a number from 0 to 1")
        if self.given is not None:
            given = tensor(self.given)
            if not bool(given.isfinite().all()):
                raise InputError("the given guide holds NaN or infinite values")
            object.__setattr__(self, "given", given)
        if len(self.sigmas) < 2:
            raise InputError(f"no level of the schedule is below sigma_max = {self.sigma_max}")

    @property
    def sigmas(self) -> list[float]:
        return [sigma for sigma in super().sigmas if sigma <= self.sigma_max]

    @property
    def needs(self) -> tuple[Ability, ...]:
        return () if self.given is not None else (self.guide,)

    @property
    def sweeps(self) -> int:
        return 0

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        """The noise alone; the guide is added in the first step."""
        members = self.own_members(prior, comm)
        sigma = self.sigmas[0]
        noise = random.normal(prior.shape, seed, Stream.START, members, 0)
        return State((sigma * noise).to(like), members, seed, sigma=sigma, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x, sigmas = state.step, state.x, self.sigmas
        sigma, to = sigmas[i : i + 2]
        if i == 0:
            guide = once(state.comm, lambda: self._guide(prior, forward, observation, x))
            x = x + guide.to(x)
        x, up = reverse_step(x, prior.denoise(x, sigma), sigma, to, self.eta)
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
        x = x + up * noise.to(x)
        levels = len(sigmas) - 1
        info = Info(step=i, sigma=sigma, progress=(i + 1) / levels)
        finished = i + 1 == levels
        return replace(state, x=x, step=i + 1, sigma=to, finished=finished), info

    def _guide(
        self, prior: Prior, forward: Forward, observation: Observation, like: Tensor
    ) -> Tensor:
        """In the space of the prior, (1, *X)."""
        op = operator(forward)
        if self.given is not None:
            guide = self.given.to(like)[None]
        else:
            check_complete(observation, "SDEdit")
            back = op.pixel.pinv if self.guide == "pinv" else op.pixel.adjoint
            guide = back(observation.y.to(like)[None])
        guide = op.encode(guide)
        if guide.shape[1:] != torch.Size(prior.shape):
            raise InputError(
                f"the guide has shape {tuple(guide.shape[1:])}; expected that of a member, "
                f"{tuple(prior.shape)}"
            )
        if not bool(rows(guide).isfinite().all()):
            raise InputError("the guide of the simulator holds NaN or infinite values")
        return guide
