"""The run loop: an experiment in, a posterior ensemble out.

Here, and only here, a guidance method meets the simulator: `forward` is built from the units, the
adapter and the observation, and handed to `Guidance.step`.
"""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import xarray as xr

from enkg import agreement, report, results, store
from enkg.beat import PROGRESS, Beat, Observer, Silent
from enkg.beat import State as Life
from enkg.comm import ALONE, Comm, at_root, once, one_for_all, raised_by_all, together
from enkg.errors import EnkgError, InputError
from enkg.execute import Cached, opened
from enkg.execute.identity import identity_of
from enkg.execute.parcel import refuse_in_worker
from enkg.experiment import Experiment
from enkg.journal import Journal
from enkg.loop import able, guided
from enkg.machine import own_cores, threads

__all__ = ["Observer", "Silent", "run"]

log = logging.getLogger("enkg")


def run(
    experiment: Experiment,
    directory: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    observer: Observer | None = None,
    source: Path | None = None,
    arguments: Sequence[str] = (),
    comm: Comm = ALONE,
    figures: bool = True,
) -> xr.DataTree:
    """Runs an experiment and returns its results.

    directory: where to leave the run directory (see `enkg.store`); None keeps nothing on disk.
    resume: go on with the unfinished run that is there, begin if there is none, and return the
    results of a finished one. force: resume also where the experiment has changed since. source,
    arguments: the file that defined the experiment and what the command line added, for the record
    and for `enkg resume`. comm: the ranks among which the ensemble is shared (`enkg.comm.world()`);
    all of them call this, and all get the results. figures: draw them. The tree's attribute
    `summary` holds the numbers of summary.json as text.

    A run with a directory may be killed at any moment; what was simulated is never simulated again.

    Cost: `guidance.calls_for(prior)` simulator calls at most, and `experiment.predicted`
    calls at the end.

    Raises InputError for shapes that do not fit, EnsembleFailure when too few members survive,
    StoreError when the directory is in use.
    """
    fewest = min(experiment.guidance.members, experiment.guidance.posterior_members)
    if comm.size > fewest:
        raise raised_by_all(
            InputError(
                f"there are {comm.size} ranks and {fewest} members; give at most one rank for each "
                "member"
            )
        )
    with one_for_all(comm):
        together(comm, lambda: able(experiment))
    refuse_in_worker()  # a script without a guard, imported once more by a pool's process
    order = _Order(
        experiment,
        None if directory is None else Path(directory),
        overwrite,
        resume,
        force,
        observer or Silent(),
        source,
        tuple(arguments),
        comm,
        figures,
    )
    with one_for_all(comm), ExitStack() as stack:
        agreement.check(experiment, comm)
        once(comm, lambda: _enter(stack, store.claimed(directory)))
        done = resume and order.directory is not None
        if done and once(comm, lambda: store.is_complete(order.out)):
            once(comm, lambda: _tidy(order.out))
            once(comm, lambda: store.check_unchanged(order.out, _record(order), order.force))
            return store.open_run(order.out)
        return _recorded(order)


@dataclass(frozen=True, eq=False)
class _Order:
    """What `run` was asked for."""

    experiment: Experiment
    directory: Path | None
    overwrite: bool
    resume: bool
    force: bool
    observer: Observer
    source: Path | None
    arguments: tuple[str, ...]
    comm: Comm
    figures: bool

    @property
    def out(self) -> Path:
        assert self.directory is not None
        return self.directory


def _tidy(folder: Path) -> None:
    """What a run leaves that was killed when all was written."""
    store.clear(folder)
    (folder / PROGRESS).unlink(missing_ok=True)


def _enter(stack: ExitStack, context: Any) -> None:
    stack.enter_context(context)


def _recorded(order: _Order) -> xr.DataTree:
    """The run, with all that it leaves behind."""
    comm = order.comm
    folder, doubts = once(comm, lambda: _folder(order))
    handler = _log_to(folder, comm.rank)
    for doubt in doubts if comm.rank == 0 else ():
        log.warning(doubt)
    beat = Beat(folder, order.observer if comm.rank == 0 else None, comm)
    try:
        beat.begin(order.resume)
        with own_cores(comm):
            tree = _evaluated(order, folder, beat)
        beat.end(Life.FINISHED)
        return tree
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        words = str(error) or ("stopped by the keyboard" if stopped else "")
        log.error("%s: %s", type(error).__name__, words)
        beat.end(Life.STOPPED if stopped else Life.FAILED, words)
        raise
    finally:
        if handler is not None:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(logging.NOTSET)
            log.propagate = True


def _record(order: _Order) -> dict[str, Any]:
    """What experiment.json holds."""
    record = store.provenance(order.experiment, order.source, order.arguments)
    record["simulator"] = identity_of(order.experiment.simulator, strict=False)
    if order.experiment.low is not None:
        record["simulator"] += f" low {identity_of(order.experiment.low.simulator, strict=False)}"
    return record


def _folder(order: _Order) -> tuple[Path | None, list[str]]:
    """The run directory, ready for this run; and what the log should warn of."""
    if order.directory is None:
        return None, []
    record = _record(order)
    if order.resume and store.is_unfinished(order.directory):
        return order.directory, store.check_unchanged(order.directory, record, order.force)
    folder = store.create(order.directory, order.overwrite)
    store.write_json(folder / store.RECORD, record)
    return folder, []


def _evaluated(order: _Order, folder: Path | None, beat: Beat) -> xr.DataTree:
    experiment, comm, begin = order.experiment, order.comm, perf_counter()
    simulators = [experiment.simulator]
    if experiment.low is not None:
        simulators.append(experiment.low.simulator)
    if experiment.cache is not None:
        simulators = [Cached(simulator, experiment.cache) for simulator in simulators]
    kept = None if folder is None else folder / store.FAILED
    journal = Journal(folder, comm)
    with ExitStack() as stack:
        stack.callback(journal.close)
        evaluator, *low = together(
            comm,
            lambda: [stack.enter_context(opened(s, experiment.failure, kept)) for s in simulators],
        )
        ended = guided(experiment, evaluator, beat, journal, comm, *low)
    standing, count = ended.standing, ended.standing.count
    assert standing.first is not None  # every method sweeps at least once
    outcome = results.Outcome(
        x=at_root(comm, standing.state.x),
        prior_x=at_root(comm, standing.first[0]),
        prior_y=standing.first[1],
        predicted=ended.predicted,
        beta=standing.state.beta,
        calls=count.calls,
        low_calls=count.low_calls,
        failed=count.failed,
        causes=count.causes,
        asked=count.asked,
        denoiser_calls=standing.denoiser_calls,
        denoiser_vjps=standing.denoiser_vjps,
        vjps=standing.vjps,
        remarks=standing.state.remarks,
        simulator_seconds=count.seconds,
    )
    trees: list[xr.DataTree] = []

    def write() -> xr.DataTree | None:
        since = begin - ended.earlier
        trees.append(_written(experiment, outcome, standing.rows, folder, since, order.figures))
        return trees[0] if folder is None else None

    sent = once(comm, write)
    journal.remove()
    if comm.rank == 0:
        return trees[0]
    return store.open_run(order.out) if sent is None else sent


def _written(
    experiment: Experiment,
    outcome: results.Outcome,
    rows: Sequence[dict[str, float]],
    folder: Path | None,
    begin: float,
    figures: bool,
) -> xr.DataTree:
    """The results, in the run directory if there is one. By rank 0. begin: of all lives."""
    cores = torch.get_num_threads()
    with threads(1):
        summary = results.summarise(experiment, outcome, rows, cores)
        tree = results.tabulate(experiment, outcome, rows)
    if folder is not None:
        store.write_tree(folder, tree)
        summary["seconds"] = perf_counter() - begin
        store.write_json(folder / store.SUMMARY, summary)  # from here on nothing is lost
        if figures:
            report.figures(tree, folder / store.FIGURES)
    if experiment.analyse is not None:
        analysis = _analysed(experiment.analyse, tree, folder)
        summary["metrics"].update(analysis.metrics)
        summary["tables"] = [dataclasses.asdict(t) for t in analysis.tables]
    summary["seconds"] = perf_counter() - begin
    if folder is not None:
        store.write_json(folder / store.SUMMARY, summary)
    return store.attach(tree, summary)


def _analysed(analyse: Any, tree: xr.DataTree, folder: Path | None) -> Any:
    try:
        return analyse(tree, folder)
    except EnkgError:
        raise
    except Exception as error:  # whatever the user's code raises
        kept = "" if folder is None else f"; the posterior is kept in {folder}, --resume goes on"
        raise InputError(
            f"the experiment's `analyse` failed: {type(error).__name__}: {error}{kept}"
        ) from error


class _LogFile(logging.FileHandler):
    """A log on a disk that may be full: then lines are lost, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None: ...  # noqa: N802


def _log_to(folder: Path | None, rank: int) -> logging.Handler | None:
    if folder is None:
        return None
    name = store.LOG if rank == 0 else store.LOG_OF_RANK.format(rank)
    handler = _LogFile(folder / name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler
