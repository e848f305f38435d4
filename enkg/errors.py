"""Errors that a user can mend.

Every message says what was given, what was expected and what to do. The command line prints the
message alone, without a traceback, and ends with a non-zero exit code.
"""

from collections.abc import Sequence
from typing import Any


class EnkgError(Exception):
    """Base of all errors that enkg raises on purpose."""


class InputError(EnkgError, ValueError):
    """An argument, a file or a simulator's answer has the wrong shape, value or type."""


class MissingCapability(InputError):
    """A method needs something of the prior or of the simulator that it does not have."""

    def __init__(self, method: str, capability: str, advice: str = "") -> None:
        super().__init__(f"{method} needs {capability}{f'; {advice}' if advice else ''}")


class EnsembleFailure(EnkgError, RuntimeError):
    """Too few members of the ensemble survived the simulator.

    failures: why each member failed, where an adapter raises this because all of them did. calls:
    what they cost.
    """

    def __init__(self, message: str, failures: Sequence[Any] = (), calls: int = 0) -> None:
        super().__init__(message)
        self.failures, self.calls = tuple(failures), calls


class StoreError(EnkgError, OSError):
    """A run directory is in use, missing or unfinished."""


class InUse(StoreError):
    """Another process is writing into the run directory."""
