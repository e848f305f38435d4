"""Ablations: an experiment for every combination of methods, noise levels, budgets, seeds...

    def build(guidance, noise, seed) -> enkg.Experiment: ...

    ablation = enkg.Ablation(
        build,
        {"guidance": {"EnKG": enkg.EnKG(80), "ES-MDA": enkg.ESMDA(80)}, "noise": (0.2, 0.4),
         "seed": range(3)},
    )
    data = ablation.run("runs/first")      # an xarray.Dataset with these three dimensions

A cell is one combination: a run as any other, in a directory of its own (`enkg.ablation_cells`). So
an ablation that was killed goes on with the same command, cells that are finished are not run
again, cells that failed are tried again, and values may be added to an axis. What fails in one cell
is recorded there and harms no other. A finished cell whose experiment has changed since keeps its
numbers and is told as changed.

Cost: that of the runs. Of a finished cell the experiment is built once more, to see that it is the
same; enkg makes no simulator call for it.
"""

import pickle
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from enkg import ablation_cells as cells
from enkg import ablation_table, store
from enkg.ablation_cells import MEASURED, Entry, Plan, Standing, State
from enkg.ablation_grid import (
    Values,
    called,
    check_grid,
    check_names,
    check_takes,
    chosen,
    combinations,
    coordinates,
    labelled,
    words,
)
from enkg.beat import Observer, Silent
from enkg.errors import EnkgError, InputError, InUse, StoreError
from enkg.execute.identity import identity_of
from enkg.experiment import Experiment
from enkg.machine import threads
from enkg.run import run

MEASURES = (
    "relative_error",
    "misfit_per_datum",
    "coverage_90",
    "crps",
    "calls",
    "vjps",
    "denoiser_calls",
    "denoiser_vjps",
    "seconds",
)
LONG = 600
"""Characters of a reason that are kept."""
CHANGED = re.compile("was begun with another experiment: (.+) changed since")
"""What `store.check_unchanged` says of an experiment that is another one now."""
CODE = "the simulator's code"
ADVICE = (
    ". A simulator is known by the file that it stands in: keep it in another one than the ablation"
)


class Witness(Observer, Protocol):
    """Sees an ablation, and those of its runs that are in this process."""

    def planned(self, cells: int) -> None: ...

    def begun(self, entry: Entry) -> None: ...

    def scored(self, found: Standing) -> None: ...


class Nobody(Silent):
    """Watches nothing."""

    def planned(self, cells: int) -> None: ...

    def begun(self, entry: Entry) -> None: ...

    def scored(self, found: Standing) -> None: ...


@dataclass(frozen=True, eq=False)
class Ablation:
    """A grid of experiments. Its first axis is what is compared: it has the colours of the figures.

    Raises InputError for a grid that makes no sense.
    """

    experiment: Callable[..., Experiment]
    """Builds the experiment of a cell; called with one value of every axis, by keyword."""
    grid: Mapping[str, Values]
    """The values of each axis: numbers or words, or a mapping from labels to anything."""
    title: str = ""
    """What the tables and figures are called."""
    measures: Sequence[str] = MEASURES
    """The columns of the tables: numbers of summary.json, its metrics, or those of `measure`. The
    first one is the error of the figures."""
    measure: Callable[[Experiment, xr.DataTree], Mapping[str, float]] | None = None
    """Further numbers of a finished run."""
    skip: Callable[..., str | None] | None = None
    """Called as `experiment`: the reason to leave a combination out, or None."""
    over: str | Sequence[str] = "seed"
    """The axis, or axes, over which the printed tables have means and standard deviations."""
    along: str | None = None
    """An axis, such as a budget, along which the points of the figures are joined by a line."""

    def __post_init__(self) -> None:
        check_grid(self.grid)
        over = (self.over,) if isinstance(self.over, str) else tuple(self.over)
        if self.over == "seed" and "seed" not in self.grid:
            over = ()
        first = next(iter(self.grid))
        for name in (*over, *([] if self.along is None else [self.along])):
            if name not in self.grid:
                raise InputError(f"there is no axis {name!r}; the grid has {words(self.grid)}")
            if name == first and len(self.grid) > 1:
                raise InputError(
                    f"{name!r} is the first axis, which is what is compared; put another one first"
                )
        if self.along in over:
            raise InputError(f"{self.along!r} is averaged over, so no line can go along it")
        if isinstance(self.measures, str) or not self.measures:
            raise InputError(f"measures is {self.measures!r}; expected a list of names")
        for function in (self.experiment, self.skip):
            if function is not None:
                check_takes(function, tuple(self.grid))
        for name in (*MEASURES, *self.measures):
            if name in self.grid:
                raise InputError(
                    f"the axis {name!r} has the name of a measure; give it another, such as "
                    f"'{name}_asked'"
                )
        object.__setattr__(self, "over", over)
        object.__setattr__(self, "measures", tuple(dict.fromkeys(self.measures)))

    def run(
        self,
        directory: str | Path,
        *,
        executor: Executor | None = None,
        only: Mapping[str, Sequence[Any]] | None = None,
        force: bool = False,
        witness: Witness | None = None,
        maker: "Callable[[], Ablation] | None" = None,
    ) -> xr.Dataset:
        """Runs all cells that are not finished, writes the results and returns them.

        executor: anything with `submit`, which may run several cells at once; None runs one after
        the other, here. What it is sent is this ablation, or maker, which makes it over there.
        only: some labels of some axes; the other cells are left as they stand, and out of the
        Dataset. force: take cells whose experiments have changed as they are, and go on with those
        of them that are unfinished.

        The Dataset has the axes as its dimensions, a variable for each measure (NaN where there is
        none), and state, reason, trusted and cell, the number of the run directory. The results in
        the directory are those of the whole grid.

        Raises InputError for labels that the grid has not, StoreError for a directory of something
        else, or in use. A cell that fails raises nothing.
        """
        directory, witness = Path(directory), witness or Nobody()
        picked = chosen(only or {}, self.grid)
        plan = self.plan()
        with store.claimed(directory):
            plan = cells.merged(directory, plan)
            cells.save(directory, plan)
            work = [e for e in plan.numbered if all(e.labels[n] in v for n, v in picked.items())]
            witness.planned(len(work))
            if executor is None:
                for entry in work:
                    witness.begun(entry)
                    witness.scored(work_on(self, directory, entry, force, witness))
            else:
                _check_sendable(executor, maker or self)
                first = (maker or self, directory)
                futures = {executor.submit(work_on, *first, e, force): e for e in work}
                try:
                    for future in as_completed(futures):
                        witness.scored(_answer(directory, futures[future], future))
                finally:
                    for future in futures:
                        future.cancel()
            data = ablation_table.write(directory)
        return ablation_table.picked(data, picked)

    def plan(self) -> Plan:
        """The cells of the grid, numbered from 0."""
        entries = []
        for number, (labels, values) in enumerate(combinations(self.grid)):
            skipped = None if self.skip is None else self.skip(**values)
            entries.append(Entry(labels, None if skipped else number, skipped or ""))
        axes = {name: coordinates(values) for name, values in self.grid.items()}
        return Plan(
            axes, tuple(entries), self.title, tuple(self.over), self.along, tuple(self.measures)
        )

    def build(self, labels: Mapping[str, str]) -> Experiment:
        """The experiment of a cell. On one thread, for the same last bits wherever it is built."""
        values = {name: labelled(self.grid[name])[label] for name, label in labels.items()}
        with threads(1):
            found = self.experiment(**values)
        if not isinstance(found, Experiment):
            raise InputError(
                f"{called(self.experiment)} returned a {type(found).__name__}; expected an "
                "enkg.Experiment"
            )
        return found

    def cost(self, labels: Mapping[str, str]) -> int:
        """Simulator calls that a cell takes at most. Builds its experiment."""
        experiment = self.build(labels)
        method = experiment.guidance
        return method.calls_for(experiment.prior) + experiment.predicted

    def __call__(self) -> "Ablation":
        """Itself, so that an ablation is its own maker."""
        return self


def work_on(
    maker: Callable[[], Ablation],
    directory: Path,
    entry: Entry,
    force: bool = False,
    observer: Observer | None = None,
) -> Standing:
    """Runs one cell, or goes on with it, and writes its record. Raises only what stops a run."""
    assert entry.number is not None
    begin = time.perf_counter()
    record = _blank(entry)
    try:
        record |= _found(maker(), directory, entry, force, observer)
    except InUse:
        reason = "another process is at this cell; the same command gathers it later"
        return Standing(entry, State.RUNNING, reason)
    except Exception as error:  # whatever user code raises
        record |= {"state": State.FAILED, "reason": _reason(error, directory, entry)}
        if not isinstance(error, EnkgError):
            record["traceback"] = traceback.format_exc()
    record["seconds"] = time.perf_counter() - begin
    cells.write_record(directory, entry.number, record)
    return Standing.of(entry, record)


def _blank(entry: Entry) -> dict[str, Any]:
    return {
        "labels": dict(entry.labels),
        "state": State.FINISHED,
        "reason": "",
        "measures": {},
        "trusted": False,
        "seconds": 0.0,
    }


def _found(
    ablation: Ablation, directory: Path, entry: Entry, force: bool, observer: Observer | None
) -> dict[str, Any]:
    """What the record of a finished cell holds."""
    assert entry.number is not None
    experiment = ablation.build(entry.labels)
    folder = cells.folder(directory, entry.number)
    try:
        tree = run(experiment, folder, resume=True, force=force, figures=False, observer=observer)
    except StoreError as error:
        change = CHANGED.search(str(error))
        if change is None or not store.is_complete(folder):
            raise
        return _changed(directory, entry.number, change[1])
    found, measures = _numbers(folder)
    if ablation.measure is not None:
        found["measure"] = identity_of(ablation.measure, strict=False)
        before = cells.record(directory, entry.number) or {}
        if before.get("state") in MEASURED and before.get("measure") == found["measure"]:
            measures = {**before["measures"], **measures}
        else:
            own = ablation.measure(experiment, tree)
            check_names(own, ablation.grid)
            measures |= {name: float(value) for name, value in own.items()}
    return {**found, "measures": measures}


def _numbers(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """What summary.json says of a finished run: the verdict, and the numbers."""
    summary = store.summary(folder)
    both = {**summary, **summary["metrics"]}
    verdict = {"trusted": summary["trusted"], "verdict": summary["reason"]}
    return verdict, {k: v for k, v in both.items() if _is_number(v)}


def _changed(directory: Path, number: int, change: str) -> dict[str, Any]:
    """What the record of a finished cell holds whose experiment is another one now: the numbers of
    its run, and those that were measured then."""
    found, measures = _numbers(cells.folder(directory, number))
    before = cells.record(directory, number) or {}
    if before.get("state") in MEASURED:
        measures = {**before["measures"], **measures}
        found |= {"measure": before["measure"]} if "measure" in before else {}
    reason = (
        f"{change} changed since this cell was run, and its numbers are those from before. Restore "
        "the definition; or give --force, which keeps them; or remove the cell's directory, whose "
        f"number is in {ablation_table.CSV}, to run it anew"
    )
    reason += ADVICE if CODE in change else ""
    return {**found, "state": State.CHANGED, "reason": reason, "measures": measures}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _reason(error: Exception, directory: Path, entry: Entry) -> str:
    """One sentence, with the exception's type; of what enkg did not raise, also the place."""
    said = " ".join("; ".join((str(error), *getattr(error, "__notes__", ()))).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    trace = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, EnkgError) and trace:
        text += f" ({Path(trace[-1].filename).name}:{trace[-1].lineno})"
    if "was begun with another experiment" in said:
        assert entry.number is not None
        text += f"; or remove {cells.folder(directory, entry.number)} to run this cell anew"
        text += ADVICE if CODE in said else ""
    return text if len(text) <= LONG else text[:LONG] + "..."


def _answer(directory: Path, entry: Entry, future: "Future[Standing]") -> Standing:
    """What an executor made of a cell; where it lost the cell, that is recorded."""
    try:
        return future.result()
    except Exception as error:  # whatever an executor raises
        reason = _reason(error, directory, entry)
        record = {**_blank(entry), "state": State.FAILED, "reason": reason}
        assert entry.number is not None
        cells.write_record(directory, entry.number, record)
        return Standing.of(entry, record)


def _check_sendable(executor: Executor, maker: Any) -> None:
    """Raises InputError where processes of the standard library could not be sent the ablation."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        pickle.dumps(maker)
    except Exception as error:  # objects may raise anything here
        raise InputError(
            f"the ablation cannot be sent to other processes: {error}. Put it into a file and give "
            "`enkg ablate FILE --workers N`, or an executor that sends any function, such as loky's"
        ) from error
