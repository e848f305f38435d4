"""Errors that a user can mend.

Every message says what was given, what was expected and what to do. The command line prints the
message alone, without a traceback, and ends with a non-zero exit code.
"""


class EnkgError(Exception):
    """Base of all errors that enkg raises on purpose."""


class InputError(EnkgError, ValueError):
    """An argument, a file or a simulator's answer has the wrong shape, value or type."""


class EnsembleFailure(EnkgError, RuntimeError):
    """Too few members of the ensemble survived the simulator."""


class StoreError(EnkgError, OSError):
    """A run directory is in use, missing or unfinished."""
