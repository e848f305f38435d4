"""What every guidance method is: an explicit state, a first state, and one step.

A method is handed the simulator's answers by `forward`; it does not run, log or draw anything. The
state is complete: a run can stop between any two steps and go on from the state alone.

The ensemble may be spread over ranks (`enkg.comm`): each holds a block of the members, `forward`
takes that block and gives the data of all members to everybody. So a method denoises its own
members, leaves decisions and gains to rank 0 (`once`), and moves all members by `mixed`. With one
process all of this is as if it were not there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.comm import ALONE, Comm, across, share
from enkg.ensemble import resample_dead
from enkg.errors import InputError
from enkg.observation import Observation
from enkg.prior import Placed, Prior
from enkg.random import Stream

Forward = Callable[[Tensor], Tensor]
"""Clean ensemble of this rank (J_r, *X), prior units, to the simulated data of all members,
(J, *Y); a failed member is a NaN row."""


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands between two steps.

    x: this rank's members at noise level sigma, shape (J_r, *X), prior units; all J of them where
    there is one process. members: the identities of these, which key the random numbers. beta:
    power of the likelihood spent so far, 0 to 1. finished: x holds the result (then sigma is 0).
    comm: who holds the other members. remarks: sentences about the run, for its user.
    """

    sharded: ClassVar[tuple[str, ...]] = ("x", "members")
    """The fields that hold a row for each member of this rank; all others are the same on all."""

    x: Tensor
    members: tuple[int, ...]
    seed: int
    step: int = 0
    sigma: float = 0.0
    beta: float = 0.0
    finished: bool = False
    comm: Comm = field(default=ALONE, repr=False)
    remarks: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "State":
        """The same state, with the ensemble on that device."""
        return replace(self, x=self.x.to(device))

    @property
    def everyone(self) -> tuple[int, ...]:
        """The identities of all J members, in the order of the data. Collective."""
        return tuple(j for block in self.comm.gather(self.members) for j in block)

    def own(self, values: Tensor) -> Tensor:
        """This rank's part of something that has a row for each of the J members. Collective."""
        first = self.first
        return values[first : first + len(self.members)]

    @property
    def first(self) -> int:
        """The place of this rank's first member among all. Collective."""
        return sum(self.comm.gather(len(self.members))[: self.comm.rank])


@dataclass(frozen=True, eq=False)
class Info:
    """What one step did, for people and for the record.

    evaluated: pairs (clean ensemble of this rank, simulated data of all members) of this step, in
    order, one for each sweep over the members, or the first alone where a step asks for many
    candidates; empty for a step without simulator calls. misfit:
    |whitened residual|^2 / m averaged over the living members, of the last sweep. power: likelihood
    power used. progress: estimated share of the run that is done.
    """

    step: int
    sigma: float
    progress: float
    power: float = 0.0
    beta: float = 0.0
    misfit: float | None = None
    evaluated: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Guidance(ABC):
    """A method. Subclasses are final, and each is one file of this folder."""

    members: int = 512
    """Ensemble size J."""

    state: ClassVar[type[State]] = State
    """What the method's states are, for those who read them from a disk."""
    posterior_law: ClassVar[str | None] = None
    """On which problems the result is the exact posterior; None where there is no such law."""
    of_pixels: ClassVar[bool] = False
    """Whether `needs` are of the simulator of decoded members, where the prior is a latent one."""
    begins_at_prior: ClassVar[bool] = True
    """Whether the first evaluated ensemble consists of prior samples."""

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(f"{self.members} members; an ensemble needs at least 2")

    @abstractmethod
    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        """The first state, with the dtype and device of `like`. No simulator call."""

    @abstractmethod
    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        """One step; at most `calls_for` simulator calls over the whole run."""

    @property
    @abstractmethod
    def sweeps(self) -> int:
        """Largest number of simulator calls a member that a run can take, whatever the prior."""

    def sweeps_for(self, prior: Prior) -> int:
        """The same for one prior."""
        return self.sweeps

    def calls_for(self, prior: Prior) -> int:
        """Largest number of simulator calls of a run, without `predict`."""
        return self.sweeps_for(prior) * self.members

    @property
    def posterior_members(self) -> int:
        """Members of the result, where none fails."""
        return self.members

    def own_members(self, prior: object, comm: Comm, count: int | None = None) -> tuple[int, ...]:
        """This rank's part of an ensemble of so many members; `members` if no count is given."""
        own = share(self.members if count is None else count, comm.size, comm.rank)
        if isinstance(prior, Placed):
            prior.first = own.start
        return tuple(own)

    @property
    def needs(self) -> tuple[Ability, ...]:
        """What the method asks of the simulator beside its answers."""
        return ()

    def doubts(self, prior: Prior) -> tuple[str, ...]:
        """What a user should know of these settings for that prior, for `State.remarks`."""
        return ()

    def drop(self, state: State, living: Tensor) -> State:
        """The state after a step, without the members that failed in it. living: bool, (J,)."""
        own = state.own(living)
        kept = tuple(j for j, alive in zip(state.members, own.tolist(), strict=True) if alive)
        return replace(state, x=state.x[own.to(state.x.device)], members=kept)


def mixed(state: State, x: Tensor, living: Tensor, moved: Callable[[Tensor], Tensor]) -> Tensor:
    """This rank's members after an update that mixes all of them, shape (J_r, *X).

    x: this rank's members. living: bool, (J,). moved: the living members (G, w) of any w unknowns
    to their update; dead ones are then drawn anew from the moved ones, with noise of their own.
    """
    noise = _noise_of_the_dead(living, state)

    def tile(columns: Tensor) -> Tensor:
        columns = columns.clone()
        columns[living] = moved(columns[living])
        return columns if noise is None else resample_dead(columns, living, noise)

    return across(state.comm, x, tile)


def _noise_of_the_dead(living: Tensor, state: State) -> Tensor | None:
    """One row for each dead member, one column for each living one; None if all are alive."""
    if bool(living.all()):
        return None
    everyone = torch.tensor(state.everyone)
    alive = living.cpu()
    # Column k of a member's noise belongs to member k, wherever that stands in the ensemble.
    shape = (int(everyone.max()) + 1,)
    dead = everyone[~alive].tolist()
    noise = random.normal(shape, state.seed, Stream.RESAMPLE, dead, state.step)
    return noise[:, everyone[alive]].to(living.device)


@dataclass(frozen=True, eq=False)
class Lots:
    """What chance decides in a perturbed update: noise eta, (G, m), and the fold of each member."""

    eta: Tensor
    fold: Tensor | None


def draw_lots(
    key: tuple[int, int],
    everyone: Sequence[int],
    observation: Observation,
    living: Tensor,
    folds: int,
) -> Lots:
    """For the G living members of all. key: seed and step.

    A member's fold follows from its identity alone.
    """
    seed, step = key
    members = torch.tensor(everyone)[living.cpu()]
    eta = observation.noise(seed, members.tolist(), step).to(living.device)
    fold = members % folds
    others = len(fold) - fold.bincount(minlength=folds)
    if folds == 1 or int(others.min()) < 2:  # one gain, also where too few are left for a fold's
        return Lots(eta, None)
    return Lots(eta, fold.to(living.device))


def check_folds(folds: int, members: int) -> None:
    """Raises InputError where the members do not fill the folds."""
    if folds < 1 or (folds > 1 and members < 2 * folds):
        raise InputError(
            f"{folds} folds of {members} members; give at least one fold, and two members for each"
        )
