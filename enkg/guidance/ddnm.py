"""DDNM and DDNM+: the part of the estimate that the data determine is replaced by the data.

At each level sigma, with D = D(x, sigma) and the range projector P = A^+ A,

    D_y = D + A^+ y - A^+ G(D) = (I - P) D + A^+ (y - G(0))        (Wang et al., equation 12)

and an ancestral step is made with D_y in the place of D. So A x = y at the end, whatever the noise.
pinv is the full map: a simulator that is not linear may give a guess at its inverse. The noise of y
is not used; where it matters, the result fits it.

plus=True (DDNM+; equation 17) weighs the datum by the noise that the step itself may inject. With
ybar_i, t_i of `enkg.guidance.restoration` and an ancestral step x_s = b x + a D_y + s_up z, where
b = (s / sigma)^2, a = 1 - b and s_up^2 = s^2 (1 - b),

    D_y,i = Dbar_i + l_i (ybar_i - Dbar_i),    l_i = min(1, s_up / (a t_i))
    noise along singular vector i: sqrt(s_up^2 - (a l_i t_i)^2)

so that noise of y and fresh noise make up s_up together. The last step, to zero, is not guided.

noise="ddrm" is the published step x_s = D_y + s (sqrt(1 - eta^2) (x - D) / sigma + eta z). With
plus=True, it is that of DDRM with eta_b = 1 (Lambda and its noise in the public code).

Time travel (repeats R > 1): after each `travel` levels the chain is noised back up to where they
began, x + sqrt(sigma_up^2 - s^2) z, and does them again, R times in all.

Law: exact as the levels are refined for data without noise, if the prior is Gaussian and its
covariance commutes with P: then what is unseen is independent of the data. Else the state that is
seen has other noise than the denoiser expects. There is no posterior law for noisy data: plain DDNM
gives them no spread at all, and DDNM+ too little.

Cost, for N levels, R repeats and J chains: N R J denoiser calls and those of the start; simulator
calls N R J plain, one (for G(0)) with plus=True. Needs pinv (plain) or svd and noise sigma_y^2 I
(plus), and no missing data; no gradient.

Reference: Wang, Yu and Zhang 2023, "Zero-shot image restoration using denoising diffusion
null-space model", arXiv 2212.00490 (100 levels, eta = .85).
"""

from dataclasses import dataclass, replace
from math import sqrt

from torch import Tensor

from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices, misfit_per_datum
from enkg.guidance.restoration import (
    Components,
    Injection,
    Rule,
    check_complete,
    check_shares,
    components,
    drawn,
    info,
    injected,
    replaced,
)
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import reverse_step


@dataclass(frozen=True)
class DDNM(Chains):
    """Null-space restoration. Cost: `levels` x `repeats` simulator calls a member; none but one
    with plus=True."""

    plus: bool = False
    """Weigh the data by their noise (DDNM+), by the singular value decomposition."""
    noise: Injection = "ancestral"
    """Fresh noise by the length of a step, or of one size at every level, as published."""
    eta: float = 1.0
    """Share of fresh noise; below 1 with noise="ddrm" alone."""
    travel: int = 10
    """Levels that are repeated together, where `repeats` is above 1."""
    repeats: int = 1
    """How often each stretch of levels is done; above 1 is time travel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "noise")
        check_shares(eta=self.eta)
        if self.noise == "ancestral" and self.eta != 1:
            raise InputError(f'eta is {self.eta}; below 1 it needs noise="ddrm"')
        if self.travel < 1 or self.repeats < 1:
            raise InputError(f"travel is {self.travel} and repeats {self.repeats}; expected 1 up")

    @property
    def path(self) -> list[tuple[int, int | None]]:
        """Of each step the place of its level, and that of the level it is noised up to after it.

        None: it is not.
        """
        steps: list[tuple[int, int | None]] = []
        for first in range(0, self.levels, self.travel):
            stretch = range(first, min(first + self.travel, self.levels))
            for turn in range(self.repeats):
                again = turn + 1 < self.repeats
                steps += [(i, first if again and i == stretch[-1] else None) for i in stretch]
        return steps

    @property
    def sweeps(self) -> int:
        return 0 if self.plus else self.levels * self.repeats

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("svd",) if self.plus else ("pinv",)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        path = self.path
        i, up = path[state.step]
        sigma, to = self.sigmas[i : i + 2]
        check_complete(observation, "DDNM")
        parts = components(forward, observation, state.x) if self.plus else None
        clean = prior.denoise(state.x, sigma)
        noise = drawn(state, prior)
        evaluated: tuple[tuple[Tensor, Tensor], ...] = ()
        if parts is None:
            y = forward(clean)
            misfit, evaluated = misfit_per_datum(y, observation), ((clean, y),)
            guided = clean.double() + replaced(state.own(y), forward, observation)
            eta = self.eta if self.noise == "ddrm" else None
            x = injected(state.x, (clean, guided), (sigma, to), noise, eta)
        elif self.noise == "ddrm":
            misfit = parts.misfit(state, clean, observation)
            rule = Rule("ddrm", self.eta)
            x = rule.step(state.x, clean, (sigma, to), noise, parts)
        else:
            misfit = parts.misfit(state, clean, observation)
            x = _budgeted(state.x, clean, (sigma, to), noise, parts)
        if up is not None:
            higher = self.sigmas[up]
            x = x + sqrt(higher**2 - to**2) * drawn(state, prior, Stream.RENOISE)
            to = higher
        done = state.step + 1
        after = replace(state, x=x.to(state.x), step=done, sigma=to, finished=done == len(path))
        return after, info(state, len(path), misfit, evaluated)


def _budgeted(
    x: Tensor, clean: Tensor, levels: tuple[float, float], noise: Tensor, parts: Components
) -> Tensor:
    """The ancestral step of DDNM+, float64."""
    sigma, to = levels
    moved, up = reverse_step(x.double(), clean.double(), sigma, to)
    free = moved + up * noise
    a, t = 1 - (to / sigma) ** 2, parts.t
    share = (up / (a * t)).clamp(max=1)
    left = (up**2 - (a * share * t) ** 2).clamp(min=0).sqrt()
    d, z, old = parts.of(clean), parts.of(noise), parts.of(free)
    return parts.replaced(free, old, old + a * share * (parts.y - d) + (left - up) * z)
