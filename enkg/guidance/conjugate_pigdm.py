"""C-PiGDM: the flow of PiGDM in coordinates in which its linear part is solved, for few steps.

The probability flow with the guidance of PiGDM, in the weighting w mu^2 r^2 of the paper with mu^2
= 1 / (1 + sigma^2), is for data y = A x_0 + sigma_y n

    dx/dsigma = e - q(sigma) J_D^T K (A^+ y - D),    q = w sigma / (1 + sigma^2),    D = x - sigma e

with the noise e(x, sigma) that the denoiser D(x, sigma) tells. K acts on the right singular
directions of A, with k_i = sigma^2 s_i^2 / (sigma^2 s_i^2 + sigma_y^2 (1 + sigma^2)), and with 0
where A sees nothing. As J_D = I - sigma de/dx, the right side holds the linear term q K x. With
v = V^T x and, for each direction,

    a_i(sigma) = exp(-int_0^sigma q k_i)
               = (1 + sigma^2)^(-w/2) ((c_i sigma^2 + sigma_y^2) / sigma_y^2)^(w sigma_y^2 / 2 c_i)

c_i = s_i^2 + sigma_y^2 (the second factor is 1 without noise; a = 1 in the null space), the term
drops out of d(a v)/dsigma, and a step from sigma to t with frozen e is

    a(t) v_t = a(sigma) v + [t a(t) - sigma a(sigma)] V^T e + [a(t) - a(sigma)] V^T A^+ y
               + (int_sigma^t a w u^2 / (1 + u^2) du) V^T (de/dx)^T K (A^+ y - D),

with (de/dx)^T b = (b - J_D^T b) / sigma. The integral is by the trapezoidal rule of 64 points; all
else is exact in sigma_y, where the paper expands to first order in sigma_y^2.

lambda (`shift`) multiplies a by exp(lambda tau), with the forward time tau of the variance-
preserving diffusion, log(1 + sigma^2) = 9.95 tau^2 + 0.1 tau. Then lambda a v dtau stays in the
equation and is stepped by Euler's rule, and the three brackets are integrals by the same rule.

inverse="pinv" is for simulators that are not linear: with a surrogate inverse h of G (JPEG: the
identity), P x = h(G(x)) stands for the projector V V^T and h(y) for A^+ y, with all singular
values one. P is then a projector only approximately, and the run says so in its remarks.

The start is A^+ y + sigma_max n, so the run begins at the data and not at the prior. Along a
direction the noise of A^+ y is sigma_y / s_i. Where that is sigma_max or more, the datum would put
the start far off the level that the denoiser is told, and the start there is sigma_max n, as in the
null space; start="published" has A^+ y in every direction. The weights suit a prior of mean zero
and variance one in prior units.

There is no posterior law: the weighting is not Bayes', and the covariance of x_0 is taken for a
number. As the steps get finer, the result is that of the flow above, at any w and lambda.

Cost, for N levels and J chains: N J simulator calls, denoiser calls and products with J_D^T, and
one of the latter; one simulator call more for G(0). With inverse="pinv" 3 N J simulator calls.

The public code freezes mu^-1 de/dx over a step where de/dx is frozen here, and ends at sigma =
0.01 where this ends at zero; its steps of time are those of schedule="variance-preserving".

Reference: Pandey, Yang and Mandt 2024, "Fast samplers for inverse problems in iterative refinement
models", arXiv 2405.17673, sections 2.2 and 2.3.
"""

from dataclasses import dataclass
from math import log1p, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    Operator,
    check_choices,
    check_differentiable,
    each,
    misfit_per_datum,
    operator,
    pulled_back,
)
from enkg.guidance.guided import At, evaluated, stepped
from enkg.guidance.pigdm import check_noise_std
from enkg.guidance.restoration import replaced
from enkg.guidance.reverse import Schedule
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream

POINTS = 64
"""Points of the trapezoidal rule in each step."""
SLOPE, OFFSET = 9.95, 0.1
"""log(1 + sigma^2) = SLOPE tau^2 + OFFSET tau."""


@dataclass(frozen=True)
class ConjugatePiGDM(Chains):
    """PiGDM in few steps. Cost: `levels` calls a member, three times for a surrogate inverse."""

    posterior_law: ClassVar[str | None] = None

    levels: int = 10
    """Number of steps, each with one denoiser call."""
    schedule: Schedule = "variance-preserving"
    """Which levels; the variance-preserving ones are equal steps of forward time from sigma_max to
    zero, and do not use sigma_min."""
    sigma_max: float = 2.03
    """Noise level of the start, in prior units."""
    weight: float = 4.0
    """w: factor of the guidance."""
    shift: float = 0.0
    """lambda, the rate that the new coordinates have beside the guidance's own."""
    inverse: Literal["svd", "pinv"] = "svd"
    """How the data are inverted: by the singular values, or by a surrogate inverse of a nonlinear
    simulator."""
    start: Literal["visible", "published"] = "visible"
    """Which directions start at the data: those whose noise is below sigma_max, or, as published,
    all that the simulator sees."""
    noise_std: float | None = None
    """Standard deviation of the noise; None takes that of the observation, 0 is noiseless. For
    inverse="pinv", that of the inverse of the data, in prior units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "schedule", "inverse", "start")
        check_noise_std(self.noise_std)
        if not 0 < self.weight < float("inf") or not abs(self.shift) < float("inf"):
            raise InputError(
                f"weight is {self.weight} and shift {self.shift}; expected a positive and a finite "
                "number"
            )

    @property
    def sigmas(self) -> list[float]:
        """The noise levels, zero at the end."""
        if self.schedule != "variance-preserving" or not self.sigma_max > 0 or self.levels < 1:
            return super().sigmas
        tau = torch.linspace(_time(self.sigma_max), 0.0, self.levels + 1, dtype=torch.float64)
        inner = torch.expm1(SLOPE * tau.square() + OFFSET * tau).sqrt()[1:-1]
        return [self.sigma_max, *inner.tolist(), 0.0]

    @property
    def needs(self) -> tuple[Ability, ...]:
        return (self.inverse,)

    @property
    def sweeps(self) -> int:
        return 3 * self.levels if self.inverse == "pinv" else self.levels

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        """The noise of the start; the first step adds A^+ y, which needs the data."""
        sigma = self.sigmas[0]
        check_differentiable(prior, comm, type(self).__name__, sigma, like)
        members = self.own_members(prior, comm)
        x = sigma * random.normal(prior.shape, seed, Stream.START, members, 0).to(like)
        remarks = (
            "h(G(x)) of the surrogate inverse h is a projector only approximately, and the "
            "conjugate step rests on one",
        )
        remarks = remarks if self.inverse == "pinv" else ()
        return State(x, members, seed, sigma=sigma, comm=comm, remarks=remarks)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        std = observation.scale if self.noise_std is None else self.noise_std
        plan = _Linear if self.inverse == "svd" else _Surrogate
        geometry = plan(operator(forward), observation)
        if i == 0:
            known = geometry.s * sigma > std
            x = x + geometry.start(x, known | (self.start == "published"))
        at = evaluated(state, x, sigma, prior, forward, observation)
        inside = _coefficients(sigma, to, geometry.s.to(x.device), std, self.weight, self.shift)
        none = torch.zeros(1, dtype=torch.float64, device=x.device)
        outside = _coefficients(sigma, to, none, 1.0, self.weight, self.shift)
        noise = (x - at.clean).double() / sigma
        inverted, residual = geometry.inverted(at)
        pull = geometry.along(inside.gain, residual)
        pull = torch.where(each(at.alive, pull), pull, 0.0)
        curved = (pull - pulled_back(prior, x, sigma, pull)) / sigma
        guided = geometry.split(
            at, (x.double(), noise, inverted, curved), inside.four, outside.four
        )
        free = x.double() + (to - sigma) * noise
        good = at.alive & rows(guided).isfinite().all(dim=1)
        moved = torch.where(each(good, guided), guided, free).to(x)
        return stepped(self, state, moved, to), Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit_per_datum(at.everyone, observation),
            evaluated=((at.clean, at.everyone),),
        )


def _time(sigma: float) -> float:
    """The forward time tau of a noise level."""
    return (sqrt(OFFSET**2 + 4 * SLOPE * log1p(sigma**2)) - OFFSET) / (2 * SLOPE)


def logarithm(sigma: Tensor, s: Tensor, std: float, weight: float) -> Tensor:
    """log a_i(sigma), (n,) and (K,) to (n, K), for lambda = 0; 0 for a singular value of 0."""
    square, seen = sigma[:, None] ** 2, s > 0
    value = -0.5 * weight * torch.log1p(square).expand(-1, len(s))
    if std > 0:
        c = s**2 + std**2
        value = value + 0.5 * weight * std**2 / c * torch.log1p(c * square / std**2)
    return torch.where(seen, value, 0.0)


@dataclass(frozen=True, eq=False)
class _Coefficients:
    """four: the factors of x, of e, of A^+ y and of (de/dx)^T K (A^+ y - D), (K,) each; gain: k."""

    four: tuple[Tensor, Tensor, Tensor, Tensor]
    gain: Tensor


def _coefficients(
    sigma: float, to: float, s: Tensor, std: float, weight: float, shift: float
) -> _Coefficients:
    """Those of a step, for singular values s, (K,), and a(to) = 1."""
    u = torch.linspace(sigma, to, POINTS, dtype=torch.float64, device=s.device)
    tau = ((OFFSET**2 + 4 * SLOPE * torch.log1p(u**2)).sqrt() - OFFSET) / (2 * SLOPE)
    logs = logarithm(u, s, std, weight) + shift * tau[:, None]
    a = torch.exp(logs - logs[-1])
    square = u[:, None] ** 2
    q = weight * u[:, None] / (1 + square)
    gain = square * s**2
    gain = torch.where(gain > 0, gain / (gain + std**2 * (1 + square)), 0.0)
    curved = torch.trapezoid(a * q * u[:, None], u, dim=0)
    if shift == 0:
        noise, data = to - sigma * a[0], torch.where(s > 0, 1 - a[0], 0.0)
    else:
        noise = torch.trapezoid(a * (1 - q * u[:, None] * gain), u, dim=0)
        data = -torch.trapezoid(a * q * gain, u, dim=0)
    state = a[0] * (1 + shift * float(tau[-1] - tau[0]))
    return _Coefficients((state, noise, data, curved), gain[0])


class _Linear:
    """The directions that A sees, by its singular vectors."""

    def __init__(self, op: Operator, observation: Observation) -> None:
        self.op, self.observation, self.svd = op, observation, op.svd
        self.s = self.svd.s.double()

    def start(self, x: Tensor, known: Tensor) -> Tensor:
        """A^+ y, one row; 0 in the directions that are not known, bool (K,)."""
        seen = (self.observation.y.to(x.device) - self.op.offset().to(x.device))[None]
        found = self.svd.ut(seen) / self.s.to(x.device)
        return self.svd.v(torch.where(known.to(x.device), found, 0.0)).to(x)

    def inverted(self, at: At) -> tuple[Tensor, Tensor]:
        """A^+ y and A^+ (y - G(D)), both as coordinates (J_r, K)."""
        y = self.observation.y.to(at.y.device) - at.y.double()
        left = self.svd.ut(y) / self.s.to(at.x.device)
        return left + self.svd.vt(at.clean.double()), left

    def along(self, gain: Tensor, residual: Tensor) -> Tensor:
        """K (A^+ y - D), (J_r, *X)."""
        return self.svd.v(gain * residual).double()

    def split(
        self,
        at: At,
        four: tuple[Tensor, ...],
        inside: tuple[Tensor, ...],
        outside: tuple[Tensor, ...],
    ) -> Tensor:
        """The sum of x, e, A^+ y and the curved term with their factors, (J_r, *X)."""
        x, noise, inverted, curved = four
        free = outside[0] * x.flatten(1) + outside[1] * noise.flatten(1)
        free = free + outside[3] * curved.flatten(1)
        seen = inside[2] * inverted
        for k, value in ((0, x), (1, noise), (3, curved)):
            seen = seen + (inside[k] - outside[k]) * self.svd.vt(value)
        return free.reshape(x.shape) + self.svd.v(seen).double()


class _Surrogate:
    """The same with h(G(x)) for the projector, and with one singular value."""

    def __init__(self, op: Operator, observation: Observation) -> None:
        self.op, self.observation = op, observation
        self.s = torch.ones(1, dtype=torch.float64)

    def start(self, x: Tensor, known: Tensor) -> Tensor:
        """h(y), one row, or 0."""
        found = self.op.pinv(self.observation.y[None].to(x))
        return torch.where(known.to(x.device), found, 0.0)

    def inverted(self, at: At) -> tuple[Tensor, Tensor]:
        """h(y) and h(y) - h(G(D)), (J_r, *X)."""
        whole = self.op.pinv(self.observation.y[None].to(at.x.device, torch.float64)).double()
        return whole.expand(len(at.x), *whole.shape[1:]), self._residual(at)

    def along(self, gain: Tensor, residual: Tensor) -> Tensor:
        return gain * residual

    def split(
        self,
        at: At,
        four: tuple[Tensor, ...],
        inside: tuple[Tensor, ...],
        outside: tuple[Tensor, ...],
    ) -> Tensor:
        x, noise, inverted, curved = four
        of_clean = inverted - self._residual(at)
        of_x = self._projected(at, x)
        of_noise = (of_x - of_clean) / at.sigma
        total = outside[0] * x + outside[1] * noise + outside[3] * curved + inside[2] * inverted
        seen = (of_x, of_noise, None, self._projected(at, curved))
        for k, value in enumerate(seen):
            if value is not None:
                total = total + (inside[k] - outside[k]) * value
        return total

    def _projected(self, at: At, x: Tensor) -> Tensor:
        """h(G(x)); NaN for a failed chain. Collective."""
        y = at.state.own(at.forward(x.to(at.x))).to(at.x.device)
        alive = rows(y).isfinite().all(dim=1)
        found = self.op.pinv(torch.where(each(alive, y), y, 0.0)).double()
        return torch.where(each(alive, found), found, torch.nan)

    @staticmethod
    def _residual(at: At) -> Tensor:
        return replaced(at.y, at.forward, at.observation)
