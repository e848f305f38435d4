"""forward(x0) of `Guidance.step`: the units, the simulator and the instrument, with the checks.

Counts the calls, the failures and their causes, and stops the run when too few members survive.
"""

import logging
import math
from collections import Counter
from time import perf_counter

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.arrays import rows
from enkg.errors import EnsembleFailure, InputError
from enkg.experiment import Experiment
from enkg.failure import Cause, Failure
from enkg.simulator import Evaluator, Progress

log = logging.getLogger("enkg")


class Forward:
    """Clean ensemble in prior units (J, *X) to data (J, *D); a failed member is a row of NaN."""

    def __init__(self, experiment: Experiment, evaluator: Evaluator, progress: Progress) -> None:
        self.experiment, self.evaluator, self.progress = experiment, evaluator, progress
        self.calls = self.failed = self.asked = 0
        self.causes: Counter[str] = Counter()
        self.seconds = 0.0

    def __call__(self, x0: Tensor) -> Tensor:
        y, failures = self.simulate(x0)
        y = self._judged(y, failures)
        self._count(failures)
        return torch.from_numpy(y).to(x0.device)

    def simulate(self, x0: Tensor) -> tuple[ndarray, list[Failure | None]]:
        """What came back, before any judgement but the shape's."""
        x = self.experiment.units.to_simulator(x0)
        wild = int((~rows(x).isfinite().all(dim=1)).sum())
        if wild:
            raise EnsembleFailure(
                f"{wild} of {len(x)} members hold NaN or infinity before the simulator sees them: "
                "the prior's denoiser or the units gave them"
            )
        given = x.detach().cpu().numpy()
        given.setflags(write=False)
        begin = perf_counter()
        result = self.evaluator.evaluate(given, self.progress)
        self.seconds += perf_counter() - begin
        self.calls += result.calls
        self.asked += len(x)
        if len(result.y) != len(x) or len(result.failures) != len(x):
            raise InputError(
                f"{type(self.evaluator).__name__} was given {len(x)} members and returned "
                f"{len(result.y)} rows and {len(result.failures)} failures; expected one each"
            )
        failures = list(result.failures)
        return self._observed(result.y, failures), failures

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

    def _judged(self, y: ndarray, failures: list[Failure | None]) -> ndarray:
        """Checked data: a failed member is NaN throughout, of the others, masked NaN is 0."""
        mask = self.experiment.observation.mask.numpy()
        finite = np.isfinite(y[:, mask]).all(axis=1)
        for j in np.flatnonzero(~finite):
            failures[j] = failures[j] or Failure(Cause.NONFINITE, "some data are NaN or infinite")
        y = np.where(mask | np.isfinite(y), y, 0.0).astype(y.dtype)
        living = np.array([failure is None for failure in failures])
        for j, ratio in self._blown_up(y, living):
            failures[j] = Failure(
                Cause.OUTLIER,
                f"its data lie {ratio:.1g} times the median distance from the median member",
            )
            living[j] = False
        y[~living] = np.nan
        return y

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

    def _count(self, failures: list[Failure | None]) -> None:
        """Into the log and the totals; raises EnsembleFailure where too few survive."""
        count, policy = len(failures), self.experiment.failure
        found = [failure for failure in failures if failure is not None]
        self.failed += len(found)
        self.causes.update(str(failure.cause) for failure in found)
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
