"""Where did the tsunami come from? Twelve tide gauges and a Fortran program with MPI.

    make -C simulators/shallow_water
    enkg run experiments/shallow_water.py

The sea surface is displaced inside a source box; 12 gauges record it once a minute for an hour,
with an error of 2 cm. The unknown is the displacement: a Gaussian field of length 40 km and
standard deviation 1 m, tapered to zero at the edge of the box, as its 64 leading principal
components. The program stays up and is handed one member after another; --mode oneshot starts it
anew, with its own folder and its own mpiexec, for every member. The gauges are the same bits.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr

import enkg
from enkg.metrics import coverage
from simulators.shallow_water import FOLDER, SIDE, gauges

HELD_OUT = 10**6  # no ensemble has a member of this number
BOX = ((100e3, 300e3), (40e3, 240e3))  # southern and northern, western and eastern edge in metres
TAPER = 40e3
LENGTH = 40e3
COMPONENTS = 64
WATER = 1025 * 9.81  # weight of a cubic metre in N


def experiment(
    truth: int = 0,
    std: float = 1.0,
    noise: float = 0.02,
    ranks: int = 2,
    slots: int | None = None,
    mode: Literal["worker", "oneshot"] = "worker",
) -> enkg.Experiment:
    """Recovers the displaced sea surface from tide gauges.

    Args:
        truth: Which truth of the synthetic problem; each number is another draw from the prior.
        std: Standard deviation of the displacement in metres.
        noise: Standard deviation of a gauge's error in metres.
        ranks: MPI ranks of one member.
        slots: Members side by side; by default the cores divided by the ranks.
        mode: The program stays up (worker) or starts anew for each member (oneshot).
    """
    program = enkg.Program(FOLDER, slots=slots, mode=mode, ranks=ranks)
    return inversion(program, truth, std, noise)


def inversion(program: enkg.Program, truth: int, std: float, noise: float) -> enkg.Experiment:
    """The same with another program, on the grid that its simulator.toml gives."""
    prior = source(program.manifest.input.shape[0])
    displacement = std * prior.draw(seed=1000 + truth, members=[HELD_OUT], step=0)
    exact = enkg.Observation(program(displacement.numpy())[0], std=noise)
    place = centres(len(displacement[0])) / 1e3
    return enkg.Experiment(
        prior=prior,
        simulator=program,
        observation=enkg.Observation(exact.perturb(exact.y, seed=1000 + truth), std=noise),
        guidance=enkg.SLR(members=40, steps=4),
        units=enkg.Affine(scale=std),
        unknown=enkg.Field(
            "displacement",
            unit="m",
            long_name="displacement of the sea surface",
            dims=("north", "east"),
            coords={"north": place, "east": place},
            colour_map="RdBu_r",
        ),
        data=enkg.Field(
            "level",
            unit="m",
            long_name="sea level at the gauges",
            dims=("gauge", "minute"),
            coords={
                "minute": np.arange(1, exact.y.shape[1] + 1),
                "gauge_east": ("gauge", gauges()[:, 0] / 1e3),
                "gauge_north": ("gauge", gauges()[:, 1] / 1e3),
            },
        ),
        truth=displacement[0],
        predict=32,
        analyse=analyse,
    )


def centres(size: int) -> np.ndarray:
    """Centres of the cells along one side, in metres."""
    return (np.arange(size) + 0.5) * SIDE / size


def source(size: int) -> enkg.Gaussian:
    """Covariance w(p) exp(-|p - q|^2 / (2 LENGTH^2)) w(q) on size x size cells, 64 components.

    The taper w is 1 well inside the box and 0 outside of it. Everything is a product of a northern
    and an eastern factor, so the principal components are products of one-dimensional ones.
    """
    place = centres(size)
    gap = place[:, None] - place
    factors = []
    for low, high in BOX:
        inside = np.clip(np.minimum(place - low, high - place) / TAPER, 0, 1)
        taper = np.sin(np.pi / 2 * inside) ** 2
        values, vectors = np.linalg.eigh(
            taper[:, None] * np.exp(-0.5 * (gap / LENGTH) ** 2) * taper
        )
        factors.append((values.clip(min=0), vectors))
    (north, ns), (east, es) = factors
    variance = np.outer(north, east).ravel()
    order = np.argsort(-variance, kind="stable")[:COMPONENTS]
    basis = np.einsum("ik,jk->ijk", ns[:, order // size], es[:, order % size])
    basis = basis.reshape(size * size, -1)
    return enkg.Gaussian(
        torch.zeros(size, size, dtype=torch.float64),
        torch.from_numpy(variance[order]),
        enkg.Eigenbasis(torch.from_numpy(basis), (size, size)),
    )


def analyse(tree: xr.DataTree, folder: Path | None) -> enkg.Analysis:
    """What a tsunami warning wants to know, and two figures."""
    after, before = (
        quantities(tree[group].to_dataset()["displacement"].values)
        for group in ("posterior", "prior_samples")
    )
    columns = ["", "median", "90 %", "prior, 90 %"]
    rows = [
        [name, float(np.median(values)), interval(values), interval(before[name])]
        for name, values in after.items()
    ]
    metrics = {}
    if "truth" in tree:
        columns.insert(1, "truth")
        field = tree["truth"].to_dataset()["displacement"].values
        for row, values in zip(rows, quantities(field[None]).values(), strict=True):
            row.insert(1, float(values[0]))
        size = len(field)
        prior = source(size)
        box = (prior.transform.inverse(torch.diag(prior.scales)) ** 2).sum(dim=0) > 0.01
        x = torch.from_numpy(tree["posterior"].to_dataset()["displacement"].values)
        metrics["coverage_90_in_box"] = coverage(x[:, box], torch.from_numpy(field)[box])
    if folder is not None:
        (folder / "figures").mkdir(exist_ok=True)
        plot_source(tree, folder / "figures" / "source.png")
        plot_gauges(tree, folder / "figures" / "gauges.png")
    return enkg.Analysis(metrics, [enkg.Table("The source", columns, rows)])


def quantities(displacement: np.ndarray) -> dict[str, np.ndarray]:
    """Extremes, displaced volume and potential energy of each member, (B, n, n) in metres."""
    area = (SIDE / displacement.shape[1]) ** 2
    return {
        "highest [m]": displacement.max(axis=(1, 2)),
        "lowest [m]": displacement.min(axis=(1, 2)),
        "volume [km3]": displacement.sum(axis=(1, 2)) * area / 1e9,
        "energy [TJ]": 0.5 * WATER * (displacement**2).sum(axis=(1, 2)) * area / 1e12,
    }


def interval(values: np.ndarray) -> str:
    low, high = np.quantile(values, [0.05, 0.95])
    return f"{low:.3g} to {high:.3g}"


def plot_source(tree: xr.DataTree, path: Path) -> None:
    """Truth, mean, standard deviation and error, north upwards, with the gauges as triangles."""
    x = tree["posterior"].to_dataset()["displacement"]
    seen = tree["observation"].to_dataset()
    mean = x.mean("member").values
    panels = [("posterior mean", mean), ("standard deviation", x.std("member", ddof=1).values)]
    panels += [(f"member {j}", x.isel(member=j).values) for j in range(2)]
    if "truth" in tree:
        truth = tree["truth"].to_dataset()["displacement"].values
        panels[2:] = [("mean - truth", mean - truth)]
        panels.insert(0, ("truth", truth))
    figure = _figure(3.3 * len(panels), 3.2)
    reach = float(np.abs(mean).max())
    for k, (title, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1)
        own = "-" in title or "deviation" in title
        top = float(np.abs(values).max()) if own else reach
        drawn = axes.imshow(
            values,
            origin="lower",
            extent=(0, SIDE / 1e3, 0, SIDE / 1e3),
            cmap="viridis" if "deviation" in title else "RdBu_r",
            vmin=0 if "deviation" in title else -top,
            vmax=top,
        )
        axes.plot(seen["gauge_east"], seen["gauge_north"], "k^", markersize=4)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("east (km); shallow to the right", fontsize=8)
        axes.set_ylabel("north (km)" if k == 0 else "", fontsize=8)
        axes.tick_params(labelsize=7)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle("displacement of the sea surface (m); triangles: gauges", fontsize=10)
    figure.savefig(path, dpi=150)


def plot_gauges(tree: xr.DataTree, path: Path) -> None:
    """Each gauge's record, with the 90 % bands of the simulated levels before and after."""
    seen = tree["observation"].to_dataset()
    minutes = seen["minute"].values
    figure = _figure(11, 6.5)
    axes = figure.subplots(3, 4, sharex=True).ravel()
    groups = (("prior_samples", "0.85", "prior"), ("predicted", "tab:blue", "posterior"))
    for k, panel in enumerate(axes):
        for group, colour, label in groups:
            values = tree[group].to_dataset()["level"].isel(gauge=k).dropna("member").values
            low, high = np.quantile(values, [0.05, 0.95], axis=0)
            panel.fill_between(minutes, low, high, color=colour, linewidth=0.8, label=label)
        panel.plot(minutes, seen["level"].isel(gauge=k), "k.", markersize=2.5, label="measured")
        east, north = (float(seen[name][k]) for name in ("gauge_east", "gauge_north"))
        panel.set_title(f"{east:.0f} km east, {north:.0f} km north", fontsize=8)
        panel.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    figure.supxlabel("minutes", fontsize=9)
    figure.supylabel("sea level (m), 90 % bands", fontsize=9)
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
