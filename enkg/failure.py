"""Members that fail: why, and what is done about them.

A failed member is data, not an exception: its row of the simulated data is NaN, and a `Failure`
says why. `FailurePolicy` decides how often it is tried again, how many may fail, and what becomes
of those that did.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from enkg.errors import InputError


class Cause(StrEnum):
    """Why a member has no answer."""

    TIMEOUT = "timeout"
    EXIT = "exit code"
    SIGNAL = "signal"
    MEMORY = "out of memory"
    MISSING = "missing output"
    TRUNCATED = "truncated output"
    MALFORMED = "malformed output"
    SHAPE = "wrong shape"
    NONFINITE = "NaN or infinity"
    RANGE = "out of range"
    OUTLIER = "blow-up"
    REPORTED = "reported by the simulator"
    EXCEPTION = "exception"
    PROTOCOL = "protocol error"
    LAUNCH = "launch failure"
    LOST = "process lost"
    CUT = "straggler cut"
    UNFINISHED = "not finished"
    DISK = "disk full"
    WORLD = "wrong MPI world"


@dataclass(frozen=True)
class Failure:
    """Why one member failed.

    detail: one line, such as the last line of stderr. kept: the folder with its files, if kept.
    """

    cause: Cause
    detail: str = ""
    kept: Path | None = None

    @property
    def text(self) -> str:
        """Cause and detail; the name of an exception says the cause by itself."""
        if self.detail and self.cause is Cause.EXCEPTION:
            return self.detail
        return f"{self.cause}: {self.detail}" if self.detail else str(self.cause)

    def __str__(self) -> str:
        return f"{self.text} (files kept in {self.kept})" if self.kept else self.text


class MemberFailed(Exception):
    """Raised inside adapters for one call; the failure policy turns it into a NaN row."""

    def __init__(self, cause: Cause, detail: str = "", kept: Path | None = None) -> None:
        self.failure = Failure(cause, detail, kept)
        super().__init__(str(self.failure))


TRANSIENT = (
    Cause.LAUNCH,
    Cause.LOST,
    Cause.SIGNAL,
    Cause.MISSING,
    Cause.TRUNCATED,
    Cause.TIMEOUT,
)
"""Causes that a second attempt may cure; the others come from the input and come again."""


@dataclass(frozen=True)
class FailurePolicy:
    """What happens to members that crash, hang or answer rubbish.

    Whatever is set here, the run stops with one error when every member of a batch fails.
    """

    timeout: float | None = None
    """Seconds that one call may take, from its start; None takes the simulator's own limit."""
    retries: int = 1
    """Further attempts for a member that failed by a cause of `retry_on`."""
    retry_on: tuple[Cause, ...] = TRANSIENT
    """The causes worth another attempt."""
    minimum_success: float = 0.5
    """Smallest share of members that must survive each sweep."""
    straggler: float = 0.0
    """Once the minimum is reached, cut members that take this many times the median; 0 waits."""
    drop: bool = False
    """Go on with fewer members; else each failed one is drawn anew from the survivors."""
    blow_up: float = 1e4
    """A member whose data lie this many times the median distance from the median member has blown
    up, and counts as failed; 0 lets everything finite pass."""

    def __post_init__(self) -> None:
        if not 0 < self.minimum_success <= 1:
            raise InputError(
                f"minimum_success is {self.minimum_success}; expected a share above 0, at most 1"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"timeout is {self.timeout}; expected seconds, more than 0, or None")
        if self.retries < 0:
            raise InputError(f"retries is {self.retries}; expected 0 or more")
        if self.straggler != 0 and not self.straggler > 1:
            raise InputError(f"straggler is {self.straggler}; expected more than 1, or 0 for never")
        if self.blow_up != 0 and not self.blow_up > 1:
            raise InputError(f"blow_up is {self.blow_up}; expected more than 1, or 0 for never")
        unknown = [c for c in self.retry_on if c not in list(Cause)]
        if unknown:
            known = ", ".join(repr(str(cause)) for cause in Cause)
            raise InputError(f"retry_on names {unknown[0]!r}; the causes are {known}")
