"""DAPS: decoupled annealing, a Markov chain for x_0 given y and x_sigma at each noise level.

At levels s_0 > ... > s_{N-1}, with s_N = 0, each chain by itself:

    c = D(x, s_i), or the probability flow from s_i to zero     estimate="denoiser", "flow"
    z ~ exp(-U),  U(z) = Phi(z) + |z - c|^2 / (2 r^2)            `enkg.guidance.daps_moves`
    x = z + s_{i+1} n

Phi = 1/2 |Gamma^(-1/2) (y - G)|^2 is the exact misfit of the observation. move="metropolis" is
black-box and derivative-free: it asks the simulator for nothing but answers. "langevin" and "hmc"
need vjp(x, v). The radius of x_0 around c is

    matched   r^2 = s2 s^2 / (s2 + s^2)   s2 the prior's mean variance a coordinate (`variance`)
    local     r^2 = s^2 tr(J_D) / d       by differences of D along random directions
    sigma     r^2 = s^2                   published

Laws, for a linear A, Q = A^T Gamma^-1 A + r^-2 I and a chain that has mixed: z given c is N(Q^-1
(A^T Gamma^-1 y + r^-2 c), Q^-1). With an affine c = M x + b, as for a Gaussian prior, the
covariance of x obeys

    C' = r^-4 Q^-1 M C M^T Q^-1 + Q^-1 + s_{i+1}^2 I.

This is the posterior's if c = D and r^2 I = Cov[x_0 | x_s], s_0 high, hence for a Gaussian prior of
covariance s2 I with radius="matched". For other priors r^2 I is a mean of that covariance over the
directions. The published pair, flow and r = s, inflates what the data do not see.

start="draw" begins a chain at c + r n, which is in equilibrium where the data see nothing; "clean"
at c, as published, from where the directions without data need about r^2 / h steps. Without
`step_size` the gradient moves start at h = c / (L + 1 / r^2), c = `courant`, L the largest
curvature of Phi by power iteration: at every level with correction="none", else at the first one,
from where the adapted h is carried on, at most 2 r^2. The random walk's s starts at
2.4 r / sqrt(d) and is carried on too.

Levels before steps. Where the prior is no Gaussian, z has no correlations but those of the data,
and x gets the prior's back from the denoiser, level by level: that takes many levels, even if each
draw of z is exact. On digits 200 levels of 5 Langevin steps are better than 20 of 50 at about the
same cost (experiments/ablations/daps.py). Where the chains then do not reach the data, the misfit
says so: raise `steps`, first of all on Gaussian priors, for which few levels do. HMC, one proposal
a trajectory, and the random walk need many steps a level; their presets have 20 levels. What stays
is the error of the isotropic r^2 (posteriors that are too wide), and points from which the data
have no gradient back, as where `hdr` clips.

Cost, a chain and level: simulator calls `steps` (uncorrected) or `steps` + 1 (Metropolis; for HMC
rounded down to whole trajectories). Without `step_size` the gradient moves make `power_iterations`
more, and uncorrected ones one more again, at each level that measures the curvature. As many
products with J_G, none for "metropolis"; denoiser calls 1, or `flow_steps` with estimate="flow",
and 2 x `probes` with radius="local". No denoiser Jacobian.

Reference: Zhang et al. 2024, arXiv 2407.01521, algorithm 1 and appendix (constants of the presets).
Its main branch of code divides |y - G|^2 by tau^2, not by 2 tau^2; its legacy branch and its
Metropolis branch do as here. The presets keep its tau = 0.01, whatever the noise of the data, its
r = s and its steps.
"""

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm, once
from enkg.errors import InputError
from enkg.guidance import daps_moves as moves
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices, each, operator
from enkg.guidance.daps_moves import Chance, Point, Potential, dots
from enkg.observation import Observation
from enkg.prior import Drawable, Prior
from enkg.random import Stream
from enkg.sample import euler, start
from enkg.schedule import karras

DRAWS, SAMPLES = 1024, 16
"""Prior draws behind s2; samples by the flow where the prior gives no draws."""
PROBE = 0.03
"""Length of the difference behind tr(J_D), over s."""


@dataclass(frozen=True, eq=False)
class WalkState(State):
    """scale: s of the random walks or h of the others, (J_r,), float64; zero at the first level.
    variance: s2."""

    sharded: ClassVar[tuple[str, ...]] = (*State.sharded, "scale")

    scale: Tensor | None = None
    variance: float = 1.0

    def to(self, device: torch.device) -> "WalkState":
        scale = None if self.scale is None else self.scale.to(device)
        return replace(self, x=self.x.to(device), scale=scale)


@dataclass(frozen=True)
class DAPS(Chains):
    """Decoupled annealing. Cost: `levels` x about `steps` simulator calls a member."""

    state: ClassVar[type[State]] = WalkState
    posterior_law: ClassVar[str | None] = None

    levels: int = 200
    """Number N of noise levels; many with few steps are better than the reverse."""
    move: Literal["langevin", "hmc", "metropolis"] = "langevin"
    """The Markov chain; "metropolis" needs no gradient."""
    steps: int = 5
    """Simulator calls of a chain at each level, but for the few that start it."""
    correction: Literal["metropolis", "none"] = "metropolis"
    """Whether the gradient moves are accepted or rejected, or all made, as published."""
    step_size: float | None = None
    """h of the gradient moves, s^2 of the random walk, in squared prior units; None: from the
    curvature."""
    decay: float = 1.0
    """step_size at the end over that at the start; linear in the number of the level."""
    courant: float = 0.5
    """c: h over the inverse curvature, without step_size. Uncorrected, the stiffest direction has
    1 / (1 - c / 2) of its variance."""
    power_iterations: int = 4
    """Calls that measure the curvature, without step_size; at each level if uncorrected."""
    momentum: float = 0.9
    """m: share of the velocity that an uncorrected HMC step keeps."""
    leapfrog: int = 5
    """Steps of a trajectory of corrected HMC."""
    estimate: Literal["denoiser", "flow"] = "denoiser"
    """The clean estimate: one denoiser call, or Euler steps of the probability flow."""
    flow_steps: int = 5
    """Steps of estimate="flow"."""
    flow_end: float = 0.01
    """Last level of these before zero, in prior units."""
    radius: Literal["matched", "local", "sigma"] = "matched"
    """How far x_0 lies from the clean estimate."""
    variance: float | None = None
    """s2 of radius="matched"; None: from prior samples."""
    probes: int = 1
    """Differences behind radius="local"."""
    start: Literal["draw", "clean"] = "draw"
    """Where a chain begins: drawn around the clean estimate, or there."""
    noise: float | None = None
    """tau in the place of the noise of the data, for all of them; None: their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "move", "correction", "estimate", "radius", "start")
        least = {"steps": 1, "leapfrog": 1, "flow_steps": 1, "probes": 1, "power_iterations": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {value}")
        for name in ("step_size", "variance", "noise", "courant", "decay", "flow_end"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected a positive number")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}; expected at least 0 and less than 1")
        if self.move == "hmc" and self.correction != "none" and self.steps < self.leapfrog:
            raise InputError(
                f"{self.steps} steps are less than a trajectory of {self.leapfrog}; raise steps, "
                "or lower leapfrog"
            )

    @property
    def needs(self) -> tuple[Ability, ...]:
        return () if self.move == "metropolis" else ("vjp",)

    @property
    def corrected(self) -> bool:
        return self.move == "metropolis" or self.correction == "metropolis"

    @property
    def sweeps(self) -> int:
        count = self.steps
        if self.move == "hmc" and self.corrected:
            count = self.steps // self.leapfrog * self.leapfrog
        measured = self.move != "metropolis" and self.step_size is None
        if measured and not self.corrected:
            count += self.power_iterations + 1
        first = self.power_iterations if measured and self.corrected else 0
        return self.levels * (count + self.corrected) + first

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> WalkState:
        sigma, members = self.sigmas[0], self.own_members(prior, comm)
        x = start(prior, sigma, seed, members, like, sigma_max=max(80.0, sigma))
        scale = torch.zeros(len(members), dtype=torch.float64, device=x.device)
        variance = 1.0
        if self.radius == "matched":
            variance = self.variance or once(comm, lambda: mean_variance(prior, seed, like))
        return WalkState(x, members, seed, sigma=sigma, comm=comm, scale=scale, variance=variance)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, WalkState)
        i = state.step
        sigma, to = self.sigmas[i : i + 2]
        clean = self._clean(prior, state.x, sigma)
        squared = self._squared(state, prior, sigma)
        if self.noise is not None:
            if type(observation) is not Observation:
                raise InputError(
                    f"noise={self.noise:g} is a standard deviation, and the observation is a "
                    f"{type(observation).__name__}; give noise=None"
                )
            observation = Observation(observation.y, std=self.noise, mask=observation.mask)
        z, scale, potential = self._drawn(state, clean, squared, forward, observation)
        if to > 0:
            noise = random.normal(prior.shape, state.seed, Stream.RENOISE, state.members, i)
            z = z + to * noise.to(z)
        assert potential.first is not None
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=potential.misfit,
            evaluated=(potential.first,),
        )
        finished = i + 1 == self.levels
        after = replace(state, x=z, step=i + 1, sigma=to, finished=finished, scale=scale)
        return after, info

    def _clean(self, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        """c, (J_r, *X)."""
        if self.estimate == "denoiser":
            return prior.denoise(x, sigma)
        levels = karras(self.flow_steps, sigma, min(self.flow_end, sigma)).tolist()
        return euler(prior, x, [*levels, 0.0])

    def _squared(self, state: WalkState, prior: Prior, sigma: float) -> Tensor:
        """r^2 of each chain, (J_r,), float64."""
        one = torch.ones(len(state.members), dtype=torch.float64, device=state.x.device)
        if self.radius == "sigma":
            return sigma**2 * one
        if self.radius == "matched":
            return state.variance * sigma**2 / (state.variance + sigma**2) * one
        x, share = state.x, 0.0 * one
        chance = Chance(state, tuple(prior.shape), Stream.CONDITIONAL)
        for _ in range(self.probes):
            v = chance().to(x)
            small = PROBE * sigma * v
            change = prior.denoise(x + small, sigma) - prior.denoise(x - small, sigma)
            share = share + dots(v, change) / (2 * PROBE * sigma * dots(v, v))
        share = torch.nan_to_num(share / self.probes, nan=1.0)
        return sigma**2 * share.clamp(min=1e-3, max=1.0)

    def _drawn(
        self,
        state: WalkState,
        clean: Tensor,
        squared: Tensor,
        forward: Forward,
        observation: Observation,
    ) -> tuple[Tensor, Tensor, Potential]:
        """z, the step lengths that are carried on, and U."""
        pull = None if self.move == "metropolis" else operator(forward).vjp
        potential = Potential(state, forward, pull, observation, clean, squared)
        return *self._explored(state, potential), potential

    def _explored(self, state: WalkState, potential: Potential) -> tuple[Tensor, Tensor]:
        """The end of each Markov chain, (J_r, *X), and its step lengths."""
        shape = tuple(potential.centre.shape[1:])
        stream = Stream.PROPOSAL if self.move == "metropolis" else Stream.LANGEVIN
        normal, z = Chance(state, shape, stream), potential.centre
        if self.start == "draw":
            z = z + each(potential.squared.sqrt(), z) * normal()
        assert state.scale is not None
        if self.move == "metropolis":
            return self._walked(state, potential, z, normal)
        at = potential(z) if self.corrected or self.step_size is None else None
        h = self._step(state, potential, at)
        if at is None or not self.corrected:
            if self.move == "langevin":
                z = moves.langevin(potential, z, h, self.steps, normal)
            else:
                z = moves.momentum(potential, z, h, self.steps, normal, self.momentum)
            return potential.settled(z), state.scale
        if self.move == "langevin":
            u = moves.uniform(state, self.steps)
            at, h = moves.corrected_langevin(potential, at, h, self.steps, normal, u)
        else:
            u = moves.uniform(state, 2 * (self.steps // self.leapfrog))
            at, h = moves.corrected_hmc(potential, at, h, self.leapfrog, normal, u)
        return potential.settled(at.z), h

    def _walked(
        self, state: WalkState, potential: Potential, z: Tensor, normal: Chance
    ) -> tuple[Tensor, Tensor]:
        assert state.scale is not None
        widest = 2.4 * potential.squared.sqrt() / sqrt(prod(potential.centre.shape[1:]))
        s = torch.where(state.scale > 0, torch.minimum(state.scale, widest), widest)
        if self.step_size is not None:
            s = torch.full_like(s, sqrt(self.step_size * self._decayed(state)))
        u, adapt = moves.uniform(state, self.steps), self.step_size is None
        at, s = moves.walk(potential, potential(z), s, self.steps, normal, u, adapt)
        return potential.settled(at.z), torch.maximum(s, 1e-3 * widest)

    def _step(self, state: WalkState, potential: Potential, at: Point | None) -> Tensor:
        """h of each chain, (J_r,)."""
        if self.step_size is not None:
            return torch.full_like(potential.squared, self.step_size * self._decayed(state))
        assert at is not None
        assert state.scale is not None
        if self.corrected and state.step > 0:
            widest = 2 * potential.squared
            return torch.minimum(torch.maximum(state.scale, 1e-6 * widest), widest)
        first = Chance(state, tuple(at.z.shape[1:]), Stream.DIRECTION)()
        curvature = potential.curvature(at, self.power_iterations, first)
        return self.courant / (curvature + 1 / potential.squared)

    def _decayed(self, state: State) -> float:
        return 1 + state.step / self.levels * (self.decay - 1)


def mean_variance(prior: Prior, seed: int, like: Tensor) -> float:
    """Mean variance of the coordinates under the prior."""
    if isinstance(prior, Drawable):
        draws = prior.draw(seed, range(DRAWS), 1)
    else:
        draws = start(prior, 0.0, seed, range(SAMPLES), like)
    return float(rows(draws).double().var(dim=0).mean())
