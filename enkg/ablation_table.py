"""The results of an ablation: one Dataset, and the tables made of it.

    ablation.nc      everything, with the axes as dimensions
    ablation.csv     one line for each cell
    ablation.tex     means over the seeds, for \\usepackage{booktabs}
    table.md         the same in Markdown
    figures/         see `enkg.ablation_figures`

All are made of the records of the cells (`enkg.ablation_cells`); nothing is run for them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from enkg import ablation_cells as cells
from enkg import ablation_figures, ablation_report, store
from enkg.errors import StoreError

NETCDF, CSV, LATEX, MARKDOWN = "ablation.nc", "ablation.csv", "ablation.tex", "table.md"
LABELS = {
    "relative_error": ("relative error of the posterior mean", "1"),
    "misfit_per_datum": ("squared whitened residual per datum", "1"),
    "coverage_90": ("share of elements within the central 90 % interval", "1"),
    "spread_skill": ("spread over error of the mean", "1"),
    "crps": ("continuous ranked probability score", ""),
    "calls": ("simulator calls, with those of the final prediction", "1"),
    "vjps": ("Jacobian products of the simulator", "1"),
    "failed": ("failed simulator calls", "1"),
    "denoiser_calls": ("denoiser calls", "1"),
    "denoiser_vjps": ("Jacobian products of the denoiser", "1"),
    "low_calls": ("calls of the low-fidelity simulator", "1"),
    "seconds": ("wall time", "s"),
    "simulator_seconds": ("wall time in the simulator", "s"),
    "spread": ("spread of the posterior over that of the prior", "1"),
}
"""Long name and unit of the measures that are known; an empty unit is that of the unknown."""


def gather(directory: str | Path) -> xr.Dataset:
    """What the cells of a folder have found so far, in the shape of the grid. Runs nothing."""
    plan = cells.load(directory)
    found = cells.standings(directory, plan)
    shape = tuple(len(values) for values in plan.axes.values())
    dims = tuple(plan.axes)
    own = {name for each in found for name in each.measures}
    wanted = [name for name in plan.measures if name not in plan.axes]
    names = [*wanted, *sorted(own - {*plan.measures, *plan.axes})]

    def array(values: Sequence[Any], dtype: Any, name: str, unit: str | None = None) -> Any:
        attributes = {"long_name": name} | ({} if unit is None else {"units": unit})
        return dims, np.array(values, dtype=dtype).reshape(shape), attributes

    variables = {}
    for name in names:
        long, unit = LABELS.get(name, (name.replace("_", " "), ""))
        numbers = [_float(each.measures.get(name)) for each in found]
        variables[name] = array(numbers, float, long, unit)
    number = [-1 if e.entry.number is None else e.entry.number for e in found]
    variables |= {
        "state": array([str(e.state) for e in found], object, "how the cell stands"),
        "reason": array([e.reason for e in found], object, "why it failed or was skipped"),
        "trusted": array([e.trusted for e in found], bool, "whether its diagnostics are sound"),
        "cell": array(number, int, "number of its run directory; -1 where there is none"),
    }
    coords = {name: (name, _coordinate(vs), {"long_name": name}) for name, vs in plan.axes.items()}
    attributes = {
        "title": plan.title or "ablation",
        "Conventions": "CF-1.11",
        "source": f"enkg {version('enkg')}",
        "measures": json.dumps(list(plan.measures)),
        "over": json.dumps(list(plan.over)),
        "along": plan.along or "",
    }
    return xr.Dataset(variables, coords, attributes)


def _coordinate(values: Sequence[str | float]) -> np.ndarray:
    """Numbers, or words of any length."""
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def picked(data: xr.Dataset, labels: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """The part of a Dataset with these labels."""
    places = {}
    for name, wanted in labels.items():
        known = ablation_report.words(data, name)
        places[name] = [known.index(label) for label in wanted]
    return data.isel(places)


def write(directory: str | Path) -> xr.Dataset:
    """Gathers a folder and writes all tables and figures there."""
    directory = Path(directory)
    data = gather(directory)
    partial = directory / (NETCDF + store.PARTIAL)
    try:
        data.to_netcdf(partial, engine="h5netcdf")
        os.replace(partial, directory / NETCDF)
    except OSError as error:
        raise StoreError(f"cannot write {directory / NETCDF}: {error}") from error
    for name, text in (
        (CSV, ablation_report.lines(data)),
        (LATEX, ablation_report.latex(data)),
        (MARKDOWN, ablation_report.markdown(data)),
    ):
        partial = directory / (name + store.PARTIAL)
        partial.write_text(text)
        os.replace(partial, directory / name)
    ablation_figures.draw(data, directory / store.FIGURES)
    return data


def _float(value: float | None) -> float:
    return nan if value is None else float(value)
