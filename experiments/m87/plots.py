"""Figures of a VLBI inversion: coverage, residuals of the closures against time, and images.

Every function returns a matplotlib Figure, and writes it where a path is given (the suffix decides
the format). No window is opened and the state of pyplot is not touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.m87.data import ClosureData
from simulators.black_hole import MICROARCSECOND, closure_phases, log_closure_amplitudes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEED_OF_LIGHT = 299792458.0
BOLTZMANN = 1.380649e-23
JANSKY = 1e-26

Path = str | os.PathLike[str]


def plot_coverage(data: ClosureData, path: Path | None = None) -> Figure:
    """The baselines in the (u, v) plane, in billions of wavelengths, coloured by pair."""
    figure = _figure(6.8, 5)
    axes = figure.add_subplot()
    pairs = np.stack([data.station1, data.station2], axis=1)
    for k, (one, two) in enumerate(np.unique(pairs, axis=0)):
        rows = (pairs == (one, two)).all(axis=1)
        u, v = data.u[rows] / 1e9, data.v[rows] / 1e9
        axes.plot(
            np.concatenate([u, -u]),
            np.concatenate([v, -v]),
            linestyle="none",
            marker=".",
            markersize=4,
            color=_colour(k),
            label=f"{data.stations[one]}-{data.stations[two]}",
        )
    reach = 1.1 * np.hypot(data.u, data.v).max() / 1e9
    axes.set(
        xlim=(reach, -reach),  # east to the left, as on the sky
        ylim=(-reach, reach),
        aspect="equal",
        xlabel="u (billion wavelengths)",
        ylabel="v (billion wavelengths)",
        title=f"{data.source}, MJD {data.mjd}, {len(data.u)} visibilities",
    )
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _done(figure, path)


def plot_closure_phase_residuals(
    images: ArrayLike, data: ClosureData, field_of_view: float, path: Path | None = None
) -> Figure:
    """Measured less modelled closure phase, in standard deviations, against time.

    images: (B, n, n); one panel per triangle of stations, one grey dot per member and the median
    of the members in colour, in red where an intra-site baseline takes part. With it a histogram of
    all residuals beside the standard normal density.
    """
    model = closure_phases(_model(images, data, field_of_view), data.triangles)
    difference = np.angle(np.exp(1j * (data.closure_phase - model)))
    return _residuals(
        difference / data.closure_phase_std,
        data.triangle_names(),
        data.time[data.triangles[:, 0]],
        data.triangles_intra_site,
        "closure phase",
        path,
    )


def plot_log_amplitude_residuals(
    images: ArrayLike, data: ClosureData, field_of_view: float, path: Path | None = None
) -> Figure:
    """Measured less modelled log closure amplitude, as in `plot_closure_phase_residuals`."""
    model = log_closure_amplitudes(_model(images, data, field_of_view), data.quadrangles)
    return _residuals(
        (data.log_closure_amplitude - model) / data.log_closure_amplitude_std,
        data.quadrangle_names(),
        data.time[data.quadrangles[:, 0]],
        data.quadrangles_intra_site,
        "log closure amplitude",
        path,
    )


def plot_images(
    images: ArrayLike,
    field_of_view: float,
    path: Path | None = None,
    *,
    samples: int = 4,
    frequency: float | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Mean, standard deviation and the first few members of an ensemble (B, n, n), Jy per pixel.

    With a frequency (Hz) the scale is brightness temperature in billions of kelvin instead. Members
    are shown in the order given, never picked by their fit. Failed members (NaN) are left out. All
    panels but the standard deviation share one colour scale. names: titles of the member panels.
    """
    alive, unit = _shown(images, field_of_view, frequency)
    shown = alive[:samples]
    titles = ["mean", "standard deviation"]
    titles += list(names or [f"member {k}" for k in range(len(shown))])[: len(shown)]
    spread = alive.std(axis=0, ddof=1) if len(alive) > 1 else np.zeros_like(alive[0])
    panels = [alive.mean(axis=0), spread, *shown]
    top = max(panels[0].max(), max((image.max() for image in shown), default=0.0))

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(3.2 * columns, 3.1 * rows)
    for k, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, k + 1)
        drawn = _panel(axes, panel, title, field_of_view, None if k == 1 else top)
        label = unit if k % columns == columns - 1 else ""
        figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    return _done(figure, path)


def plot_comparison(
    ensembles: Mapping[str, ArrayLike],
    field_of_view: float,
    path: Path | None = None,
    *,
    frequency: float | None = None,
) -> Figure:
    """Mean over standard deviation of several ensembles (B, n, n), side by side, by their names.

    Each row has one scale. Units and failed members as in `plot_images`.
    """
    moments = []
    for name, images in ensembles.items():
        alive, unit = _shown(images, field_of_view, frequency)
        spread = alive.std(axis=0, ddof=1) if len(alive) > 1 else np.zeros_like(alive[0])
        moments.append((name, alive.mean(axis=0), spread))
    if not moments:
        raise ValueError("no ensembles were given; there is nothing to draw")
    figure = _figure(2.7 * len(moments) + 0.9, 5.8)
    panels = figure.subplots(2, len(moments), squeeze=False)
    for which, title in enumerate(("mean", "standard deviation")):
        top = max(moment[1 + which].max() for moment in moments)
        for axes, moment in zip(panels[which], moments, strict=True):
            name = f"{moment[0]}: {title}"
            drawn = _panel(axes, moment[1 + which], name, field_of_view, top)
        bar = figure.colorbar(drawn, ax=list(panels[which]), shrink=0.9)
        bar.set_label(unit, fontsize=8)
    return _done(figure, path)


def brightness_temperature(images: ArrayLike, field_of_view: float, frequency: float) -> np.ndarray:
    """Kelvin, from Jy per pixel: T = S c^2 / (2 k nu^2 Omega), Omega the solid angle of a pixel."""
    images = _three_axes(images)
    side = field_of_view / images.shape[1] * MICROARCSECOND
    return images * (JANSKY * SPEED_OF_LIGHT**2 / (2 * BOLTZMANN * frequency**2 * side**2))


def _model(images: ArrayLike, data: ClosureData, field_of_view: float) -> np.ndarray:
    """Visibilities (B, M) of the members that are finite."""
    images = _three_axes(images)
    simulator = data.simulator(images.shape[1], field_of_view, dtype="float64")
    visibility = simulator.visibilities(images)
    alive = np.isfinite(visibility).all(axis=1) & (np.abs(visibility) > 0).all(axis=1)
    if not alive.any():
        raise ValueError(f"none of {len(images)} images has closures; there is nothing to draw")
    return visibility[alive]


def _residuals(
    whitened: np.ndarray,
    names: Sequence[str],
    time: np.ndarray,
    intra_site: np.ndarray,
    what: str,
    path: Path | None,
) -> Figure:
    """One panel per name, whitened residuals (B, N) against time; and a histogram at the end."""
    groups = {name: np.flatnonzero([other == name for other in names]) for name in sorted({*names})}
    if not groups:
        raise ValueError(f"the table holds no {what}; there is nothing to draw")
    columns = 5
    rows = -(-(len(groups) + 1) // columns)
    figure = _figure(2.3 * columns, 1.5 * rows)
    reach = 1.1 * max(3.0, float(np.abs(whitened).max()))
    early, late = time.min() - 0.3, time.max() + 0.3
    for k, (name, index) in enumerate(groups.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.axhspan(-1, 1, color="0.92")
        axes.axhline(0, color="0.6", linewidth=0.6)
        moments = np.broadcast_to(time[index], whitened[:, index].shape)
        axes.plot(moments.ravel(), whitened[:, index].ravel(), ".", color="0.7", markersize=2)
        colour = "tab:red" if intra_site[index].any() else "tab:blue"
        axes.plot(time[index], np.median(whitened[:, index], axis=0), ".", color=colour)
        axes.set_title(name, fontsize=6)
        axes.set(xlim=(early, late), ylim=(-reach, reach))
        axes.tick_params(labelsize=6)
    axes = figure.add_subplot(rows, columns, len(groups) + 1)
    edges = np.linspace(-5, 5, 41)
    axes.hist(np.clip(whitened.ravel(), -5, 5), bins=list(edges), density=True, color="0.7")
    axes.plot(edges, np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi), color="black", linewidth=0.8)
    axes.set_title("all, and N(0, 1)", fontsize=6)
    axes.tick_params(labelsize=6)
    figure.supxlabel("hours UTC", fontsize=8)
    figure.supylabel(f"{what}: (measured - model) / standard deviation", fontsize=8)
    return _done(figure, path)


def _three_axes(images: ArrayLike) -> np.ndarray:
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images have shape {images.shape}; expected (B, n, n), members first")
    return images


def _shown(
    images: ArrayLike, field_of_view: float, frequency: float | None
) -> tuple[np.ndarray, str]:
    """The members (B, n, n) that are finite, in the unit that is the second answer."""
    images = _three_axes(images)
    alive = images[np.isfinite(images).all(axis=(1, 2))]
    if not len(alive):
        raise ValueError(f"none of {len(images)} images is finite; there is nothing to draw")
    if frequency is None:
        return alive, "Jy per pixel"
    kelvin = brightness_temperature(alive, field_of_view, frequency)
    return kelvin / 1e9, "brightness temperature (billion K)"


def _panel(
    axes: Any, image: np.ndarray, title: str, field_of_view: float, top: float | None
) -> Any:
    """One image (n, n), east to the left and north up, brightest at `top`; what a colour bar is
    drawn for."""
    half = field_of_view / 2
    drawn = axes.imshow(
        image,
        cmap="afmhot",
        vmin=0,
        vmax=top,
        extent=(half, -half, -half, half),
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    _scale_bar(axes, field_of_view)
    return drawn


def _scale_bar(axes: Any, field_of_view: float) -> None:
    """A bar of a round length, about a third of the image."""
    length = max((k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= field_of_view / 3), default=1)
    left, low = 0.42 * field_of_view, -0.42 * field_of_view
    axes.plot([left, left - length], [low, low], color="white", linewidth=1.5)
    middle = left - length / 2
    axes.text(middle, low, f"{length} μas\n", color="white", fontsize=7, ha="center")


def _colour(k: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab20"](k % 20)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _done(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
