"""What people look at of a calibration: figures, and its numbers in the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enkg.calibration import band
from enkg.report import Table, blank, print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


def figures(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws calibration.json into PNG files and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "ranks.png": _ranks(found),
        "coverage.png": _coverage(found),
        "spread_skill.png": _spread_skill(found),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130)
    return [folder / name for name in drawn]


def _ranks(found: Mapping[str, Any]) -> "Figure":
    """Histogram of all elements with errors over truths; of each scalar with its band."""
    truths, tests = found["truths"], found["ranks"]
    panels = 1 + len(tests)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = blank(3.4 * columns, 2.9 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    share = np.array([each["histogram"] for each in found["each"]], dtype=float)
    share /= share.sum(axis=1, keepdims=True)
    bins = share.shape[1]
    place = (np.arange(bins) + 0.5) / bins
    error = 2 * share.std(axis=0, ddof=1) / np.sqrt(truths)
    axes[0].bar(place, share.mean(axis=0) * bins, width=1 / bins, color="0.8", edgecolor="w")
    axes[0].errorbar(place, share.mean(axis=0) * bins, error * bins, fmt="none", color="tab:blue")
    axes[0].axhline(1, color="k", linewidth=0.7)
    axes[0].set_title(f"all {found['elements']:,} elements, 2 standard errors", fontsize=9)
    for axis, (name, test) in zip(axes[1:], tests.items(), strict=False):
        counts = test["counts"]
        place = (np.arange(len(counts)) + 0.5) / len(counts)
        low, high = band(truths, len(counts))
        axis.axhspan(low, high, color="tab:blue", alpha=0.15, linewidth=0)
        axis.bar(place, counts, width=1 / len(counts), color="0.8", edgecolor="w")
        axis.axhline(truths / len(counts), color="k", linewidth=0.7)
        axis.set_title(f"{name}, p = {test['p']:.2g}", fontsize=9)
    for axis in axes[:panels]:
        axis.set_xlabel("rank of the truth / (members + 1)", fontsize=8)
        axis.set_xlim(0, 1)
        axis.tick_params(labelsize=8)
    for axis in axes[panels:]:
        axis.set_axis_off()
    figure.suptitle(f"ranks of {truths} truths; bands: 95 % of each bin if uniform", fontsize=10)
    return figure


def _coverage(found: Mapping[str, Any]) -> "Figure":
    figure = blank(4.6, 4.2)
    axis = figure.subplots()
    level = np.array([float(name) for name in found["coverage"]])
    mean, error = (
        np.array([share[key] for share in found["coverage"].values()])
        for key in ("mean", "standard_error")
    )
    axis.plot([0, 1], [0, 1], "k", linewidth=0.7, label="calibrated")
    if len(level):
        axis.fill_between(
            level, mean - 2 * error, mean + 2 * error, alpha=0.25, label="2 standard errors"
        )
        axis.plot(level, mean, "o-", ms=4, label=f"{found['method']}, {found['truths']} truths")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("level of the central interval")
    axis.set_ylabel("share of truths inside")
    axis.legend(fontsize=8)
    return figure


def _spread_skill(found: Mapping[str, Any]) -> "Figure":
    """Root-mean-square error against spread: one point a truth, and groups of elements."""
    figure = blank(8.6, 4.2)
    left, right = figure.subplots(1, 2)
    spread, error = (
        np.sqrt([each[key] for each in found["each"]]) for key in ("variance", "square_error")
    )
    left.plot(spread, error, ".", label="a truth")
    left.set_title("truths", fontsize=9)
    groups = min(len(each["by_spread"]) for each in found["each"])
    squares = np.array([each["by_spread"][:groups] for each in found["each"]])
    middle = np.sqrt(squares.mean(axis=0))
    wide = np.sqrt(squares).std(axis=0, ddof=1)[:, 1] * 2 / np.sqrt(len(squares))
    right.errorbar(middle[:, 0], middle[:, 1], wide, fmt="o", ms=4)
    right.set_title("elements, by their spread; 2 standard errors", fontsize=9)
    for axis in (left, right):
        axis.axline((0, 0), slope=1, color="k", linewidth=0.7)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("spread")
        axis.set_ylabel("error of the ensemble mean")
    return figure


def show(found: Mapping[str, Any], console: "Console") -> None:
    """Prints calibration.json as tables, with the verdict last."""
    truths = found["truths"]
    print_table(
        Table(
            f"{found['method']}, {found['members']} members, {truths} truths",
            ["level", "coverage", "+-"],
            [[f"{float(p):.0%}", *share.values()] for p, share in found["coverage"].items()],
        ),
        console,
    )
    crps = found["crps"]
    rows = [
        [name, found[key]["mean"], found[key]["standard_error"]]
        for name, key in (
            ("spread / error of the mean", "spread_skill"),
            ("CRPS", "crps"),
            ("relative error", "relative_error"),
            ("misfit per datum", "misfit_per_datum"),
        )
    ]
    rows.insert(2, ["CRPS / the prior's", crps["relative"], None])
    print_table(Table("", ["over the truths", "mean", "+-"], rows), console)
    tests = [[name, test["p"], str(test["counts"])] for name, test in found["ranks"].items()]
    print_table(
        Table(
            "",
            ["ranks of the truth", "p", "counts"],
            [*tests, ["all elements", None, str(found["rank_histogram"])]],
            [
                "Elements of one truth are correlated, so they have no p-value: each truth counts "
                "once, and errors are over truths."
            ],
        ),
        console,
    )
    console.print(
        f"{found['trusted']} of {truths} runs trusted, {found['calls']:,} simulator calls, "
        f"{found['failed']:,} failed",
        highlight=False,
    )
    word, colour = ("calibrated", "green") if found["calibrated"] else ("not calibrated", "red")
    console.print(f"[bold {colour}]{word}[/]: ", end="")
    console.print(found["reason"], markup=False, highlight=False)
