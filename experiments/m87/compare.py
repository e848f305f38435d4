"""M87 on 11 April 2017 under four priors, side by side: what do the data say, and what the prior?

    python -m experiments.m87.compare
    python -m experiments.m87.compare --priors control learned --seed 1 --out runs/other

The priors are those of image.py, each with the method that suits it. Every run is a run directory
below --out, and is not repeated: a table that was stopped goes on. Beside them are left

    priors.csv    a line for each prior, see `COLUMNS`
    priors.png    mean images over standard deviations

The methods differ as well: that of the learned prior ends with a polish, which keeps more of the
spread. So do not read a difference in `relative spread` as one of the priors.

A ring in the posterior of the gaussian, mixture and learned priors is no detection: their samples
hold one. `prior diameter` is what each believes without data.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro
import xarray as xr
from rich.console import Console

import enkg
from enkg.report import print_table
from experiments.m87.chi_squares import chi_squares
from experiments.m87.data import ClosureData
from experiments.m87.imaging import FITTED, PriorName, imaging
from experiments.m87.plots import plot_comparison
from experiments.m87.ring import RingFits, fit_rings
from experiments.m87.uvfits import read_uvfits

QUANTILES = (16, 50, 84)
FITTED_TO = ("diameter", "width", "asymmetry")
COLUMNS = {
    "members": "members",
    "chi2_closure_phase": "phases, mean image",
    "chi2_closure_phase_member": "phases, median member",
    "chi2_log_closure_amplitude": "amplitudes, mean image",
    "chi2_log_closure_amplitude_member": "amplitudes, median member",
    "misfit_per_datum": "misfit per datum",
    "diameter": "diameter [uas]",
    "width": "width [uas]",
    "asymmetry": "asymmetry",
    "relative_spread": "relative spread",
    "with_ring": "with a ring",
    "distance_from_prior": "prior distance",
    "distance_bound": "at most",
    "calls": "calls",
    "denoiser_calls": "denoiser calls",
    "seconds": "seconds",
    "prior_diameter": "prior diameter [uas]",
    "prior_with_ring": "prior with a ring",
}
"""Of ring parameters the file has three columns each, for the quantiles 16, 50 and 84 %."""
Row = dict[str, Any]


def main(
    out: Path = Path("runs/m87-priors"),
    priors: tuple[PriorName, ...] = get_args(PriorName),
    members: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    uvfits: Path | None = None,
    field_of_view: float = 128.0,
    overwrite: bool = False,
) -> None:
    """Images M87 under several priors and compares.

    Args:
        out: Folder of the runs, the table and the picture.
        priors: Which ones.
        members: Ensemble size of all; that of image.py if not given.
        seed: Of the runs.
        folder: Of the learned prior; priors/rings if not given.
        uvfits: The measurement; 11 April if not given.
        field_of_view: Side of the image in microarcseconds.
        overwrite: Make runs again that are there.
    """
    data = read_uvfits(uvfits)
    given = {p: imaging(data, p, members, field_of_view, folder=folder) for p in priors}
    trees = {p: run(g, out / f"{p}-{seed}", seed, overwrite) for p, g in given.items()}
    rows = compare(trees, data, field_of_view, out)
    print_table(as_table(rows), Console())


def run(given: enkg.Experiment, directory: Path, seed: int, overwrite: bool) -> xr.DataTree:
    """The finished run in that directory, made where it is not there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    experiment = replace(given, seed=seed)
    return enkg.run(experiment, directory, overwrite=overwrite, resume=not overwrite)


def compare(
    trees: Mapping[str, xr.DataTree], data: ClosureData, field_of_view: float, out: Path
) -> list[Row]:
    """Writes priors.csv and priors.png of finished runs, by the names of their priors."""
    rows = [row(name, tree, data, field_of_view) for name, tree in trees.items()]
    with open(out / "priors.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = {name: _images(tree, "posterior") for name, tree in trees.items()}
    plot_comparison(images, field_of_view, out / "priors.png", frequency=data.frequency or None)
    return rows


def row(name: str, tree: xr.DataTree, data: ClosureData, field_of_view: float) -> Row:
    """The numbers of one run, by the names of the file's columns.

    Cost: ring fits of at most 2 x 128 images, 20 ms each.
    """
    images, before = _images(tree, "posterior"), _images(tree, "prior_samples")
    summary = json.loads(tree.attrs["summary"])
    mean = images.mean(axis=0)
    found: Row = {"prior": name, "method": summary["method"], "members": len(images)}
    of_mean, of_members = (chi_squares(v, data, field_of_view) for v in (mean[None], images))
    for product in ("closure_phase", "log_closure_amplitude"):
        found[f"chi2_{product}"] = float(of_mean[product][0])
        found[f"chi2_{product}_member"] = float(np.nanmedian(of_members[product]))
    found["misfit_per_datum"] = summary["misfit_per_datum"]
    rings, prior_rings = (fit_rings(v[:FITTED], field_of_view) for v in (images, before))
    for parameter in FITTED_TO:
        found |= _quantiles(parameter, parameter, rings)
    found["relative_spread"] = float(images.std(axis=0, ddof=1).sum() / mean.sum())
    found["with_ring"] = float(rings.good.mean())
    told = summary["diagnostics"]
    found["distance_from_prior"] = told["distance_from_prior"]
    found["distance_bound"] = (told["distance_bounds"] or [None])[-1]
    for key in ("calls", "denoiser_calls", "seconds"):
        found[key] = summary[key]
    found |= _quantiles("prior_diameter", "diameter", prior_rings)
    return found | {"prior_with_ring": float(prior_rings.good.mean())}


def as_table(rows: Sequence[Row]) -> enkg.Table:
    """For the terminal: a line for each number, a column for each prior."""

    def cell(found: Row, key: str) -> Any:
        if key in found:
            return found[key]
        low, middle, high = (found[f"{key}_{q}"] for q in QUANTILES)
        return f"{middle:.3g} [{low:.3g}, {high:.3g}]"

    return enkg.Table(
        "One measurement, several priors",
        ["", *(found["prior"] for found in rows)],
        [[label, *(cell(found, key) for found in rows)] for key, label in COLUMNS.items()],
        [
            "phases, amplitudes: chi-squares of closure phases and of log closure amplitudes; "
            "1 is expected of the truth",
            "intervals: median and 68 %, over members whose ring was fitted, of the first "
            f"{FITTED}; relative spread: sum of the standard deviation over that of the mean",
            "prior distance: 1 for samples of the prior; above `at most` the fit was bought by "
            "leaving it",
        ],
    )


def _images(tree: xr.DataTree, group: str) -> np.ndarray:
    return tree[group].to_dataset()["brightness"].values


def _quantiles(name: str, parameter: str, rings: RingFits) -> Row:
    levels = tuple(q / 100 for q in QUANTILES)
    values = rings.quantiles(levels)[parameter]
    return {f"{name}_{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}


if __name__ == "__main__":
    tyro.cli(main)
