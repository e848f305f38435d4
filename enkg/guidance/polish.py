"""Polish: decoupled annealing over a few low noise levels, for any ensemble near the posterior.

    x_j = x0_j + s_0 n_j, then at levels s_0 > s_1 > ... > s_{n-1}, with s_n = 0
        D_j = D(x_j, s_i);  C from the ensemble                   (`enkg.guidance.conditional`)
        z_j = D_j + C^(1/2) n_j;  Y_j = G(z_j)                    one simulator call a member
        B, Omega = regression of Y on z
        K   = C B^T (B C B^T + Gamma + Omega)^-1
        z_j += K (y + (Gamma + Omega)^(1/2) eta_j - Y_j)
        x_j = z_j + s_{i+1} n'_j
    the result is z

z before its update is a draw of x_0 given x_sigma where that is Gaussian, and its covariance is the
conditional one; so each level may use the whole likelihood. The covariance of all z would count
the data once per level, and collapse. What the levels keep of their start is what the noise s_0
leaves of it: the modes, where s_0 is smaller than the gaps between them.

Law: exact for a linear simulator and a Gaussian prior as J grows, if the noise s_0 is high enough
to forget the start, or the start is exact. Otherwise the error is that of a Gaussian for x_0 given
x_sigma, and vanishes with s_0.

Decoupled noise annealing is due to Zhang et al. 2024, arXiv 2407.01521 (DAPS); the ensemble Kalman
update with a regressed covariance in the place of Langevin steps is enkg's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.comm import once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.conditional import (
    Axes,
    Symmetric,
    conditional_covariance,
    gain,
    sensitivity,
)
from enkg.observation import Observation
from enkg.prior import Prior, White
from enkg.random import Stream
from enkg.schedule import karras

LEVELS = 5
START, END = 0.18, 0.03
"""First and last level over the largest standard deviation of the prior."""


@dataclass(frozen=True, eq=False)
class AnnealedState(State):
    """axes: principal axes of the prior, None as long as nobody needs them. updated: steps that
    came before the first annealed one."""

    axes: Axes | None = None
    updated: int = 0


@dataclass(frozen=True)
class Polish:
    """Levels of a polish. Cost: one simulator call and one denoiser call a member and level."""

    levels: int | None = 5
    """Number of levels; 0 is no polish. None: 5, but 0 for Gaussian priors."""
    sigma_start: float | None = None
    """First level, in prior units: where x_0 given x_sigma is nearly Gaussian. None: 0.18 times the
    prior's largest standard deviation."""
    sigma_end: float | None = None
    """Last level before zero; None: a sixth of the first."""

    def __post_init__(self) -> None:
        if self.most < 0:
            raise InputError(f"{self.levels} polish levels; expected 0 (none) or more")
        check_levels(self.sigma_start, self.sigma_end)

    @property
    def most(self) -> int:
        """Largest number of levels, for whatever prior."""
        return LEVELS if self.levels is None else self.levels

    def count(self, prior: Prior) -> int:
        """Number of levels for that prior."""
        return 0 if self.levels is None and isinstance(prior, White) else self.most

    def sigmas(self, prior: Prior, axes: Axes) -> list[float]:
        """The levels, with zero at the end."""
        count = self.count(prior)
        first = START * axes.largest if self.sigma_start is None else self.sigma_start
        last = END / START * first if self.sigma_end is None else min(self.sigma_end, first)
        return [*karras(count, first, last).tolist(), 0.0] if count else [0.0]


def check_levels(first: float | None, last: float | None) -> None:
    """Raises InputError for levels that are no noise levels; None stands for a default."""
    if not (first is None or first > 0) or not (last is None or last > 0):
        raise InputError(f"noise levels from {first} to {last}; expected positive numbers")


def annealed(
    state: AnnealedState,
    sigmas: list[float],
    prior: Prior,
    forward: Forward,
    observation: Observation,
) -> tuple[AnnealedState, Info]:
    """One level, from that of the state to the next. sigmas: all levels, the last 0. Collective.

    A failed member gets the answer of a random survivor, moved along B to a draw of its own.
    """
    assert state.axes is not None
    x, comm, sigma = state.x, state.comm, state.sigma
    level = state.step - state.updated
    to = sigmas[level + 1]
    denoised = prior.denoise(x, sigma)
    all_x, all_d = (rows(comm.rows(v)).double() for v in (x, denoised))
    axes, everyone = state.axes.to(x.device), state.everyone

    def drawn(stream: Stream) -> Tensor:
        return random.normal(all_x.shape[1:], state.seed, stream, everyone, state.step).to(all_x)

    def conditional() -> tuple[Symmetric, Tensor]:
        c = conditional_covariance(all_x, all_d, sigma, axes)
        return c, all_d + c(drawn(Stream.CONDITIONAL), 0.5)

    c, z = once(comm, conditional)
    own = state.own(z).reshape(x.shape).to(x)
    y = forward(own)
    living = alive(y)

    def analysis() -> Tensor:
        r = observation.residual(y)
        model = sensitivity(z[living], -r[living], axes)
        k = gain(c, model)
        source = survivors(state, everyone, living)
        moved = all_d[source] + (z - all_d)
        r = r[source] - (moved - z[source]) @ model.matrix.T
        eta = observation.noise(state.seed, everyone, state.step).to(r)
        moved = moved + k(r + eta * k.noise)
        return moved + to * drawn(Stream.RENOISE) if to > 0 else moved

    moved = state.own(once(comm, analysis)).reshape(x.shape).to(x)
    info = Info(
        step=state.step,
        sigma=sigma,
        progress=(level + 1) / (len(sigmas) - 1),
        power=0.0 if state.step else 1.0,
        beta=1.0,
        misfit=observation.misfit_per_datum(y[living]),
        evaluated=((own, y),),
    )
    after = replace(state, x=moved, step=state.step + 1, sigma=to, beta=1.0, finished=to == 0)
    return after, info


def survivors(state: State, everyone: Sequence[int], living: Tensor) -> Tensor:
    """For each member its own place if it lives, else that of a random survivor, (J,)."""
    source = torch.arange(len(everyone), device=living.device)
    alive_now = living.cpu()
    if bool(alive_now.all()):
        return source
    # Survivors in the order of their identities, so that the places do not matter.
    places = sorted(alive_now.nonzero()[:, 0].tolist(), key=lambda k: everyone[k])
    dead = (~alive_now).nonzero()[:, 0].tolist()
    identities = [everyone[k] for k in dead]
    chosen = random.choose(len(places), state.seed, Stream.CHOICE, identities, state.step)
    source[dead] = torch.tensor([places[k] for k in chosen.tolist()], device=source.device)
    return source


def begun(state: State, sigmas: list[float], x0: Tensor) -> tuple[Tensor, float]:
    """The members at the first of these levels, (J_r, *X), and this level; x0 and 0 if none."""
    if len(sigmas) == 1:
        return x0, 0.0
    own = random.normal(x0.shape[1:], state.seed, Stream.START, state.members, state.step + 1)
    return x0 + sigmas[0] * own.to(x0), sigmas[0]
