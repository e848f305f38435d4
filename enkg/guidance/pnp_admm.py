"""PnP-ADMM: alternate the fit to the data with a denoiser of one fixed noise level.

With the misfit Phi = 1/2 |Gamma^(-1/2) (y - G(x))|^2 of a linear simulator G(x) = A x + b, lambda
the strength of the prior and rho the penalty of the splitting, a step is

    x <- argmin Phi(x) + rho/2 |x - (z - u)|^2
    z <- D(x + u, sigma),    sigma = sqrt(lambda / rho)
    u <- u + x - z

from z = x a draw of the prior and u = 0. If D(., sigma) is the proximal map of some function f over
rho / lambda, this is ADMM for Phi + lambda f. For a prior N(m, S), D is that map with
f = 1/2 (x - m)^T S^-1 (x - m). Then the fixed point, for any rho, is the posterior mean of the
problem with noise covariance lambda Gamma: that of the problem itself for lambda = 1. Other
denoisers are no such maps, and the fixed point depends on rho.

The result is one point: chains differ by their start alone, and their spread is no uncertainty.
There is no posterior law.

solver="cg" solves for x by a fixed number of conjugate gradients from the last x (see
`enkg.guidance.quadratic`) and needs an adjoint. solver="svd" is its closed form for noise of one
standard deviation, x = v + V diag(w s / (w s^2 + rho)) U^T (y - G(v)) with v = z - u and
w = 1 / sigma_y^2.

metric="plain" takes |y - G(x)|^2 / 2 for Phi, as published; lambda and rho then have its units.

A chain whose simulator fails takes x = z - u in that step, as if it had no data.

Cost for N iterations, k of the inner solver and J chains: N J (k + 1) simulator calls and adjoints,
and one call for b; with solver="svd" N J simulator calls. Denoiser calls N J and those of the
start. No product with a Jacobian.

References: Venkatakrishnan, Bouman and Wohlberg 2013, "Plug-and-play priors for model based
reconstruction", GlobalSIP; Chan, Wang and Elgendy 2017, arXiv 1605.01710.
"""

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.chains import check_choices, each, misfit_per_datum, operator
from enkg.guidance.quadratic import Metric, solve, weights
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import start


@dataclass(frozen=True, eq=False)
class SplitState(State):
    """x: the fit to the data. z: the copy that the prior shapes, u: the scaled multiplier, both
    (J_r, *X), float64."""

    sharded: ClassVar[tuple[str, ...]] = ("x", "members", "z", "u")

    z: Tensor = field(default_factory=lambda: torch.empty(0))
    u: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "SplitState":
        return replace(self, x=self.x.to(device), z=self.z.to(device), u=self.u.to(device))


@dataclass(frozen=True)
class PnPADMM(Guidance):
    """Plug-and-play ADMM, a point estimate. Cost: `iterations` x (`inner` + 1) calls a member."""

    state: ClassVar[type[State]] = SplitState
    begins_at_prior: ClassVar[bool] = False

    members: int = 2
    """Number of chains, which differ by their start alone."""
    iterations: int = 50
    """Steps N."""
    strength: float = 1.0
    """lambda: strength of the prior; 1 is that of Bayes' rule."""
    penalty: float = 25.0
    """rho: strength of the splitting; the denoiser works at noise level sqrt(lambda / rho)."""
    solver: Literal["cg", "svd"] = "cg"
    """How the fit to the data is found: by an adjoint, or in closed form by an svd."""
    inner: int = 10
    """Conjugate gradients a step (solver="cg")."""
    metric: Metric = "noise"
    """The misfit: in units of the noise, or |y - G|^2 / 2 as published (plain)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "solver", "metric")
        check_splitting(self.iterations, self.inner, self.penalty)
        if not self.strength > 0:
            raise InputError(f"strength is {self.strength}; expected a positive number")

    @property
    def level(self) -> float:
        """Noise level of the denoiser."""
        return sqrt(self.strength / self.penalty)

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("adjoint",) if self.solver == "cg" else ("svd",)

    @property
    def sweeps(self) -> int:
        return self.iterations * (self.inner + 1 if self.solver == "cg" else 1)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        x = start(prior, 0.0, seed, members, like)
        z = x.double()
        return SplitState(x, members, seed, sigma=self.level, comm=comm, z=z, u=torch.zeros_like(z))

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, SplitState)
        centre = state.z - state.u
        if self.solver == "cg":
            rho = self.penalty
            solved = solve(
                state,
                state.x,
                forward,
                observation,
                self.metric,
                (lambda v: rho * v, rho * centre),
                self.inner,
            )
            fit = torch.where(each(solved.failed, centre), centre, solved.x)
            seen, everyone = state.x, solved.everyone
        else:
            seen = centre.to(state.x)
            fit, everyone = self._closed(state, centre, seen, forward, observation)
        z = prior.denoise((fit + state.u).to(state.x), self.level).double()
        i = state.step + 1
        info = Info(
            step=state.step,
            sigma=self.level,
            progress=i / self.iterations,
            misfit=misfit_per_datum(everyone, observation),
            evaluated=((seen, everyone),),
        )
        u = state.u + fit - z
        return replace(
            state, x=fit.to(state.x), z=z, u=u, step=i, finished=i == self.iterations
        ), info

    def _closed(
        self, state: State, centre: Tensor, seen: Tensor, forward: Forward, observation: Observation
    ) -> tuple[Tensor, Tensor]:
        """The fit by the decomposition, float64, and the data of all at its centre."""
        weights(observation, self.metric)  # refuses what is not Gaussian
        svd, std = operator(forward).svd, observation.scale
        weight = 1.0 if self.metric == "plain" else std**-2
        everyone = forward(seen)
        y = state.own(everyone)
        failed = ~rows(y).isfinite().all(dim=1)
        gap = torch.where(each(failed, y), 0.0, observation.y.to(y.device) - y.double())
        s = svd.s.to(gap)
        shift = svd.v(weight * s / (weight * s**2 + self.penalty) * svd.ut(gap))
        return centre + torch.where(each(failed, shift), 0.0, shift), everyone

    def drop(self, state: State, living: Tensor) -> State:
        """A failed chain goes on without the data of that step."""
        return state


def check_splitting(iterations: int, inner: int, penalty: float) -> None:
    """Raises InputError where these are not positive."""
    if iterations < 1 or inner < 1:
        raise InputError(
            f"{iterations} iterations with {inner} inner ones; expected at least one of each"
        )
    if not penalty > 0:
        raise InputError(f"penalty is {penalty}; expected a positive number")
