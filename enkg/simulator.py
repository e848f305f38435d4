"""What a simulator is.

The scientist writes a function of a batch of members (`Simulator`), or a program. Adapters in
`enkg.execute` turn functions and programs into an `Evaluator`, which never raises for a failed
member: the failure is a row of NaN with a reason.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy import ndarray

from enkg.failure import Failure, FailurePolicy

Progress = Callable[[int, int], None]
"""Called with (members done, members in all) while a batch runs."""

Announce = Callable[[int, ndarray | None, Failure | None, int], None]
"""Called with (place in the batch, answer, why there is none, calls spent) of a settled member."""


@runtime_checkable
class Simulator(Protocol):
    """A batch of members (B, *X) to simulated data (B, *Y), in the simulator's units.

    Row i depends on x[i] alone. A failed member may be a row of NaN.
    """

    def __call__(self, x: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Result:
    """Simulated data of a batch.

    y: shape (B, *Y), NaN rows for failed members. failures: why each member failed, None for
    success. calls: member evaluations that were paid for, repetitions included.
    """

    y: ndarray
    failures: tuple[Failure | None, ...]
    calls: int


@runtime_checkable
class Evaluator(Protocol):
    """An adapter: evaluates a batch and reports failures as data."""

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """x: (B, *X), read-only. Raises only where the simulator itself is unusable."""
        ...


@runtime_checkable
class Opening(Protocol):
    """An adapter with something to start and stop: processes, connections, a pool."""

    def opened(
        self, policy: FailurePolicy, folder: Path | None
    ) -> AbstractContextManager[Evaluator]:
        """The evaluator that a run uses from its start to its end.

        folder: where the files of failed members may be kept; None keeps nothing.
        """
        ...


@runtime_checkable
class Announcing(Protocol):
    """An evaluator that tells of each member of a batch as soon as it is settled.

    announce: told, from any thread and before `evaluate` returns, of each answer and each final
    failure; not of members that were left unfinished. All bundled evaluators fulfil this.
    """

    announce: Announce | None


@runtime_checkable
class Judging(Protocol):
    """An evaluator that gives a batch up once too few of its members can succeed.

    others: how many members of the same batch, which it is not given, have (answered, failed).
    They count as if they were in its batch.
    """

    others: tuple[int, int]
