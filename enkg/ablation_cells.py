"""The folder of an ablation: which cells its grid has, and how each of them stands.

    ablation.json      axes, cells and their numbers
    0000.json          what cell 0 was, how it ended, and its numbers
    0000/              its run directory (`enkg.store`)
    ablation.nc, ablation.csv, ablation.tex, table.md, figures/
                       the results, written at the end (`enkg.ablation_table`)

A cell is known by its labels, one for each axis, and keeps its number for good: where values are
added to an axis, the cells that are there stay as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from enkg import store
from enkg.errors import StoreError

FILE = "ablation.json"
FORMAT = 1

Labels = Mapping[str, str]
"""The label of a cell on each axis."""


class State(StrEnum):
    """How a cell stands. changed: finished, but its experiment is another one by now."""

    FINISHED = "finished"
    CHANGED = "changed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"
    MISSING = "missing"
    RUNNING = "running"


MEASURED = (State.FINISHED, State.CHANGED)
"""States of cells that have numbers."""
FAULTY = (State.CHANGED, State.FAILED)
"""States that a command ends with exit code 1 for."""


@dataclass(frozen=True)
class Entry:
    """A cell in the folder. number: None where it is skipped for the reason that stands there."""

    labels: Labels
    number: int | None
    skipped: str = ""


@dataclass(frozen=True)
class Plan:
    """What ablation.json holds.

    axes: the values of each axis, numbers or labels, in order. cells: those of the grid, the last
    axis varies fastest. earlier: finished or begun cells that the grid had before. others: what is
    recorded for the reader of the file.
    """

    axes: Mapping[str, tuple[str | float, ...]]
    cells: tuple[Entry, ...]
    title: str = ""
    over: tuple[str, ...] = ()
    along: str | None = None
    measures: tuple[str, ...] = ()
    earlier: tuple[Entry, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbered(self) -> list[Entry]:
        """The cells that are to be run."""
        return [entry for entry in self.cells if entry.number is not None]


@dataclass(frozen=True)
class Standing:
    """How a cell stands. measures: its numbers, by name. seconds: of its last try."""

    entry: Entry
    state: State
    reason: str = ""
    measures: Mapping[str, float | None] = field(default_factory=dict)
    trusted: bool = False
    seconds: float = 0.0

    @classmethod
    def of(cls, entry: Entry, record: Mapping[str, Any]) -> "Standing":
        """What the record of a cell says."""
        return cls(
            entry,
            State(record["state"]),
            record["reason"],
            record["measures"],
            record["trusted"],
            record["seconds"],
        )


def folder(directory: str | Path, number: int) -> Path:
    """The run directory of a cell."""
    return Path(directory) / f"{number:04d}"


def exists(directory: str | Path) -> bool:
    """Whether the folder holds an ablation."""
    return (Path(directory) / FILE).is_file()


def merged(directory: str | Path, wanted: Plan) -> Plan:
    """The plan with the numbers that its cells have in the folder; new cells get the next ones.

    Raises StoreError where the folder holds an ablation over other axes, or something else.
    """
    directory = Path(directory)
    known: dict[frozenset[tuple[str, str]], Entry] = {}
    if exists(directory):
        before = load(directory)
        if set(before.axes) != set(wanted.axes):
            raise StoreError(
                f"{directory} holds an ablation over {', '.join(before.axes)}, and this one is "
                f"over {', '.join(wanted.axes)}; give another --out"
            )
        both = (*before.cells, *before.earlier)
        known = {_key(e): e for e in both if e.number is not None}
    elif directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; an ablation needs a directory")
    elif directory.is_dir() and any(not _is_trifle(file) for file in directory.iterdir()):
        raise StoreError(f"{directory} holds files that no ablation wrote; choose another --out")
    number = 1 + max((e.number for e in known.values() if e.number is not None), default=-1)
    cells = []
    for entry in wanted.cells:
        before = known.pop(_key(entry), None)
        if entry.skipped:
            cells.append(entry)
        elif before is not None:
            cells.append(replace(entry, number=before.number))
        else:
            cells.append(replace(entry, number=number))
            number += 1
    return replace(wanted, cells=tuple(cells), earlier=tuple(known.values()))


def _key(entry: Entry) -> frozenset[tuple[str, str]]:
    return frozenset(entry.labels.items())


def _is_trifle(file: Path) -> bool:
    return file.name == store.LOCK or file.name.startswith(store.JOB)


def save(directory: str | Path, plan: Plan) -> None:
    """Writes ablation.json."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "title": plan.title,
        "axes": {name: list(values) for name, values in plan.axes.items()},
        "over": list(plan.over),
        "along": plan.along,
        "measures": list(plan.measures),
        "cells": [_written(entry) for entry in plan.cells],
        "earlier": [_written(entry) for entry in plan.earlier],
        **plan.others,
    }
    store.write_json(Path(directory) / FILE, content)


def _written(entry: Entry) -> dict[str, Any]:
    why = {"skipped": entry.skipped} if entry.skipped else {}
    return {"number": entry.number, "labels": dict(entry.labels), **why}


def load(directory: str | Path) -> Plan:
    """The plan of a folder. Raises StoreError if there is none that can be read."""
    path = Path(directory) / FILE
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise StoreError(
                f"{path} has the format {content['format']!r}; this enkg reads format {FORMAT}"
            )
        return Plan(
            {name: tuple(values) for name, values in content["axes"].items()},
            tuple(_read(entry) for entry in content["cells"]),
            content["title"],
            tuple(content["over"]),
            content["along"],
            tuple(content["measures"]),
            tuple(_read(entry) for entry in content["earlier"]),
        )
    except FileNotFoundError as error:
        raise StoreError(f"there is no ablation in {directory}: it has no {FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} cannot be read as an ablation: {error}") from error


def _read(entry: Mapping[str, Any]) -> Entry:
    return Entry(entry["labels"], entry["number"], entry.get("skipped", ""))


def record(directory: str | Path, number: int) -> dict[str, Any] | None:
    """What a cell left behind when it ended; None where it did not."""
    path = Path(directory) / f"{number:04d}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; remove it to try the cell again") from error


def write_record(directory: str | Path, number: int, content: Mapping[str, Any]) -> None:
    """Writes what a cell leaves behind."""
    store.write_json(Path(directory) / f"{number:04d}.json", content)


def standing(directory: str | Path, entry: Entry) -> Standing:
    """How a cell stands, by what is in the folder."""
    if entry.number is None:
        return Standing(entry, State.SKIPPED, entry.skipped)
    run = folder(directory, entry.number)
    found = record(directory, entry.number)
    if found is not None and (found["state"] == State.FAILED or store.is_complete(run)):
        return Standing.of(entry, found)
    begun = (run / store.RECORD).is_file()
    return Standing(entry, State.UNFINISHED if begun else State.MISSING)


def standings(directory: str | Path, plan: Plan | None = None) -> list[Standing]:
    """How all cells stand, in the order of the grid."""
    return [standing(directory, entry) for entry in (plan or load(directory)).cells]


def label(value: Any) -> str:
    """The label of a number or a word; that of a whole number has no point.

    >>> label(0.5), label(1.0), label("EnKG")
    ('0.5', '1', 'EnKG')
    """
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value) if whole else value)


def named(labels: Labels, alone: int = 1) -> str:
    """A cell in words; the first axes are told by the label alone.

    >>> named({"guidance": "EnKG", "noise": "0.2", "seed": "1"})
    'EnKG, noise 0.2, seed 1'
    """
    words = [v if k < alone else f"{n} {v}" for k, (n, v) in enumerate(labels.items())]
    return ", ".join(words)
