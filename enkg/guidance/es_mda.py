"""ES-MDA: ensemble smoother with multiple data assimilation.

    x_j ~ prior, then K times
    x_j += C_xY (C_YY + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)

with powers b that add up to one. It works on clean states, so the prior enters only through
its samples: nothing pulls the ensemble back to it between the updates. It is the baseline
that every diffusion-guided method has to beat.

Law: exact posterior for a linear simulator and a Gaussian prior as J grows, for every K.

References: Emerick and Reynolds 2013, "Ensemble smoother with multiple data assimilation",
Computers and Geosciences 55, doi 10.1016/j.cageo.2012.03.011. K = 1 is one step of ensemble Kalman
inversion with perturbed observations: Iglesias, Law and Stuart 2013, "Ensemble Kalman methods for
inverse problems", Inverse Problems 29, 045001, doi 10.1088/0266-5611/29/4/045001.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.guidance.base import Forward, Info, State, mixed
from enkg.guidance.ensemble_kalman import EnsembleKalman
from enkg.guidance.kalman import Weights
from enkg.guidance.taper import Tapered
from enkg.guidance.tempering import fixed_powers
from enkg.observation import Observation
from enkg.prior import Prior


@dataclass(frozen=True)
class ESMDA(EnsembleKalman):
    """ES-MDA. Cost: `updates` simulator calls a member, no denoiser call in the loop.

    With one update it is one-step ensemble Kalman inversion. The options of `EnsembleKalman` are
    not part of the published method, and off.
    """

    updates: int = 4
    """Number K of updates; 4 is the usual choice, 16 for strongly nonlinear simulators."""
    ratio: float = 1.0
    """Each power is this many times the one before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed_powers(self.updates, self.ratio)

    @property
    def sweeps(self) -> int:
        return self.updates

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        x = self.first_draws(prior, 0.0, (seed, members), like, comm)
        return State(x, members, seed, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        y = forward(state.x)
        living, everyone = alive(y), state.everyone
        power = fixed_powers(self.updates, self.ratio)[state.step]

        def analysis() -> Weights | Tapered:
            r = observation.residual(y)[living]
            update = self.analysis(r, power, state, everyone, observation, living)
            return update.to(state.x)

        x = mixed(state, state.x, living, self.moved(once(state.comm, analysis)))

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
