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
from enkg.simulator import Announce, Evaluator, Opening, Progress, Result


@dataclass(frozen=True)
class Function:
    """Calls `f` in chunks of members; one bad member harms no other.

    f: takes a batch `(B, *X)`, returns `(B, *Y)`; with `batched=False`, one member, `X` to `Y`.
    to: makes the array that `f` wants from a NumPy array: `numpy.asarray` (the default),
    `torch.from_numpy`, `jax.numpy.asarray`. chunk: rows of a call. Every call then has exactly this
    many rows, the last one filled up by repeating its last member, so that compiled code is
    compiled once and a member's answer does not depend on the size of the ensemble; `pad=False`
    leaves the last call shorter, for functions that see to this themselves. None passes the whole
    batch; a run that is killed then loses all of it, and not only a chunk.

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

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """An evaluator that tells of each chunk when it is done; there is nothing to start."""
        yield _Calls(self)

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """See `Evaluator`. Raises EnsembleFailure if no member at all gave an answer."""
        return _Calls(self).evaluate(x, progress)

    def _chunk(self, part: ndarray, width: int) -> tuple[list["Answer"], Exception | None]:
        """The members of one chunk, and the first exception that was raised."""
        try:
            return [_judged(row, 1) for row in self._call(part, width)], None
        except InputError:
            raise
        except Exception as error:  # a simulator may raise anything
            if len(part) == 1:
                return [(None, exception(error), 1)], error
            return [self._alone(member, width) for member in part], error

    def _alone(self, member: ndarray, width: int) -> "Answer":
        """A member of a chunk that was called in vain."""
        try:
            return _judged(self._call(member[None], width if self.chunk and self.pad else 1)[0], 2)
        except InputError:
            raise
        except Exception as error:  # a simulator may raise anything
            return None, exception(error), 2

    def _call(self, part: ndarray, width: int) -> ndarray:
        """Answers of the members of one chunk, shape (len(part), *Y)."""
        if not self.batched:
            return _host(self._asked(_own(part[0])))[None]
        full = part
        if len(part) < width and self.pad:
            full = np.concatenate([part, np.repeat(part[-1:], width - len(part), axis=0)])
        y = _host(self._asked(_own(full)))
        if y.ndim == 0 or len(y) != len(full):
            raise InputError(
                f"the simulator was given a batch of shape {full.shape} and returned shape "
                f"{y.shape}; axis 0 counts the members, so ({len(full)}, ...) is expected. For a "
                "function of one member use enkg.Function(f, batched=False)"
            )
        return y[: len(part)]

    def _asked(self, x: ndarray) -> Any:
        try:
            return self.f(self.to(x))
        except SystemExit as error:  # a member that ends the process must not end the run
            raise RuntimeError(f"it called exit({error.code})") from error


Answer = tuple[ndarray | None, Failure | None, int]
"""What a member gave, why it failed, and its calls."""


class _Calls:
    """A function at work."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.announce: Announce | None = None

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        function = self.function
        width = 1 if not function.batched else (function.chunk or max(len(x), 1))
        answers: list[Answer] = []
        cause: Exception | None = None
        for first in range(0, len(x), width):
            found, error = function._chunk(x[first : first + width], width)
            cause = cause or error
            answers += found
            if self.announce is not None:
                for j, (row, failure, calls) in enumerate(found, start=first):
                    self.announce(j, None if failure else row, failure, calls)
            if progress is not None:
                progress(len(answers), len(x))
        return _assemble(answers, cause)


def as_evaluator(simulator: Any) -> Evaluator:
    """The simulator itself if it is an adapter, else a `Function` around it."""
    return simulator if isinstance(simulator, Evaluator) else Function(simulator)


@contextmanager
def opened(
    simulator: Any, policy: FailurePolicy | None = None, folder: Path | None = None
) -> Iterator[Evaluator]:
    """Any simulator, ready for a run: what has to be started is started, and stopped at the end."""
    if not isinstance(simulator, Opening):
        simulator = as_evaluator(simulator)
    if isinstance(simulator, Opening):
        with simulator.opened(policy or FailurePolicy(), folder) as evaluator:
            yield evaluator
    else:
        yield simulator


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


def _judged(row: ndarray, calls: int) -> Answer:
    """A row without one finite number is a failure, and shows the shape of the others."""
    if row.size and not np.isfinite(row).any():
        failure = Failure(Cause.NONFINITE, "all values are NaN or infinite")
        return np.full_like(row, np.nan), failure, calls
    return row, None, calls


def _assemble(answers: list[Answer], cause: Exception | None) -> Result:
    rows = [row for row, _, _ in answers]
    failures = tuple(failure for _, failure, _ in answers)
    calls = sum(count for _, _, count in answers)
    shaped = [row for row in rows if row is not None]
    if not shaped:
        first = failures[0] if failures else "the batch is empty"
        raise EnsembleFailure(
            f"the simulator failed for all {len(rows)} members; first: {first}{_line(cause)}",
            failures,
            calls,
        ) from cause
    shapes = {row.shape for row in shaped}
    if len(shapes) > 1:
        raise InputError(f"the simulator returned members of different shapes: {sorted(shapes)}")
    blank = np.full(shaped[0].shape, np.nan, dtype=shaped[0].dtype)
    return Result(np.stack([blank if row is None else row for row in rows]), failures, calls)
