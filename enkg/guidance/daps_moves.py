"""Markov chains on U(z) = Phi(G(z)) + |z - c|^2 / (2 r^2), many side by side, for `daps`.

With h > 0 the step, n standard normal, u uniform on (0, 1), and g = grad U:

    langevin       z' = z - h g + sqrt(2 h) n
      corrected    accepted if log u < U - U' + |n|^2 / 2 - |z - z' + h g'|^2 / (4 h)
    hmc            v' = m v - sqrt(h) g + sqrt(2 (1 - m)) n;  z' = z + sqrt(h) v'
      corrected    leapfrog steps of length sqrt(2 h) f from (z, p = n), f uniform on (1/2, 1);
                   accepted if log u < U + |p|^2 / 2 - U' - |p'|^2 / 2
    metropolis     z' = z + s n;  accepted if log u < U - U'

What is not corrected has the wrong variance by a share that vanishes with h: at curvature k the
Langevin chain has 1 / (k (1 - h k / 2)). Corrected chains have U's own law at any h. Their step
follows the acceptance a of each proposal, log h += (min(1, a) - target) / sqrt(k + 4) in step k,
with target .574 (Langevin), .65 (HMC), and for log s .25 (random walk): Roberts and Rosenthal 2001,
"Optimal scaling for various Metropolis-Hastings algorithms", Statistical Science 16; Neal 2011,
"MCMC using Hamiltonian dynamics", arXiv 1206.1901.

A point where the simulator fails has U = infinity, and no likelihood in its gradient: corrected
chains never go there, others pass it on the prior's term alone. A chain that leaves the ball of
1,000 r sqrt(d) around c starts anew at c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.guidance.base import Forward, State
from enkg.guidance.chains import dots, each, finite, misfit_per_datum
from enkg.observation import Observation
from enkg.random import Stream

REACH = 1000.0
NUMBERS = 65_536
"""Random numbers of a chain that are drawn at once."""
WALK, LANGEVIN, HMC = 0.25, 0.574, 0.65
"""Acceptance that a corrected chain aims at."""
Pull = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Point:
    """z (J_r, *X); U (J_r,), infinite where the simulator failed; its gradient, (J_r, *X), zero
    where nobody asked for one. All float64."""

    z: Tensor
    value: Tensor
    slope: Tensor

    def where(self, choice: Tensor, other: "Point") -> "Point":
        """This point where choice, (J_r,), is true; else the other."""
        return Point(
            torch.where(each(choice, self.z), self.z, other.z),
            torch.where(choice, self.value, other.value),
            torch.where(each(choice, self.slope), self.slope, other.slope),
        )


class Potential:
    """U of each chain. centre: c (J_r, *X); squared: r^2 (J_r,). ask: z to the data of all chains.

    pull: J_G(z)^T v, None for chains without gradient. first: the first point and its data. misfit:
    of the last one, see `Info`.
    """

    def __init__(
        self,
        state: State,
        ask: Forward,
        pull: Pull | None,
        observation: Observation,
        centre: Tensor,
        squared: Tensor,
    ) -> None:
        self.state, self.ask, self.pull, self.observation = state, ask, pull, observation
        self.like, self.centre, self.squared = centre, centre.double(), squared
        self.first: tuple[Tensor, Tensor] | None = None
        self.misfit: float | None = None

    def __call__(self, z: Tensor) -> Point:
        """One simulator call a chain, and one product with its Jacobian. Collective."""
        z, lost = self._kept(z)
        asked = z.to(self.like)
        everyone = self.ask(asked)
        y = self.state.own(everyone)
        alive = rows(y).isfinite().all(dim=1)
        safe = torch.where(each(alive, y), y, 0.0)
        away = z - self.centre
        value = self.observation.misfit(safe) + dots(away, away) / (2 * self.squared)
        value = torch.where(alive & ~lost & value.isfinite(), value, torch.inf)
        slope = torch.zeros_like(z)
        if self.pull is not None:
            back = self.pull(asked, self.observation.gradient(safe).to(asked)).double()
            back = finite(torch.where(each(alive, back), back, 0.0))
            slope = back + away / each(self.squared, away)
        self.first = self.first or (asked, everyone)
        self.misfit = misfit_per_datum(everyone, self.observation)
        return Point(z, value, slope)

    def _kept(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z with lost chains at the centre, and which these are."""
        reach = REACH**2 * prod(z.shape[1:]) * self.squared
        away = torch.nan_to_num(z - self.centre, nan=torch.inf)
        lost = ~(dots(away, away) <= reach) | ~rows(z.to(self.like)).isfinite().all(dim=1)
        return torch.where(each(lost, z), self.centre, z), lost

    def settled(self, z: Tensor) -> Tensor:
        """The result of a chain: where it was left, or the centre if it was lost."""
        return self._kept(z)[0].to(self.like)

    def curvature(self, at: Point, iterations: int, first: Tensor) -> Tensor:
        """Largest absolute eigenvalue of the Hessian of Phi at a point, (J_r,).

        Power iteration with differences of the gradient over a hundredth of r: one simulator call
        and one product a chain and iteration. A lower bound, that the iterations raise.
        """
        v, largest = first, torch.zeros_like(at.value)
        for _ in range(iterations):
            length = dots(v, v).sqrt()
            v = v / each(torch.where(length > 0, length, 1.0), v)
            small = each(0.01 * self.squared.sqrt(), v)
            there = self(at.z + small * v)
            v = (there.slope - at.slope) / small - v / each(self.squared, v)
            v = finite(torch.where(each(there.value.isfinite(), v), v, 0.0))
            largest = torch.maximum(largest, dots(v, v).sqrt())
        return largest


class Chance:
    """The random numbers of one level: one generator a chain and purpose, however many are asked
    for at once."""

    def __init__(self, state: State, shape: tuple[int, ...], stream: Stream) -> None:
        keys = state.seed, stream, state.members, state.step
        self.generators, self.shape = random.generators(*keys), shape
        self.device = state.x.device
        self.block = max(1, min(64, NUMBERS // max(1, prod(shape))))
        self.held: list[Tensor] = []

    def __call__(self) -> Tensor:
        """The next standard normal numbers, (J_r, *X), float64."""
        if not self.held:
            size = self.block, *self.shape
            drawn = [g.standard_normal(size) for g in self.generators]
            whole = np.stack(drawn) if drawn else np.empty((0, *size))
            self.held = list(torch.from_numpy(whole).to(self.device).unbind(1))
        return self.held.pop(0)


def uniform(state: State, count: int) -> Tensor:
    """Uniform numbers of one level, (J_r, count), float64."""
    found = random.generators(state.seed, Stream.ACCEPT, state.members, state.step)
    whole = np.stack([g.random(count) for g in found]) if found else np.empty((0, count))
    return torch.from_numpy(whole).to(state.x.device)


def langevin(potential: Potential, z: Tensor, h: Tensor, steps: int, normal: Chance) -> Tensor:
    """The last z of an uncorrected chain. `steps` calls."""
    for _ in range(steps):
        at = potential(z)
        z = at.z - each(h, z) * at.slope + each((2 * h).sqrt(), z) * normal()
    return z


def momentum(
    potential: Potential, z: Tensor, h: Tensor, steps: int, normal: Chance, kept: float
) -> Tensor:
    """The last z of an uncorrected chain with momentum; kept: m. `steps` calls."""
    v = sqrt(2 / (1 + kept)) * normal()  # what m v + sqrt(2 (1 - m)) n tends to
    for _ in range(steps):
        at = potential(z)
        v = kept * v - each(h.sqrt(), z) * at.slope + sqrt(2 * (1 - kept)) * normal()
        lost = (at.z != z).flatten(1).any(dim=1)
        v = torch.where(each(~lost & rows(v).isfinite().all(dim=1), v), v, 0.0)
        z = at.z + each(h.sqrt(), z) * v
    return z


def corrected_langevin(
    potential: Potential, at: Point, h: Tensor, steps: int, normal: Chance, u: Tensor
) -> tuple[Point, Tensor]:
    """The last point and h. `steps` calls. u: (J_r, steps)."""
    for k in range(steps):
        n = normal()
        there = potential(at.z - each(h, n) * at.slope + each((2 * h).sqrt(), n) * n)
        back = at.z - there.z + each(h, n) * there.slope
        log_ratio = at.value - there.value + 0.5 * dots(n, n) - dots(back, back) / (4 * h)
        at, h = _decided(at, there, log_ratio, u[:, k], h, LANGEVIN, k)
    return at, h


def corrected_hmc(
    potential: Potential, at: Point, h: Tensor, legs: int, normal: Chance, u: Tensor
) -> tuple[Point, Tensor]:
    """The last point and h. Trajectories of `legs` leapfrog steps, a call each. u: (J_r, 2
    trajectories)."""
    for k in range(u.shape[1] // 2):
        start = p = normal()
        length = each((2 * h).sqrt() * (0.5 + 0.5 * u[:, 2 * k + 1]), p)
        there, whole = at, torch.ones_like(at.value, dtype=torch.bool)
        for _ in range(legs):
            p = p - 0.5 * length * there.slope
            there = potential(there.z + length * p)
            p = p - 0.5 * length * there.slope
            whole = whole & there.value.isfinite()
        log_ratio = at.value - there.value + 0.5 * (dots(start, start) - dots(p, p))
        log_ratio = torch.where(whole, log_ratio, -torch.inf)
        at, h = _decided(at, there, log_ratio, u[:, 2 * k], h, HMC, k)
    return at, h


def walk(
    potential: Potential, at: Point, s: Tensor, steps: int, normal: Chance, u: Tensor, adapt: bool
) -> tuple[Point, Tensor]:
    """The last point and step of a random walk. `steps` calls, without gradient."""
    for k in range(steps):
        n = normal()
        there = potential(at.z + each(s, n) * n)
        at, moved = _decided(at, there, at.value - there.value, u[:, k], s, WALK, k)
        s = moved if adapt else s
    return at, s


def _decided(
    at: Point,
    there: Point,
    log_ratio: Tensor,
    u: Tensor,
    step: Tensor,
    target: float,
    k: int,
) -> tuple[Point, Tensor]:
    """Where each chain goes, and its next step length."""
    share = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
    step = step * torch.exp((share - target) / sqrt(k + 4))
    return there.where(u < share, at), step
