"""EnKG as published: a step of fixed length along the ensemble's own covariance.

    at each level sigma_i inside the window, `updates` times:
        x0_j = phi(x_j), Euler on K_i levels;  Y_j = G(x0_j)
        C_jk = 1/J (Y_j - y) . (Y_k - mean Y)
        x_j -= step / |C|_F sum_k C_jk (x_k - mean x)
    then one Euler step of the flow to sigma_{i+1}

Kept to reproduce the published behaviour, with the public code's constants as presets and without
its crashes (a remainder of the batch is never lost, a failed member spoils no other). It is an
optimiser, not a sampler:

- the length of the step depends neither on the residual nor on the noise: the run is unchanged when
  y and G are multiplied by the same number, and when the noise covariance is;
- the ensemble collapses, so its spread is not an uncertainty.

There is no posterior law. Use `EnKG` for inference.

Reference: Zheng et al. 2024, arXiv 2409.20175, algorithm 1 (where the inner product carries the
noise covariance; the public code's does not).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive, anomalies
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State, mixed
from enkg.guidance.kalman import Weights
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import euler
from enkg.schedule import karras


@dataclass(frozen=True)
class EnKGPublished(Guidance):
    """Published EnKG. Cost: `updates` x (number of guided levels) simulator calls a member.

    The defaults are the constants of the public Navier-Stokes script.
    """

    posterior_law: ClassVar[str | None] = None

    members: int = 2048
    """Ensemble size J."""
    updates: int = 2
    """Updates at each guided level."""
    step_size: float = 2.0
    """Length of a step in units of the ensemble's anomalies."""
    levels: int = 80
    """Number of noise levels."""
    sigma_max: float = 80.0
    """Highest noise level, in prior units."""
    sigma_min: float = 0.002
    """Lowest noise level before zero."""
    first_guided: int = 5
    """Index of the first guided level, counted from 0."""
    last_guided: int = 75
    """Index of the last guided level (included)."""
    flow_every: int = 4
    """The clean estimate takes one more Euler step for each of so many levels still to go."""
    flow_most: int = 20
    """Most Euler steps of a clean estimate."""
    decay_floor: float | None = None
    """If given, the step length falls linearly with the level index to about this value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first_guided <= self.last_guided < self.levels:
            raise InputError(
                f"guided levels {self.first_guided} to {self.last_guided} do not lie among the "
                f"{self.levels} levels 0 to {self.levels - 1}"
            )
        check_steps(self.updates, self.step_size)

    @property
    def sweeps(self) -> int:
        return self.updates * (self.last_guided - self.first_guided + 1)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        noise = random.normal(prior.shape, seed, Stream.SAMPLER, members, 0).to(like)
        return State(self.sigma_max * noise, members, seed, sigma=self.sigma_max, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigmas = [*karras(self.levels, self.sigma_max, self.sigma_min).tolist(), 0.0]
        evaluated: list[tuple[Tensor, Tensor]] = []
        misfit = None
        if self.first_guided <= i <= self.last_guided:
            for _ in range(self.updates):
                x0 = euler(prior, x, self._clean_grid(i, sigmas[i]))
                y = forward(x0)
                evaluated.append((x0, y))
                length = self._length(i)
                x, misfit = normalised_step(state, x, y, observation, length)
        x = euler(prior, x, sigmas[i : i + 2])
        finished = i + 1 == self.levels
        info = Info(
            step=i,
            sigma=sigmas[i],
            progress=(i + 1) / self.levels,
            misfit=misfit,
            evaluated=tuple(evaluated),
        )
        after = replace(state, x=x, step=i + 1, sigma=sigmas[i + 1], finished=finished)
        return after, info

    def _length(self, level: int) -> float:
        if self.decay_floor is None:
            return self.step_size
        share = (self.levels - level) / self.levels
        return self.step_size * (1 - self.decay_floor) * share + self.decay_floor

    def _clean_grid(self, level: int, sigma: float) -> list[float]:
        steps = min(1 + (self.levels - level) // self.flow_every, self.flow_most)
        return [*karras(steps, sigma, self.sigma_min).tolist(), 0.0]


def check_steps(updates: int, step_size: float) -> None:
    """Raises InputError where no step of a positive length would be made."""
    if updates < 1 or not step_size > 0:
        raise InputError(
            f"{updates} updates of length {step_size}; expected at least one and a positive length"
        )


def normalised_step(
    state: State, x: Tensor, y: Tensor, observation: Observation, length: float
) -> tuple[Tensor, float]:
    """x_j -= length / |C|_F sum_k C_jk (x_k - mean x), and the misfit per datum before it.

    x: this rank's members. y: data of all, (J, *Y). The noise covariance is not used.
    """
    living = alive(y)

    def analysis() -> Weights | None:
        mask = observation.mask.to(y.device)
        error = (y.double() - observation.y.to(y.device))[living][:, mask]
        c = error @ anomalies(error).T / len(error)
        norm = float(c.norm())
        if norm == 0:  # a collapsed ensemble or a perfect fit stays where it is
            return None
        return Weights((-length / norm * c,)).to(x)

    weights = once(state.comm, analysis)
    x = mixed(state, x, living, weights or (lambda members: members))
    return x, observation.misfit_per_datum(y[living])
