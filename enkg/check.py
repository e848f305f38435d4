"""Is the simulator sound? A few prior draws, before an allocation is spent on it.

A sound simulator answers with the shape that the observation has, with the same numbers each time,
and for each member alone; it fails for the member that is at fault and for no other. This is tried,
not believed. What the whole run will cost follows from the calls that were timed. So are the
gradient and its kin, where the simulator offers them, and the low-fidelity simulator.

Cost: three calls for each draw and three more; for a gradient see `check_gradient`.
"""

import resource
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from numpy import ndarray

from enkg import check_gradient
from enkg.check_low import low_fidelity
from enkg.errors import EnkgError, EnsembleFailure, InputError
from enkg.execute import Cached, Pool, Program, UMBridge, guard, opened
from enkg.execute.program import usable_cores
from enkg.experiment import Experiment
from enkg.failure import Cause, Failure
from enkg.findings import Grade, Report
from enkg.forward import Forward
from enkg.loop import able
from enkg.sample import start
from enkg.simulator import Evaluator, Progress

TOLERANCE = 0.05
"""Largest difference, in standard deviations of the noise, between answers that should agree."""


def check(experiment: Experiment, draws: int = 4, progress: Progress | None = None) -> Report:
    """Runs the simulator on prior draws and judges what comes back.

    progress: called with (calls done, calls in all). Raises InputError for fewer than two draws,
    MissingCapability if the method needs a gradient that is not there; every fault of the
    simulator is a finding, not an exception.
    """
    if draws < 2:
        raise InputError(f"{draws} draws; a check needs at least 2")
    able(experiment)
    report = Report()
    tried = check_gradient.calls(experiment, draws)
    total = 3 * draws + 3 + tried
    done = 0

    def told(count: int, _: int) -> None:
        if progress is not None:
            progress(min(done + count, total), total)

    with TemporaryDirectory(prefix="enkg-check-") as folder:
        try:
            with opened(experiment.simulator, experiment.failure, Path(folder)) as evaluator:
                trial = _Trial(experiment, evaluator, draws, told)
                report.facts["each member"] = _shapes(experiment)
                for part in (trial.first, trial.again, trial.alone):
                    part(report)
                    done += draws
                    if not report.sound:
                        break
                trial.cost(report)
                if report.sound:
                    trial.offered(report)
                    done += tried
            if report.sound:
                # What does not end by itself shall not take the whole limit, nor be tried again.
                limit = 10 + 10 * trial.start_seconds
                policy = replace(experiment.failure, timeout=limit, retries=0)
                with opened(experiment.simulator, policy) as evaluator:
                    trial.poisoned(report, evaluator)
            told(total - done, total)
        except EnsembleFailure as error:
            text = str(error) if not error.failures else error.failures[0].text
            count = f"all {draws} prior draws failed; the first: " if error.failures else ""
            advice = "run one member by hand, with numbers of the prior"
            report.add(Grade.UNSOUND, "answers", count + text, advice)
        except EnkgError as error:
            report.add(Grade.UNSOUND, "shapes", str(error))
    return report


class _Trial:
    """The calls of a check, in the order in which they build on each other."""

    def __init__(
        self, experiment: Experiment, evaluator: Evaluator, draws: int, progress: Progress
    ) -> None:
        self.experiment, self.evaluator = experiment, evaluator
        self.forward = Forward(experiment, evaluator, progress)
        dtype = torch.float64 if experiment.double else torch.float32
        like = torch.empty(0, dtype=dtype)
        self.x = start(experiment.prior, 0.0, experiment.seed, range(draws), like)
        self.y = np.empty(0)
        self.living = np.zeros(draws, dtype=bool)
        self.batch_seconds = self.start_seconds = 0.0
        self.seconds: list[float] = []

    def first(self, report: Report) -> None:
        """Shapes, failures, and whether the data are of the order of the measured ones."""
        before = _own_memory()
        begin = perf_counter()
        with _Largest() as largest:
            self.y, failures, _ = self.forward.simulate(self.x)
        self.start_seconds = perf_counter() - begin
        if isinstance(self.experiment.simulator, Program | Pool):
            report.facts["memory"] = str(largest)
        elif not isinstance(self.experiment.simulator, UMBridge):
            grown = (_own_memory() - before) / 2**20
            report.facts["memory"] = f"{grown:,.0f} MiB more than before in this process"
        mask = self.experiment.observation.mask.numpy()
        holes = ~np.isfinite(self.y[:, mask]).all(axis=1)
        for j in np.flatnonzero(holes):
            failures[j] = failures[j] or Failure(
                Cause.NONFINITE, "some data are NaN or infinite, where the observation has none"
            )
        self.living = np.array([failure is None for failure in failures])
        report.facts["answers"] = f"{self.y.dtype}, shape {self.y.shape[1:]}"
        found = sorted({failure.text for failure in failures if failure})
        count = len(failures) - int(self.living.sum())
        if not count:
            report.add(Grade.GOOD, "answers", f"{len(failures)} of {len(failures)} prior draws")
        elif count < len(failures):
            report.add(
                Grade.DOUBT,
                "answers",
                f"{count} of {len(failures)} prior draws failed: {'; '.join(found[:3])}",
                "they are replaced in a run; if their numbers are to blame, give units or a prior "
                "that keep them in bounds",
            )
        else:
            raise EnsembleFailure(f"all {count} prior draws failed: {'; '.join(found[:3])}")
        self._order_of_magnitude(report)

    def _order_of_magnitude(self, report: Report) -> None:
        observation = self.experiment.observation
        y = torch.from_numpy(self.y[self.living])
        away = observation.residual(y).double()
        between = (away - away.mean(dim=0)).square().mean().sqrt().item()
        far = away.mean(dim=0).square().mean().sqrt().item()
        if len(y) > 1 and between == 0:
            report.add(
                Grade.UNSOUND,
                "sensitivity",
                "every draw gives the same data",
                "the simulator does not read its input, or the observation does not see it",
            )
        elif len(y) > 1 and between < 0.1:
            report.add(
                Grade.DOUBT,
                "sensitivity",
                f"the draws differ by {between:.2g} standard deviations of the noise only",
                "these data say little about the unknown; check the units and the noise",
            )
        elif len(y) > 1 and far > 30 * (1 + between):
            report.add(
                Grade.DOUBT,
                "measured data",
                f"they lie {far:.2g} standard deviations of the noise from the mean of the draws, "
                f"which differ by {between:.2g} among themselves",
                "check the units, the order of the data and whether the prior reaches the truth",
            )
        else:
            text = f"draws differ by {between:.3g} standard deviations of the noise"
            report.add(Grade.GOOD, "sensitivity", text)

    def again(self, report: Report) -> None:
        """The same batch once more."""
        begin = perf_counter()
        y, _, _ = self.forward.simulate(self.x)
        self.batch_seconds = perf_counter() - begin
        self._compare(
            report,
            y,
            "repeatable",
            "the same input twice",
            "fix the random seeds of the simulator; the noise belongs to the observation",
        )

    def alone(self, report: Report) -> None:
        """Each member by itself, in the reverse order."""
        rows: list[ndarray] = []
        for j in reversed(range(len(self.x))):
            begin = perf_counter()
            try:
                rows.append(self.forward.simulate(self.x[j : j + 1])[0][0])
            except EnsembleFailure:
                rows.append(np.full(self.y.shape[1:], np.nan))
            self.seconds.append(perf_counter() - begin)
        self._compare(
            report,
            np.stack(rows[::-1]),
            "independent",
            "each member alone and in company",
            "a member's time step, scaling or stopping must follow from that member only",
        )

    def poisoned(self, report: Report, evaluator: Evaluator) -> None:
        """A member of NaN between two good ones."""
        good = np.flatnonzero(self.living)[[0, -1]]
        x = self.experiment.physical(self.x).detach().cpu().numpy()
        batch = np.stack([x[good[0]], np.full_like(x[0], np.nan), x[good[1]]])
        batch.setflags(write=False)
        result = evaluator.evaluate(batch)
        failure = result.failures[1]
        around = [f for f in (result.failures[0], result.failures[2]) if f is not None]
        if around:
            report.add(
                Grade.UNSOUND,
                "failures",
                f"a member of NaN takes its neighbours with it: {around[0].text}",
                "let a bad member give NaN and go on, or run members one by one",
            )
        elif failure is not None and failure.cause is Cause.TIMEOUT:
            report.add(
                Grade.DOUBT,
                "failures",
                f"an input of NaN gives: {failure.text}",
                "a member that cannot be computed should say so, not search for ever; else set a "
                "timeout that fits the simulator",
            )
        elif failure is None and np.isfinite(result.y[1]).all():
            report.add(
                Grade.DOUBT,
                "failures",
                "an input of NaN is answered with finite numbers",
                "let the simulator refuse what it cannot compute",
            )
        else:
            seen = failure.text if failure is not None else "an answer with NaN"
            report.add(Grade.GOOD, "failures", f"an input of NaN gives: {seen}")

    def _compare(self, report: Report, y: ndarray, subject: str, what: str, advice: str) -> None:
        both = self.living & np.isfinite(y).reshape(len(y), -1).any(axis=1)
        if int(both.sum()) < int(self.living.sum()):
            lost = int(self.living.sum()) - int(both.sum())
            report.add(Grade.UNSOUND, subject, f"{what}: {lost} members failed this time", advice)
            return
        observation = self.experiment.observation
        r = observation.residual(torch.from_numpy(y[both])).double()
        r = (r - observation.residual(torch.from_numpy(self.y[both])).double()).abs()
        worst = float(r.max())
        if worst == 0:
            report.add(Grade.GOOD, subject, f"{what}: the same to the last bit")
        elif worst < 0.01 * TOLERANCE:
            text = f"{what}: the same to {worst:.1g} standard deviations of the noise"
            report.add(Grade.GOOD, subject, text)
        else:
            grade = Grade.DOUBT if worst < TOLERANCE else Grade.UNSOUND
            text = f"{what}: answers differ by up to {worst:.2g} standard deviations of the noise"
            report.add(grade, subject, text, advice)

    def offered(self, report: Report) -> None:
        """The gradient and its kin, and the low-fidelity simulator."""
        living = torch.from_numpy(self.living)
        x, y = self.x[living], self.y[self.living]
        check_gradient.abilities_checked(report, self.forward, x, y)
        if self.experiment.low is not None:
            low_fidelity(report, self.experiment, x, y)

    def cost(self, report: Report) -> None:
        """Time and memory of a call, and what the whole run will take."""
        guidance = self.experiment.guidance
        draws = len(self.x)
        if not self.seconds or not self.batch_seconds:
            return
        call = float(np.median(self.seconds))
        slots, cores = _layout(self.experiment.simulator)
        shared = self.batch_seconds / draws
        report.facts["one call"] = f"{_time(call)} (slowest of {draws}: {_time(max(self.seconds))})"
        report.facts["in a batch"] = f"{_time(shared)} a member with {slots} at once, {draws} tried"
        if self.start_seconds > 2 * self.batch_seconds + 0.1:
            report.facts["start-up"] = _time(self.start_seconds - self.batch_seconds)
        calls = guidance.calls_for(self.experiment.prior) + self.experiment.predicted
        busy = min(slots, draws)
        each = max(shared * busy, 0.0) if busy > 1 else shared
        report.facts["the whole run"] = (
            f"at most {calls:,} calls: {calls * each * cores / 3600:.2g} core-hours, "
            f"{_time(calls * each / slots)} with {slots} at once"
        )
        self._advise(report, call)

    def _advise(self, report: Report, call: float) -> None:
        simulator = self.experiment.simulator
        if isinstance(simulator, Program) and not simulator.stays_up and call < 2:
            table = simulator.manifest.oneshot
            assert table is not None
            if table.command[0] == sys.executable:
                report.add(
                    Grade.DOUBT,
                    "start-up",
                    f"a Python program is started for every one of the {_time(call)} calls",
                    "let it stay up as a worker (enkg new simulator NAME --language python)",
                )
        wanted = self.experiment.failure.timeout
        if wanted is not None and wanted < 3 * max(self.seconds):
            report.add(
                Grade.DOUBT,
                "timeout",
                f"{wanted:g} s, but a call took {_time(max(self.seconds))}",
                "leave room: slow members are often the informative ones",
            )


def _shapes(experiment: Experiment) -> str:
    kind = "float64" if experiment.double else "float32"
    shape, data = experiment.shape, tuple(experiment.observation.y.shape)
    return f"{kind}, shape {shape}, to {experiment.observation.size} data of shape {data}"


def _layout(simulator: Any) -> tuple[int, int]:
    """Members at once, and cores of each."""
    if isinstance(simulator, Program):
        m = simulator.manifest
        return simulator.count, m.mpi.ranks * m.threads
    if isinstance(simulator, Pool):
        return simulator.processes or usable_cores(), simulator.threads
    if isinstance(simulator, UMBridge):
        return simulator.slots * len(simulator.urls), 1
    if isinstance(simulator, Cached):
        return _layout(simulator.simulator)
    return 1, 1


class _Largest(Thread):
    """Watches the memory of the processes that simulate, while a block runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._over = 0, Event()

    def __enter__(self) -> "_Largest":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        here = psutil.Process()
        mine = here.cmdline()
        while True:
            over = self._over.wait(0.02)
            for process in here.children(recursive=True):
                with suppress(psutil.Error):  # it ended meanwhile
                    line = process.cmdline()  # ours, for a moment, in what is just being started
                    if line != mine and str(guard.__file__) not in line:
                        self.bytes = max(self.bytes, process.memory_info().rss)
            if over:
                return

    def __str__(self) -> str:
        if not self.bytes:
            return "too short-lived to be measured"
        return f"{self.bytes / 2**20:,.0f} MiB at most in one process of the simulator"


def _own_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _time(seconds: float) -> str:
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
