"""The in-process adapter: a Python function of NumPy, torch or JAX arrays."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure, InputError
from enkg.failure import Cause, Failure, FailurePolicy
from enkg.simulator import Evaluator, Opening, Progress, Result


@dataclass(frozen=True)
class Function:
    """Calls `f` in chunks of members; one bad member harms no other.

    f: takes a batch `(B, *X)`, returns `(B, *Y)`; with `batched=False`, one member, `X` to `Y`.
    to: makes the array that `f` wants from a NumPy array: `numpy.asarray` (the default),
    `torch.from_numpy`, `jax.numpy.asarray`. chunk: rows of a call. Every call then has exactly this
    many rows, the last one filled up by repeating its last member, so that compiled code is
    compiled once and a member's answer does not depend on the size of the ensemble; `pad=False`
    leaves the last call shorter, for functions that see to this themselves. None passes the whole
    batch.

    An exception in a chunk repeats that chunk member by member; members that raise, or answer with
    anything but finite numbers, become NaN rows. Of a failure policy, nothing that would have to
    stop a call can hold here: no timeout, no straggler cut. `Pool` and `Program` can.
    """

    f: Callable[[Any], Any]
    to: Callable[[ndarray], Any] = np.asarray
    chunk: int | None = None
    batched: bool = True
    pad: bool = True

    def __post_init__(self) -> None:
        if not callable(self.f):
            raise InputError(f"the simulator is a {type(self.f).__name__}, which cannot be called")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}; expected at least one member a call")

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """See `Evaluator`. Raises EnsembleFailure if no member at all gave an answer."""
        width = 1 if not self.batched else (self.chunk or max(len(x), 1))
        rows: list[ndarray | None] = []
        failures: list[Failure | None] = []
        cause: Exception | None = None
        calls = 0
        for first in range(0, len(x), width):
            part = x[first : first + width]
            calls += len(part)
            try:
                rows += list(self._call(part, width))
                failures += [None] * len(part)
            except InputError:
                raise
            except Exception as error:  # a simulator may raise anything
                cause = cause or error
                if len(part) == 1:
                    rows.append(None)
                    failures.append(exception(error))
                else:
                    calls += len(part)
                    for member in part:
                        row, failure = self._alone(member, width)
                        rows.append(row)
                        failures.append(failure)
            if progress is not None:
                progress(min(first + width, len(x)), len(x))
        return Result(*_assemble(rows, failures, cause, calls), calls)

    def _alone(self, member: ndarray, width: int) -> tuple[ndarray | None, Failure | None]:
        try:
            return self._call(member[None], width if self.chunk and self.pad else 1)[0], None
        except InputError:
            raise
        except Exception as error:  # a simulator may raise anything
            return None, exception(error)

    def _call(self, part: ndarray, width: int) -> ndarray:
        """Answers of the members of one chunk, shape (len(part), *Y)."""
        if not self.batched:
            return _host(self.f(self.to(_own(part[0]))))[None]
        full = part
        if len(part) < width and self.pad:
            full = np.concatenate([part, np.repeat(part[-1:], width - len(part), axis=0)])
        y = _host(self.f(self.to(_own(full))))
        if y.ndim == 0 or len(y) != len(full):
            raise InputError(
                f"the simulator was given a batch of shape {full.shape} and returned shape "
                f"{y.shape}; axis 0 counts the members, so ({len(full)}, ...) is expected. For a "
                "function of one member use enkg.Function(f, batched=False)"
            )
        return y[: len(part)]


def as_evaluator(simulator: Any) -> Evaluator:
    """The simulator itself if it is an adapter, else a `Function` around it."""
    return simulator if isinstance(simulator, Evaluator) else Function(simulator)


@contextmanager
def opened(
    simulator: Any, policy: FailurePolicy | None = None, folder: Path | None = None
) -> Iterator[Evaluator]:
    """Any simulator, ready for a run: what has to be started is started, and stopped at the end."""
    if isinstance(simulator, Opening):
        with simulator.opened(policy or FailurePolicy(), folder) as evaluator:
            yield evaluator
    else:
        yield as_evaluator(simulator)


def _own(part: ndarray) -> ndarray:
    return np.array(part, order="C", copy=True)


def _host(y: Any) -> ndarray:
    """A NumPy copy of a NumPy, JAX or torch answer on any device."""
    if hasattr(y, "detach"):
        y = y.detach().cpu().numpy()
    out = np.array(y)
    if out.dtype.kind not in "fiub":
        raise InputError(
            f"the simulator returned numbers of type {out.dtype}; expected real numbers. Complex "
            "data go in as real and imaginary parts"
        )
    return out if out.dtype in (np.float32, np.float64) else out.astype(np.float64)


def _line(cause: Exception | None) -> str:
    """Where the user's code raised, for a message."""
    trace = None if cause is None else cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def exception(error: Exception) -> Failure:
    """The failure of a member whose function raised."""
    text = str(error).strip().splitlines()
    name = type(error).__name__
    return Failure(Cause.EXCEPTION, f"{name}: {text[0]}" if text else name)


def _assemble(
    rows: list[ndarray | None],
    failures: list[Failure | None],
    cause: Exception | None,
    calls: int,
) -> tuple[ndarray, tuple[Failure | None, ...]]:
    good = [row for row in rows if row is not None]
    if not good:
        first = failures[0] if failures else "the batch is empty"
        raise EnsembleFailure(
            f"the simulator failed for all {len(rows)} members; first: {first}{_line(cause)}",
            failures,
            calls,
        ) from cause
    shapes = {row.shape for row in good}
    if len(shapes) > 1:
        raise InputError(f"the simulator returned members of different shapes: {sorted(shapes)}")
    blank = np.full(good[0].shape, np.nan, dtype=good[0].dtype)
    y = np.stack([blank if row is None else row for row in rows])
    for j in np.flatnonzero(~np.isfinite(y).reshape(len(y), -1).any(axis=1)):
        failures[j] = failures[j] or Failure(Cause.NONFINITE, "all values are NaN or infinite")
    return y, tuple(failures)
