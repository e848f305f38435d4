"""DPS: diffusion posterior sampling, guided by the gradient of the misfit at the clean estimate.

Each member is a chain of its own. At each level sigma, with D = D(x, sigma) and the exact gradient
g of the misfit Phi at D, one product with the Jacobian of the simulator and one with that of the
denoiser give v = J_D^T J_G(D)^T dPhi/dY, the gradient of Phi(G(D(x))) in x. It takes p(y | D) for
p(y | x), which leaves out the spread of x0 given x.

form="damped" (default): a step of the diffusion with the guided denoiser

    D_y = D - sigma^2 v / (1 + lambda),    lambda = sigma^2 g . v / (2 Phi).

The exact guided denoiser of a linear simulator A is D + C A^T (A C A^T + Gamma)^-1 (y - A D) with
C = sigma^2 J_D. This is the first iterate of the conjugate gradients that solve its system. It
costs nothing, is exact for one datum and does not overshoot (see `scaling.damped`). It is not what
the paper does.

form="plain": D_y = D - sigma^2 v, the likelihood of the paper (its equation 14) with the noise
covariance in it. It takes Gamma for A C A^T + Gamma. So it is overconfident: in the directions that
the data see, the variance goes to zero as the levels get finer. And it is stiff: where the levels
are far apart for such precise data, it diverges. On a linear problem the update is affine in x:

    x_s = (1 - c) D_y + c x + s_up z,   D_y = D + sigma^2 J_D^T A^T Gamma^-1 (y - A D).

form="norm": the published update (algorithm 1, as its public code does it), of a distance R between
data and simulation that has no noise level in it,

    x_s = x' - guidance_scale grad_x R,    R = |y - G(D)|,

for each chain by itself, with x' an unguided step. With the variance-preserving levels of the paper
the scale is that of x / sqrt(1 + sigma^2), in which one such step is grad R's length times the
scale; in x it is guidance_scale sqrt(1 + sigma^2) sqrt(1 + s^2). With an `enkg.Poisson` observation
R^2 = sum_i r_i^2 / (2 max(y_i, 1)), r = y - G(D) in counts: the weighted norm of the paper's
algorithm for counts, as a norm like the other. (The public code divides the plain norm by the data
in place of that.) The other two forms take the exact Poisson likelihood.

Where the published figures differ: the published ancestral step has a learned variance, and D is
clipped to [-1, 1]. Here the variance is that of eta = 1, and nothing is clipped. The public code
of InverseBench makes an Euler-Maruyama step and the gradient .5 grad R^2 / R = grad R; that of
Pandey et al. 2024 takes grad R^2 / R, twice as much at the same scale.

There is no posterior law.

Cost, for N levels and J chains: simulator calls N J, products with J_G N J, denoiser calls N J and
those of the start, products with J_D N J + 1.

References: Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems",
arXiv 2209.14687; Zheng et al. 2025, InverseBench, arXiv 2503.11043; Rozet et al. 2024, arXiv
2405.13712 (the exact form).
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    check_choices,
    check_differentiable,
    dots,
    misfit_per_datum,
    pulled_back,
    slope,
)
from enkg.guidance.reverse import euler_maruyama_step
from enkg.guidance.scaling import damped, in_prior_units
from enkg.observation import Observation
from enkg.poisson import Poisson
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import reverse_step


@dataclass(frozen=True)
class DPS(Chains):
    """DPS. Cost: `levels` simulator calls and as many gradients a member."""

    form: Literal["damped", "plain", "norm"] = "damped"
    """How the gradient guides: with a step that cannot overshoot, as in the paper but with the
    noise covariance, or as published (norm)."""
    guidance_scale: float = 0.5
    """zeta: length of a published step (form="norm" alone), in prior units over those of the
    data."""
    sampler: Literal["ancestral", "euler-maruyama"] = "ancestral"
    """The reverse step."""
    eta: float = 1.0
    """Noise of an ancestral step: 1 the reverse diffusion, 0 the probability-flow ODE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "form", "sampler")
        if not self.guidance_scale > 0:
            raise InputError(f"guidance_scale is {self.guidance_scale}; expected a positive number")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta}; expected a number from 0 to 1")

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("vjp",)

    @property
    def sweeps(self) -> int:
        return self.levels

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        check_differentiable(prior, comm, "DPS", self.sigmas[0], like)
        return super().init(prior, seed, like, comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        clean = prior.denoise(x, sigma)
        norm = self.form == "norm"
        aim = cast("Observation", _Norm(observation)) if norm else observation
        found = slope(state, clean, forward, aim)
        v = pulled_back(prior, x, sigma, found.gradient)
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
        if norm:
            length = in_prior_units(self.guidance_scale, self.schedule, sigma, to)
            x = self._reverse(x, clean, sigma, to, noise) - (length * v).to(x)
        else:
            shift = -(sigma**2) * v
            if self.form == "damped":
                shift = damped(shift, -dots(found.gradient, shift), found.misfit)
            x = self._reverse(x, clean + shift.to(x), sigma, to, noise)
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit_per_datum(found.everyone, observation),
            evaluated=((clean, found.everyone),),
        )
        finished = i + 1 == self.levels
        return replace(state, x=x, step=i + 1, sigma=to, finished=finished), info

    def _reverse(self, x: Tensor, clean: Tensor, sigma: float, to: float, noise: Tensor) -> Tensor:
        if self.sampler == "euler-maruyama":
            return euler_maruyama_step(x, clean, sigma, to, noise)
        x, up = reverse_step(x, clean, sigma, to, self.eta)
        return x + up * noise.to(x)


class _Norm:
    """R and its gradient in the place of those of the misfit."""

    def __init__(self, observation: Observation) -> None:
        self.y, self.mask = observation.y, observation.mask
        self.weight = self.mask.double()
        if isinstance(observation, Poisson):
            self.weight = self.weight / (2 * observation.std.square())

    def misfit(self, y: Tensor) -> Tensor:
        r = self._residual(y)
        return (self.weight.to(r) * r.square()).flatten(1).sum(dim=1).sqrt()

    def gradient(self, y: Tensor) -> Tensor:
        r = self._residual(y)
        length = self.misfit(y).clamp(min=1e-300).reshape(-1, *(1,) * (r.dim() - 1))
        return -self.weight.to(r) * r / length

    def _residual(self, y: Tensor) -> Tensor:
        mask = self.mask.to(y.device)
        return (self.y.to(y.device) - y.double()).where(mask, 0.0)
