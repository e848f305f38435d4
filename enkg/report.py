"""What people look at: figures of a run, and its numbers as a table in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

SHOWN_MEMBERS = 4
SHOWN_DATA = 300  # more error bars than this are drawn in part


@dataclass(frozen=True)
class Table:
    """A table for the terminal and for summary.json."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Analysis:
    """What an experiment's own `analyse` adds: metrics by name, and tables."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def figures(tree: xr.DataTree, folder: Path) -> list[Path]:
    """Draws a run into PNG files and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "posterior.png": _posterior(tree),
        "data.png": _data(tree),
        "trace.png": _trace(tree),
    }
    paths = []
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130)
        paths.append(folder / name)
    return paths


def _posterior(tree: xr.DataTree) -> "Figure":
    name = tree.attrs["unknown"]
    x, prior = _array(tree, "posterior", name), _array(tree, "prior_samples", name)
    return _maps(tree, x, prior) if x.ndim == 3 else _bands(tree, x, prior)


def _maps(tree: xr.DataTree, x: xr.DataArray, prior: xr.DataArray) -> "Figure":
    """Truth, measurement, mean and standard deviation over a few members."""
    observed = _array(tree, "observation", tree.attrs["data"])
    panels: list[tuple[str, np.ndarray, bool]] = []
    if "truth" in tree:
        panels.append(("truth", _array(tree, "truth", str(x.name)).values, False))
    if observed.ndim == 2:
        seen = observed.where(_array(tree, "observation", "mask"))
        panels.append(("measurement", seen.values, True))
    panels.append(("posterior mean", x.mean("member").values, False))
    panels.append(("posterior standard deviation", x.std("member", ddof=1).values, True))
    panels.append(("prior sample", prior.isel(member=0).values, False))
    members = [
        (f"posterior member {j}", x.isel(member=j).values, False)
        for j in range(min(SHOWN_MEMBERS, x.sizes["member"]))
    ]
    panels += members
    columns = (len(panels) + 1) // 2
    figure = blank(3.1 * columns, 6.2)
    axes = figure.subplots(2, columns, squeeze=False).ravel()
    common = np.concatenate([p.ravel() for _, p, own in panels[:-1] if not own])
    low, high = np.nanpercentile(common, [0.2, 99.8])
    if low < 0 < high:
        high = max(high, -low)
        low = -high
    for axis, (title, values, own) in zip(axes, panels, strict=False):
        limits = {} if own else {"vmin": low, "vmax": high}
        colours = "viridis" if "deviation" in title else tree.attrs["colour_map"]
        image = axis.imshow(values, cmap=colours, **limits)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        if axis is axes[0]:
            axis.set_ylabel(f"{x.dims[1]}, downwards", fontsize=8)
            axis.set_xlabel(str(x.dims[2]), fontsize=8)
        figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{x.attrs['long_name']} [{x.attrs['units']}]", fontsize=11)
    return figure


def _bands(tree: xr.DataTree, x: xr.DataArray, prior: xr.DataArray) -> "Figure":
    """Intervals along the flattened unknown: prior, posterior, members and truth."""
    figure = blank(9.0, 4.2)
    axis = figure.subplots()
    flat, before = (v.values.reshape(len(v), -1) for v in (x, prior))
    place = np.arange(flat.shape[1])
    style = {"step": "mid", "linewidth": 0}
    for values, colour, label in (
        (before, "0.85", "prior, 90 %"),
        (flat, "tab:blue", "posterior, 90 %"),
    ):
        low, high = np.percentile(values, [5, 95], axis=0)
        axis.fill_between(place, low, high, color=colour, alpha=0.6, label=label, **style)
    axis.plot(place, flat.mean(axis=0), color="tab:blue", label="posterior mean")
    axis.plot(place, flat[:SHOWN_MEMBERS].T, color="tab:blue", linewidth=0.5, alpha=0.7)
    if "truth" in tree:
        axis.plot(place, _array(tree, "truth", str(x.name)).values.ravel(), "k.", label="truth")
    axis.set_xlabel("element" if x.ndim != 2 else str(x.dims[1]))
    axis.set_ylabel(f"{x.attrs['long_name']} [{x.attrs['units']}]")
    axis.legend(fontsize=8, ncols=2)
    return figure


def _data(tree: xr.DataTree) -> "Figure":
    """Each datum against its simulation, before and after, and the whitened residuals."""
    name = tree.attrs["data"]
    keep = _array(tree, "observation", "mask").values.ravel()
    y = _array(tree, "observation", name).values.ravel()[keep]
    figure = blank(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    few = slice(None, None, max(1, len(y) // SHOWN_DATA))
    groups = (("prior_samples", "0.7", "prior"), ("predicted", "tab:blue", "posterior"))
    std = None
    if "std" in tree["observation"]:
        std = _array(tree, "observation", "std").values.ravel()[keep]
    for group, colour, label in groups:
        values = _array(tree, group, name).values
        values = values.reshape(len(values), -1)[:, keep]
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):  # nobody simulated them
            continue
        low, middle, high = np.percentile(values[:, few], [5, 50, 95], axis=0)
        bars = [middle - low, high - middle]
        left.errorbar(
            y[few], middle, bars, fmt=".", ms=3, lw=0.4, color=colour, label=label, alpha=0.7
        )
        if std is not None:
            residual = ((values - y) / std).ravel()
            right.hist(
                np.clip(residual, -6, 6),
                bins=np.linspace(-6, 6, 61),
                density=True,
                histtype="step",
                color=colour,
                label=label,
            )
    left.axline((float(y.mean()),) * 2, slope=1, color="k", linewidth=0.7)
    left.set_xlabel("measured")
    left.set_ylabel("simulated, median and 90 %")
    left.legend(fontsize=8)
    if std is None:
        right.set_axis_off()
        return figure
    grid = np.linspace(-6, 6, 200)
    right.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), "k", lw=0.8, label="N(0, 1)")
    right.set_xlabel("(simulated - measured) / noise, clipped to 6")
    right.legend(fontsize=8)
    return figure


def _trace(tree: xr.DataTree) -> "Figure":
    trace = tree["trace"].to_dataset()
    guided = trace.isel(step=np.flatnonzero(np.isfinite(trace["misfit_per_datum"].values)))
    figure = blank(11.5, 3.4)
    panels = (
        ("misfit_per_datum", "misfit per datum"),
        ("spread", "spread (prior units)"),
        ("power", "likelihood power of the update"),
        ("beta", "likelihood spent"),
    )
    for axis, (name, label) in zip(figure.subplots(1, 4), panels, strict=True):
        values = guided[name].values
        axis.plot(guided["calls"].values, values, "o-", ms=3)
        if np.all(values > 0):
            axis.set_yscale("log")
        axis.set_xlabel("simulator calls")
        axis.set_title(label, fontsize=9)
    figure.axes[0].axhline(1, color="k", linewidth=0.7)
    return figure


def _array(tree: xr.DataTree, group: str, name: str) -> xr.DataArray:
    return tree[group].to_dataset()[name]


def blank(width: float, height: float) -> "Figure":
    """A figure that belongs to no window: safe in threads and without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _low(summary: Mapping[str, Any]) -> dict[str, str]:
    """Lines of a run that had a low-fidelity simulator."""
    if "low_calls" not in summary:
        return {}
    return {
        "low-fidelity calls": f"{summary['low_calls']:,}",
        "call equivalents": f"{summary['call_equivalents']:,.6g}",
    }


def _vjps(summary: Mapping[str, Any]) -> dict[str, str]:
    vjps = summary.get("vjps", 0)
    return {"simulator Jacobian products": f"{vjps:,}"} if vjps else {}


def _failures(summary: Mapping[str, Any]) -> str:
    """'12 (9 timeout, 3 signal)'"""
    causes = sorted(summary.get("causes", {}).items(), key=lambda item: -item[1])
    table = ", ".join(f"{times:,} {cause}" for cause, times in causes)
    return f"{summary['failed']:,} ({table})" if table else f"{summary['failed']:,}"


def _diagnostics(found: Mapping[str, Any], history: Mapping[str, Any]) -> dict[str, str]:
    """Lines of the table."""
    if not found:
        return {}
    ranks = (found["effective_rank"], found["prior_effective_rank"])
    lines = {
        "effective rank, posterior / prior": " / ".join(map(_number, ranks))
        + f" (of {found['effective_rank_members']} members)"
    }
    if found["distance_from_prior"] is not None:
        lines["distance from the prior / its samples'"] = _expected(
            found["distance_from_prior"], found["distance_bounds"]
        )
    if history.get("beta"):
        lines["likelihood spent, by update"] = _abridged(history["beta"])
    return lines


def _expected(value: float | None, bounds: Sequence[float] | None) -> str:
    """'0.93 (0.80 to 1.20)'"""
    if value is None or bounds is None:
        return _number(value)
    return f"{_number(value)} ({bounds[0]:.2f} to {bounds[1]:.2f})"


def _abridged(values: Sequence[float], shown: int = 6) -> str:
    """'0.1, 0.3, 1' or, of many, '0.1, 0.2, 0.3, ..., 1 (12 updates)'."""
    words = [_number(float(v)) for v in values]
    if len(words) > shown:
        words = [*words[: shown - 2], "...", f"{words[-1]} ({len(words)} updates)"]
    return ", ".join(words)


def show(summary: Mapping[str, Any], console: "Console") -> None:
    """Prints summary.json as tables, with the verdict last."""
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(title=f"{summary['method']}, {summary['members']} members", show_header=False)
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    found = summary.get("diagnostics", {})  # none in a run of an older version
    lines = {
        "simulator calls": f"{summary['calls']:,}",
        **_low(summary),
        "failed calls": _failures(summary),
        "denoiser calls": f"{summary['denoiser_calls']:,}",
        **_vjps(summary),
        "denoiser Jacobian products": f"{summary.get('denoiser_vjps', 0):,}",
        "seconds": f"{summary['seconds']:.1f}",
        "of these in the simulator": f"{summary['simulator_seconds']:.1f}",
        "misfit per datum, prior": _number(summary["prior_misfit_per_datum"]),
        "misfit per datum, posterior": _expected(
            summary["misfit_per_datum"], found.get("misfit_bounds")
        ),
        "spread, posterior / prior": _number(summary["spread"]),
    }
    lines |= _diagnostics(found, summary.get("tempering", {}))
    lines |= {k.replace("_", " "): _number(v) for k, v in summary["metrics"].items()}
    for name, value in lines.items():
        grid.add_row(escape(name), escape(value))
    console.print(grid)
    for table in summary.get("tables", []):
        print_table(Table(**table), console)
    for remark in summary.get("remarks", []):
        console.print(remark, markup=False, highlight=False)
    word, colour = ("trusted", "green") if summary["trusted"] else ("not trusted", "red")
    console.print(f"[bold {colour}]{word}[/]: ", end="")
    console.print(summary["reason"], markup=False, highlight=False)


def print_table(table: Table, console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(*(escape(c) for c in table.columns), title=escape(table.title))
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        grid.add_row(*(escape(_number(v)) for v in row))
    console.print(grid)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_number(v)}" for k, v in value.items())
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
