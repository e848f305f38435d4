"""The run loop: an experiment in, a posterior ensemble out.

Here, and only here, a guidance method meets the simulator: `forward` is built from the units, the
adapter and the observation, and handed to `Guidance.step`.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from enkg import ensemble, report, results, store
from enkg.arrays import rows
from enkg.errors import EnsembleFailure, InputError
from enkg.execute import as_evaluator
from enkg.experiment import Experiment
from enkg.guidance import Info
from enkg.prior import Drawable, Flowing, Prior, White
from enkg.simulator import Evaluator, Progress

log = logging.getLogger("enkg")


class Observer(Protocol):
    """Sees a run and never steers it."""

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None: ...

    def stepped(self, info: Info, row: Mapping[str, float]) -> None: ...

    def ended(self) -> None: ...


class Silent:
    """Watches nothing."""

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None: ...

    def stepped(self, info: Info, row: Mapping[str, float]) -> None: ...

    def ended(self) -> None: ...


def run(
    experiment: Experiment,
    directory: str | Path | None = None,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    source: Path | None = None,
) -> xr.DataTree:
    """Runs an experiment and returns its results.

    directory: where to leave the run directory (see `enkg.store`); None keeps nothing on disk.
    source: the file that defined the experiment, for the record. The tree's attribute `summary`
    holds the numbers of summary.json as text.

    Cost: `guidance.sweeps` times J simulator calls at most, and `predict` calls at the end.

    Raises InputError for shapes that do not fit, EnsembleFailure when too few members survive,
    StoreError when the directory is in use.
    """
    begin = perf_counter()
    folder = None
    if directory is not None:
        folder = store.create(Path(directory), overwrite)
        store.write_json(folder / store.RECORD, store.provenance(experiment, source))
    handler = _log_to(folder)
    try:
        tree, summary = _run(experiment, observer or Silent())
        if folder is not None:
            store.write_tree(folder, tree)
            summary["seconds"] = perf_counter() - begin
            store.write_json(folder / store.SUMMARY, summary)  # from here on nothing is lost
            report.figures(tree, folder / store.FIGURES)
        if experiment.analyse is not None:
            analysis = experiment.analyse(tree, folder)
            summary["metrics"].update(analysis.metrics)
            summary["tables"] = [dataclasses.asdict(t) for t in analysis.tables]
        summary["seconds"] = perf_counter() - begin
        if folder is not None:
            store.write_json(folder / store.SUMMARY, summary)
        return store.attach(tree, summary)
    except BaseException as error:
        log.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        if handler is not None:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(logging.NOTSET)
            log.propagate = True


def _run(experiment: Experiment, observer: Observer) -> tuple[xr.DataTree, dict[str, Any]]:
    begin = perf_counter()
    dtype = torch.float64 if experiment.double else torch.float32
    like = torch.empty(0, dtype=dtype, device=_device(experiment.device))
    guidance, observation = experiment.guidance, experiment.observation
    prior = _counted(experiment.prior)
    forward = _Forward(experiment, observer.simulating)
    log.info("%s, %d members, seed %d", type(guidance).__name__, guidance.members, experiment.seed)

    observer.started(experiment, guidance.sweeps)
    try:
        state = guidance.init(prior, experiment.seed, like)
        records: list[dict[str, float]] = []
        first: tuple[Tensor, Tensor] | None = None
        while not state.finished:
            state, info = guidance.step(state, prior, forward, observation)
            if info.evaluated and first is None:
                first = info.evaluated[0]
            records.append(_row(info, forward, prior, begin))
            _log_step(records[-1])
            observer.stepped(info, records[-1])
        count = len(state.x) if experiment.predict is None else experiment.predict
        checked = state.x[:count]
        predicted = forward(checked)
    finally:
        observer.ended()

    assert first is not None  # every method sweeps at least once
    outcome = results.Outcome(
        x=state.x,
        prior_x=first[0],
        prior_y=first[1],
        predicted=predicted,
        beta=state.beta,
        calls=forward.calls,
        failed=forward.failed,
        asked=forward.asked,
        denoiser_calls=prior.calls,
        simulator_seconds=forward.seconds,
    )
    summary = results.summarise(experiment, outcome)
    tree = results.tabulate(experiment, outcome, records)
    return tree, summary


class _Forward:
    """forward(x0) of `Guidance.step`, with the counting and the checks around it."""

    def __init__(self, experiment: Experiment, progress: Progress) -> None:
        self.experiment, self.progress = experiment, progress
        self.evaluator: Evaluator = as_evaluator(experiment.simulator)
        self.calls = self.failed = self.asked = 0
        self.seconds = 0.0

    def __call__(self, x0: Tensor) -> Tensor:
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
        y = self._alive(result.y, result.reasons, len(x))
        return torch.from_numpy(y).to(x0.device)

    def _alive(self, y: np.ndarray, reasons: tuple[str, ...], count: int) -> np.ndarray:
        """Checked data: a failed member is NaN throughout, of the others, masked NaN is 0."""
        expected = tuple(self.experiment.observation.y.shape)
        if y.shape != (count, *expected):
            raise InputError(
                f"the simulator returned data of shape {y.shape[1:]} for each member; the "
                f"observation has shape {expected}"
            )
        mask = self.experiment.observation.mask.numpy()
        finite = np.isfinite(y[:, mask]).all(axis=1) & np.array([not r for r in reasons])
        reasons = tuple(
            r or ("" if good else "some data are NaN or infinite")
            for r, good in zip(reasons, finite, strict=True)
        )
        y = np.where(mask | np.isfinite(y), y, 0.0).astype(y.dtype)
        y[~finite] = np.nan
        failures = Counter(reason for reason in reasons if reason)
        dead = sum(failures.values())
        self.failed += dead
        for reason, times in failures.most_common(3):
            log.warning("%d of %d members failed: %s", times, count, reason)
        needed = max(2, int(np.ceil(self.experiment.minimum_success * count)))
        if count - dead < min(needed, count):
            table = "; ".join(f"{times} x {reason}" for reason, times in failures.most_common(3))
            raise EnsembleFailure(
                f"{dead} of {count} members failed, and {needed} must survive "
                f"(minimum_success = {self.experiment.minimum_success}): {table}"
            )
        return y


class _Counted:
    """A prior that counts its denoiser calls, one a member."""

    def __init__(self, prior: Prior) -> None:
        self.inner: Any = prior
        self.calls = 0
        self.shape = prior.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += len(x)
        denoised = self.inner.denoise(x, sigma)
        if denoised.shape != x.shape:
            raise InputError(
                f"the prior's denoiser was given shape {tuple(x.shape)} and returned "
                f"{tuple(denoised.shape)}"
            )
        return denoised


class _CountedDraw(_Counted):
    def draw(self, seed: int, members: Any, step: int) -> Tensor:
        return self.inner.draw(seed, members, step)


class _CountedFlow(_Counted):
    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        self.calls += len(x)  # the closed form costs as much as one denoiser call
        return self.inner.flow(x, sigma, to)


class _CountedWhite(_Counted):
    @property
    def scales(self) -> Tensor:
        return self.inner.scales

    def from_white(self, z: Tensor) -> Tensor:
        return self.inner.from_white(z)


def _counted(prior: Prior) -> _Counted:
    """The same prior, with just the abilities that it has."""
    abilities = {Drawable: _CountedDraw, Flowing: _CountedFlow, White: _CountedWhite}
    able = tuple(kind for ability, kind in abilities.items() if isinstance(prior, ability))
    return type("Counted", (*able, _Counted), {})(prior)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {error}") from error
    return device


def _row(info: Info, forward: _Forward, prior: _Counted, begin: float) -> dict[str, float]:
    clean = info.evaluated[-1][0] if info.evaluated else None
    return {
        "sigma": info.sigma,
        "power": info.power,
        "beta": info.beta,
        "misfit_per_datum": float("nan") if info.misfit is None else info.misfit,
        "spread": float("nan") if clean is None else ensemble.spread(clean),
        "calls": forward.calls,
        "failed": forward.failed,
        "denoiser_calls": prior.calls,
        "seconds": perf_counter() - begin,
    }


def _log_to(folder: Path | None) -> logging.Handler | None:
    if folder is None:
        return None
    handler = logging.FileHandler(folder / store.LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler


def _log_step(row: Mapping[str, float]) -> None:
    log.info(" ".join(f"{k}={v:.6g}" for k, v in row.items()))
