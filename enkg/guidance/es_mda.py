"""ES-MDA: ensemble smoother with multiple data assimilation.

    x_j ~ prior, then K times
    x_j += C_xY (C_YY + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)

with powers b that add up to one. It works on clean states, so the prior enters only through
its samples: nothing pulls the ensemble back to it between the updates. It is the baseline
that every diffusion-guided method has to beat.

Law: exact posterior for a linear simulator and a Gaussian prior as J grows, for every K.

Reference: Emerick and Reynolds 2013, "Ensemble smoother with multiple data assimilation", Computers
and Geosciences 55, doi 10.1016/j.cageo.2012.03.011.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.guidance.base import Forward, Guidance, Info, State, check_folds, draw_lots, mixed
from enkg.guidance.kalman import Weights, perturbed_weights
from enkg.guidance.tempering import fixed_powers
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import start


@dataclass(frozen=True)
class ESMDA(Guidance):
    """ES-MDA. Cost: `updates` simulator calls a member, no denoiser call in the loop."""

    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior, J to infinity"

    updates: int = 4
    """Number K of updates; 4 is the usual choice, 16 for strongly nonlinear simulators."""
    ratio: float = 1.0
    """Each power is this many times the one before."""
    folds: int = 1
    """Folds of the gain; 1, as published, uses one gain for all members."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed_powers(self.updates, self.ratio)
        check_folds(self.folds, self.members)

    @property
    def sweeps(self) -> int:
        return self.updates

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        return State(start(prior, 0.0, seed, members, like), members, seed, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        y = forward(state.x)
        living, everyone = alive(y), state.everyone
        power = fixed_powers(self.updates, self.ratio)[state.step]

        def analysis() -> Weights:
            r = observation.residual(y)[living]
            key = state.seed, state.step
            lots = draw_lots(key, everyone, observation, living, self.folds)
            return perturbed_weights(r, lots.eta, power, lots.fold).to(state.x)

        x = mixed(state, state.x, living, once(state.comm, analysis))

        finished = state.step + 1 == self.updates
        beta = 1.0 if finished else state.beta + power
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=(state.step + 1) / self.updates,
            power=power,
            beta=beta,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((state.x, y),),
        )
        return replace(state, x=x, step=state.step + 1, beta=beta, finished=finished), info
