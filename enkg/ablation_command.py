"""enkg ablate, and enkg submit for the file of an ablation."""

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from enkg import ablation_cells as cells
from enkg import ablation_grid, ablation_report, ablation_table, load, slurm, stop, store
from enkg.ablation import Ablation, work_on
from enkg.ablation_cells import FAULTY, MEASURED, Entry, Plan, State, named
from enkg.ablation_workers import Workers
from enkg.build import CONFIG, print_help
from enkg.errors import EnkgError, InputError
from enkg.machine import threads
from enkg.options import Ablate
from enkg.progress import Cells, Watch
from enkg.slurm import Submit


@dataclass(frozen=True)
class Source:
    """Makes the ablation of a file with these arguments, in any process; there only once."""

    file: str
    arguments: tuple[str, ...]

    def __call__(self) -> Ablation:
        return _made(self)


@functools.lru_cache(maxsize=4)
def _made(source: Source) -> Ablation:
    return built(Path(source.file), list(source.arguments), "enkg ablate")


def built(file: Path, rest: list[str], program: str, wants_help: bool = False) -> Ablation:
    """The ablation of a file. On one thread, for the same last bits wherever it is built."""
    program = f"{program} {file}"
    with threads(1):
        found = load.defined(
            file,
            "ablation",
            Ablation,
            "ablation = enkg.Ablation(...), or a function of that name that returns one",
        )
        if isinstance(found, Ablation):
            if rest:
                raise InputError(
                    f"`ablation` in {file} takes no arguments, and {shlex.join(rest)} is given; "
                    f"make it a function with typed arguments, or see: enkg ablate {file} --help"
                )
            return found
        if wants_help:
            print_help(lambda: tyro.cli(found, args=["--help"], prog=program, config=CONFIG))
            raise SystemExit(0)
        made = load.guarded(file, lambda: tyro.cli(found, args=rest, prog=program, config=CONFIG))
    if not isinstance(made, Ablation):
        raise InputError(
            f"`ablation` in {file} returned a {type(made).__name__}; expected an enkg.Ablation"
        )
    return made


def ablate(given: list[str], console: Console) -> int:
    """The command; returns the exit code: 1 if a cell failed or has changed."""
    options, rest = _parsed(Ablate, "ablate", given, console)
    ablation = built(options.file, rest, "enkg ablate")
    out = options.out or _default(options.file, rest)
    plan = load.guarded(options.file, ablation.plan)
    only = ablation_grid.only(options.only, ablation.grid)
    if options.workers < 1:
        raise InputError(f"--workers is {options.workers}; expected at least 1")
    if options.time_limit is not None:
        stop.seconds(options.time_limit)
    if options.dry_run:
        return _dry(ablation, cells.merged(out, plan), out, only, console)
    if options.only_gather:
        cells.load(out)
        with store.claimed(out):
            cells.save(out, cells.merged(out, plan))
            data = ablation_table.write(out)
        return _told(ablation_table.picked(data, only), out, console)
    if options.time_limit is not None:
        stop.limit(options.time_limit)
    if options.cell is not None:
        return _cell(ablation, out, options, console)
    with Cells(console) as witness:
        how: dict[str, Any] = {"only": only, "force": options.force, "witness": witness}
        if options.workers == 1:
            data = ablation.run(out, **how)
        else:
            source = Source(str(options.file.absolute()), tuple(rest))
            with Workers(options.workers) as workers:
                data = ablation.run(out, executor=workers, maker=source, **how)
    return _told(data, out, console)


is_ablation = cells.exists


def show(directory: Path, console: Console) -> None:
    """Prints the table of the cells that are there."""
    ablation_report.show(ablation_table.gather(directory), console)


def _parsed(kind: Any, verb: str, given: list[str], console: Console) -> tuple[Any, list[str]]:
    """Options of a command and the file's own arguments; prints the help of both."""
    program = f"enkg {verb}"
    wants_help = any(word in ("-h", "--help") for word in given)
    rest = [word for word in given if word not in ("-h", "--help")]
    if not rest:
        tyro.cli(kind, args=given, prog=program)
    options, rest = tyro.cli(kind, args=rest, prog=program, return_unknown_args=True)
    if wants_help:
        print_help(lambda: tyro.cli(kind, args=["--help"], prog=program))
        console.print(f"[bold]What {options.file} accepts besides[/]")
        built(options.file, [], program, wants_help=True)
        console.print("nothing: its `ablation` is no function")
        raise SystemExit(0)
    return options, rest


def _default(file: Path, rest: Sequence[str]) -> Path:
    """A quick look has a folder of its own, so that it never meets the cells of the whole."""
    return Path("runs") / (file.stem + ("-quick" if "--quick" in rest else ""))


def _told(data: Any, out: Path, console: Console) -> int:
    """Prints the results and says where they are."""
    ablation_report.show(data, console)
    names = ", ".join((ablation_table.CSV, ablation_table.LATEX, ablation_table.NETCDF))
    console.print(f"results in {out}/: {names}, figures", highlight=False)
    return 1 if bool(data["state"].isin(FAULTY).any()) else 0


def _cell(ablation: Ablation, out: Path, options: Ablate, console: Console) -> int:
    """One cell alone, by its number: what a task of a job does."""
    found = [e for e in cells.load(out).numbered if e.number == options.cell]
    if not found:
        raise InputError(f"{out} has no cell {options.cell}; see them with: enkg status {out}")
    console.print(named(found[0].labels), highlight=False, markup=False)
    standing = work_on(ablation, out, found[0], options.force, Watch(console))
    said = f"{standing.state}{f': {standing.reason}' if standing.reason else ''}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return 1 if standing.state in FAULTY else 0


def _dry(
    ablation: Ablation, plan: Plan, out: Path, only: dict[str, list[str]], console: Console
) -> int:
    """Prints the cells and what they cost. One of those that are averaged is built for all."""
    entries = [e for e in plan.cells if all(e.labels[n] in v for n, v in only.items())]
    kept = [name for name in plan.axes if name not in plan.over]
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry.labels[name] for name in kept), []).append(entry)
    table = Grid(*map(escape, kept), "cells", "finished", "calls at most", title=plan.title)
    for column in table.columns[len(kept) :]:
        column.justify = "right"
    total, to_run, doubts = 0, 0, []
    for labels, group in groups.items():
        left = [e for e in group if cells.standing(out, e).state not in _DONE]
        calls = 0
        try:
            calls = len(left) * ablation.cost(left[0].labels) if left else 0
        except Exception as error:  # whatever user code raises
            doubts.append(f"{named(left[0].labels)} cannot be built: {_sentence(error)}")
        skipped = [e for e in group if e.number is None]
        if len(skipped) == len(group):
            said = [f"skipped: {skipped[0].skipped}", "", ""]
        else:
            said = [str(len(group) - len(skipped)), str(len(group) - len(left) - len(skipped))]
            said.append(f"{calls:,}" if left else "")
        table.add_row(*map(escape, (*labels, *said)))
        total, to_run = total + calls, to_run + len(left)
    console.print(table)
    for doubt in doubts:
        console.print(doubt, markup=False, highlight=False, soft_wrap=True)
    whole = sum(e.number is not None for e in entries)
    console.print(
        f"{whole} cells in {out}: {whole - to_run} finished, {to_run} to run, at most {total:,} "
        "simulator calls",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if doubts else 0


_DONE = (*MEASURED, State.SKIPPED)


def _sentence(error: Exception) -> str:
    kind = "" if isinstance(error, EnkgError) else f"{type(error).__name__}: "
    return kind + str(error)


def is_one(given: list[str]) -> bool:
    """Whether the file that enkg submit is given is that of an ablation."""
    files = [Path(word) for word in given if word.endswith(".py") and Path(word).is_file()]
    if not files or "ablation" not in (found := load.names(files[0])):
        return False
    if "experiment" in found:
        raise InputError(
            f"{files[0]} defines both `experiment` and `ablation`, and enkg submit cannot tell "
            "which is meant; put them into two files"
        )
    return True


def submit(given: list[str], console: Console) -> int:
    """The cells of an ablation as an array job."""
    options, rest = _parsed(Submit, "submit", given, console)
    ablation = built(options.file, rest, "enkg submit")
    for name, plain in (
        ("vary", ()),
        ("guidance", None),
        ("controller", False),
        ("ranks_per_node", 1),
        ("nodes", 1),
        ("comm", "auto"),
    ):
        if getattr(options, name) != plain:
            raise InputError(
                f"--{name.replace('_', '-')} is for the runs of an experiment; {options.file} is "
                "an ablation, whose cells are one process each"
            )
    options = dataclasses.replace(options, out=options.out or _default(options.file, rest))
    out = options.directory
    plan = cells.merged(out, load.guarded(options.file, ablation.plan))
    left = [e for e in plan.numbered if cells.standing(out, e).state != State.FINISHED]
    numbers = [e.number for e in left if e.number is not None]
    found = slurm.Cells(numbers, len(plan.numbered), lambda: cells.save(out, plan))
    return slurm.submit(options, rest, console, cells=found)
