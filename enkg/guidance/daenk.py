"""DAEnK: decoupled annealing with an ensemble Kalman update at each noise level.

    x_j at s_0: the prior's own state, x_0 + s_0 n
    at levels s_0 > ... > s_{N-1}: the step of `enkg.guidance.polish`

The whole likelihood enters at every level, because only the covariance of x_0 given x_sigma enters
its gain. In the place of C from Jacobians it is a regression over the ensemble.

Law: exact for a linear simulator and a Gaussian prior as J grows, from any first level that is high
against the prior's spread. Otherwise the error is that of a Gaussian for x_0 given x_sigma; at high
levels, where that is wrong for a prior of many modes, later levels undo it in part.

Decoupled noise annealing: Zhang et al. 2024, arXiv 2407.01521 (DAPS). The ensemble Kalman update in
it is enkg's own.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.conditional import Axes, axes_of
from enkg.guidance.polish import END, AnnealedState, annealed, begun, check_levels
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import start
from enkg.schedule import karras

START = 1.8
"""First level over the largest standard deviation of the prior."""


@dataclass(frozen=True)
class DAEnK(Guidance):
    """DAEnK. Cost: `levels` simulator calls and denoiser calls a member."""

    state: ClassVar[type[State]] = AnnealedState
    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior, J to infinity"
    begins_at_prior: ClassVar[bool] = False

    levels: int = 20
    """Number N of noise levels."""
    sigma_start: float | None = None
    """First level, in prior units; None: 1.8 times the prior's largest standard deviation."""
    sigma_end: float | None = None
    """Last level before zero; None: 0.03 times that standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise InputError(f"{self.levels} levels; expected at least one")
        check_levels(self.sigma_start, self.sigma_end)

    @property
    def sweeps(self) -> int:
        return self.levels

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> AnnealedState:
        members = self.own_members(prior, comm)
        x0 = start(prior, 0.0, seed, members, like)
        axes = axes_of(prior, seed, lambda: x0, comm)
        state = AnnealedState(x0, members, seed, comm=comm, axes=axes)
        x, sigma = begun(state, self.sigmas(axes), x0)
        return replace(state, x=x, sigma=sigma)

    def sigmas(self, axes: Axes) -> list[float]:
        """The levels, with zero at the end."""
        first = START * axes.largest if self.sigma_start is None else self.sigma_start
        last = END * axes.largest if self.sigma_end is None else self.sigma_end
        return [*karras(self.levels, first, min(last, first)).tolist(), 0.0]

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, AnnealedState)
        assert state.axes is not None
        return annealed(state, self.sigmas(state.axes), prior, forward, observation)
