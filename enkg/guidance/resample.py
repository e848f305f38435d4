"""ReSample: latent diffusion with hard data consistency, followed by resampling.

For a prior over latent z with decode d and encode e, at levels sigma > s:

    z0 = D(z, sigma)
    z' = DDIM(z, z0; eta) - scale sqrt((1 + s^2) / (1 + sigma^2)) grad_z |y - G(d(z0))|

and, at every `every`-th level of the last two thirds, and the last,

    zc = argmin Phi(G(d(z0)))          middle third: over x = d(z0), then e(x); last third: over z0
    z_s ~ N((t zc + s^2 z') / (t + s^2), t s^2 / (t + s^2) I)
    t = 40 (1 - b_s) / (1 - b) (1 - b / b_s) / b_s,  b = 1 / (1 + sigma^2),  b_s = 1 / (1 + s^2)

which is the product of N(zc, s^2 I) and N(z', t I): stochastic resampling, in variance-exploding
form. The minimum is sought by AdamW from z0 and given up early: a chain stops
where its misfit 2 Phi / m is below `tolerance`, 1 being the noise. No truth enters.

There is no posterior law: what the data determine has the spread of an optimiser stopped at the
noise.

Cost, a chain: simulator calls and products with its Jacobian `levels`, and at most `iterations` + 1
at each consistent level; all chains are asked until the last one stops. Denoiser calls `levels`,
and as many products with its Jacobian.

Reference: Song et al. 2023, arXiv 2307.08123, algorithm 1 and equation 15. The public code prints
the error against the truth within its loop.
"""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    Operator,
    check_differentiable,
    each,
    finite,
    misfit_per_datum,
    operator,
    pulled_back,
)
from enkg.guidance.latent_daps import check_coder
from enkg.guidance.psld import direction, residual
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import reverse_step


@dataclass(frozen=True)
class ReSample(Chains):
    """Latent diffusion with data consistency. Cost: `levels` simulator calls a member, and up to
    `iterations` + 1 at each consistent level."""

    guidance_scale: float = 0.5
    """Weight of the gradient of |y - G| in each step; 0 for none."""
    every: int = 10
    """Every so many levels of the last two thirds are made consistent."""
    strength: float = 40.0
    """The factor in t: how far a resampled state may lie from the consistent one."""
    eta: float = 0.0
    """Noise of a step: 0 is DDIM, 1 ancestral."""
    pixel_iterations: int = 200
    """Most steps of the optimiser over decoded members."""
    latent_iterations: int = 200
    """Most steps of the optimiser over latent ones."""
    pixel_rate: float = 1e-2
    """Learning rate of the first, in units of the decoded members."""
    latent_rate: float = 5e-3
    """Learning rate of the second, in prior units."""
    tolerance: float = 1.0
    """Misfit per datum at which a chain stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.every, self.pixel_iterations, self.latent_iterations) < 1:
            raise InputError(
                f"every is {self.every}, the iterations {self.pixel_iterations} and "
                f"{self.latent_iterations}; expected at least 1"
            )
        if min(self.strength, self.pixel_rate, self.latent_rate, self.tolerance) <= 0:
            raise InputError("strength, the two rates and tolerance must be positive")
        if self.guidance_scale < 0 or not 0 <= self.eta <= 1:
            raise InputError(
                f"guidance_scale is {self.guidance_scale} and eta {self.eta}; expected at least 0, "
                "and 0 to 1"
            )

    def consistent(self, i: int) -> bool:
        """Whether level i ends with data consistency."""
        late = 3 * i >= self.levels
        return late and ((self.levels - 1 - i) % self.every == 0)

    def in_pixels(self, i: int) -> bool:
        """Whether its optimiser moves decoded members."""
        return 3 * i < 2 * self.levels

    @property
    def sweeps(self) -> int:
        made = [i for i in range(self.levels) if self.consistent(i)]
        most = (
            self.pixel_iterations if self.in_pixels(i) else self.latent_iterations for i in made
        )
        return self.levels + sum(most) + len(made)

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("vjp",)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        check_coder("ReSample", prior)
        check_differentiable(prior, comm, "ReSample", self.sigmas[0], like)
        return super().init(prior, seed, like, comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, z = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        op, clean = operator(forward), prior.denoise(z, sigma)
        everyone = forward(clean)
        toward = -direction(residual(state.own(everyone), observation))
        v = pulled_back(prior, z, sigma, finite(op.vjp(clean, toward.to(clean)).double()))
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i).to(z)
        moved, up = reverse_step(z, clean, sigma, to, self.eta)
        scale = self.guidance_scale * sqrt((1 + to**2) / (1 + sigma**2))
        moved = moved + up * noise - finite(scale * v).to(z)
        misfit = misfit_per_datum(everyone, observation)
        if self.consistent(i):
            found = self._consistent(op, clean, observation, state, self.in_pixels(i))
            again = random.normal(prior.shape, state.seed, Stream.RENOISE, state.members, i)
            moved = resampled(found, moved, sigma, to, self.strength, again.to(z))
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit,
            evaluated=((clean, everyone),),
        )
        finished = i + 1 == self.levels
        return replace(state, x=moved, step=i + 1, sigma=to, finished=finished), info

    def _consistent(
        self, op: Operator, clean: Tensor, observation: Observation, state: State, pixels: bool
    ) -> Tensor:
        """Latent members whose data fit to the noise, (J_r, *Z). Collective."""
        ask, begin = (op.pixel, op.decode(clean)) if pixels else (op, clean)
        count = self.pixel_iterations if pixels else self.latent_iterations
        rate = self.pixel_rate if pixels else self.latent_rate
        x = begin.detach().clone()
        optimiser = torch.optim.AdamW([x], lr=rate)
        for k in range(count + 1):
            everyone = ask(x)
            alive = rows(everyone).isfinite().all(dim=1)
            safe = torch.where(each(alive, everyone), everyone, 0.0)
            above = alive & (2 * observation.misfit(safe) > self.tolerance * observation.count)
            if not bool(above.any()) or k == count:
                break
            going, y = state.own(above), state.own(safe)
            gradient = finite(ask.vjp(x, observation.gradient(y).to(x)))
            x.grad = torch.where(each(going, x), gradient, 0.0)
            before = x.clone()
            optimiser.step()
            keep = going & rows(x).isfinite().all(dim=1)
            x.copy_(torch.where(each(keep, x), x, before))
        return op.encode(x).to(clean) if pixels else x


def resampled(
    consistent: Tensor, moved: Tensor, sigma: float, to: float, strength: float, noise: Tensor
) -> Tensor:
    """The state at level `to`, drawn around the consistent estimate and the moved state."""
    if to == 0:
        return consistent
    b, b_to = 1 / (1 + sigma**2), 1 / (1 + to**2)
    t = strength * (1 - b_to) / (1 - b) * (1 - b / b_to) / b_to
    mean = (t * consistent + to**2 * moved) / (t + to**2)
    return mean + sqrt(t * to**2 / (t + to**2)) * noise
