"""What the methods share that guide chains by a linear solve in the space of the data.

With D = D(x, sigma), residual r = y - G(D) and covariance C of x_0 given x, the guided denoiser is

    D_y = D + sigma^2 J_D^T A^T u,    (A C A^T + Gamma) u = r,

and any sampler takes D_y for D. Here are the samplers and the solve.

Samplers, for a step from sigma to s:

    euler      x_s = D_y + s / sigma (x - D_y), the probability flow to first order
    heun       the same to second order (arXiv 2206.00364, algorithm 1): the mean of the slopes at
               both ends, so two evaluations of D_y; a step to zero is an Euler step
    ancestral  the reverse SDE, `enkg.guidance.reverse.ancestral_step`

The solve is by conjugate gradients on the whitened system, which has no eigenvalue below one:

    (Gamma^-1/2 A C A^T Gamma^-T/2 + I) u' = Gamma^-1/2 r,    u = Gamma^-T/2 u'

in float64 and for each chain by itself: one that has converged or failed stays as it is. The step
length needs p^T A C A^T p = (A^T p)^T C (A^T p), so K iterations take K products with A^T and K - 1
with A. A chain with a failed product keeps the iterate it has; each iterate is a guidance that does
not overshoot, the first of them that of `gsg` in its damped form.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    check_choices,
    check_differentiable,
    dots,
    each,
    finite,
    misfit_per_datum,
)
from enkg.guidance.reverse import ancestral_step
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream

Sampler = Literal["heun", "euler", "ancestral"]


@dataclass(frozen=True, eq=False)
class At:
    """One evaluation of D at x, for the chains of this rank.

    clean: D, (J_r, *X). everyone: data of all chains, (J, *Y). y: those of this rank, where alive.
    """

    state: State
    prior: Prior
    forward: Forward = field(repr=False)
    observation: Observation
    x: Tensor
    sigma: float
    clean: Tensor
    everyone: Tensor
    y: Tensor
    alive: Tensor

    @property
    def residual(self) -> Tensor:
        """Whitened y - G(D), (J_r, m), float64; zero for a chain whose simulator failed."""
        return torch.where(self.alive[:, None], self.observation.residual(self.y), 0.0)


def evaluated(
    state: State, x: Tensor, sigma: float, prior: Prior, forward: Forward, observation: Observation
) -> At:
    """One denoiser call and one simulator call a chain. Collective."""
    clean = prior.denoise(x, sigma)
    everyone = forward(clean)
    y = state.own(everyone).to(x.device)
    alive = rows(y).isfinite().all(dim=1)
    y = torch.where(each(alive, y), y, 0.0)
    return At(state, prior, forward, observation, x, sigma, clean, everyone, y, alive)


@dataclass(frozen=True)
class Guided(Chains):
    """Base of the methods with a guided denoiser D_y."""

    sampler: Sampler = "heun"
    """How a step is made with D_y: the probability flow by Heun's or Euler's rule, or the reverse
    SDE (ancestral)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "sampler")

    @property
    def evaluations(self) -> int:
        """How often D_y is evaluated in a run."""
        return 2 * self.levels - 1 if self.sampler == "heun" else self.levels

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        check_differentiable(prior, comm, type(self).__name__, self.sigmas[0], like)
        return super().init(prior, seed, like, comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        at = evaluated(state, x, sigma, prior, forward, observation)
        guided = self._guided(at)
        pairs = [(at.clean, at.everyone)]
        if self.sampler == "ancestral":
            noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
            moved = ancestral_step(x, guided, sigma, to, noise.to(x))
        else:
            slope = (x - guided) / sigma
            moved = x + (to - sigma) * slope
            if self.sampler == "heun" and to > 0:
                at = evaluated(state, moved, to, prior, forward, observation)
                slope = 0.5 * (slope + (moved - self._guided(at)) / to)
                moved = x + (to - sigma) * slope
                pairs.append((at.clean, at.everyone))
        return stepped(self, state, moved, to), Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit_per_datum(at.everyone, observation),
            evaluated=tuple(pairs),
        )

    def _guided(self, at: At) -> Tensor:
        return at.clean + finite(self.shift(at)).to(at.clean)

    @abstractmethod
    def shift(self, at: At) -> Tensor:
        """D_y - D, (J_r, *X), float64. Collective."""


def stepped(method: Chains, state: State, x: Tensor, to: float) -> State:
    """The state after a step to the level `to`."""
    finished = state.step + 1 == method.levels
    beta = 1.0 if finished else 0.0  # the likelihood is in every step, whole
    return replace(state, x=x, step=state.step + 1, sigma=to, beta=beta, finished=finished)


def check_iterations(iterations: int, tolerance: float) -> None:
    """Raises InputError for what conjugate gradients cannot do."""
    if iterations < 1 or not 0 <= tolerance < 1:
        raise InputError(
            f"{iterations} iterations to a tolerance of {tolerance}; expected at least one, and "
            "0 <= tolerance < 1"
        )


def unwhiten(observation: Observation, v: Tensor) -> Tensor:
    """Gamma^-T/2 v, the transpose of `Observation.whiten`: (J, m) to (J, *Y), 0 if masked."""
    with torch.enable_grad():
        zero = torch.zeros(len(v), *observation.y.shape, dtype=torch.float64, device=v.device)
        white = observation.whiten(zero.requires_grad_())
        return torch.autograd.grad(white, zero, v)[0]


@dataclass(frozen=True, eq=False)
class System:
    """A C A^T + Gamma with C = factor S. All products are float64.

    transpose: A^T, (J_r, *Y) to (J_r, *X). spread: S, (J_r, *X) twice. apply: A, (J_r, *X) to
    (J_r, *Y), or None where there is none: then one iteration is all.
    """

    factor: float
    transpose: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor], Tensor] | None


def solved(at: At, system: System, iterations: int, tolerance: float) -> Tensor:
    """S A^T (A C A^T + Gamma)^-1 r, (J_r, *X), float64. Collective.

    A chain stops where |residual| <= tolerance |first residual|, both whitened; the loop, where all
    chains of all ranks have. `iterations` products with A^T, one less with A, at most.
    """
    observation, residual = at.observation, at.residual
    p, left = residual, dots(residual, residual)
    goal, active = tolerance**2 * left, left > 0
    found = torch.zeros_like(at.clean, dtype=torch.float64)
    sent = torch.zeros_like(found)
    for k in range(iterations):
        if not any(at.state.comm.gather(bool(active.any()))):
            break
        back = system.transpose(unwhiten(observation, p)).double()
        moved = system.spread(finite(back))
        curvature = system.factor * dots(back, moved) + dots(p, p)
        good = rows(back).isfinite().all(dim=1) & rows(moved).isfinite().all(dim=1)
        active = active & good & curvature.isfinite() & (curvature > 0)
        alpha = torch.where(active, left / curvature, 0.0)
        found = torch.where(each(active, found), found + each(alpha, moved) * moved, found)
        if k + 1 == iterations or system.apply is None:
            break
        # Rows of one size, and none of zeros: forward takes a row far from the others for a failure
        size = (dots(moved, moved) / moved[0].numel()).sqrt()
        usable = each(active & (size > 0), moved)
        sent = torch.where(usable, moved / each(size, moved), sent)
        along = observation.whiten(system.apply(sent).double()) * size[:, None]
        residual = residual - alpha[:, None] * (system.factor * along + p)
        now = dots(residual, residual)
        active = active & now.isfinite() & (now > goal)
        p = torch.where(active[:, None], residual + (now / left)[:, None] * p, 0.0)
        left = torch.where(active, now, 1.0)
    return found
