r"""SCG: stochastic control guidance, the best of K candidates at each step of the reverse SDE.

    x ~ p_sigma at the highest level; at each level sigma_i of the grid
        i < threshold N     x = one step of the reverse SDE to sigma_{i+1}
        else                x^k, k = 1..K: the same with K independent noises
                            L_k = Phi(G(D(x^k, sigma_{i+1})))          K simulator calls
                            x = x^k of the smallest L_k
        last level          x = D(x, sigma)

(Huang et al. 2024, "Symbolic music generation with non-differentiable rule guided diffusion", arXiv
2402.14285.) No derivative of the simulator or of the denoiser is needed. Phi is the misfit in the
metric of the noise; for independent noise of one size it orders the candidates as the published
squared distance does, and with it no unit matters. `select="softmax"` draws candidate k with
probability proportional to exp(-Phi_k) in place of the best one: enkg's own, and no posterior
either, since each step counts the data anew.

Members are independent chains. Nothing is shared among them, so a chain is the same whatever the
number of the others.

There is no posterior law, for no K: the choice among few candidates is a weak pull where the noise
is high dimensional, a greedy one where it is not. Laws: with K = 1 it is `enkg.sample.ancestral`
with the same noise, to the last bit (candidate 0 has the noise of that sampler for every K); the
argmin does not change when an increasing function is applied to all misfits.

In the public code the step at which the guidance sets in is in neither branch, and the state is
replaced by its denoised mean: noise of standard deviation 16.9 is missing from there on. Here it is
a guided step like those after it.

Cost for N levels of which M are guided (the last one never): K M simulator calls a member,
N + K M denoiser calls a member. With the published constants (N = 1000, threshold .25, K = 512)
that is 749 x 512 = 383,488 calls for one chain.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.reverse import Schedule, diffused, noise_levels
from enkg.observation import Observation
from enkg.prior import Placed, Prior
from enkg.random import Stream
from enkg.sample import reverse_step, start

LOST = "all candidates of a chain failed in the simulator; the first was taken unseen"


@dataclass(frozen=True)
class SCG(Guidance):
    """SCG. Cost: `candidates` simulator calls a member and guided level."""

    posterior_law: ClassVar[str | None] = None
    begins_at_prior: ClassVar[bool] = False

    members: int = 4
    """Number of independent chains."""
    candidates: int = 16
    """Candidates K of each guided step."""
    select: Literal["argmin", "softmax"] = "argmin"
    """Take the best candidate, or draw one by its likelihood."""
    levels: int = 100
    """Number N of noise levels before zero."""
    schedule: Schedule = "karras"
    """Which levels; the variance-preserving ones do not use sigma_max and sigma_min."""
    sigma_max: float = 80.0
    """Highest noise level, in prior units."""
    sigma_min: float = 0.01
    """Lowest noise level before zero."""
    threshold: float = 0.25
    """Share of the levels that pass before guidance sets in."""
    sampler: Literal["ancestral", "euler-maruyama"] = "ancestral"
    """A step of the reverse SDE: exact in its noise, or of first order, as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select not in ("argmin", "softmax"):
            raise InputError(f"select is {self.select!r}; expected argmin or softmax")
        if self.sampler not in ("ancestral", "euler-maruyama"):
            raise InputError(f"sampler is {self.sampler!r}; expected ancestral or euler-maruyama")
        if self.candidates < 1 or self.levels < 2:
            raise InputError(
                f"{self.candidates} candidates on {self.levels} levels; expected at least 1 on 2"
            )
        if not 0 <= self.threshold <= 1 or not self.guided:
            raise InputError(
                f"threshold {self.threshold} leaves no guided level of {self.levels}; expected a "
                "share of the levels, 0 to guide from the first"
            )
        self._sigmas()

    @property
    def guided(self) -> range:
        """The indices of the guided levels."""
        return range(ceil(self.threshold * self.levels - 1e-9), self.levels - 1)

    @property
    def sweeps(self) -> int:
        return self.candidates * len(self.guided)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members, sigma = self.own_members(prior, comm), self._sigmas()[0]
        x = start(prior, sigma, seed, members, like, sigma_max=sigma)
        return State(x, members, seed, sigma=sigma, comm=comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i, sigmas, everyone = state.step, self._sigmas(), state.everyone
        sigma, to = sigmas[i : i + 2]
        x, up = self._step(state.x, prior.denoise(state.x, sigma), sigma, to)
        evaluated: tuple[tuple[Tensor, Tensor], ...] = ()
        misfit, remarks = None, state.remarks
        if i in self.guided:
            ahead = x[:, None] + up * self._noise(state, prior, self.candidates).to(x)
            with _places(prior, self.candidates):
                clean = prior.denoise(ahead.flatten(0, 1), to)
            y = forward(clean)
            which, misfit, lost = once(
                state.comm, lambda: self._chosen(state, everyone, y, observation)
            )
            own = state.own(which).to(x.device)
            x = ahead[torch.arange(len(x), device=x.device), own]
            evaluated = self._pairs(clean, y)
            if lost and LOST not in remarks:
                remarks = (*remarks, LOST)
        elif up > 0:
            x = x + up * self._noise(state, prior, 1)[:, 0].to(x)
        finished = i + 1 == self.levels
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit,
            evaluated=evaluated,
        )
        after = replace(state, x=x, step=i + 1, sigma=to, finished=finished, remarks=remarks)
        return after, info

    def drop(self, state: State, living: Tensor) -> State:
        """A chain lives on if some candidate of it does, and else unseen, so nobody is dropped."""
        return state

    def _chosen(
        self, state: State, everyone: tuple[int, ...], y: Tensor, observation: Observation
    ) -> tuple[Tensor, float | None, bool]:
        """The candidate of each of the J members, the misfit per datum of those that live, and
        whether some member has none that does. y: data of all candidates, (J K, *Y)."""
        phi = torch.full((len(y),), torch.inf, dtype=torch.float64)
        living = alive(y)
        phi[living.cpu()] = observation.misfit(y[living]).cpu()
        phi = phi.reshape(len(everyone), self.candidates)
        best = phi.argmin(dim=1)  # the first where all failed
        least = phi.gather(1, best[:, None])
        if self.select == "softmax":
            weight = torch.where(phi.isfinite(), torch.exp(least - phi), 0.0)
            below = weight.cumsum(dim=1)
            lots = _uniform(state.seed, everyone, state.step)[:, None] * below[:, -1:]
            drawn = (below <= lots).sum(dim=1)
            best = torch.where(least[:, 0].isfinite(), drawn, best)
        taken = phi.gather(1, best[:, None])
        found = taken[taken.isfinite()]
        misfit = float(2 * found.mean()) / observation.count if len(found) else None
        return best, misfit, len(found) < len(everyone)

    def _pairs(self, clean: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Candidate by candidate, what `Info.evaluated` holds."""
        clean = clean.unflatten(0, (-1, self.candidates))
        y = y.unflatten(0, (-1, self.candidates))
        return tuple((clean[:, k], y[:, k]) for k in range(self.candidates))

    def _noise(self, state: State, prior: Prior, count: int) -> Tensor:
        """Standard normal, (J_r, count, *X); row 0 is what `enkg.sample.ancestral` draws."""
        shape = (count, *prior.shape)
        if not state.members:
            return torch.empty(0, *shape, dtype=torch.float64)
        return random.normal(shape, state.seed, Stream.SAMPLER, state.members, state.step)

    def _step(self, x: Tensor, denoised: Tensor, sigma: float, to: float) -> tuple[Tensor, float]:
        if self.sampler == "ancestral" or to == 0:
            return reverse_step(x, denoised, sigma, to)
        length = diffused(sigma, to)
        return x + length / sigma**2 * (denoised - x), length**0.5

    def _sigmas(self) -> list[float]:
        return noise_levels(self.schedule, self.levels, self.sigma_max, self.sigma_min)


@contextmanager
def _places(prior: Prior, rows: int) -> Iterator[None]:
    """Tells a prior that computes in chunks that each member has so many rows."""
    if not isinstance(prior, Placed):
        yield
        return
    first = prior.first
    prior.first = first * rows
    try:
        yield
    finally:
        prior.first = first


def _uniform(seed: int, members: tuple[int, ...], step: int) -> Tensor:
    """One number in [0, 1) for each member."""
    draws = random.generators(seed, Stream.CHOICE, members, step)
    return torch.tensor([g.random() for g in draws], dtype=torch.float64)
