"""ADMM-TV: the least-squares fit with the smallest total variation, without a learned prior.

For images x, or any unknown whose last two axes are a grid, and a linear simulator G(x) = A x + b,

    minimise  F(x) = 1/2 |Gamma^(-1/2) (y - G(x))|^2 + lambda TV(x),   TV(x) = sum_i |(grad x)_i|

with the forward differences of both axes, zero beyond the last row and column, and the Euclidean
norm of both at each point (isotropic; leading axes are images of their own). With z for grad x, a
step of the alternating direction method of multipliers is

    x <- argmin 1/2 |Gamma^(-1/2) (y - G(x))|^2 + rho/2 |grad x - z + u|^2
    z <- shrink(grad x + u, lambda / rho),    shrink(v, t)_i = v_i max(0, 1 - t / |v_i|)
    u <- u + grad x - z

from x = z = u = 0. x is found by conjugate gradients from the last one. F is convex, so the limit
is a minimiser for any rho > 0; F need not fall in every step. lambda = 0 gives least squares. Where
neither the data nor the gradient see a direction, x keeps it as it was.

The prior gives the shape of the unknown and nothing else. All chains are equal: the result is one
point, and there is no posterior law.

metric="plain" takes |y - G(x)|^2 / 2 for the first term, as published; lambda and rho then have its
units: those of metric="noise" times sigma_y^2.

A chain whose simulator fails repeats its step.

Cost for N iterations, k of the inner solver and J chains: N J (k + 1) simulator calls and adjoints,
and one call for b. No denoiser call.

References: Rudin, Osher and Fatemi 1992, Physica D 60 (total variation); Goldstein and Osher 2009,
"The split Bregman method for L1-regularized problems", SIAM J. Imaging Sci. 2; Boyd et al. 2011,
"Distributed optimization and statistical learning via the alternating direction method of
multipliers", section 6.4.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg.abilities import Ability
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.chains import check_choices, each, misfit_per_datum
from enkg.guidance.pnp_admm import SplitState, check_splitting
from enkg.guidance.quadratic import Metric, solve
from enkg.observation import Observation
from enkg.prior import Prior


@dataclass(frozen=True)
class ADMMTV(Guidance):
    """Total variation by ADMM, a point estimate. Cost: `iterations` x (`inner` + 1) calls a
    member."""

    state: ClassVar[type[State]] = SplitState
    begins_at_prior: ClassVar[bool] = False

    members: int = 2
    """Number of chains; all give the same."""
    iterations: int = 50
    """Steps N."""
    strength: float = 10.0
    """lambda: weight of the total variation; 0 gives least squares."""
    penalty: float = 50.0
    """rho: strength of the splitting; it decides how fast the steps converge, not where to."""
    inner: int = 10
    """Conjugate gradients a step."""
    metric: Metric = "noise"
    """The misfit: in units of the noise, or |y - G|^2 / 2 as published (plain)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "metric")
        check_splitting(self.iterations, self.inner, self.penalty)
        if not self.strength >= 0:
            raise InputError(f"strength is {self.strength}; expected a number that is not negative")

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("adjoint",)

    @property
    def sweeps(self) -> int:
        return self.iterations * (self.inner + 1)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        if len(prior.shape) < 2:
            raise InputError(
                f"the unknown has shape {tuple(prior.shape)}; total variation needs a grid of two "
                "axes, the last ones"
            )
        members = self.own_members(prior, comm)
        x = torch.zeros(len(members), *prior.shape, dtype=like.dtype, device=like.device)
        z = gradient(x.double())
        return SplitState(x, members, seed, comm=comm, z=z, u=torch.zeros_like(z))

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, SplitState)
        rho = self.penalty
        solved = solve(
            state,
            state.x,
            forward,
            observation,
            self.metric,
            (lambda v: rho * divergence(gradient(v)), rho * divergence(state.z - state.u)),
            self.inner,
        )
        slope = gradient(solved.x)
        z = shrink(slope + state.u, self.strength / rho)
        u = state.u + slope - z
        stays = each(solved.failed, z)
        i = state.step + 1
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=i / self.iterations,
            misfit=misfit_per_datum(solved.everyone, observation),
            evaluated=((state.x, solved.everyone),),
        )
        state = replace(
            state,
            x=solved.x.to(state.x),
            z=torch.where(stays, state.z, z),
            u=torch.where(stays, state.u, u),
            step=i,
            finished=i == self.iterations,
        )
        return state, info

    def drop(self, state: State, living: Tensor) -> State:
        """A failed chain repeats its step."""
        return state


def gradient(x: Tensor) -> Tensor:
    """Forward differences of the last two axes, (J, *X) to (J, 2, *X)."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    right[..., :-1] = x[..., 1:] - x[..., :-1]
    return torch.stack([down, right], dim=1)


def divergence(v: Tensor) -> Tensor:
    """The transpose of `gradient` (minus the divergence), (J, 2, *X) to (J, *X)."""
    down, right = v[:, 0, ..., :-1, :], v[:, 1, ..., :-1]
    out = torch.zeros_like(v[:, 0])
    out[..., 1:, :] += down
    out[..., :-1, :] -= down
    out[..., 1:] += right
    out[..., :-1] -= right
    return out


def total_variation(x: Tensor) -> Tensor:
    """TV(x), (J, *X) to (J,)."""
    return gradient(x).square().sum(dim=1).sqrt().flatten(1).sum(dim=1)


def shrink(v: Tensor, by: float) -> Tensor:
    """Shortens the vector at each point by so much, to zero at most, (J, 2, *X)."""
    length = v.square().sum(dim=1, keepdim=True).sqrt()
    kept = (length - by).clamp(min=0)
    return torch.where(kept > 0, v * (kept / torch.where(length > 0, length, 1.0)), 0.0)
