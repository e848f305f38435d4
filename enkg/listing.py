"""What `enkg list` shows: methods, and what a project has."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from enkg.guidance import METHODS
from enkg.load import discover


def show(root: Path, console: Console) -> None:
    """Prints the methods, and the experiments, priors and simulators below `root`."""
    grid = Grid("guidance", "", show_edge=False)
    for name, line in _methods():
        grid.add_row(name, escape(line))
    console.print(grid)
    for room, entries in discover(root).items():
        if entries:
            grid = Grid(room, "", show_edge=False)
            for entry in entries:
                grid.add_row(entry.path, entry.line)
            console.print()
            console.print(grid)


def _methods() -> Iterator[tuple[str, str]]:
    """Each method with its line; a preset with its differences from the first of its class."""
    first: dict[type, str] = {}
    told: set[Any] = set()
    for name, method in METHODS.items():
        kind = type(method)
        if kind in first:
            yield name, f"{first[kind]} with {_differences(method)}"
            continue
        module = inspect.getmodule(kind)
        line = (inspect.getdoc(kind if module in told else module) or "").splitlines()[0]
        first[kind] = name
        told.add(module)
        yield name, line


def _differences(method: Any) -> str:
    """How a preset differs from the defaults of its class."""
    plain = type(method)()
    changed = [
        f"{f.name}={getattr(method, f.name)}"
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != getattr(plain, f.name)
    ]
    return ", ".join(changed)
