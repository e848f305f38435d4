"""What every guidance method is: an explicit state, a first state, and one step.

A method is handed the simulator's answers by `forward`; it does not run, log or draw anything. The
state is complete: a run can stop between any two steps and go on from the state alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.ensemble import resample_dead
from enkg.errors import InputError
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream

Forward = Callable[[Tensor], Tensor]
"""Clean ensemble (J, *X), prior units, to simulated data (J, *Y); a failed member is a NaN row."""


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands between two steps.

    x: ensemble at noise level sigma, shape (J, *X), prior units. members: the J identities that key
    the random numbers. beta: power of the likelihood spent so far, 0 to 1. finished: x holds the
    result (then sigma is 0).
    """

    x: Tensor
    members: tuple[int, ...]
    seed: int
    step: int = 0
    sigma: float = 0.0
    beta: float = 0.0
    finished: bool = False


@dataclass(frozen=True, eq=False)
class Info:
    """What one step did, for people and for the record.

    evaluated: pairs (clean ensemble, simulated data) of this step, in order, one for each sweep
    over the members; empty for a step without simulator calls. misfit: |whitened residual|^2 / m
    averaged over the living members, of the last sweep. power: likelihood power used. progress:
    estimated share of the run that is done.
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

    posterior_law: ClassVar[str | None] = None
    """On which problems the result is the exact posterior; None where there is no such law."""

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(f"{self.members} members; an ensemble needs at least 2")

    @abstractmethod
    def init(self, prior: Prior, seed: int, like: Tensor) -> State:
        """The first state, with the dtype and device of `like`. No simulator call."""

    @abstractmethod
    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        """One step; at most `sweeps` times J simulator calls over the whole run."""

    @property
    @abstractmethod
    def sweeps(self) -> int:
        """Largest number of simulator calls a member that a run can take."""

    @property
    def posterior_members(self) -> int:
        """Members of the result, where none fails."""
        return self.members

    def drop(self, state: State, living: Tensor) -> State:
        """The state after a step, without the members that failed in it. living: bool, (J,)."""
        kept = tuple(j for j, alive in zip(state.members, living.tolist(), strict=True) if alive)
        return replace(state, x=state.x[living.to(state.x.device)], members=kept)


def revive(x: Tensor, survivors: Tensor, state: State) -> Tensor:
    """Dead members, resampled from the survivors with noise of their own; others unmoved."""
    if bool(survivors.all()):
        return x
    # Column k of a member's noise belongs to member k, wherever that stands in the ensemble.
    noise = random.normal(
        (max(state.members) + 1,), state.seed, Stream.RESAMPLE, state.members, state.step
    )
    return resample_dead(x, survivors, noise[:, list(state.members)].to(x.device))


@dataclass(frozen=True, eq=False)
class Lots:
    """What chance decides in a perturbed update: noise eta, (G, m), and the fold of each member."""

    eta: Tensor
    fold: Tensor | None


def draw_lots(state: State, observation: Observation, living: Tensor, folds: int) -> Lots:
    """For the G living members. A member's fold follows from its identity alone."""
    members = torch.tensor(state.members)[living.cpu()]
    eta = observation.noise(state.seed, members.tolist(), state.step).to(living.device)
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
