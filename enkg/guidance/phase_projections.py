"""Phase retrieval by alternating projections: what HIO, ER and OSS share.

The data are magnitudes, y = |F u|, of an object u that is real, not negative on a known support S
and zero outside. The simulator offers the objects themselves (`enkg.abilities.Projection`): their
grid, the support, the map from an object to a member x (with u = (x + 1) / 2 for images in
[-1, 1]), and

    P_M u = Re F^-1 [y F u / |F u|]      the nearest real array with the magnitudes y.

So u >= 0 is a constraint in the simulator's own units, whatever those of the prior are. With
p = P_M u and the places A where p obeys the constraints (in S and p >= 0), an iteration is

    ER     u <- p on A, 0 elsewhere
    HIO    u <- p on A, u - beta p elsewhere
    OSS    as HIO, then outside S a smooth version of itself

and the estimate is always p on A, 0 elsewhere. Each restart begins with random phases. The misfit
to the data is measured at the end of each stage, and a member is the estimate with the smallest one
so far, of all its restarts; nothing else decides, and one without an answer of the simulator comes
last. The prior gives the shape of a member and nothing else.

|F u| stays the same if u is turned by 180 degrees, or shifted within the support. So members are
estimates up to these: align each to the truth before scoring it, and say so. The mean over members
has no meaning. There is no posterior law.

A restart whose projection is not finite stays where it was.

Cost for N iterations, R restarts, K stages and J members: N + 1 projections a restart, each a pair
of Fourier transforms and counted as one product with the simulator's Jacobian, J R (N + 1) in all;
K R J simulator calls, which only measure the misfit. No denoiser call.

References: Fienup 1982, "Phase retrieval algorithms: a comparison", Applied Optics 21, 2758;
Gerchberg and Saxton 1972, Optik 35, 237.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.chains import Projection, each, misfit_per_datum, operator
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream


@dataclass(frozen=True, eq=False)
class ObjectState(State):
    """x: the best estimate of each member so far. u: the objects of all restarts, (J_r, R, *P),
    float64, the simulator's units; (J_r, 0) before the first stage. misfit: Phi of x, (J_r,),
    infinite where nothing has been found."""

    sharded: ClassVar[tuple[str, ...]] = ("x", "members", "u", "misfit")

    u: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    misfit: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "ObjectState":
        return replace(
            self, x=self.x.to(device), u=self.u.to(device), misfit=self.misfit.to(device)
        )


@dataclass(frozen=True)
class AlternatingProjections(Guidance):
    """Base of the methods that go between the magnitudes and the constraints on the object."""

    state: ClassVar[type[State]] = ObjectState
    begins_at_prior: ClassVar[bool] = False

    members: int = 2
    """Number of results, each the best of its own restarts."""
    iterations: int = 2000
    """N: projections of a restart."""
    best_of: int = 4
    """R: restarts of a member; the one with the smallest misfit to the data is the result."""
    stages: int = 10
    """K: how often the misfit is measured; a step of the run is a stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_of < 1:
            raise InputError(f"best_of is {self.best_of}; expected at least one restart")
        if not 1 <= self.stages <= self.iterations:
            raise InputError(
                f"{self.iterations} iterations in {self.stages} stages; expected at least one "
                "stage, and one iteration in each"
            )

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("project",)

    @property
    def sweeps(self) -> int:
        return self.stages * self.best_of

    @abstractmethod
    def moved(self, u: Tensor, p: Tensor, obeys: Tensor, support: Tensor, k: int) -> Tensor:
        """The next objects, from u, p = P_M u and where p obeys the constraints, (B, *P).

        k: number of this iteration, from 0."""

    def ends(self, stage: int) -> int:
        """Iterations that are done when a stage begins."""
        return self.iterations * stage // self.stages

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        members = self.own_members(prior, comm)
        x = torch.zeros(len(members), *prior.shape, dtype=like.dtype, device=like.device)
        none = torch.zeros(len(members), 0, dtype=torch.float64, device=like.device)
        worst = torch.full_like(none.sum(dim=1), torch.inf)
        return ObjectState(x, members, seed, comm=comm, u=none, misfit=worst)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, ObjectState)
        project = projection(forward)
        support = project.support.to(state.x.device)
        y = torch.where(observation.mask, observation.y, torch.nan).to(state.x.device)
        i, grid = state.step, tuple(support.shape)
        if i == 0:
            shape = (self.best_of, *grid)
            noise = random.normal(shape, state.seed, Stream.START, state.members, 0)
            u = project.onto(noise.to(state.u).flatten(0, 1), y)
        else:
            u = state.u.flatten(0, 1)
        estimate = torch.zeros_like(u)
        for k in range(self.ends(i), self.ends(i + 1)):
            p = project.onto(u, y)
            good = each(rows(p).isfinite().all(dim=1), p)
            obeys = support & (p >= 0)
            estimate = torch.where(good, torch.where(obeys, p, 0.0), torch.where(support, u, 0.0))
            u = torch.where(good, self.moved(u, p, obeys, support, k), u)
        u = u.reshape(-1, self.best_of, *grid)
        estimate = estimate.reshape(u.shape)
        x, misfit, everyone = self._best(state, estimate, project, forward, observation)
        info = Info(
            step=i,
            sigma=0.0,
            progress=(i + 1) / self.stages,
            misfit=misfit_per_datum(everyone, observation),
            evaluated=((x, everyone),),
        )
        better = misfit < state.misfit
        if i == 0:
            better = torch.ones_like(better)
        state = replace(
            state,
            x=torch.where(each(better, x), x, state.x),
            u=u,
            misfit=torch.where(better, misfit, state.misfit),
            step=i + 1,
            finished=i + 1 == self.stages,
        )
        return state, info

    def _best(
        self,
        state: State,
        estimate: Tensor,
        project: Projection,
        forward: Forward,
        observation: Observation,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The restart of each member that fits best, (J_r, *X), its misfit (J_r,), and the data of
        all, (J, *Y)."""
        x = torch.stack([project.crop(estimate[:, r]) for r in range(self.best_of)]).to(state.x)
        y = torch.stack([forward(x[r]) for r in range(self.best_of)])
        misfit = torch.stack([observation.misfit(answers) for answers in y])
        misfit = torch.where(misfit.isfinite(), misfit, torch.inf)
        least, best = misfit.min(dim=0)
        everyone = y[best, torch.arange(len(best), device=y.device)]
        own = state.own(best)
        x = x[own, torch.arange(len(own), device=x.device)]
        return x, state.own(least), everyone

    def drop(self, state: State, living: Tensor) -> State:
        """A member without an answer has no misfit in that stage, and goes on."""
        return state


def projection(forward: Forward) -> Projection:
    """The projection onto the magnitudes that the simulator offers."""
    return operator(forward).project


def check_feedback(beta: float) -> None:
    """Raises InputError for a feedback that is not positive."""
    if not beta > 0:
        raise InputError(f"feedback is {beta}; expected a positive number, usually .5 to 1")
