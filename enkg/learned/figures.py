"""What people look at of a learned prior: its samples, its spectrum, its errors and its training.

Each function writes one PNG file and returns its path, or None where there is nothing to draw.
Held-out data are black, the learned prior is blue.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from enkg.errors import InputError
from enkg.field import Field
from enkg.learned.compare import ENERGY, Spectrum
from enkg.learned.merits import Denoising
from enkg.report import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6
"""Members side by side."""
LEARNED, DATA, LINEAR = "tab:blue", "k", "0.6"


def samples_figure(
    samples: Tensor, held_out: Tensor, unknown: Field, path: Path, shown: int = SHOWN
) -> Path | None:
    """Samples in the first row, held-out data in the second, all on one scale.

    Both (N, *X) in the units of `unknown`. Members (H, W) are maps, members (L,) lines; None for
    any other.
    """
    shape = tuple(samples.shape[1:])
    if shape != tuple(held_out.shape[1:]):
        raise InputError(
            f"samples of shape {tuple(samples.shape)} and held-out data of shape "
            f"{tuple(held_out.shape)}; expected members of one shape"
        )
    if len(shape) not in (1, 2) or not len(samples) or not len(held_out):
        return None
    groups = {
        name: x[:shown].double().numpy(force=True)
        for name, x in (("samples", samples), ("held out", held_out))
    }
    columns = max(len(x) for x in groups.values())
    inches = 1.7 * min(1.5, shape[0] / shape[1]) if len(shape) == 2 else 1.4
    figure = blank(1.7 * columns + 1.0, 2 * inches + 0.6)
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    limits = _limits(np.concatenate([x.ravel() for x in groups.values()]))
    for line, (name, x) in zip(axes, groups.items(), strict=True):
        for axis in line[len(x) :]:
            axis.set_axis_off()
        if len(shape) == 2:
            _maps(line, x, limits, unknown.colour_map)
        else:
            _lines(line, x, unknown, LEARNED if name == "samples" else DATA)
        line[0].set_ylabel(name, fontsize=9)
    unit = "" if unknown.unit in ("", "1") else f" [{unknown.unit}]"
    title = (unknown.long_name or unknown.name) + unit
    if len(shape) == 2:
        bar = figure.colorbar(axes[0, 0].images[0], ax=axes, fraction=0.03, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    else:
        figure.supxlabel(unknown.axes(shape)[0], fontsize=9)
    figure.suptitle(title, fontsize=10)
    return _written(figure, path)


def spectrum_figure(spectrum: Spectrum | None, path: Path) -> Path | None:
    """E(k) of samples and held-out data, and their ratio where 99.9 % of the energy is."""
    if spectrum is None:
        return None
    k, ours, data = (np.array(v) for v in (spectrum.k, spectrum.samples, spectrum.held_out))
    waves = k > 0
    figure = blank(8.0, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(k[waves], data[waves], color=DATA, label="held out")
    left.plot(k[waves], ours[waves], color=LEARNED, label="samples")
    left.set_ylabel("E(k), prior units squared")
    left.set_title("mean square of the waves", fontsize=9)
    left.legend(fontsize=8)
    _logarithmic(left, data[waves])
    kept = np.isin(k, np.array(spectrum.compared))
    right.plot(k[kept], ours[kept] / data[kept], "o-", ms=3, color=LEARNED)
    right.axhline(1, color=DATA, linewidth=0.7)
    band = float(np.exp(spectrum.max_floor))
    right.axhspan(1 / band, band, color="0.9", zorder=0, label="training data, at most")
    right.set_ylabel("E(k) of samples / held out")
    right.set_title(f"{ENERGY:.1%} of the energy of the waves", fontsize=9)
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xscale("log")
        _finished(axis, "waves to the longer side, k")
    return _written(figure, path)


def denoising_figure(denoising: Denoising, path: Path) -> Path:
    """Rms error of each denoiser against the noise level, and as a share of the linear one's."""
    sigma, linear = np.array(denoising.sigmas), np.array(denoising.linear)
    figure = blank(8.0, 3.2)
    left, right = figure.subplots(1, 2)
    drawn = {
        "linear": (linear, {"color": LINEAR, "ls": "--"}),
        "learned": (np.array(denoising.learned), {"color": LEARNED, "marker": "o", "ms": 3}),
    }
    if denoising.exact is not None:
        drawn["exact"] = (np.array(denoising.exact), {"color": DATA, "lw": 0.9})
    for name, (error, style) in drawn.items():
        left.plot(sigma, error, label=name, **style)
        if name != "learned":
            right.plot(sigma, error / linear, **style)
    bars = 2 * np.array(denoising.ratio_error)
    right.errorbar(sigma, denoising.ratio, bars, fmt="o-", ms=3, lw=1.2, color=LEARNED)
    left.set_ylabel("rms error a point, prior units")
    right.set_ylabel("error / that of the linear denoiser")
    left.legend(fontsize=8)
    _logarithmic(left, linear)
    for axis in (left, right):
        axis.set_xscale("log")
        _finished(axis, "noise level, prior units")
    return _written(figure, path)


def loss_figure(history: Mapping[str, Sequence[float]], path: Path) -> Path | None:
    """Losses against the training step; None for an empty history.

    history: "step", and a sequence of the same length for each loss, NaN where it was not taken.
    """
    if "step" not in history:
        raise InputError(f"a history of {', '.join(history) or 'nothing'}; expected 'step' in it")
    step = np.array(history["step"], dtype=float)
    losses = {n: np.array(v, dtype=float) for n, v in history.items() if n != "step"}
    for name, values in losses.items():
        if len(values) != len(step):
            raise InputError(
                f"the history has {len(step)} steps and {len(values)} values of {name!r}; expected "
                "one a step, NaN where it was not taken"
            )
    known = {n: v for n, v in losses.items() if np.isfinite(v).any()}
    if not known:
        return None
    colours = iter((DATA, "tab:orange", "tab:green", "tab:red"))
    figure = blank(6.0, 3.4)
    axis = figure.subplots()
    for number, (name, values) in enumerate(known.items()):
        there = np.isfinite(values)
        colour = LEARNED if number == 0 else next(colours, None)
        style = "-" if there.sum() > 20 else "o-"
        label = name.replace("_", " ")
        axis.plot(step[there], values[there], style, ms=3, lw=1.0, color=colour, label=label)
    _logarithmic(axis, np.concatenate(list(known.values())))
    axis.set_ylabel("loss")
    axis.legend(fontsize=8)
    _finished(axis, "training step")
    return _written(figure, path)


def _maps(axes: "Sequence[Axes]", x: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    for axis, member in zip(axes, x, strict=False):
        axis.imshow(member, cmap=colours, vmin=limits[0], vmax=limits[1])
        axis.set_xticks([])
        axis.set_yticks([])


def _lines(axes: "Sequence[Axes]", x: np.ndarray, unknown: Field, colour: str) -> None:
    dim = unknown.axes(x.shape[1:])[0]
    place = np.asarray(unknown.coords.get(dim, np.arange(x.shape[1])))
    for axis, member in zip(axes, x, strict=False):
        axis.plot(place, member, color=colour, linewidth=0.9)
        axis.tick_params(labelsize=7)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The scale of all maps, but for a few values; symmetric where both signs occur."""
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, [0.2, 99.8])) if len(values) else (0, 1)
    if low < 0 < high:
        high = max(high, -low)
        low = -high
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _logarithmic(axis: "Axes", values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0:
        axis.set_yscale("log")


def _finished(axis: "Axes", label: str) -> None:
    axis.set_xlabel(label, fontsize=9)
    axis.yaxis.label.set_fontsize(9)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.tick_params(labelsize=8)


def _written(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
