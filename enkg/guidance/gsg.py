"""GSG: diffusion posterior sampling with a Gaussian-smoothed gradient of the misfit.

Each member is a chain of its own. At each level sigma, with D = D(x, sigma), directions u_q and a
small length mu, the gradient of the loss L at D is estimated from simulator calls alone,

    forward    g = 1/Q  sum_q u_q (L(D + mu u_q) - L(D)) / mu                    Q + 1 calls
    central    g = 1/Q' sum_q u_q (L(D + mu u_q) - L(D - mu u_q)) / (2 mu)       Q = 2 Q' calls

and pulled back through the denoiser to x: v = J_D^T g. For white u_q both are unbiased estimates of
the gradient smoothed by N(0, mu^2 I), hence of the gradient itself where L is quadratic. Then the
relative root-mean-square error of the central one is sqrt((d + 1) / Q'), so with fewer directions
than unknowns the direction is mostly noise; a run with such settings says so in its remarks.

form="damped" (default): L is the whitened misfit Phi = 1/2 |Gamma^(-1/2) (y - G)|^2, and an
ancestral step is made with the guided denoiser

    D_y = D - sigma^2 v / (1 + lambda),    lambda = sigma^2 g . v / (2 Phi).

The exact guided denoiser of a linear simulator A and conditional covariance C = sigma^2 J_D is
D + C A^T (A C A^T + Gamma)^-1 (y - A D), and this is the first iterate of the conjugate gradients
that solve its system (the exact form: Rozet et al. 2024, arXiv 2405.13712). It costs no call, it is
exact for one datum, and it cannot overshoot.

form="plain": D_y = D - sigma^2 v, the guidance of DPS (Chung et al. 2023, arXiv 2209.14687) with
the noise covariance in it. It takes Gamma for A C A^T + Gamma, so it is overconfident in directions
that the data see, and it diverges where the levels are far apart for such precise data.

form="norm", the published update: L = |y - G|^2 without noise covariance, and

    x_s = EulerMaruyama(x) - guidance_scale v / (2 sqrt(L(D))).

directions="prior" takes u_q = (a - b) / sqrt(2) with draws a, b of the prior, for simulators that
white perturbations break. Then g estimates S grad L with the covariance S of the prior. As C S^-1 =
I - J_D for a Gaussian prior, (I - J_D)^T g stands in the place of sigma^2 v: the same guidance from
other perturbations. For other priors it takes their covariance for the local one, and is a metric
of its own. In lambda, g . v is then the mean square of the differences, times 1 + (d + 1) / Q' for
the noise of g, and times the share of g that I - J_D leaves.

There is no posterior law: D_y is exact for one datum only, and noisy gradients add variance.

Cost, for N levels and J chains: simulator calls N J (Q + 1) forward, N J Q central (odd Q is
rounded up to whole pairs); denoiser calls N J, and those of the start; products with J_D N J + 1.

References: Zheng et al. 2024, arXiv 2409.20175, appendix (Forward-GSG and Central-GSG); Zheng et
al. 2025, InverseBench, arXiv 2503.11043; Nesterov and Spokoiny 2017, "Random gradient-free
minimization of convex functions", Foundations of Computational Mathematics 17 (smoothing). The
public code drops the remainder of Q by its batch size, evaluates the loss at D once more than
needed, and lets one failed candidate turn the chain into NaN; here no candidate is lost and a
failed one is left out. The central form takes sqrt(L(D)) from the mean of its pairs in place of one
more call.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm
from enkg.errors import InputError, MissingCapability
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.candidates import (
    Candidates,
    Queried,
    White,
    batches,
    squared_residual,
    weighted,
)
from enkg.guidance.chains import (
    check_choices,
    check_differentiable,
    dots,
    each,
    finite,
    pulled_back,
)
from enkg.guidance.reverse import ancestral_step, euler_maruyama_step
from enkg.guidance.scaling import damped, in_prior_units
from enkg.observation import Observation
from enkg.prior import Drawable, Placed, Prior
from enkg.random import Stream


@dataclass(frozen=True)
class GSG(Queried):
    """DPS with a smoothed gradient. Cost: `levels` x (`queries`, one more if forward) calls a
    member."""

    kind: Literal["central", "forward"] = "central"
    """The difference that estimates the gradient."""
    queries: int = 64
    """Q: candidates a chain and level. An odd number is rounded up for central differences."""
    smoothing: float = 0.01
    """mu: length of the perturbations, in prior units."""
    form: Literal["damped", "plain", "norm"] = "damped"
    """How the gradient guides: with a step that cannot overshoot, as in DPS but with the noise
    covariance, or as published (norm)."""
    guidance_scale: float = 0.01
    """Length of a published step (form="norm" alone), in prior units over those of sqrt(L)."""
    directions: Literal["white", "prior"] = "white"
    """What the perturbations look like; "prior" needs a prior that gives samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "kind", "form", "directions")
        if self.queries < 1:
            raise InputError(f"{self.queries} queries; expected at least 1")
        if not (self.smoothing > 0 and self.guidance_scale > 0):
            raise InputError(
                f"smoothing is {self.smoothing} and guidance_scale {self.guidance_scale}; expected "
                "positive numbers"
            )

    @property
    def count(self) -> int:
        """Directions a chain and level: Q for forward differences, Q' for central ones."""
        return self.queries if self.kind == "forward" else (self.queries + 1) // 2

    @property
    def sweeps(self) -> int:
        return self.levels * (self.count + 1 if self.kind == "forward" else 2 * self.count)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        if self.directions == "prior" and not isinstance(prior, Drawable):
            raise MissingCapability(
                'GSG with directions="prior"',
                "a prior with draw(seed, members, step)",
                'directions="white" does without',
            )
        check_differentiable(prior, comm, "GSG", self.sigmas[0], like)
        unknowns = torch.Size(prior.shape).numel()
        remarks = () if unknowns + 1 <= self.count else (self._doubt(unknowns),)
        return replace(super().init(prior, seed, like, comm), remarks=remarks)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        clean = prior.denoise(x, sigma)
        loss = squared_residual(observation) if self.form == "norm" else observation.misfit
        found = Candidates(state, clean, forward, observation, loss)
        gradient, slope, level = self._gradient(state, prior, found)
        v = pulled_back(prior, x, sigma, gradient)
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
        if self.form == "norm":
            length = in_prior_units(self.guidance_scale, self.schedule, sigma, to)
            shift = finite(-length * v / each(2 * level.sqrt(), v))
            x = euler_maruyama_step(x, clean, sigma, to, noise.to(x)) + shift.to(x)
        else:
            guided = clean + self._shift(sigma, gradient, slope, level, v).to(x)
            x = ancestral_step(x, guided, sigma, to, noise.to(x))
        finished = i + 1 == self.levels
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=found.misfit,
            evaluated=tuple(found.evaluated),
        )
        return replace(state, x=x, step=i + 1, sigma=to, finished=finished), info

    def _doubt(self, unknowns: int) -> str:
        error = sqrt((unknowns + 1) / self.count)
        return (
            f"the gradient is mostly noise: {self.count} directions for {unknowns} unknowns give "
            f"it a relative error of about {error:.2g}; raise queries"
        )

    def _shift(
        self, sigma: float, gradient: Tensor, slope: Tensor, level: Tensor, v: Tensor
    ) -> Tensor:
        """D_y - D, (J_r, *X). slope: mean of the squared differences. level: Phi at D."""
        if self.directions == "prior":
            shift = v - gradient
            left = dots(gradient, -shift) / dots(gradient, gradient)
            along = slope * (1 + (gradient[0].numel() + 1) / self.count) * left
        else:
            shift = -(sigma**2) * v
            along = dots(gradient, -shift)
        if self.form == "plain":
            return finite(shift)
        return damped(shift, along, level)

    def _gradient(
        self, state: State, prior: Prior, found: Candidates
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The estimate g (J_r, *X), the mean of its squared differences and the loss at D, (J_r,).

        A chain without a usable difference gets zeros, and NaN for the loss.
        """
        sums = _Sums(found.clean)
        draw = self._directions(state, prior)
        pair = self.kind == "central"
        total, whole = (2 * self.count, 2) if pair else (self.count + 1, 1)
        for part in batches(total, self.members, self.rows_at_once, whole):
            if pair:
                u = draw(len(part) // 2)
                losses = found.losses(self.smoothing * torch.stack([u, -u], dim=2).flatten(1, 2))
                plus, minus = losses[:, 0::2], losses[:, 1::2]
                sums.add(u, (plus - minus) / (2 * self.smoothing), losses)
                continue
            first = part.start == 0
            u = draw(len(part) - first)
            if first:  # the first candidate is D itself, which is no direction
                u = torch.cat([torch.zeros_like(found.clean[:, None]).double(), u], dim=1)
            losses = found.losses(self.smoothing * u)
            sums.refer(losses, first)
            sums.add(u, (losses - sums.reference[:, None]) / self.smoothing, losses)
        return sums.result(forward=not pair)

    def _directions(self, state: State, prior: Prior) -> Callable[[int], Tensor]:
        """Gives the next so many perturbations over mu, (J_r, count, *X), float64."""
        if self.directions == "white":
            return White(state, prior.shape, Stream.DIRECTION)
        assert isinstance(prior, Drawable)
        return _Differences(state, prior, self.count)


class _Differences:
    """Differences of prior draws over sqrt(2): their covariance is the prior's.

    count: all of a chain and step, which number the draws.
    """

    def __init__(self, state: State, prior: Drawable, count: int) -> None:
        self.state, self.prior, self.count, self.next = state, prior, count, 0

    def __call__(self, count: int) -> Tensor:
        state, prior = self.state, self.prior
        chains, numbers = state.members, range(self.next, self.next + count)
        self.next += count
        keys = [2 * (j * self.count + k) + half for j in chains for k in numbers for half in (0, 1)]
        place = prior.first if isinstance(prior, Placed) else 0
        if isinstance(prior, Placed):
            prior.first = place * 2 * count  # a row lies where it would lie on one rank
        draws = prior.draw(state.seed, keys, state.step + 1).to(state.x.device, torch.float64)
        if isinstance(prior, Placed):
            prior.first = place
        draws = draws.reshape(len(chains), count, 2, *draws.shape[1:])
        return (draws[:, :, 0] - draws[:, :, 1]) / sqrt(2)


class _Sums:
    """What a gradient needs of all candidates, for each chain; filled batch by batch."""

    def __init__(self, clean: Tensor) -> None:
        none = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
        self.moved, self.all = torch.zeros_like(clean).double(), torch.zeros_like(clean).double()
        self.count, self.difference, self.square = none, none, none
        self.loss, self.living = none, none
        self.reference = torch.full_like(none, torch.nan)
        self.at_clean = torch.zeros_like(none, dtype=torch.bool)

    def refer(self, losses: Tensor, first: bool) -> None:
        """Differences are taken to the loss at D; where that failed, to any other for now."""
        if first:
            self.at_clean = losses[:, 0].isfinite()
        place = losses.isfinite().int().argmax(dim=1, keepdim=True)
        found = losses.gather(1, place)[:, 0]
        self.reference = torch.where(self.reference.isfinite(), self.reference, found)

    def add(self, u: Tensor, difference: Tensor, losses: Tensor) -> None:
        used = difference.isfinite()
        difference = torch.where(used, difference, 0.0)
        moves = u.reshape(*used.shape, -1).any(dim=2) & used  # D itself is no direction
        self.moved = self.moved + weighted(difference, u)
        self.all = self.all + weighted(used.double(), u)
        self.count = self.count + moves.sum(dim=1)
        self.difference = self.difference + (difference * moves).sum(dim=1)
        self.square = self.square + (difference * moves).square().sum(dim=1)
        self.loss = self.loss + losses.nansum(dim=1)
        self.living = self.living + losses.isfinite().sum(dim=1)

    def result(self, forward: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `_gradient`. forward: where the loss at D failed, the baseline of a direction is the
        mean over the others."""
        count = self.count.clamp(min=1)
        gradient = self.moved / each(count, self.moved)
        slope, level = self.square / count, self.loss / self.living
        if forward:
            mean = self.difference / count
            others = self.moved - each(mean, self.moved) * self.all
            others = others / each((count - 1).clamp(min=1), self.moved)
            others = torch.where(each(count, others) > 1, others, 0.0)
            gradient = torch.where(each(self.at_clean, gradient), gradient, others)
            slope = torch.where(self.at_clean, slope, slope - mean.square())
            level = torch.where(self.at_clean, self.reference, level)
        return gradient, slope, level
