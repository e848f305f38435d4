"""forward(x0) of `Guidance.step`: the units, the simulator and the instrument, with the checks.

Counts the calls, the failures and their causes, and stops the run when too few members survive.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.arrays import rows
from enkg.comm import ALONE, Comm, once, together
from enkg.errors import EnsembleFailure, InputError
from enkg.experiment import Experiment
from enkg.failure import Cause, Failure
from enkg.ledger import Ledger
from enkg.machine import threads
from enkg.operator import Operator
from enkg.simulator import Evaluator, Judging, Progress, Result

log = logging.getLogger("enkg")


@dataclass
class Count:
    """What a run has spent so far, of all ranks.

    batches: sweeps over the members. asked: members simulated. calls: simulator calls paid for,
    repetitions included. failed: members without an answer, causes: why. seconds: of the slowest
    rank, in the simulator. low_calls: calls of the low-fidelity simulator; `calls` has none of
    them, all else counts both simulators.
    """

    batches: int = 0
    asked: int = 0
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    low_calls: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Count":
        """The inverse of `as_mapping`."""
        return cls(**{**values, "causes": Counter(values["causes"])})

    def as_mapping(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {**vars(self), "causes": dict(self.causes)}

    def add(
        self, failures: Sequence[Failure | None], calls: int, seconds: float, low: bool = False
    ) -> None:
        found = [failure for failure in failures if failure is not None]
        self.batches += 1
        self.asked += len(failures)
        self.calls += 0 if low else calls
        self.low_calls += calls if low else 0
        self.failed += len(found)
        self.seconds += seconds
        self.causes.update(str(failure.cause) for failure in found)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Of one rank's members."""

    y: ndarray
    failures: list[Failure | None]
    calls: int
    seconds: float


class Forward:
    """Clean ensemble in prior units to the data of all members, (J, *D); a failed member is NaN.

    Each rank simulates its own members, (J_r, *X), and gets the data of all. `low` is the same of
    the low-fidelity simulator, None where there is none; both count into one `count`, and number
    their sweeps together.
    """

    cheap = False
    decoded = False

    def __init__(
        self,
        experiment: Experiment,
        evaluator: Evaluator,
        progress: Progress,
        comm: Comm = ALONE,
        ledger: Ledger | None = None,
        low: Evaluator | None = None,
    ) -> None:
        self.experiment, self.evaluator, self.progress = experiment, evaluator, progress
        self.comm, self.ledger = comm, ledger
        self.count = Count()
        self.low: _Beside | None = None
        self._pixel: _Beside | None = None
        self.operator = Operator(self)
        if low is not None:
            self.low = _Beside(_with_low(experiment), low, progress, comm)
            self.low.cheap = True
        self.go_on(self.count, ledger)
        self.batch = 0
        """Number of the sweep now simulated, from 0."""
        self.elsewhere = 0
        """Members that other ranks simulate."""
        self.cores = torch.get_num_threads()

    def go_on(self, count: Count, ledger: Ledger | None) -> None:
        """From what has been spent, with the answers that are there."""
        self.count, self.ledger = count, ledger
        for other in (self.low, self._pixel):
            if other is not None:
                other.go_on(count, ledger)

    @property
    def latest(self) -> int:
        """Number of the last sweep that was begun, of either simulator."""
        others = [f.batch for f in (self.low, self._pixel) if f is not None]
        return max(self.batch, *others, 0)

    @property
    def pixel(self) -> "Forward":
        """The same for members that are decoded already."""
        if self._pixel is None:
            self._pixel = _Beside(self.experiment, self.evaluator, self.progress, self.comm)
            self._pixel.decoded = True
            self._pixel.go_on(self.count, self.ledger)
        return self._pixel

    def aside(self, x0: Tensor) -> Tensor:
        """Data of decoded members, (J, *X) to (J, *Y), which are neither counted nor kept."""
        x = _given(self.experiment.units.to_simulator(x0))
        with threads(self.cores):
            y = self._observed(self.evaluator.evaluate(x).y, [None] * len(x))
        return torch.from_numpy(y)

    def __call__(self, x0: Tensor) -> Tensor:
        self.batch = self.count.batches
        counts = self.comm.gather(len(x0))
        first = sum(counts[: self.comm.rank])
        self.elsewhere = sum(counts) - len(x0)
        with threads(self.cores):
            own = together(self.comm, lambda: self._own(x0, first))
        others = self.comm.gather(replace(own, y=own.y[:0]))
        y = self.comm.rows(torch.from_numpy(own.y)).numpy()
        failures = once(self.comm, lambda: self._judged(y, [f for o in others for f in o.failures]))
        calls, seconds = sum(o.calls for o in others), max(o.seconds for o in others)
        self.count.add(failures, calls, seconds, self.cheap)
        once(self.comm, lambda: self._report(failures))
        dead = [failure is not None for failure in failures]
        y = np.where(self._mask | np.isfinite(y), y, 0.0).astype(y.dtype)
        y[dead] = np.nan
        return torch.from_numpy(y).to(x0.device)

    def _own(self, x0: Tensor, first: int) -> "_Answers":
        """What the simulator says of this rank's members. first: their place among all."""
        blank = np.full((len(x0), *self.experiment.observation.y.shape), np.nan)
        if not len(x0):
            return _Answers(blank, [], 0, 0.0)
        begin = perf_counter()
        try:
            y, failures, calls = self.simulate(x0, first)
        except EnsembleFailure as error:  # other ranks may have done better
            if self.comm.size == 1 or len(error.failures) != len(x0):
                raise
            y, failures, calls = blank, list(error.failures), error.calls
        return _Answers(y, failures, calls, perf_counter() - begin)

    def simulate(self, x0: Tensor, first: int = 0) -> tuple[ndarray, list[Failure | None], int]:
        """Answers of this rank's members, why some have none, and the calls that were paid for."""
        experiment = self.experiment
        x = experiment.units.to_simulator(x0) if self.decoded else experiment.physical(x0, first)
        wild = int((~rows(x).isfinite().all(dim=1)).sum())
        if wild:
            raise EnsembleFailure(
                f"{wild} of {len(x)} members hold NaN or infinity before the simulator sees them: "
                "the prior's denoiser or the units gave them"
            )
        result = self._evaluated(_given(x), first)
        if len(result.y) != len(x) or len(result.failures) != len(x):
            raise InputError(
                f"{type(self.evaluator).__name__} was given {len(x)} members and returned "
                f"{len(result.y)} rows and {len(result.failures)} failures; expected one each"
            )
        failures = list(result.failures)
        return self._observed(result.y, failures), failures, result.calls

    def _evaluated(self, x: ndarray, first: int) -> Result:
        # A rank's adapter must not give up because too many of its own members failed: those of
        # the other ranks may all have succeeded.
        others = self.elsewhere, 0
        if self.ledger is not None:
            return self.ledger.evaluate(self.evaluator, x, self.batch, first, self.progress, others)
        if isinstance(self.evaluator, Judging):
            self.evaluator.others = others
        return self.evaluator.evaluate(x, self.progress)

    def _observed(self, y: ndarray, failures: list[Failure | None]) -> ndarray:
        """Data as the instrument gives them, shape (J, *D)."""
        living = np.array([failure is None for failure in failures])
        observe = self.experiment.observe
        if observe is not None and living.any():
            seen = np.asarray(observe(y[living]))
            if seen.ndim == 0 or len(seen) != int(living.sum()):
                raise InputError(
                    f"observe was given {int(living.sum())} members and returned shape "
                    f"{seen.shape}; axis 0 counts the members"
                )
            y = np.full((len(y), *seen.shape[1:]), np.nan, dtype=seen.dtype)
            y[living] = seen
        expected = tuple(self.experiment.observation.y.shape)
        if y.shape[1:] != expected:
            source = "observe" if observe is not None else "the simulator"
            raise InputError(
                f"{source} returned data of shape {y.shape[1:]} for each member; the observation "
                f"has shape {expected}"
            )
        return y

    @property
    def _mask(self) -> ndarray:
        return self.experiment.observation.mask.numpy()

    def _judged(self, y: ndarray, failures: list[Failure | None]) -> list[Failure | None]:
        """The failures, with those that only the data of all members show."""
        finite = np.isfinite(y[:, self._mask]).all(axis=1)
        for j in np.flatnonzero(~finite):
            failures[j] = failures[j] or Failure(Cause.NONFINITE, "some data are NaN or infinite")
        living = np.array([failure is None for failure in failures])
        for j, ratio in self._blown_up(y, living):
            failures[j] = Failure(
                Cause.OUTLIER,
                f"its data lie {ratio:.1g} times the median distance from the median member",
            )
        return failures

    def _blown_up(self, y: ndarray, living: ndarray) -> list[tuple[int, float]]:
        """Finite members far outside of all others; one of them would drown every statistic."""
        limit = self.experiment.failure.blow_up
        if not limit or living.sum() < 3:
            return []
        index = np.flatnonzero(living)
        whole = self.experiment.observation.residual(torch.from_numpy(y[index])).double().numpy()
        with np.errstate(over="ignore"):
            distance = np.linalg.norm(whole - np.median(whole, axis=0), axis=1)
        typical = float(np.median(distance))
        ratio = distance / max(typical, 1e-6 * math.sqrt(whole.shape[1]))  # 1e-6 of the noise
        return [(int(index[k]), float(ratio[k])) for k in np.flatnonzero(~(ratio <= limit))]

    def _report(self, failures: list[Failure | None]) -> None:
        """Into the log; raises EnsembleFailure where too few survive."""
        count, policy = len(failures), self.experiment.failure
        found = [failure for failure in failures if failure is not None]
        by_cause = Counter(f.cause for f in found).most_common()
        by_cause.sort(key=lambda item: item[0] is Cause.UNFINISHED)  # the true causes first
        first = {f.cause: f.text for f in reversed(found)}
        for cause, times in by_cause:
            log.warning("%d of %d members failed; the first: %s", times, count, first[cause])
        for failure in [f for f in found if f.kept][:3]:
            log.warning("files of a failed member: %s", failure.kept)
        needed = min(count, max(2, math.ceil(policy.minimum_success * count)))
        if count - len(found) < needed:
            table = "; ".join(f"{times} by {cause}" for cause, times in by_cause)
            kept = next((f". See {f.kept}" for f in found if f.kept), "")
            raise EnsembleFailure(
                f"{len(found)} of {count} members failed, and {needed} must survive "
                f"(failure.minimum_success = {policy.minimum_success:g}): {table}; the first: "
                f"{first[by_cause[0][0]]}{kept}"
            )


class _Beside(Forward):
    """Of the low-fidelity simulator, or of members that are decoded already."""


def _given(x: Tensor) -> ndarray:
    given = x.detach().cpu().numpy()
    given.setflags(write=False)
    return given


def _with_low(experiment: Experiment) -> Experiment:
    """The experiment as its low-fidelity simulator sees it."""
    low = experiment.low
    assert low is not None
    return replace(
        experiment, simulator=low.simulator, observe=low.observe or experiment.observe, low=None
    )
