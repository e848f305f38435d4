"""What people look at of an ablation: error against calls, error against time, coverage.

What is compared has a colour and a marker of its own, the same in all figures. A large point is the
mean over the cells that are averaged, with bars of one standard deviation; a small one is a cell.
There is a panel for each combination of the further axes.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from enkg.ablation_cells import label
from enkg.report import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#332288", "#882255", "#117733", "#999933", "#661100", "#777777"),
)
MARKERS = "osD^vP<X>phd"
COVERAGE = "coverage_90"
NOMINAL = 0.9
COLUMNS = 4
"""Panels side by side, at most."""
WIDE = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Layout:
    """The axes of an ablation by what they are in a figure."""

    compared: str
    over: list[str]
    along: str | None
    panels: list[str]

    @classmethod
    def of(cls, data: xr.Dataset) -> "Layout":
        names = [str(name) for name in data.dims]
        over = [name for name in json.loads(data.attrs["over"]) if name in names]
        along = data.attrs["along"] or None
        compared = names[0]
        rest = [n for n in names[1:] if n not in over and n != along]
        return cls(compared, [n for n in over if n != compared], along, rest)


def draw(data: xr.Dataset, folder: Path) -> list[Path]:
    """Draws the figures for which there are numbers into PNG files and returns their paths."""
    layout = Layout.of(data)
    error = _error(data)
    drawn: dict[str, Figure] = {}
    if error is not None:
        for x, name in (("calls", "error_against_calls"), ("seconds", "error_against_seconds")):
            if _known(data, x):
                drawn[f"{name}.png"] = _against(data, layout, x, error)
    if _known(data, COVERAGE):
        drawn["coverage.png"] = _coverage(data, layout)
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130)
    return [folder / name for name in drawn]


def _error(data: xr.Dataset) -> str | None:
    """The first measure that has numbers."""
    names = [n for n in json.loads(data.attrs["measures"]) if n in data and _known(data, n)]
    return names[0] if names else None


def _known(data: xr.Dataset, name: str) -> bool:
    return name in data and bool(np.isfinite(data[name].values).any())


def _style(number: int) -> dict[str, Any]:
    """Colour and marker of what is compared; another pair for each."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def _panels(
    data: xr.Dataset, layout: Layout, size: tuple[float, float]
) -> tuple["Figure", list[tuple["Axes", xr.Dataset]]]:
    """A figure, and each panel with its part of the data. size: inches of a panel."""
    every = list(itertools.product(*(range(data.sizes[name]) for name in layout.panels)))
    inner = data.sizes[layout.panels[-1]] if layout.panels else 1
    columns = inner if 1 < inner <= COLUMNS else min(len(every), COLUMNS)
    lines = -(-len(every) // columns)
    figure = blank(size[0] * columns + 2.0, size[1] * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    parts = []
    for axis, place in zip(axes, every, strict=False):
        here = dict(zip(layout.panels, place, strict=True))
        words = [f"{n} {label(data[n].values.tolist()[k])}" for n, k in _varied(data, here).items()]
        axis.set_title(", ".join(words), fontsize=9)
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.tick_params(labelsize=8)
        parts.append((axis, data.isel(here)))
    for axis in axes[len(every) :]:
        axis.set_axis_off()
    if data.attrs["title"]:
        figure.suptitle(data.attrs["title"], fontsize=11)
    return figure, parts


def _varied(data: xr.Dataset, here: Mapping[str, int]) -> dict[str, int]:
    """Without the axes that have one value."""
    return {name: k for name, k in here.items() if data.sizes[name] > 1}


def _against(data: xr.Dataset, layout: Layout, x: str, y: str) -> "Figure":
    """One measure against another."""
    figure, parts = _panels(data, layout, (3.4, 3.0))
    names = [label(v) for v in data[layout.compared].values.tolist()]
    for axis, part in parts:
        for number, name in enumerate(names):
            style = _style(number)
            one = part.isel({layout.compared: number})
            xs, ys = _points(one, layout, x), _points(one, layout, y)
            axis.plot(xs.ravel(), ys.ravel(), ls="", ms=3, alpha=0.35, mew=0, **style)
            (mx, sx), (my, sy) = _mean(xs), _mean(ys)
            line = "-" if layout.along else ""
            bars = {"xerr": sx, "yerr": sy, "elinewidth": 0.8, "linewidth": 1.0}
            shown = {"ms": 7, "mec": "white", "mew": 0.6, "zorder": 3, "label": name}
            axis.errorbar(mx, my, ls=line, **bars, **shown, **style)
    for axis, _ in parts:
        _scale(axis, "x", data[x].values, x == "calls")
        _scale(axis, "y", data[y].values, False)
    _name_sides(parts, data, x, y)
    _legend(figure, parts, layout)
    return figure


def _coverage(data: xr.Dataset, layout: Layout) -> "Figure":
    """Coverage of the 90 % intervals: a line for each of what is compared, or along an axis."""
    count = data.sizes[layout.compared]
    size = (3.4, 3.0) if layout.along else (2.6, 0.9 + 0.24 * count)
    figure, parts = _panels(data, layout, size)
    names = [label(v) for v in data[layout.compared].values.tolist()]
    for axis, part in parts:
        nominal = axis.axhline if layout.along else axis.axvline
        nominal(NOMINAL, color="k", linewidth=0.8, linestyle="--", zorder=1)
        for number, name in enumerate(names):
            style = _style(number)
            values = _points(part.isel({layout.compared: number}), layout, COVERAGE)
            mean, std = _mean(values)
            shown = {"ms": 7, "mec": "white", "mew": 0.6, "zorder": 3, "label": name, **style}
            if layout.along:
                place = _places(data, layout.along)
                axis.errorbar(place, mean, yerr=std, ls="-", linewidth=1, elinewidth=0.8, **shown)
                continue
            axis.plot(values.ravel(), [number] * values.size, ls="", ms=3, alpha=0.35, **style)
            axis.errorbar(mean, [number], xerr=std, ls="", elinewidth=0.8, **shown)
        if layout.along:
            axis.set_ylim(-0.03, 1.03)
            _along(axis, data, layout.along)
        else:
            axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(count - 0.5, -0.5)
            axis.set_yticks(range(count), names)
    text = f"share of elements in their 90 % interval (dashed: {NOMINAL})"
    if layout.along:
        figure.supylabel(text, fontsize=9)
        figure.supxlabel(layout.along, fontsize=9)
        _legend(figure, parts, layout)
    else:
        figure.supxlabel(text, fontsize=9)
    return figure


def _points(part: xr.Dataset, layout: Layout, name: str) -> np.ndarray:
    """A line for each place along the axis, with the cells that are averaged in it."""
    along = [layout.along] if layout.along else []
    values = part[name].transpose(*along, *layout.over).values
    return values.reshape(values.shape[0] if along else 1, -1)


def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each line; NaN and 0 where there is too little."""
    mean, std = np.full(len(values), np.nan), np.zeros(len(values))
    for k, line in enumerate(values):
        known = line[np.isfinite(line)]
        if len(known):
            mean[k] = known.mean()
        if len(known) > 1:
            std[k] = known.std(ddof=1)
    return mean, std


def _places(data: xr.Dataset, along: str) -> np.ndarray:
    values = data[along].values
    return values if values.dtype.kind in "if" else np.arange(len(values))


def _along(axis: "Axes", data: xr.Dataset, along: str) -> None:
    values = data[along].values
    if values.dtype.kind not in "if":
        axis.set_xticks(range(len(values)), [label(v) for v in values.tolist()])
    else:
        _scale(axis, "x", values, False)


def _scale(axis: "Axes", which: str, values: np.ndarray, log: bool) -> None:
    """Logarithmic where asked for or where the values are far apart, if all are positive."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    known = values[np.isfinite(values)]
    if not len(known) or known.min() <= 0:
        return
    if not log and known.max() < WIDE * known.min():
        return
    set_scale, side = (
        (axis.set_xscale, axis.xaxis) if which == "x" else (axis.set_yscale, axis.yaxis)
    )
    set_scale("log")
    if known.max() < 100 * known.min():  # decades alone would leave hardly a tick
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter(StrMethodFormatter("{x:,g}"))
        side.set_minor_formatter(NullFormatter())


def _name_sides(
    parts: Sequence[tuple["Axes", xr.Dataset]], data: xr.Dataset, x: str, y: str
) -> None:
    figure = parts[0][0].figure
    for name, put in ((x, figure.supxlabel), (y, figure.supylabel)):
        unit = data[name].attrs.get("units", "")
        text = "simulator calls" if name == "calls" else data[name].attrs["long_name"]
        put(text + (f" [{unit}]" if unit not in ("", "1") else ""), fontsize=9)


def _legend(figure: "Figure", parts: Sequence[tuple["Axes", xr.Dataset]], layout: Layout) -> None:
    handles, names = parts[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside right center",
        fontsize=8,
        title=layout.compared,
        title_fontsize=9,
        frameon=False,
    )
