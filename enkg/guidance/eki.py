"""EKI: the continuous-time flow of ensemble Kalman inversion.

From prior samples x_j(0), with data Y_j = G(x_j) and sample covariances over the ensemble,

    half residual   dx_j/dt = -C_xY Gamma^-1 ((Y_j + mean Y) / 2 - y)
    own residual    dx_j/dt = -C_xY Gamma^-1 (Y_j - y)

until t = 1. Law, for a linear simulator A and a Gaussian prior N(m, S), J to infinity: the half
residual has at t the covariance (S^-1 + t A^T Gamma^-1 A)^-1 and the mean of the posterior with
likelihood power t, so that t = 1 is the exact posterior (Bergemann and Reich 2010, "A localization
technique for ensemble Kalman filters", Quarterly Journal of the Royal Meteorological Society 136,
701-707, arXiv 0909.1678). The own residual of ensemble Kalman inversion without perturbed
observations (Schillings and Stuart 2017, "Analysis of the ensemble Kalman filter for inverse
problems", SIAM Journal on Numerical Analysis 55, 1264-1290) has

    (S^-1 + 2 t A^T Gamma^-1 A)^-1

the gain in precision twice over, and another mean: it is no posterior at any t. It is kept as a
preset, without a law.

Steps of time h are at most 1 / tr(Gamma^-1 C_YY), so that the simulator is looked at anew whenever
the data have moved by about their noise, and end at t = 1 exactly. Where `most_steps` would not
do, they grow geometrically until they do. Within a step the simulator is replaced by its
statistical linearisation, whose flow is known in closed form: with B^T B = V diag(v) V^T (see
`enkg.guidance.kalman`) and r_j = Gamma^(-1/2) (y - Y_j)

    x_j += 1 / sqrt(J - 1) X'^T B V (f(v) V^T mean r + g(v) V^T (r_j - mean r))
    half residual   f = h / (1 + h v),  g = (1 - (1 + h v)^(-1/2)) / v
    own residual    f = g = (1 - (1 + 2 h v)^(-1/2)) / v

which is stable for every h, and for linear simulators exact for every h. The explicit Euler method
of public codes has f = h and g = h / 2 or h; it needs steps well below the bound for that (error of
first order in `fraction`), and never takes a longer one: if `most_steps` are not enough, it ends
before t = 1 and says so.

Cost: one simulator call a member and step. About m log(1 + tr / m) / `fraction` steps, where tr is
the trace before the first: dear for many precise data, for which ES-MDA takes a handful of steps.

`EKIPublished` is the scheme of public code (benchmark of arXiv 2409.20175; Kovachki and Stuart
2019, "Ensemble Kalman inversion: a derivative-free technique for machine learning tasks", Inverse
Problems 35, 095005, for the normalised step):

    x_j -= 2 / |C|_F sum_k C_jk (x_k - mean x),   C_jk = 1/J (Y_j - y) . (Y_k - mean Y)

500 times, as in `enkg.guidance.EnKGPublished` and with its faults: neither the noise nor the size
of the residual enters, and the ensemble collapses. It starts from prior samples, where the public
code takes draws of another field in place of the normalised unknown.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive, anomalies
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State, mixed
from enkg.guidance.enkg_published import check_steps, normalised_step
from enkg.guidance.kalman import Weights, deterministic_weights
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import start


@dataclass(frozen=True)
class EKI(Guidance):
    """EKI flow to t = 1. Cost: one simulator call a member and step, at most `most_steps`."""

    residual: Literal["half", "own"] = "half"
    """What pulls a member: half its own residual and half the mean's, which gives the posterior, or
    its own alone, which does not."""
    solver: Literal["linearised", "euler"] = "linearised"
    """Within a step: the closed flow of the linearised simulator, or explicit Euler."""
    fraction: float = 1.0
    """Length of a step in units of 1 / tr(Gamma^-1 C_YY), at most 1."""
    most_steps: int = 100
    """Most steps. The linearised solver lengthens its steps to arrive with these; the Euler solver
    ends early."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual not in ("half", "own") or self.solver not in ("linearised", "euler"):
            raise InputError(
                f"residual={self.residual!r} and solver={self.solver!r}; expected half or own, and "
                "linearised or euler"
            )
        if not 0 < self.fraction <= 1 or self.most_steps < 1:
            raise InputError(
                f"fraction is {self.fraction} and most_steps {self.most_steps}; expected a number "
                "in (0, 1] and at least one step"
            )

    @property
    def posterior_law(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """On which problems the result is the exact posterior."""
        if self.residual == "own":
            return None
        steps = "" if self.solver == "linearised" else ", fraction to 0"
        return f"linear simulator and Gaussian prior, J to infinity{steps}"

    @property
    def sweeps(self) -> int:
        return self.most_steps

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        return State(start(prior, 0.0, seed, members, like), members, seed, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        y = forward(state.x)
        living = alive(y)

        def analysis() -> tuple[float, Weights]:
            r = observation.residual(y)[living]
            h = self._length(state, r)
            return h, self._weights(r, h).to(state.x)

        h, weights = once(state.comm, analysis)
        x = mixed(state, state.x, living, weights)
        arrived = h >= 1.0 - state.beta
        beta = 1.0 if arrived else state.beta + h
        finished = arrived or state.step + 1 == self.most_steps
        remarks = state.remarks
        if finished and not arrived:
            remarks = (*remarks, self._early(beta))
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=1.0 if finished else max(beta, (state.step + 1) / self.most_steps),
            power=h,
            beta=beta,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((state.x, y),),
        )
        after = replace(
            state, x=x, step=state.step + 1, beta=beta, finished=finished, remarks=remarks
        )
        return after, info

    def _length(self, state: State, r: Tensor) -> float:
        rest, left = 1.0 - state.beta, self.most_steps - state.step
        trace = float(anomalies(r).square().sum()) / (len(r) - 1)
        h = self.fraction / trace if trace > 0 else rest
        if self.solver == "linearised":
            needed = state.beta * ((1 / state.beta) ** (1 / left) - 1) if state.beta > 0 else 0.0
            h = rest if left == 1 else max(h, needed)
        return min(h, rest)

    def _weights(self, r: Tensor, h: float) -> Weights:
        own = self.residual == "own"
        if self.solver == "euler":
            share = h if own else h / 2
            return deterministic_weights(r, lambda v: v * 0 + h, lambda v: v * 0 + share)
        twice = 2 * h if own else h

        def shrink(v: Tensor) -> Tensor:
            root = (1 + twice * v).sqrt()
            return twice / (root * (root + 1))

        return deterministic_weights(r, shrink if own else lambda v: h / (1 + h * v), shrink)

    def _early(self, beta: float) -> str:
        return (
            f"the flow of EKI ended at t = {beta:.3g} of 1 after {self.most_steps} steps: allow "
            "more (most_steps), or solve it with solver=linearised"
        )


@dataclass(frozen=True)
class EKIPublished(Guidance):
    """EKI as published: steps of fixed length, without the noise covariance.

    Cost: `updates` simulator calls a member. No posterior law.
    """

    posterior_law: ClassVar[str | None] = None

    updates: int = 500
    """Number of steps."""
    step_size: float = 2.0
    """Length of a step in units of the ensemble's anomalies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.updates, self.step_size)

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
        x, misfit = normalised_step(state, state.x, y, observation, self.step_size)
        done = state.step + 1
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=done / self.updates,
            misfit=misfit,
            evaluated=((state.x, y),),
        )
        return replace(state, x=x, step=done, finished=done == self.updates), info
