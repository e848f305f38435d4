"""A batch of which some answers are known: only the others are asked for, and kept as they come.

What the cache and the ledger of a run have in common.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure, InputError
from enkg.failure import Cause, Failure
from enkg.simulator import Announce, Announcing, Evaluator, Judging, Progress, Result

NOTHING = Result(np.empty((0, 0)), (), 0)


class ShapesDiffer(InputError):
    """Answers that are known have another shape than new ones."""


@dataclass(frozen=True)
class Settled:
    """What became of a member: an answer, or the failure in its place, and what it cost."""

    y: ndarray | None
    failure: Failure | None = None
    calls: int = 0


def complete(
    inner: Evaluator,
    x: ndarray,
    known: Mapping[int, Settled],
    keep: Announce,
    progress: Progress | None = None,
    others: tuple[int, int] = (0, 0),
) -> Result:
    """The batch x, of which `known` holds some members by their place.

    keep: told of each member of the others as it is settled (see `Announcing`); of evaluators that
    do not announce, once their batch is back. others: see `Judging`. Calls of known members count
    again in the result; those of an evaluator that does not announce are told in even shares.

    Raises EnsembleFailure if no member at all has an answer, ShapesDiffer where known answers have
    another shape than new ones.
    """
    total, paid = len(x), sum(member.calls for member in known.values())
    missing = [j for j in range(total) if j not in known]
    if known and not missing:
        if progress is not None:
            progress(total, total)
        return _joined(total, known, missing, NOTHING, paid)

    def settled(k: int, y: ndarray | None, failure: Failure | None, calls: int) -> None:
        keep(missing[k], y, failure, calls)

    def simulated(count: int, _: int) -> None:
        if progress is not None:
            progress(min(len(known) + count, total), total)

    dead = sum(member.failure is not None for member in known.values())
    elsewhere = (others[0] + len(known) - dead, others[1] + dead)
    with _attached(inner, settled, elsewhere) as announces:
        answers, error = _asked(inner, x[missing] if known else x, simulated)
    if not announces:
        each, more = divmod(answers.calls, max(len(missing), 1))
        for k, failure in enumerate(answers.failures):
            if failure is None or failure.cause is not Cause.UNFINISHED:
                settled(k, None if failure else answers.y[k], failure, each + (k < more))
    if not known:
        if error is not None:
            raise error
        return answers
    return _joined(total, known, missing, answers, paid + answers.calls)


@contextmanager
def _attached(inner: Evaluator, settled: Announce, elsewhere: tuple[int, int]) -> Iterator[bool]:
    """Whether the evaluator announces; where it does, it is told whom."""
    if isinstance(inner, Judging):
        inner.others = elsewhere
    if not isinstance(inner, Announcing):
        yield False
        return
    inner.announce = settled
    try:
        yield True
    finally:
        inner.announce = None


def _asked(
    inner: Evaluator, x: ndarray, progress: Progress
) -> tuple[Result, EnsembleFailure | None]:
    """The simulator's answers. That all of them failed is fatal only if no other has an answer."""
    x.setflags(write=False)
    try:
        result = inner.evaluate(x, progress)
    except EnsembleFailure as error:
        if len(error.failures) != len(x) or not len(x):
            raise
        return Result(np.full((len(x), 0), np.nan), error.failures, error.calls), error
    if len(result.y) != len(x) or len(result.failures) != len(x):
        raise InputError(
            f"{type(inner).__name__} was given {len(x)} members and returned {len(result.y)} rows "
            f"and {len(result.failures)} failures; expected one each"
        )
    return result, None


def _joined(
    total: int, known: Mapping[int, Settled], missing: list[int], answers: Result, calls: int
) -> Result:
    failures: list[Failure | None] = [None] * total
    rows = {j: member.y for j, member in known.items() if member.y is not None}
    for j, member in known.items():
        failures[j] = member.failure
    for j, row, failure in zip(missing, answers.y, answers.failures, strict=True):
        failures[j] = failure
        if failure is None:
            rows[j] = row
    if not rows:
        first = next(filter(None, failures))
        raise EnsembleFailure(
            f"the simulator failed for all {total} members; first: {first}", failures, calls
        )
    shapes = {row.shape for row in rows.values()}
    if len(shapes) > 1:
        raise ShapesDiffer(f"the simulator returned members of different shapes: {sorted(shapes)}")
    y = np.full(
        (total, *shapes.pop()), np.nan, np.result_type(*{row.dtype for row in rows.values()})
    )
    for j, row in rows.items():
        y[j] = row
    return Result(y, tuple(failures), calls)
