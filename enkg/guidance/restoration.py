"""What the restoration methods share: the data along singular vectors, and the inverse.

With A = U diag(s) V^T (compact, K singular values) and noise sigma_y^2 I, the data are seen in the
coordinates of the columns of V:

    ybar_i = (U^T (y - G(0)))_i / s_i = (V^T x_0)_i + t_i n_i,    t_i = sigma_y / s_i

One step of DDRM from sigma to s < sigma (Kawar et al. 2022, arXiv 2201.11793, equations 7 and 8, in
variance-exploding form), with bars for coordinates along V, D = D(x, sigma) and z standard normal:

    no datum      Dbar + sqrt(1 - eta^2) s (xbar - Dbar) / sigma    + eta s zbar
    s < t_i       Dbar + sqrt(1 - eta^2) s (ybar_i - Dbar) / t_i    + eta s zbar
    s >= t_i      (1 - eta_b) Dbar + eta_b ybar_i                   + sqrt(s^2 - eta_b^2 t_i^2) zbar

That is noise="ddrm". It injects noise of size eta s however short the step is, and does not tend to
the prior where the levels are refined. noise="ancestral" puts eta sqrt(1 - s^2 / sigma^2) in the
place of eta, which does, and takes the first line for s < t_i as well: for eta_b = 1, ybar_i is
then in the chain already, as its state at the noise level t_i.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Decomposed, each, finite, misfit_per_datum, operator
from enkg.guidance.reverse import ancestral_step
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream

Injection = Literal["ancestral", "ddrm"]


@dataclass(frozen=True, eq=False)
class Components:
    """The data along the right singular vectors. All in float64.

    y: ybar, (1, K). t: noise of each, (K,). offset: G(0), (*Y).
    """

    svd: Decomposed
    y: Tensor
    t: Tensor
    offset: Tensor

    def of(self, x: Tensor) -> Tensor:
        """V^T x, (J, *X) to (J, K)."""
        return self.svd.vt(x.double())

    def replaced(self, x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """x with the coordinates `new` where it has `old`, float64."""
        return x.double() + self.svd.v(new - old)

    def data(self, x: Tensor) -> Tensor:
        """G(x) from the decomposition: no simulator call. (J, *X) to (J, *Y)."""
        return self.offset + self.svd.u(self.svd.s.to(self.t) * self.of(x))

    def misfit(self, state: State, x: Tensor, observation: Observation) -> float | None:
        """Misfit per datum of x, of all chains, for `Info`. Collective."""
        return misfit_per_datum(state.comm.rows(self.data(x)), observation)


def components(forward: Forward, observation: Observation, like: Tensor) -> Components:
    """Of this observation. One simulator call in the run, for G(0). Collective.

    Raises InputError for noise that is not sigma_y^2 I, for missing data, and where G(0) fails.
    """
    check_gaussian(observation)
    scale, op = observation.scale, operator(forward)
    svd, offset = op.svd, op.offset().to(like.device, torch.float64)
    if not bool(offset.isfinite().all()):
        raise InputError(
            "the simulator gave NaN or infinity for the member that is zero in the prior's "
            "numbers; this method takes its answer there, G(0), off the data"
        )
    s = svd.s.to(offset)
    y = svd.ut((observation.y.to(offset) - offset)[None]) / s
    return Components(svd, y, scale / s, offset)


def drawn(state: State, prior: Prior, stream: Stream = Stream.SAMPLER) -> Tensor:
    """White noise of this rank's chains and this step, (J_r, *X), float64."""
    noise = random.normal(prior.shape, state.seed, stream, state.members, state.step)
    return noise.to(state.x.device)


@dataclass(frozen=True)
class Rule:
    """The options of a DDRM step; see the head of the module."""

    noise: Injection = "ancestral"
    eta: float = 1.0
    eta_b: float = 1.0

    def step(
        self, x: Tensor, clean: Tensor, levels: tuple[float, float], z: Tensor, parts: Components
    ) -> Tensor:
        """From levels[0] to levels[1], (J, *X), float64. z: white, (J, *X)."""
        sigma, to = levels
        x, clean, ancestral = x.double(), clean.double(), self.noise == "ancestral"
        fresh = self.eta * (sqrt(1 - (to / sigma) ** 2) if ancestral else 1.0)
        kept = sqrt(1 - fresh**2) * to
        free = clean + kept / sigma * (x - clean) + fresh * to * z
        t, d, zbar, old = parts.t, parts.of(clean), parts.of(z), parts.of(free)
        low = old if ancestral else d + kept / t * (parts.y - d) + fresh * to * zbar
        left = (to**2 - (self.eta_b * t) ** 2).clamp(min=0).sqrt()
        high = (1 - self.eta_b) * d + self.eta_b * parts.y + left * zbar
        return parts.replaced(free, old, torch.where(to < t, low, high))


def check_shares(**shares: float) -> None:
    """Raises InputError for a share that is not between 0 and 1."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; expected a number from 0 to 1")


def check_gaussian(observation: Observation) -> None:
    """Raises InputError for noise whose misfit is not quadratic."""
    if type(observation) is not Observation:
        raise InputError(
            f"this method works for Gaussian noise, enkg.Observation; it was given "
            f"{type(observation).__name__} data"
        )


def check_complete(observation: Observation, method: str) -> None:
    """Raises InputError where data are missing."""
    missing = int((~observation.mask).sum())
    if missing:
        raise InputError(
            f"{method} inverts all data at once, and some are missing: {missing} of "
            f"{observation.mask.numel()} are masked; leave them to the simulator (and its pinv, "
            "svd or adjoint) instead of a mask"
        )


def replaced(y: Tensor, forward: Forward, observation: Observation) -> Tensor:
    """A^+ y_observed - A^+ y, (J_r, *Y) to (J_r, *X), float64; 0 where the simulator failed.

    y: NaN or infinite where it failed. The pseudo-inverse may be a guess at the inverse of a
    nonlinear simulator. It is taken of the data once, and of each member.
    """
    op = operator(forward)
    alive = rows(y).isfinite().all(dim=1)
    shift = op.pinv(observation.y.to(y.device, torch.float64)[None])
    shift = shift - op.pinv(torch.where(each(alive, y), y, 0.0).double())
    return finite(torch.where(each(alive, shift), shift, 0.0))


def injected(
    x: Tensor,
    clean: tuple[Tensor, Tensor],
    levels: tuple[float, float],
    noise: Tensor,
    eta: float | None,
) -> Tensor:
    """x at levels[1], float64, from D and D_y of x at levels[0].

    eta None: ancestral. Else D_y + s (sqrt(1 - eta^2) (x - D) / sigma + eta z).
    """
    sigma, to = levels
    free, guided = (part.double() for part in clean)
    if eta is None:
        return ancestral_step(x.double(), guided, sigma, to, noise)
    return guided + to * (sqrt(1 - eta**2) / sigma * (x.double() - free) + eta * noise)


def info(
    state: State,
    count: int,
    misfit: float | None = None,
    evaluated: tuple[tuple[Tensor, Tensor], ...] = (),
) -> Info:
    """Of a step. count: number of all steps."""
    progress = (state.step + 1) / count
    return Info(state.step, state.sigma, progress, misfit=misfit, evaluated=evaluated)
