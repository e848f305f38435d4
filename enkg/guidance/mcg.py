"""MCG: manifold constrained gradient, a DPS step and then a projection onto the data.

    x' = one step of DPS,    x_s = (I - P) x' + A^+ y + s P n,    P = A^+ A

with noise n of its own at each level s. The projection replaces what the data see of x' by the
data, noised to the level. As it is affine, it is made of one simulator call and one pseudo-inverse,
without P,

    x_s = x' + A^+ y - A^+ G(x' - s n),

which is also what a guess at the inverse of a nonlinear simulator gives.

Law: for a linear simulator whose rows are independent, the result fits the data to rounding,
G(x) = y. So it takes the noise of the data for signal; there is no posterior law. The data must be
complete: a mask raises InputError.

Cost, for N levels and J chains: simulator calls 2 N J, products with J_G N J, pseudo-inverses N (J
+ 1), denoiser calls N J and those of the start, products with J_D N J + 1. The second call of a
level is made at a noisy state. A chain whose second call fails is not projected in that step.

Reference: Chung et al. 2022, "Improving diffusion models for inverse problems using manifold
constraints", NeurIPS, arXiv 2206.00941. The public code of DPS (arXiv 2209.14687), which carries
the method, projects by an operator of its own for each task.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.comm import ALONE, Comm
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains
from enkg.guidance.dps import DPS
from enkg.guidance.restoration import check_complete, replaced
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream


@dataclass(frozen=True)
class MCG(Chains):
    """MCG. Cost: two simulator calls and one gradient a member and level."""

    form: Literal["damped", "plain", "norm"] = "damped"
    """How the gradient guides, as for DPS."""
    guidance_scale: float = 0.5
    """Length of a published step (form="norm" alone), as for DPS."""
    eta: float = 1.0
    """Noise of a step: 1 the reverse diffusion, 0 the probability-flow ODE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._dps

    @property
    def _dps(self) -> DPS:
        return DPS(
            members=self.members,
            levels=self.levels,
            schedule=self.schedule,
            sigma_max=self.sigma_max,
            sigma_min=self.sigma_min,
            form=self.form,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
        )

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("vjp", "pinv")

    @property
    def sweeps(self) -> int:
        return 2 * self.levels

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        return self._dps.init(prior, seed, like, comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        check_complete(observation, "MCG")
        after, info = self._dps.step(state, prior, forward, observation)
        noise = random.normal(prior.shape, state.seed, Stream.RENOISE, state.members, state.step)
        x = after.x
        y = state.own(forward(x - after.sigma * noise.to(x)))
        return replace(after, x=x + replaced(y, forward, observation).to(x)), info
