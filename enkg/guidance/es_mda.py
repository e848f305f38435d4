"""ES-MDA: ensemble smoother with multiple data assimilation.

    x_j ~ prior;  K times:  x_j += C_xY (C_YY + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)

with powers b that add up to one. It works on clean states, so the prior enters only through its
samples: nothing pulls the ensemble back to it between the updates. It is the baseline that every
diffusion-guided method has to beat.

Law: exact posterior for a linear simulator and a Gaussian prior as J grows, for every K.

Reference: Emerick and Reynolds 2013, "Ensemble smoother with multiple data assimilation", Computers
and Geosciences 55, doi 10.1016/j.cageo.2012.03.011.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State, revive
from enkg.guidance.kalman import perturbed_update
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
        if self.folds < 1 or (self.folds > 1 and self.members < 2 * self.folds):
            raise InputError(
                f"{self.folds} folds of {self.members} members; each fold needs at least 2 members"
            )

    @property
    def sweeps(self) -> int:
        return self.updates

    def init(self, prior: Prior, seed: int, like: Tensor) -> State:
        members = tuple(range(self.members))
        return State(start(prior, 0.0, seed, members, like), members, seed)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        y = forward(state.x)
        living = alive(y)
        r = observation.residual(y)[living]
        members = torch.tensor(state.members)[living.cpu()]
        eta = observation.noise(state.seed, members.tolist(), state.step)
        fold = (members % self.folds).to(r.device) if self.folds > 1 else None

        powers = fixed_powers(self.updates, self.ratio)
        power = powers[state.step]
        x = state.x.clone()
        x[living] = perturbed_update(x[living], r, eta, power, fold)
        x = revive(x, living, state)

        finished = state.step + 1 == self.updates
        beta = 1.0 if finished else state.beta + power
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=(state.step + 1) / self.updates,
            power=power,
            beta=beta,
            misfit=float(r.square().sum(dim=1).mean() / observation.size),
            evaluated=((state.x, y),),
        )
        return State(x, state.members, state.seed, state.step + 1, 0.0, beta, finished), info
