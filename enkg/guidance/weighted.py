"""Weighted EnKG: importance weights from answers already paid for, then a polish.

Ensemble Kalman updates keep the weights of the modes that the prior gave them; a twisted sequential
Monte Carlo corrects these. The ensemble starts at the prior's own state at a high noise level and
goes down N levels of the reverse SDE, guided by what it says itself of x_0 given (x_sigma, y):

    D_j = D(x_j, s);  Y_j = G(D_j);  C, B, Omega from the ensemble     one simulator call a member
    S   = B C B^T + Gamma + Omega
    r_j = y - Y_j;  of an unseen particle: r_i - B (D_j - D_i), D_i the nearest that has an answer
    u_j = C B^T S^-1 r_j                                   D + u estimates E[x_0 | x_s, y]
    l_j = log N(r_j; 0, S)                                 twisting function
    log w_j += l_j - (l_j of the level before) + inc_j
    resample (systematic) where the effective size is below half of the particles, by w^p with the
        largest p of .8^k for which that of w^p is a fifth of them; w^(1-p) stays for later levels
    a = 1 - s'^2 / s^2,  v = a s'^2,  m_j = x_j + a (D_j - x_j)
    C_y = C - C B^T S^-1 B C,  Sp = v I + a^2 C,  Sq = v I + a^2 C_y
    x_j ~ N(m_j + a u_j, Sq);  inc_j = log N(x_j; m_j, Sp) - log N(x_j; m_j + a u_j, Sq)

Each member carries M particles. The simulator sees the first; the others cost denoiser calls, and
get the answer of the nearest one along B. Modes are found and lost at high noise, where a linear
model serves and J particles are too few. At the last level J of the J M particles are drawn by
their whole weights, and x_0 = D + u, which a polish (`enkg.guidance.polish`) makes samples.

Law: for a Gaussian prior and a linear simulator the kernels Sp and Sq are exact at any number of
levels, all weights are equal, and the ensemble tends to the exact posterior as J grows. Otherwise
the weighted levels are consistent in J and N for fixed C, B (adaptive sequential Monte Carlo) and
M = 1; more particles take the simulator as linear between neighbours. The polish has the bias of a
Gaussian x_0 given x_sigma.

Weights cannot search many isolated modes in many dimensions. `agreement` below 1 guards against
that: the members form two halves (even and odd identities) that share C, B and the answers, and are
weighted and resampled each by itself. Where the halves end in different places
(`energy_coefficient`), the weighted ensemble is given up for the tempered EnKG with its polish,
from the prior on; the run says so in its remarks. It is blind where both lose the same mode.

Twisted sequential Monte Carlo for diffusion models: Wu et al. 2023, arXiv 2306.17775; C and B of
the ensemble in the place of gradients, and the Gaussian kernels, are enkg's own. The energy
coefficient of two samples: Szekely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.conditional import axes_of, conditional_covariance, gain, sensitivity
from enkg.guidance.enkg import EnKG
from enkg.guidance.particles import (
    effective_size,
    energy_coefficient,
    kernel,
    largest_power,
    systematic,
)
from enkg.guidance.polish import (
    AnnealedState,
    Polish,
    annealed,
    begun,
    check_levels,
    survivors,
)
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import start
from enkg.schedule import karras

START, END = 1.8, 0.06
"""First and last weighted level over the largest standard deviation of the prior."""


@dataclass(frozen=True, eq=False)
class WeightedState(AnnealedState):
    """unseen: particles of this rank's members that are not x, (J_r, M - 1, *X). log_weight: of x
    and of these, without the twisting function of the level to come, (J_r, M), float64. fallen: the
    step at which the tempered EnKG took over."""

    sharded: ClassVar[tuple[str, ...]] = ("x", "members", "unseen", "log_weight")

    unseen: Tensor = field(default_factory=lambda: torch.empty(0))
    log_weight: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    fallen: int | None = None


@dataclass(frozen=True, eq=False)
class _Level:
    """x: all particles at the next level, (J, M, d); at the last one x_0, (J, 1, d). log_weight:
    (J, M) or (J, 1). disagreement: of the two halves, before the last resampling; None before."""

    x: Tensor
    log_weight: Tensor
    disagreement: float | None


@dataclass(frozen=True)
class WeightedEnKG(Guidance):
    """Weighted EnKG, for priors that are not Gaussian. Cost: `levels` + `polish.levels` simulator
    calls a member; where the halves disagree, `levels` and those of `tempered`."""

    state: ClassVar[type[State]] = WeightedState
    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior, J to infinity"
    begins_at_prior: ClassVar[bool] = False

    levels: int = 10
    """Number N of weighted levels."""
    particles: int = 4
    """Number M of particles a member, one of them simulated. Each costs a denoiser call a level."""
    sigma_start: float | None = None
    """First level, in prior units; None: 1.8 times the prior's largest standard deviation."""
    sigma_end: float | None = None
    """Last weighted level; None: a thirtieth of the first."""
    effective: float = 0.5
    """Resample where the effective size falls below this share of the particles."""
    floor: float = 0.2
    """Smallest effective size, as a share of the particles, that a resampling before the last level
    may act on; it takes a power of the weights, the rest waits. 0 takes all at once."""
    polish: Polish = field(default_factory=Polish)
    """Levels after the weighted ones."""
    agreement: float = 1.0
    """Largest disagreement of two halves, from 0 (equal in law) on; above it the tempered EnKG
    takes over. 1 makes no halves: all members are resampled together."""
    tempered: EnKG = field(default_factory=lambda: EnKG(cap=0.1))
    """What it falls back to; its number of members is that of this method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 4:
            raise InputError(f"{self.members} members; two halves need at least 4")
        if self.levels < 1 or self.particles < 1:
            raise InputError(
                f"levels={self.levels}, particles={self.particles}; expected at least one of each"
            )
        shares = 0 <= self.effective <= 1 and 0 <= self.floor < 1 and 0 < self.agreement <= 1
        if not shares:
            raise InputError(
                f"effective={self.effective}, floor={self.floor}, agreement={self.agreement}; "
                "expected shares between 0 and 1, a floor below 1 and an agreement above 0"
            )
        check_levels(self.sigma_start, self.sigma_end)

    @property
    def sweeps(self) -> int:
        if self.agreement == 1:
            return self.levels + self.polish.most
        return self.levels + max(self.polish.most, self.tempered.sweeps)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> WeightedState:
        members = self.own_members(prior, comm)
        # A particle is to the random numbers what a member is, with an identity of its own.
        named = [[j + k * self.members for j in members] for k in range(self.particles)]
        x0 = [start(prior, 0.0, seed, each, like) for each in named]
        axes = axes_of(prior, seed, lambda: x0[0], comm)
        state = WeightedState(x0[0], members, seed, comm=comm, axes=axes)
        sigma = self.sigmas(state)[0]
        noise = [random.normal(prior.shape, seed, Stream.START, each, 1).to(like) for each in named]
        x = torch.stack([a + sigma * n for a, n in zip(x0, noise, strict=True)], dim=1)
        weights = torch.zeros(x.shape[:2], dtype=torch.float64)
        return replace(state, x=x[:, 0], unseen=x[:, 1:], sigma=sigma, log_weight=weights)

    def sigmas(self, state: AnnealedState) -> list[float]:
        """The weighted levels."""
        assert state.axes is not None
        first = START * state.axes.largest if self.sigma_start is None else self.sigma_start
        last = END / START * first if self.sigma_end is None else min(self.sigma_end, first)
        return karras(self.levels, first, last).tolist()

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, WeightedState)
        if state.fallen is not None:
            return self._tempered(state, prior, forward, observation)
        if state.step < self.levels:
            return self._weighted(state, prior, forward, observation)
        assert state.axes is not None
        sigmas = self.polish.sigmas(prior, state.axes)
        after, info = annealed(state, sigmas, prior, forward, observation)
        return after, replace(info, progress=after.step / (self.levels + len(sigmas) - 1))

    def _weighted(
        self, state: WeightedState, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert state.axes is not None
        particles = torch.cat([state.x[:, None], state.unseen.to(state.x)], dim=1)
        denoised = [prior.denoise(each, state.sigma) for each in particles.unbind(1)]
        y = forward(denoised[0])
        whole = [
            state.comm.rows(v).flatten(2).double()
            for v in (particles, torch.stack(denoised, dim=1))
        ]
        carried, everyone = state.comm.rows(state.log_weight), state.everyone
        found = once(
            state.comm, lambda: self._level(state, whole, y, carried, everyone, observation)
        )
        info = Info(
            step=state.step,
            sigma=state.sigma,
            progress=(state.step + 1) / (self.levels + self.polish.count(prior)),
            power=0.0 if state.step else 1.0,
            beta=1.0,
            misfit=observation.misfit_per_datum(y[alive(y)]),
            evaluated=((denoised[0], y),),
        )
        moved = state.own(found.x)
        moved = moved.reshape(*moved.shape[:2], *state.x.shape[1:]).to(state.x)
        x = moved[:, 0].contiguous()
        after = replace(
            state,
            x=x,
            unseen=moved[:, 1:].contiguous(),
            step=state.step + 1,
            beta=1.0,
            log_weight=state.own(found.log_weight),
        )
        if state.step + 1 < self.levels:
            return replace(after, sigma=self.sigmas(state)[state.step + 1]), info
        if found.disagreement is not None:
            if found.disagreement > self.agreement:
                return self._fallen(after, prior, found.disagreement), info
            remark = (
                f"the two halves of the weighted ensemble agree ({self._said(found.disagreement)})"
            )
            after = replace(after, remarks=(*after.remarks, remark))
        x, sigma = begun(after, self.polish.sigmas(prior, state.axes), x)
        return replace(after, x=x, sigma=sigma, updated=after.step, finished=sigma == 0), info

    def _level(
        self,
        state: WeightedState,
        whole: list[Tensor],
        y: Tensor,
        carried: Tensor,
        everyone: tuple[int, ...],
        observation: Observation,
    ) -> _Level:
        assert state.axes is not None
        (x, denoised), sigma, count = (v.flatten(0, 1) for v in whole), state.sigma, self.particles
        axes, living = state.axes.to(x.device), alive(y)
        nearest = _nearest(denoised, living, count)
        r, usable = observation.residual(y), living.repeat_interleave(count)
        c = conditional_covariance(x[usable], denoised[usable], sigma, axes)
        model = sensitivity(denoised[::count][living], -r[living], axes)
        k = gain(c, model)
        r = r[nearest] - (denoised - denoised[::count][nearest]) @ model.matrix.T
        shift, twist = k(r), k.log_density(r)
        log_weight = (carried.flatten().to(x) + twist).masked_fill(~usable, -torch.inf)
        last = state.step + 1 == self.levels
        halves = _groups(everyone, living, count, 1 if self.agreement == 1 else 2)
        guess = denoised + shift
        disagreement = energy_coefficient(guess, log_weight, halves) if last else None
        source = torch.arange(len(x), device=x.device)
        left = log_weight.clone()
        for number, half in enumerate(halves):
            weight, slots = log_weight[half], half[::count] if last else half
            enough = self.effective * len(half)
            if len(half) and (last or effective_size(weight) < enough):
                power = 1.0 if last else largest_power(weight, self.floor * len(half))
                offset = random.generators(state.seed, Stream.RESAMPLE, [number], state.step)
                chosen = systematic(power * weight, offset[0].random(), len(slots))
                source[slots] = half[chosen]
                left[slots] = (1 - power) * weight[chosen]
        revived = survivors(state, everyone, living)
        source, left = (v.unflatten(0, (-1, count))[revived].flatten() for v in (source, left))
        if last:
            return _Level(guess[source[::count]][:, None], 0 * carried[:, :1], disagreement)
        noise = [
            random.normal((count, *shape), state.seed, stream, everyone, state.step)
            .flatten(0, 1)
            .to(x)
            for shape, stream in (
                (x.shape[1:], Stream.RENOISE),
                (x.shape[1:], Stream.CONDITIONAL),
                (r.shape[1:], Stream.OBSERVATION),
            )
        ]
        to = self.sigmas(state)[state.step + 1]
        moved, increment = kernel(
            x[source], denoised[source], shift[source], c, model.matrix, k, (sigma, to), noise
        )
        left = left - twist[source] + increment
        return _Level(moved.unflatten(0, (-1, count)), left.unflatten(0, (-1, count)), None)

    def _fallen(self, state: WeightedState, prior: Prior, disagreement: float) -> WeightedState:
        """The first state of the tempered EnKG, in place of the weighted ensemble."""
        start = self._inner.init(prior, state.seed, state.x, state.comm)
        remark = (
            f"the two halves of the weighted ensemble disagree ({self._said(disagreement)}), so it "
            "was given up for the tempered EnKG; more members or levels may help"
        )
        return replace(
            state,
            x=start.x,
            members=start.members,
            sigma=start.sigma,
            beta=0.0,
            axes=None,
            updated=0,
            unseen=start.x[:, None][:, :0],
            log_weight=torch.zeros(len(start.members), 1, dtype=torch.float64),
            fallen=state.step,
            remarks=(*state.remarks, remark),
        )

    def _said(self, disagreement: float) -> str:
        return f"{disagreement:.2f} on a scale from 0 to 1, where {self.agreement:g} is allowed"

    @property
    def _inner(self) -> EnKG:
        return replace(self.tempered, members=self.members)

    def _tempered(
        self, state: WeightedState, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert state.fallen is not None
        inner = replace(state, step=state.step - state.fallen)
        after, info = self._inner.step(inner, prior, forward, observation)
        progress = (self.levels + info.progress * self.tempered.sweeps) / self.sweeps
        info = replace(info, step=state.step, progress=progress)
        return replace(after, step=after.step + state.fallen), info

    def drop(self, state: State, living: Tensor) -> State:
        assert isinstance(state, WeightedState)
        if state.fallen is not None and state.step == state.fallen:
            return state  # the tempered EnKG begins with members that nobody has simulated
        own = state.own(living).cpu()
        rest = {"unseen": state.unseen[own.to(state.unseen.device)]}
        rest["log_weight"] = state.log_weight[own.to(state.log_weight.device)]
        return replace(super().drop(state, living), **rest)  # type: ignore[call-arg]


def _groups(everyone: tuple[int, ...], living: Tensor, count: int, groups: int) -> list[Tensor]:
    """Places of the particles, `count` a member, of the living members whose identities are equal
    modulo `groups`; in the order of identities."""
    order = sorted(living.cpu().nonzero()[:, 0].tolist(), key=lambda place: everyone[place])
    return [
        torch.tensor(
            [k * count + i for k in order if everyone[k] % groups == group for i in range(count)],
            dtype=torch.long,
        )
        for group in range(groups)
    ]


def _nearest(denoised: Tensor, living: Tensor, count: int) -> Tensor:
    """For each particle the living member whose simulated one is next to it, (J M,); for a
    simulated one its own member."""
    members = torch.arange(len(living), device=denoised.device)
    if count == 1:
        return members
    seen = members[living.to(members.device)]
    nearest = seen[torch.cdist(denoised, denoised[::count][seen]).argmin(dim=1)]
    nearest[::count] = members
    return nearest
