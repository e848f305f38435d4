"""Split Gibbs: the likelihood at distance rho from the prior, in turns.

    x_j ~ prior; at rho_0 > ... > rho_{N-1}
        z_j = x_j + rho n_j;  Y_j = G(z_j)                        one simulator call a member
        B, Omega = regression of Y on z
        K   = rho^2 B^T (rho^2 B B^T + Gamma + Omega)^-1
        z_j += K (y + (Gamma + Omega)^(1/2) eta_j - Y_j)          z given x and y
        x_j ~ x_0 given x_rho = z_j                               x given z

The last half-step is the reverse SDE in few steps from rho to zero, whose kernel
m + N(0, v I + a^2 C) (notation of `enkg.guidance.weighted`) is exact for a Gaussian prior.

Law: at a fixed rho the result tends to the posterior for the noise covariance Gamma + rho^2 A A^T
for a linear simulator A, whatever the prior, as the turns grow in number: broader than the
posterior, with a bias that vanishes with rho. But the chain forgets its start at a rate that
falls with rho, so rho anneals from above to its last value.

Vono, Dobigeon and Chainais 2019, "Split-and-augmented Gibbs sampler", IEEE Transactions on Signal
Processing 67 (the split); arXiv 2510.10968 (Blade: an ensemble with a diffusion prior, Langevin in
the place of the Kalman half-step that is here).
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.conditional import (
    Axes,
    Symmetric,
    axes_of,
    conditional_covariance,
    gain,
    sensitivity,
)
from enkg.guidance.polish import AnnealedState, check_levels, survivors
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import start
from enkg.schedule import karras

START, END = 0.6, 0.03
"""First and last rho over the largest standard deviation of the prior."""


@dataclass(frozen=True)
class SplitGibbs(Guidance):
    """Split Gibbs. Cost: `turns` simulator calls and `turns` x `reverse_steps` denoiser calls a
    member."""

    state: ClassVar[type[State]] = AnnealedState
    posterior_law: ClassVar[str | None] = None
    begins_at_prior: ClassVar[bool] = False

    turns: int = 20
    """Number N of turns."""
    rho_start: float | None = None
    """First rho, in prior units; None: 0.6 times the prior's largest standard deviation."""
    rho_end: float | None = None
    """Last rho, which decides the bias; None: 0.03 times that standard deviation. Equal to
    rho_start it stays fixed."""
    reverse_steps: int = 4
    """Steps of the reverse SDE from rho to zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.turns < 1:
            raise InputError(f"{self.turns} turns; expected at least one")
        check_levels(self.rho_start, self.rho_end)
        if self.reverse_steps < 1:
            raise InputError(f"{self.reverse_steps} steps of the reverse SDE; expected at least 1")

    @property
    def sweeps(self) -> int:
        return self.turns

    def rhos(self, axes: Axes) -> list[float]:
        """rho of each turn."""
        first = START * axes.largest if self.rho_start is None else self.rho_start
        last = END * axes.largest if self.rho_end is None else self.rho_end
        return karras(self.turns, first, min(last, first)).tolist()

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> AnnealedState:
        members = self.own_members(prior, comm)
        x0 = start(prior, 0.0, seed, members, like)
        axes = axes_of(prior, seed, lambda: x0, comm)
        state = AnnealedState(x0, members, seed, comm=comm, axes=axes)
        return replace(state, sigma=self.rhos(axes)[0])

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, AnnealedState)
        axes, rho, comm = state.axes, state.sigma, state.comm
        assert axes is not None
        z = state.x + rho * self._noise(state, Stream.CONDITIONAL).to(state.x)
        y = forward(z)
        whole, living, everyone = rows(comm.rows(z)).double(), alive(y), state.everyone

        def analysis() -> Tensor:
            here = axes.to(whole.device)
            free = Symmetric(here.vectors, torch.full_like(here.variance, rho**2), rho**2)
            r = observation.residual(y)
            k = gain(free, sensitivity(whole[living], -r[living], here))
            source = survivors(state, everyone, living)
            eta = observation.noise(state.seed, everyone, state.step).to(r)
            return whole[source] + k(r[source] + eta * k.noise)

        z1 = state.own(once(comm, analysis)).reshape(z.shape).to(z)
        x = self._prior_half(state, prior, z1, rho, axes)
        finished = state.step + 1 == self.turns
        info = Info(
            step=state.step,
            sigma=rho,
            progress=(state.step + 1) / self.turns,
            power=0.0 if state.step else 1.0,
            beta=1.0,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((z, y),),
        )
        after = replace(
            state,
            x=x,
            step=state.step + 1,
            sigma=0.0 if finished else self.rhos(axes)[state.step + 1],
            beta=1.0,
            finished=finished,
        )
        return after, info

    def _prior_half(
        self, state: AnnealedState, prior: Prior, z: Tensor, rho: float, axes: Axes
    ) -> Tensor:
        """A draw of x_0 given x_rho = z."""
        here, everyone = axes.to(z.device), state.everyone
        last = min(rho, 0.2 * END * axes.largest)
        levels = [*karras(self.reverse_steps, rho, last).tolist(), 0.0]
        x = z
        for number, (sigma, to) in enumerate(pairwise(levels)):
            denoised = prior.denoise(x, sigma)
            whole = [rows(state.comm.rows(v)).double() for v in (x, denoised)]
            key = state.seed, everyone, state.step * self.reverse_steps + number
            step = partial(_reverse, whole, (sigma, to), here, key)
            x = state.own(once(state.comm, step)).reshape(x.shape).to(x)
        return x

    def _noise(self, state: State, stream: Stream) -> Tensor:
        return random.normal(state.x.shape[1:], state.seed, stream, state.members, state.step)


def _reverse(
    whole: list[Tensor],
    levels: tuple[float, float],
    axes: Axes,
    key: tuple[int, tuple[int, ...], int],
) -> Tensor:
    """One step of the reverse SDE of all members, (J, d), with its kernel v I + a^2 C."""
    (x, denoised), (sigma, to), (seed, everyone, number) = whole, levels, key
    c = conditional_covariance(x, denoised, sigma, axes)
    a = 1 - (to / sigma) ** 2
    inner, outer = (
        random.normal(x.shape[1:], seed, stream, everyone, number).to(x)
        for stream in (Stream.SAMPLER, Stream.RENOISE)
    )
    return x + a * (denoised - x + c(inner, 0.5)) + sqrt(a) * to * outer
