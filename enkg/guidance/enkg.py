"""EnKG, tempered: ensemble Kalman updates of the noisy states of a diffusion model.

The probability flow carries x_sigma to x_0 = phi(x_sigma), one to one. Pulled back by it, the
posterior at noise level sigma is p_sigma(x) exp(-Phi(phi(x))), and the flow carries that of one
level to that of the next. So at any level a Bayes step with a part of the likelihood is legitimate,
and the parts need only add up to one:

    at levels sigma_0 > sigma_1 > ...
        Y_j  = G(phi(x_j))                                  one simulator call a member
        b    = controller(Phi), the rest at the last level  sum of b = 1
        x_j += C_xY (C_YY + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)
        x_j  = flow(x_j, sigma_i -> sigma_{i+1}), or to 0 once the sum is one

Law: for a linear simulator and a Gaussian prior the ensemble tends to the exact posterior as J
grows, whatever the levels and powers. Otherwise the error is that of a Gaussian fit to
(x_sigma, Y).

The derivative-free guidance of diffusion models by ensemble Kalman updates is due to Zheng et
al. 2024, arXiv 2409.20175 (EnKG); their update has a step of fixed length in which the noise
covariance does not appear (`enkg.guidance.EnKGPublished`). The update here is that of ES-MDA
(Emerick and Reynolds 2013, doi 10.1016/j.cageo.2012.03.011) in the noise coordinates of the
diffusion model.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State, check_folds, draw_lots, mixed
from enkg.guidance.kalman import Weights, perturbed_weights, square_root_weights
from enkg.guidance.tempering import adaptive_power, fixed_powers
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import Flow, start
from enkg.schedule import geometric


@dataclass(frozen=True)
class EnKG(Guidance):
    """Tempered EnKG, the default. Cost: one simulator call a member and update.

    Noise levels are in prior units, for a prior of standard deviation of order one.
    """

    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior, J to infinity"

    updates: int | None = None
    """Number of updates with powers fixed beforehand; None lets the misfit decide."""
    ratio: float = 1.0
    """Fixed powers: each is this many times the one before."""
    cap: float = 1.0
    """Misfit-controlled powers: the largest allowed. Small caps spread the updates over levels."""
    levels: int = 20
    """Misfit-controlled powers: number of noise levels, hence the largest number of updates."""
    sigma_start: float = 5.0
    """Noise level of the first update."""
    sigma_end: float = 0.05
    """Noise level of the last possible update."""
    deterministic: bool = False
    """Square-root update in place of perturbed observations."""
    folds: int = 1
    """Perturbed observations: folds of the gain; 1 uses one gain for all members. More folds undo
    the loss of spread of small ensembles, for simulators that are not far from linear."""
    flow: Flow = field(default_factory=Flow)
    """How the ensemble moves between noise levels where the prior has no closed form."""
    clean_steps: int = 8
    """Fewest steps of the flow to zero noise, where the simulator looks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap <= 1:
            raise InputError(f"cap is {self.cap}; expected a power between 0 and 1")
        check_folds(self.folds, self.members)
        if self.deterministic and self.folds > 1:
            raise InputError("folds are for perturbed observations; leave deterministic off")
        self._sigmas()
        fixed_powers(self.sweeps, self.ratio)

    @property
    def sweeps(self) -> int:
        return self.levels if self.updates is None else self.updates

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        x = start(prior, self.sigma_start, seed, members, like, flow=self.flow)
        return State(x, members, seed, sigma=self.sigma_start, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        sigma, sigmas = state.sigma, self._sigmas()
        x0 = self._clean(prior, state.x, sigma)
        y = forward(x0)
        living, everyone = alive(y), state.everyone

        def analysis() -> tuple[float, Weights]:
            r = observation.residual(y)[living]
            power = self._power(state, r, observation.count)
            if self.deterministic:
                return power, square_root_weights(r, power).to(x0)
            key = state.seed, state.step
            lots = draw_lots(key, everyone, observation, living, self.folds)
            return power, perturbed_weights(r, lots.eta, power, lots.fold).to(x0)

        power, weights = once(state.comm, analysis)
        x = mixed(state, state.x, living, weights)

        finished = self._last(state) or state.beta + power >= 1.0
        beta = 1.0 if finished else state.beta + power
        if finished:
            x, to = self._clean(prior, x, sigma), 0.0
        else:
            to = sigmas[state.step + 1]
            x = self.flow(prior, x, sigma, to)
        info = Info(
            step=state.step,
            sigma=sigma,
            progress=1.0 if finished else max((state.step + 1) / self.sweeps, beta**0.5),
            power=power,
            beta=beta,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((x0, y),),
        )
        after = replace(state, x=x, step=state.step + 1, sigma=to, beta=beta, finished=finished)
        return after, info

    def _power(self, state: State, r: Tensor, count: int) -> float:
        if self._last(state):
            return 1.0 - state.beta
        if self.updates is None:
            return adaptive_power(0.5 * r.square().sum(dim=1), count, state.beta, self.cap)
        return fixed_powers(self.updates, self.ratio)[state.step]

    def _last(self, state: State) -> bool:
        return state.step + 1 == self.sweeps

    def _clean(self, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        flow = self.flow
        fine = Flow(flow.solver, flow.levels, max(flow.fewest, self.clean_steps), flow.sigma_min)
        return fine(prior, x, sigma, 0.0)

    def _sigmas(self) -> list[float]:
        return geometric(self.sweeps, self.sigma_start, self.sigma_end).tolist()
