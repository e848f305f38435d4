"""The in-process adapter: a Python function of NumPy, torch or JAX arrays."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg import abilities
from enkg.abilities import SVD
from enkg.errors import EnsembleFailure, InputError
from enkg.failure import Cause, Failure, FailurePolicy
from enkg.simulator import Announce, Evaluator, Opening, Progress, Result

log = logging.getLogger("enkg")


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

    vjp, adjoint, pinv, svd: what the simulator offers beside its answers, see `enkg.abilities`, on
    NumPy arrays whatever `to` is; an svd is an object. None takes what `f` itself has by that name.
    With `batched=False` vjp too takes one member, (X), (Y) to X. `enkg.torch_vjp` and
    `enkg.jax_vjp` make one of a function that those libraries can differentiate.
    """

    f: Callable[[Any], Any]
    to: Callable[[ndarray], Any] = np.asarray
    chunk: int | None = None
    batched: bool = True
    pad: bool = True
    vjp: Callable[[ndarray, ndarray], Any] | None = None
    adjoint: Callable[[ndarray], Any] | None = None
    pinv: Callable[[ndarray], Any] | None = None
    svd: SVD | None = None

    def __post_init__(self) -> None:
        if not callable(self.f):
            raise InputError(f"the simulator is a {type(self.f).__name__}, which cannot be called")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}; expected at least one member a call")
        for name in ("vjp", "adjoint", "pinv"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise InputError(f"{name} is a {type(given).__name__}, which cannot be called")

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """An evaluator that tells of each chunk when it is done; there is nothing to start."""
        yield _Calls(self)

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """See `Evaluator`. Raises EnsembleFailure if no member at all gave an answer."""
        return _Calls(self).evaluate(x, progress)

    def pull_back(self, x: ndarray, v: ndarray) -> ndarray:
        """J(x)^T v, (B, *X) and (B, *Y) to (B, *X), in the chunks of a call.

        A member whose vjp raises, or gives anything but finite numbers, is a NaN row. Raises
        MissingCapability where there is no vjp, InputError for one that returns another shape.
        """
        x, v = np.asarray(x), np.asarray(v)
        if len(x) != len(v):
            raise InputError(f"vjp was given {len(x)} members and {len(v)} cotangents")
        vjp = self._vjp()
        rows: list[ndarray] = []
        errors: list[Exception] = []
        width = self._width(x)
        for first in range(0, len(x), width):
            place = slice(first, first + width)
            rows += self._pulled(vjp, x[place], v[place], width, errors)
        if errors:
            told = f"{exception(errors[0])}{_line(errors[0])}"
            log.warning("the gradient of %d members failed; the first: %s", len(errors), told)
        return np.stack(rows) if rows else np.empty_like(x)

    def _vjp(self) -> Callable[[ndarray, ndarray], Any]:
        """Of a batch."""
        own = self.vjp or getattr(self.f, "vjp", None)
        if own is None:
            abilities.require(self, ("vjp",), "a gradient")
        elif not self.batched:
            return lambda x, v: _host(own(x[0], v[0]))[None]
        found = own or abilities.of(self).vjp
        assert found is not None
        return found

    def _pulled(
        self, vjp: Callable, x: ndarray, v: ndarray, width: int, errors: list[Exception]
    ) -> list[ndarray]:
        """Rows of one chunk; after an exception, of its members one by one."""
        given = [_own(_filled(part, width) if self.pad else part) for part in (x, v)]
        shapes = [part.shape for part in given]
        try:
            pulled = _host(_asked(vjp, *given))
            if pulled.shape != shapes[0]:
                raise InputError(
                    f"vjp was given x of shape {shapes[0]} and v of shape {shapes[1]} and returned "
                    f"{pulled.shape}; expected the shape of x"
                )
        except InputError:
            raise
        except Exception as error:  # a simulator may raise anything
            if len(x) > 1:
                alone = width if self.chunk and self.pad else 1
                pairs = [(x[j : j + 1], v[j : j + 1]) for j in range(len(x))]
                return [self._pulled(vjp, *pair, alone, errors)[0] for pair in pairs]
            errors.append(error)
            return [np.full_like(x[0], np.nan, dtype=x.dtype if x.dtype.kind == "f" else float)]
        return [_or_nan(row) for row in pulled[: len(x)]]

    def _width(self, x: ndarray) -> int:
        """Members of a call."""
        return 1 if not self.batched else (self.chunk or max(len(x), 1))

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
            return _host(_asked(self._of, _own(part[0])))[None]
        full = _filled(part, width) if self.pad else part
        y = _host(_asked(self._of, _own(full)))
        if y.ndim == 0 or len(y) != len(full):
            raise InputError(
                f"the simulator was given a batch of shape {full.shape} and returned shape "
                f"{y.shape}; axis 0 counts the members, so ({len(full)}, ...) is expected. For a "
                "function of one member use enkg.Function(f, batched=False)"
            )
        return y[: len(part)]

    def _of(self, x: ndarray) -> Any:
        return self.f(self.to(x))


Answer = tuple[ndarray | None, Failure | None, int]
"""What a member gave, why it failed, and its calls."""


class _Calls:
    """A function at work."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.announce: Announce | None = None

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        function = self.function
        width = function._width(x)
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


def _asked(f: Callable, *given: Any) -> Any:
    try:
        return f(*given)
    except SystemExit as error:  # a member that ends the process must not end the run
        raise RuntimeError(f"it called exit({error.code})") from error


def _own(part: ndarray) -> ndarray:
    return np.array(part, order="C", copy=True)


def _filled(part: ndarray, width: int) -> ndarray:
    """With so many rows: the last one is repeated."""
    if len(part) >= width:
        return part
    return np.concatenate([part, np.repeat(part[-1:], width - len(part), axis=0)])


def _or_nan(row: ndarray) -> ndarray:
    return row if np.isfinite(row).all() else np.full_like(row, np.nan)


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
