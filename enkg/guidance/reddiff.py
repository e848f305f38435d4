"""RED-diff: a point estimate by stochastic gradients, with the denoiser as regulariser.

Each chain holds a mean mu. At each level sigma, descending, with white n,

    x = mu + sigma n,    eps = (x - D(x, sigma)) / sigma
    g = weight grad Phi(mu) + strength w(sigma) (eps - n)

and mu makes one step of Adam along g. The denoiser is not differentiated.

    weighting="score" (default)               w = 1 / sigma
    weighting="constant", "sqrt", "linear"    w = 1, sqrt(sigma), sigma, as published

For w = 1 / sigma the mean of w (eps - n) over n is minus the score of the prior noised to sigma,
averaged about mu.

`antithetic` takes the mean over n and -n, two denoiser calls a level: the part of eps - n that is
odd in n, J_D n where D is nearly linear, is all noise and drops out. For a Gaussian prior nothing
random is left:

    E[eps - n] = sigma (S + sigma^2 I)^-1 (mu - m)

so at one level the stationary point for a linear simulator solves

    weight A^T Gamma^-1 (A mu - y + G(0)) + strength w sigma (S + sigma^2 I)^-1 (mu - m) = 0

and with weight = strength = 1 and w = 1 / sigma it tends to the posterior mean as sigma falls.

loss="squared" is the published 1/2 |y - G(mu)|^2 in place of Phi, without the noise; for noise
sigma_y^2 I alone.

The result is one estimate a chain, the mode for the regulariser above. The chains differ by n, and
by what the optimiser has left over: THEIR SPREAD IS NO UNCERTAINTY. There is no posterior law.

start="pinv" is A^+ y (a guess at it for other simulators), the same for all chains; "mean" is
D(0, sigma) at the highest level; "auto" takes the first where the simulator has it and no datum is
missing.

decay="linear" (default) lets the rate fall to zero, so that Adam comes to rest; "none", as
published, does not.

Cost, for N levels and J chains: N J simulator calls, as many products J_G^T v, N J denoiser calls
(2 N J antithetic) and J for the start. Needs vjp.

References: Mardani, Song, Kautz and Vahdat 2023, "A variational perspective on solving inverse
problems with diffusion models", arXiv 2305.04391, algorithm 1 (Adam with .9, .99, rate .1, lambda
.25, 1/SNR weighting); constants of InverseBench, arXiv 2503.11043. The public code divides the two
terms by the numbers of data and of unknowns; here they are sums.
"""

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg.abilities import Ability
from enkg.comm import ALONE, Comm
from enkg.errors import InputError, MissingCapability
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices, finite, misfit_per_datum, operator, slope
from enkg.guidance.restoration import check_complete, drawn, info
from enkg.observation import Observation
from enkg.prior import Prior

FIRST, SECOND = 0.9, 0.99
"""Decay of Adam's two moments."""
SMALL = 1e-8
"""Adam's guard against a vanishing second moment."""


@dataclass(frozen=True, eq=False)
class REDState(State):
    """x: the estimates mu. first_moment, second_moment: Adam's, (J_r, *X), float64."""

    sharded: ClassVar[tuple[str, ...]] = ("x", "members", "first_moment", "second_moment")

    first_moment: Tensor = field(default_factory=lambda: torch.empty(0))
    second_moment: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "REDState":
        return replace(
            self,
            x=self.x.to(device),
            first_moment=self.first_moment.to(device),
            second_moment=self.second_moment.to(device),
        )


@dataclass(frozen=True)
class REDdiff(Chains):
    """Point estimates by Adam. Cost: `levels` simulator calls and gradients a member."""

    state: ClassVar[type[State]] = REDState
    weighting: Literal["score", "constant", "sqrt", "linear"] = "score"
    """w(sigma): 1 / sigma, 1, sqrt(sigma) or sigma."""
    strength: float = 1.0
    """lambda: weight of the regulariser."""
    weight: float = 1.0
    """Weight of the data."""
    loss: Literal["whitened", "squared"] = "whitened"
    """The misfit in the units of the noise, or without them, as published."""
    rate: float = 0.1
    """Adam's length of a step, in prior units."""
    decay: Literal["linear", "none"] = "linear"
    """Whether the rate falls to zero."""
    antithetic: bool = True
    """Two denoiser calls a level with opposite noise, instead of one."""
    start: Literal["auto", "pinv", "mean"] = "auto"
    """Where the estimates start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "weighting", "loss", "decay", "start")
        if not (self.strength >= 0 and self.weight >= 0 and self.rate > 0):
            raise InputError(
                f"strength is {self.strength}, weight {self.weight} and rate {self.rate}; expected "
                "weights of 0 or more and a positive rate"
            )

    @property
    def sweeps(self) -> int:
        return self.levels

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("vjp", "pinv") if self.start == "pinv" else ("vjp",)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> REDState:
        members, sigma = self.own_members(prior, comm), self.sigmas[0]
        zero = torch.zeros(len(members), *prior.shape, dtype=like.dtype, device=like.device)
        none = torch.zeros_like(zero, dtype=torch.float64)
        x = prior.denoise(zero, sigma)
        remark = "point estimates: the spread of the members is no uncertainty"
        return REDState(
            x,
            members,
            seed,
            sigma=sigma,
            comm=comm,
            remarks=(remark,),
            first_moment=none,
            second_moment=none,
        )

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, REDState)
        i = state.step
        sigma, to = self.sigmas[i : i + 2]
        mu = state.x if i else self._begun(state, forward, observation)
        found = slope(state, mu, forward, observation)
        units = observation.scale**2 if self.loss == "squared" else 1.0
        pull = self._pull(mu, prior, sigma, drawn(state, prior))
        g = finite(self.weight * units * found.gradient + self._scaled(sigma) * pull)
        first = FIRST * state.first_moment + (1 - FIRST) * g
        second = SECOND * state.second_moment + (1 - SECOND) * g.square()
        root = (second / (1 - SECOND ** (i + 1))).sqrt() + SMALL
        rate = self.rate * (1 - i / self.levels if self.decay == "linear" else 1.0)
        moved = mu.double() - rate * first / (1 - FIRST ** (i + 1)) / root
        finished = i + 1 == self.levels
        after = replace(
            state,
            x=moved.to(state.x),
            step=i + 1,
            sigma=0.0 if finished else to,
            finished=finished,
            first_moment=first,
            second_moment=second,
        )
        misfit = misfit_per_datum(found.everyone, observation)
        return after, info(state, self.levels, misfit, ((mu, found.everyone),))

    def _scaled(self, sigma: float) -> float:
        powers = {"score": 1 / sigma, "constant": 1.0, "sqrt": sqrt(sigma), "linear": sigma}
        return self.strength * powers[self.weighting]

    def _pull(self, mu: Tensor, prior: Prior, sigma: float, n: Tensor) -> Tensor:
        """eps - n, its mean over n and -n where antithetic, (J_r, *X), float64."""
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        total = torch.zeros_like(n)
        for sign in signs:
            x = (mu.double() + sign * sigma * n).to(mu)
            clean = prior.denoise(x, sigma)
            total = total + (x.double() - clean.double()) / sigma - sign * n
        return total / len(signs)

    def _begun(self, state: State, forward: Forward, observation: Observation) -> Tensor:
        if self.start == "mean" or (self.start == "auto" and not bool(observation.mask.all())):
            return state.x
        check_complete(observation, "REDdiff")
        try:
            guess = operator(forward).pinv(observation.y.to(state.x.device)[None])
        except MissingCapability:
            if self.start == "pinv":
                raise
            return state.x
        guess = torch.where(guess.isfinite(), guess, 0.0).to(state.x)
        return guess.expand_as(state.x).clone()
