"""The tables of an ablation: in the terminal, as CSV, Markdown and LaTeX.

Means are over the finished cells, with their sample standard deviation; the last column says how
many are trusted, and how many have no numbers, or those from before a change. Nothing is marked as
best: that is for a test to say.
"""

import csv
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isnan, log10, nan
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from enkg.ablation_cells import FAULTY, State, label, named

if TYPE_CHECKING:
    from rich.console import Console

COUNTED = ("members", "data", "low_calls", "failed", "calls", "vjps")
"""Measures that are whole numbers in each cell, and those that end like these."""
GAP = 2
"""Blanks between two columns in the terminal; behind the last one there is one."""


def words(data: xr.Dataset, axis: str) -> list[str]:
    """The labels of an axis."""
    return [label(value) for value in data[axis].values.tolist()]


def lines(data: xr.Dataset) -> str:
    """The table with one line for each cell, as CSV; empty where there is no number."""
    measures = [name for name in data.data_vars if data[name].dtype.kind == "f"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*data.dims, "cell", "state", "trusted", *measures, "reason"])
    for place in np.ndindex(*data.sizes.values()):
        here = dict(zip(map(str, data.dims), place, strict=True))
        cell = data.isel(here)
        numbers = [cell[name].item() for name in measures]
        out.writerow(
            [
                *(cell[name].item() for name in here),
                cell["cell"].item(),
                cell["state"].item(),
                cell["trusted"].item(),
                *("" if isnan(value) else repr(value) for value in numbers),
                cell["reason"].item(),
            ]
        )
    return text.getvalue()


@dataclass(frozen=True)
class Number:
    """Mean and standard deviation over the finished cells; spread is NaN for less than two."""

    mean: float
    spread: float
    whole: bool = False

    def text(self, plus: str = " ± ") -> str:
        """The deviation with two digits, the mean to the same place."""
        if isnan(self.mean):
            return "-"
        if self.whole:
            shown = f"{self.mean:,.0f}"
            return f"{shown}{plus}{self.spread:,.0f}" if self.spread >= 0.5 else shown
        if not self.spread > 0:
            return _three(self.mean)
        places = 1 - floor(log10(self.spread))
        if not 0 <= places <= 6:
            return f"{_three(self.mean)}{plus}{self.spread:.2g}"
        return f"{self.mean:,.{places}f}{plus}{self.spread:.{places}f}"


def _three(value: float) -> str:
    """
    >>> _three(1.0), _three(0.04567), _three(1234.5), _three(2e-7)
    ('1.00', '0.0457', '1,234', '2e-07')
    """
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 2 - floor(log10(abs(value))))}f}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Body:
    """A table of means. rows: labels, numbers, how many cells are trusted.

    constant: axes with one value, and measures that are 0 everywhere, which have no column.
    """

    title: str
    axes: list[str]
    measures: list[str]
    rows: list[tuple[list[str], list[Number], str]]
    constant: list[str]
    failures: list[str]

    @property
    def heads(self) -> list[str]:
        return [name.replace("_", " ") for name in (*self.axes, *self.measures, "trusted")]


def body(data: xr.Dataset) -> Body:
    """Means over the axes that are averaged; what is compared varies fastest."""
    over = [name for name in json.loads(data.attrs["over"]) if name in data.dims]
    kept = [str(name) for name in data.dims if name not in over]
    kept = [*kept[1:], *kept[:1]]
    wanted = [name for name in json.loads(data.attrs["measures"]) if name in data]
    there = [name for name in wanted if bool(data[name].notnull().any())]
    zero = [name for name in there if not bool(data[name].fillna(0).any())]
    shown = [name for name in there if name not in zero]
    rows = []
    for place in itertools.product(*(range(data.sizes[name]) for name in kept)):
        here = dict(zip(kept, place, strict=True))
        part = data.isel(here)
        states = part["state"].values.ravel().tolist()
        if all(state == State.SKIPPED for state in states):
            continue
        numbers = [_number(name, part[name].values.ravel()) for name in shown]
        labels = [words(data, name)[k] for name, k in here.items() if data.sizes[name] > 1]
        rows.append((labels, numbers, _trusted(int(part["trusted"].sum()), states)))
    constant = [f"{n} {words(data, n)[0]}" for n in kept if data.sizes[n] == 1]
    constant += [f"{name.replace('_', ' ')} 0 everywhere" for name in zero]
    columns = [name for name in kept if data.sizes[name] > 1]
    title = data.attrs["title"]
    return Body(title, columns, shown, rows, constant, failures(data))


def _trusted(count: int, states: list[str]) -> str:
    """'2 of 3', and behind it what is not as it should be: '2 of 3, 1 changed', '2 of 3, 1 failed'.

    The numbers of changed cells are in the means, failed ones have none.
    """
    text = f"{count} of {len(states) - states.count(State.SKIPPED)}"
    known = (State.SKIPPED, State.FINISHED, *FAULTY)
    left = sum(state not in known for state in states)
    counts = {str(state): states.count(state) for state in FAULTY} | {"to run": left}
    return text + "".join(f", {number} {what}" for what, number in counts.items() if number)


def _number(name: str, values: np.ndarray) -> Number:
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else nan
    spread = float(known.std(ddof=1)) if len(known) > 1 else nan
    return Number(mean, spread, name.endswith(COUNTED))


def failures(data: xr.Dataset) -> list[str]:
    """Cells without numbers, or with those from before a change, with the reason; those with
    the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for place in np.ndindex(*data.sizes.values()):
        cell = data.isel(dict(zip(map(str, data.dims), place, strict=True)))
        state = cell["state"].item()
        if state != State.FINISHED:
            labels = {str(name): label(cell[name].item()) for name in data.dims}
            found.setdefault((state, cell["reason"].item()), []).append(named(labels))
    notes = []
    for (state, reason), names in found.items():
        where = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
        notes.append(f"{state}: {where}{f': {reason}' if reason else ''}")
    return notes


def show(data: xr.Dataset, console: "Console") -> None:
    """Prints the table of means, in parts where the terminal is too narrow, and what failed."""
    from rich import box
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.table import Table as Grid

    found = body(data)
    lead, rows = len(found.axes), _written(found)
    heads = found.heads
    wide = [
        max(*(cell_len(word) for word in head.split()), *(cell_len(row[k]) for row in rows), 1)
        for k, head in enumerate(heads)
    ]
    whole = [max(width, cell_len(head)) for width, head in zip(wide, heads, strict=True)]
    for number, columns in enumerate(_parts(wide, lead, console.width)):
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        grid.title = escape(found.title) if number == 0 else None
        spare = console.width - sum(wide[k] + GAP for k in columns) + 1
        for k in columns:
            width: int | None = wide[k]
            if whole[k] - wide[k] <= spare:  # the head on one line
                width, spare = whole[k], spare - whole[k] + wide[k]
            if spare < 0 and k < lead:  # labels that leave no room are folded
                width = None
            side = "left" if k < lead else "right"
            grid.add_column(escape(heads[k]), justify=side, width=width, overflow="fold")
        for row, after in itertools.zip_longest(rows, rows[1:]):
            ends = after is not None and lead > 1 and row[: lead - 1] != after[: lead - 1]
            grid.add_row(*(escape(row[k]) for k in columns), end_section=ends)
        if number:
            console.print()
        console.print(grid)
    for note in _notes(found):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _parts(wide: Sequence[int], lead: int, width: int) -> list[list[int]]:
    """Columns of each part; the first ones, with the labels, are in all of them."""
    parts: list[list[int]] = [[]]
    room = width - sum(wide[:lead]) - GAP * lead
    left = room
    for k in range(lead, len(wide)):
        if wide[k] + GAP > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(k)
        left -= wide[k] + GAP
    return [[*range(lead), *part] for part in parts]


def _written(found: Body) -> list[list[str]]:
    return [[*labels, *(n.text() for n in ns), last] for labels, ns, last in found.rows]


def _notes(found: Body) -> list[str]:
    return [*([f"all: {'; '.join(found.constant)}"] if found.constant else []), *found.failures]


def markdown(data: xr.Dataset) -> str:
    """The table of means."""
    found = body(data)
    rows = _written(found)
    ruler = ["---"] * len(found.axes) + ["---:"] * (len(found.heads) - len(found.axes))
    table = "\n".join(f"| {' | '.join(_piped(r))} |" for r in (found.heads, ruler, *rows))
    notes = _notes(found)
    return f"### {found.title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in notes)


def _piped(row: Sequence[str]) -> list[str]:
    return [word.replace("|", "\\|") for word in row]


def latex(data: xr.Dataset) -> str:
    """The table of means as a tabular of booktabs."""
    found = body(data)
    columns = "l" * len(found.axes) + "r" * (len(found.heads) - len(found.axes))
    out = [
        f"% {' '.join(found.title.split())}; needs \\usepackage{{booktabs}}",
        *(f"% {note}" for note in (*found.constant, *found.failures)),
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(map(escaped, found.heads)) + r" \\",
        "\\midrule",
    ]
    before: list[str] | None = None
    for labels, numbers, trusted in found.rows:
        if before is not None and len(labels) > 1 and labels[:-1] != before[:-1]:
            out.append("\\midrule")
        before = labels
        shown = [_mathematical(number) for number in numbers]
        out.append(" & ".join([*map(escaped, labels), *shown, escaped(trusted)]) + r" \\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", ""])


def _mathematical(number: Number) -> str:
    text = number.text(r" \pm ").replace(",", "{,}")
    if text == "-":
        return "--"
    parts = []
    for part in text.split(" "):
        digits, e, power = part.partition("e")
        parts.append(f"{digits} \\times 10^{{{int(power)}}}" if e else part)
    return f"${' '.join(parts)}$"


def escaped(text: str) -> str:
    """Words as LaTeX prints them.

    >>> escaped("90 % of A_1 & B")
    '90 \\\\% of A\\\\_1 \\\\& B'
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return "".join(special.get(sign, sign) for sign in text)
