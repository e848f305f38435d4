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
(x_sigma, Y); a polish (`enkg.guidance.polish`) over a few low noise levels then takes out what of
it lies within the modes of the prior.

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
from enkg.guidance.base import Forward, Info, State, mixed
from enkg.guidance.conditional import axes_of
from enkg.guidance.ensemble_kalman import EnsembleKalman
from enkg.guidance.kalman import Weights
from enkg.guidance.polish import AnnealedState, Polish, annealed, begun
from enkg.guidance.taper import Tapered
from enkg.guidance.tempering import adaptive_power, fixed_powers
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import Flow, start
from enkg.schedule import geometric


@dataclass(frozen=True)
class EnKG(EnsembleKalman):
    """Tempered EnKG, the default. Cost: one simulator call a member and update, and one for each
    level of the polish.

    Noise levels are in prior units, for a prior of standard deviation of order one.
    """

    state: ClassVar[type[State]] = AnnealedState
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
    flow: Flow = field(default_factory=Flow)
    """How the ensemble moves between noise levels where the prior has no closed form."""
    clean_steps: int = 8
    """Fewest steps of the flow to zero noise, where the simulator looks."""
    polish: Polish = field(default_factory=lambda: Polish(levels=None))
    """Levels after the last update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap <= 1:
            raise InputError(f"cap is {self.cap}; expected a power between 0 and 1")
        self._sigmas()
        fixed_powers(self._most, self.ratio)

    @property
    def sweeps(self) -> int:
        return self._most + self.polish.most

    def sweeps_for(self, prior: Prior) -> int:
        return self._most + self.polish.count(prior)

    @property
    def _most(self) -> int:
        """Largest number of updates."""
        return self.levels if self.updates is None else self.updates

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        x = self.first_draws(prior, self.sigma_start, (seed, members), like, comm, self.flow)
        return AnnealedState(x, members, seed, sigma=self.sigma_start, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, AnnealedState)
        if state.beta == 1.0:
            return self._polished(state, prior, forward, observation)
        sigma, sigmas = state.sigma, self._sigmas()
        x0 = self._clean(prior, state.x, sigma)
        y = forward(x0)
        living, everyone = alive(y), state.everyone

        def analysis() -> tuple[float, Weights | Tapered]:
            r = observation.residual(y)[living]
            power = self._power(state, r, observation.count)
            update = self.analysis(r, power, state, everyone, observation, living)
            return power, update.to(x0)

        power, update = once(state.comm, analysis)
        x = mixed(state, state.x, living, self.moved(update))

        spent = self._last(state) or state.beta + power >= 1.0
        beta = 1.0 if spent else state.beta + power
        finished, axes = False, None
        if spent:
            x, to = self._clean(prior, x, sigma), 0.0
            finished = not self.polish.count(prior)
            if not finished:
                samples = lambda: start(  # noqa: E731
                    prior, 0.0, state.seed, state.members, x, flow=self.flow
                )
                axes = axes_of(prior, state.seed, samples, state.comm)
                x, to = begun(state, self.polish.sigmas(prior, axes), x)
        else:
            to = sigmas[state.step + 1]
            x = self.flow(prior, x, sigma, to)
        polishing = self.polish.count(prior) / self.sweeps_for(prior)
        progress = 1.0 if spent else max((state.step + 1) / self._most, beta**0.5)
        info = Info(
            step=state.step,
            sigma=sigma,
            progress=(1 - polishing) * progress,
            power=power,
            beta=beta,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((x0, y),),
        )
        after = replace(state, x=x, step=state.step + 1, sigma=to, beta=beta, finished=finished)
        return replace(after, axes=axes, updated=state.step + 1), info

    def _polished(
        self, state: AnnealedState, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert state.axes is not None
        sigmas = self.polish.sigmas(prior, state.axes)
        after, info = annealed(state, sigmas, prior, forward, observation)
        left = len(sigmas) - 1 - (after.step - state.updated)
        return after, replace(info, progress=1 - left / self.sweeps_for(prior))

    def _power(self, state: State, r: Tensor, count: int) -> float:
        if self._last(state):
            return 1.0 - state.beta
        if self.updates is None:
            return adaptive_power(0.5 * r.square().sum(dim=1), count, state.beta, self.cap)
        return fixed_powers(self.updates, self.ratio)[state.step]

    def _last(self, state: State) -> bool:
        return state.step + 1 == self._most

    def _clean(self, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        flow = self.flow
        fine = Flow(flow.solver, flow.levels, max(flow.fewest, self.clean_steps), flow.sigma_min)
        return fine(prior, x, sigma, 0.0)

    def _sigmas(self) -> list[float]:
        return geometric(self._most, self.sigma_start, self.sigma_end).tolist()
