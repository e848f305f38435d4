"""The run loop: an experiment in, a posterior ensemble out.

Here, and only here, a guidance method meets the simulator: `forward` is built from the units, the
adapter and the observation, and handed to `Guidance.step`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor

from enkg import ensemble, report, results, store
from enkg.errors import InputError
from enkg.execute import Cached, opened
from enkg.execute.parcel import refuse_in_worker
from enkg.experiment import Experiment
from enkg.forward import Forward
from enkg.guidance import Guidance, Info, State
from enkg.prior import Drawable, Flowing, Prior, White
from enkg.simulator import Evaluator

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
    refuse_in_worker()  # a script without a guard, imported once more by a pool's process
    with store.claimed(directory):
        return _recorded(experiment, directory, overwrite, observer, source)


def _recorded(
    experiment: Experiment,
    directory: str | Path | None,
    overwrite: bool,
    observer: Observer | None,
    source: Path | None,
) -> xr.DataTree:
    begin = perf_counter()
    folder = None
    if directory is not None:
        folder = store.create(Path(directory), overwrite)
        store.write_json(folder / store.RECORD, store.provenance(experiment, source))
    handler = _log_to(folder)
    try:
        simulator = experiment.simulator
        if experiment.cache is not None:
            simulator = Cached(simulator, experiment.cache)
        kept = None if folder is None else folder / store.FAILED
        with opened(simulator, experiment.failure, kept) as evaluator:
            tree, summary = _run(experiment, evaluator, observer or Silent())
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
        log.error("%s: %s", type(error).__name__, str(error) or "stopped from outside")
        raise
    finally:
        if handler is not None:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(logging.NOTSET)
            log.propagate = True


def _run(
    experiment: Experiment, evaluator: Evaluator, observer: Observer
) -> tuple[xr.DataTree, dict[str, Any]]:
    begin = perf_counter()
    dtype = torch.float64 if experiment.double else torch.float32
    like = torch.empty(0, dtype=dtype, device=_device(experiment.device))
    guidance, observation = experiment.guidance, experiment.observation
    prior = _counted(experiment.prior)
    forward = Forward(experiment, evaluator, observer.simulating)
    log.info("%s, %d members, seed %d", type(guidance).__name__, guidance.members, experiment.seed)

    observer.started(experiment, guidance.sweeps)
    try:
        state = guidance.init(prior, experiment.seed, like)
        records: list[dict[str, float]] = []
        first: tuple[Tensor, Tensor] | None = None
        while not state.finished:
            state, info = guidance.step(state, prior, forward, observation)
            if experiment.failure.drop:
                state = _without_the_dead(guidance, state, info)
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
        causes=forward.causes,
        asked=forward.asked,
        denoiser_calls=prior.calls,
        simulator_seconds=forward.seconds,
    )
    summary = results.summarise(experiment, outcome)
    tree = results.tabulate(experiment, outcome, records)
    return tree, summary


def _without_the_dead(guidance: Guidance, state: State, info: Info) -> State:
    living = torch.ones(0, dtype=torch.bool)
    for _, y in info.evaluated:
        now = ensemble.alive(y).cpu()
        living = now if not len(living) else living & now
    if not len(living) or bool(living.all()):
        return state
    return guidance.drop(state, living)


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


def _row(info: Info, forward: Forward, prior: _Counted, begin: float) -> dict[str, float]:
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
