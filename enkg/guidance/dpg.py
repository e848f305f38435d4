"""DPG: diffusion posterior sampling by a policy gradient.

Each member is a chain of its own. At each level sigma, with D = D(x, sigma), a loss L and standard
normal n_k, k = 1..M, the reward of a candidate D + r n_k is exp(-(L - L(D)) / Z), and the gradient
of its expectation over n with respect to D is estimated by the score function

    Z = 0.9 Z + 0.1 L(D)                                  (at first L(D))
    R_k = exp(-(L(D + r n_k) - L(D)) / Z),  b_k = mean of the other R
    g = 1 / (M r) sum_k (R_k - b_k) n_k,  v = J_D^T g
    v <- a v_last + (1 - a) v  with a = momentum (N - i - 1) / N and the v of the last level
    direction e = v / |v|

so that the score is moved by guidance_scale e. g has expectation grad_D E[R]: the baseline does not
depend on n_k. For a linear simulator A, with Lam = 2 A^T A / Z, h = 2 A^T (y - A D) / Z and
Q = (I + r^2 Lam)^-1, this is det(Q)^(1/2) exp(r^2 h^T Q h / 2) Q h.

There is no posterior law. Z, which follows the misfit, stands in the place of the noise
covariance, and the length of the guidance is fixed beforehand: the spread is not an uncertainty.

form="whitened" (default): L = |Gamma^(-1/2) (y - G)|^2 and an ancestral step with D + sigma^2
guidance_scale e in the place of D. The radius adapts: after each level r is multiplied by the root
of (Z / 4) / (mean L - L(D)), by 1/2 at least and by 2 at most, up to sigma / sqrt(1 + sigma^2), so
that the rewards of the candidates stay of order one whatever the simulator's sensitivity.

form="published": L = |y - G|^2 without noise covariance, r = max(sqrt(Z / d) / 2, smallest_radius),
and an Euler-Maruyama step; r then has a meaning only where data and unknown have the same unit.

Cost, for N levels and J chains: simulator calls N J (M + 1), in at least two batches a level;
denoiser calls N J, and those of the start; products with J_D N J + 1.

References: Tang et al. 2024, "Solving general noisy inverse problem via posterior sampling: a
policy gradient viewpoint", AISTATS (the method); Zheng et al. 2024, arXiv 2409.20175, and Zheng et
al. 2025, InverseBench, arXiv 2503.11043 (the form and the constants of the presets). The public
code makes one sample, refuses an M that its batch size does not divide, has a bound on r without
effect, keeps Z and v of one run for the next, and turns to NaN with one failed candidate.
"""

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.candidates import (
    Candidates,
    Loss,
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
    pulled_back,
)
from enkg.guidance.reverse import (
    ancestral_step,
    diffused,
    euler_maruyama_step,
)
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import start

FIRST_RADIUS = 0.1
"""Radius of the first level of form="whitened", in prior units."""
ROUNDING = 1e-12
"""A gradient that is smaller than this share of its terms holds rounding only."""


@dataclass(frozen=True, eq=False)
class DPGState(State):
    """v: the pulled-back gradient of the last level, (J_r, *X), float64. z: temperature Z of each
    chain, NaN before the first answer. radius: r of each chain."""

    sharded: ClassVar[tuple[str, ...]] = ("x", "members", "v", "z", "radius")

    v: Tensor = field(default_factory=lambda: torch.empty(0))
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    radius: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "DPGState":
        return replace(
            self,
            x=self.x.to(device),
            v=self.v.to(device),
            z=self.z.to(device),
            radius=self.radius.to(device),
        )


@dataclass(frozen=True)
class DPG(Queried):
    """Diffusion policy gradient. Cost: `levels` x (`candidates` + 1) simulator calls a member."""

    state: ClassVar[type[State]] = DPGState
    candidates: int = 64
    """M: candidates a chain and level."""
    form: Literal["whitened", "published"] = "whitened"
    """The loss in units of the noise and a radius that adapts, or both as published."""
    guidance_scale: float | None = None
    """Length of the guidance of the score, over prior units. None takes
    sqrt(d M / (d + 1 + M)) / 2: with few candidates most of the direction is noise, and the steps
    are shorter."""
    momentum: float = 0.1
    """Share of the last level's gradient at the first level; it falls to zero at the last."""
    smallest_radius: float = 1e-6
    """Smallest r, in prior units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "form")
        if self.candidates < 2:
            raise InputError(f"{self.candidates} candidates; expected at least 2")
        if not 0 <= self.momentum < 1 or not self.smallest_radius > 0:
            raise InputError(
                f"momentum is {self.momentum} and smallest_radius {self.smallest_radius}; expected "
                "a share below 1 and a positive length"
            )
        if self.guidance_scale is not None and not self.guidance_scale > 0:
            raise InputError(f"guidance_scale is {self.guidance_scale}; expected more than 0")

    @property
    def sweeps(self) -> int:
        return self.levels * (self.candidates + 1)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> DPGState:
        sigma = self.sigmas[0]
        check_differentiable(prior, comm, "DPG", sigma, like)
        members = self.own_members(prior, comm)
        x = start(prior, sigma, seed, members, like, sigma_max=max(80.0, sigma))
        unknowns = torch.Size(prior.shape).numel()
        remarks = ()
        if unknowns + 1 > self.candidates:
            remarks = (
                f"the gradient is mostly noise: {self.candidates} candidates for {unknowns} "
                "unknowns; raise candidates",
            )
        none = torch.zeros(len(members), dtype=torch.float64, device=x.device)
        return DPGState(
            x,
            members,
            seed,
            sigma=sigma,
            comm=comm,
            remarks=remarks,
            v=torch.zeros_like(x).double(),
            z=none + torch.nan,
            radius=none + FIRST_RADIUS,
        )

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, DPGState)
        i, x = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        clean = prior.denoise(x, sigma)
        found = Candidates(state, clean, forward, observation, self._loss(observation))
        at_clean = found.losses(torch.zeros_like(clean)[:, None])[:, 0]
        z = torch.where(state.z.isfinite(), 0.9 * state.z + 0.1 * at_clean, at_clean)
        z = torch.where(z.isfinite(), z, state.z)
        reference = torch.where(at_clean.isfinite(), at_clean, z)
        radius = self._radius(state.radius, z, sigma, x)
        gradient, rise = self._gradient(state, prior, found, reference, z, radius)
        v = pulled_back(prior, x, sigma, gradient) * self._unit(sigma)
        told = each(dots(v, v) > 0, v)  # a chain that learnt nothing is not guided, and remembers
        share = self.momentum * (self.levels - i - 1) / self.levels
        mixed = torch.where(told, share * state.v + (1 - share) * v, 0.0)
        direction = mixed / each(dots(mixed, mixed).sqrt(), mixed)
        direction = torch.where(direction.isfinite(), direction, 0.0)
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i).to(x)
        shift = (self._length(sigma, to, x) * direction).to(x)
        if self.form == "published":
            x = euler_maruyama_step(x, clean, sigma, to, noise) + shift
        else:
            x = ancestral_step(x, clean + shift, sigma, to, noise)
        finished = i + 1 == self.levels
        after = replace(
            state,
            x=x,
            step=i + 1,
            sigma=to,
            finished=finished,
            v=torch.where(told, v, state.v),
            z=z,
            radius=_adapted(radius, z, rise),
        )
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=found.misfit,
            evaluated=tuple(found.evaluated),
        )
        return after, info

    def _loss(self, observation: Observation) -> Loss:
        if self.form == "published":
            return squared_residual(observation)
        return lambda y: 2 * observation.misfit(y)

    def _radius(self, radius: Tensor, z: Tensor, sigma: float, x: Tensor) -> Tensor:
        """r of each chain at this level, (J_r,)."""
        if self.form == "published":
            radius = (z / x[0].numel()).sqrt() / 2
        else:
            radius = radius.clamp(max=sigma / sqrt(1 + sigma**2))
        return radius.nan_to_num(nan=FIRST_RADIUS).clamp(min=self.smallest_radius)

    def _unit(self, sigma: float) -> float:
        """The published gradient is one in x / sqrt(1 + sigma^2) for variance-preserving levels."""
        return sqrt(1 + sigma**2) if self.schedule == "variance-preserving" else 1.0

    def _length(self, sigma: float, to: float, x: Tensor) -> float:
        """How far the direction moves D (whitened) or x (published)."""
        scale, d = self.guidance_scale, x[0].numel()
        if scale is None:
            scale = sqrt(d * self.candidates / (d + 1 + self.candidates)) / 2
        if self.form == "whitened":
            return sigma**2 * scale
        scale *= diffused(sigma, to)
        if self.schedule != "variance-preserving":
            return scale
        return scale * sqrt(1 + to**2) / (1 + sigma**2)

    def _gradient(
        self,
        state: State,
        prior: Prior,
        found: Candidates,
        reference: Tensor,
        z: Tensor,
        radius: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """g, (J_r, *X), zero where nothing is known; and mean L - L(D) of each chain, (J_r,)."""
        shape = found.clean
        moved, everywhere = torch.zeros_like(shape).double(), torch.zeros_like(shape).double()
        count = torch.zeros_like(z)
        reward, rise = count, count
        temperature = z.clamp(min=torch.finfo(torch.float64).tiny)
        draw = White(state, prior.shape, Stream.CANDIDATE)
        for numbers in batches(self.candidates, self.members, self.rows_at_once):
            n = draw(len(numbers))
            losses = found.losses(radius.reshape(-1, *(1,) * (n.dim() - 1)) * n)
            excess = losses - reference[:, None]
            used = excess.isfinite()
            rewards = torch.where(used, (-excess / temperature[:, None]).exp(), 0.0)
            moved = moved + weighted(rewards, n)
            everywhere = everywhere + weighted(used.double(), n)
            count = count + used.sum(dim=1)
            reward = reward + rewards.sum(dim=1)
            rise = rise + torch.where(used, excess, 0.0).sum(dim=1)
        # sum (R_k - b_k) n_k / M with b_k the mean of the others, over those that did not fail
        mean = reward / count
        raw = moved - each(mean, moved) * everywhere
        terms = mean * (count * shape[0].numel()).sqrt()
        known = (count > 1) & (dots(raw, raw).sqrt() > ROUNDING * terms)
        gradient = raw / each((count - 1) * radius, raw)
        return torch.where(each(known, gradient), gradient, 0.0), rise / count


def _adapted(radius: Tensor, z: Tensor, rise: Tensor) -> Tensor:
    """The radius at which the loss of a candidate exceeds that of D by a quarter of Z."""
    factor = (z / 4 / rise.clamp(min=0)).sqrt().nan_to_num(nan=2.0, posinf=2.0)
    return radius * factor.clamp(0.5, 2.0)
