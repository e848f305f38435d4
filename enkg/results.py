"""What a run found: its numbers (summary.json) and its arrays (posterior.zarr)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from enkg import ensemble, metrics
from enkg.diagnose import verdict
from enkg.experiment import Experiment
from enkg.field import Field


@dataclass(frozen=True, eq=False)
class Outcome:
    """The end of a run.

    x: posterior, (J, *X), prior units. prior_x, prior_y: the first clean ensemble, which no datum
    has touched yet, and its data. predicted: data of the first members of x.
    """

    x: Tensor
    prior_x: Tensor
    prior_y: Tensor
    predicted: Tensor
    beta: float
    calls: int
    failed: int
    causes: Mapping[str, int]
    asked: int
    denoiser_calls: int
    denoiser_vjps: int
    simulator_seconds: float
    remarks: tuple[str, ...] = ()


def summarise(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """The numbers of summary.json, all but the wall time."""
    observation, guidance, x = experiment.observation, experiment.guidance, outcome.x

    def misfit(y: Tensor) -> float | None:
        living = y[ensemble.alive(y)]
        return observation.misfit_per_datum(living) if len(living) else None

    before = ensemble.spread(outcome.prior_x)
    spread = ensemble.spread(x) / before if before > 0 else float("nan")
    after = misfit(outcome.predicted)
    assert after is not None  # forward refuses a sweep without survivors
    judged = verdict(
        law=guidance.posterior_law,
        beta=outcome.beta,
        misfit_per_datum=after,
        data=observation.count,
        spread=spread,
        members=len(x),
        failed_share=outcome.failed / max(outcome.asked, 1),
    )
    found: dict[str, Any] = {}
    if experiment.truth is not None:
        physical = experiment.units.to_simulator(x).cpu()
        found = {
            "relative_error": metrics.relative_error(physical.double().mean(0), experiment.truth),
            "coverage_90": metrics.coverage(physical, experiment.truth, 0.9),
            "spread_skill": metrics.spread_skill(physical, experiment.truth),
            "crps": metrics.crps(physical, experiment.truth),
        }
    return {
        "method": type(guidance).__name__,
        "members": len(x),
        "data": observation.count,
        "calls": outcome.calls,
        "failed": outcome.failed,
        "causes": dict(outcome.causes),
        "denoiser_calls": outcome.denoiser_calls,
        "denoiser_vjps": outcome.denoiser_vjps,
        "simulator_seconds": outcome.simulator_seconds,
        "prior_misfit_per_datum": misfit(outcome.prior_y),
        "misfit_per_datum": after,
        "spread": spread,
        "trusted": judged.trusted,
        "reason": judged.reason,
        "remarks": list(outcome.remarks),
        "metrics": found,
    }


def tabulate(
    experiment: Experiment, outcome: Outcome, rows: Sequence[dict[str, float]]
) -> xr.DataTree:
    """The arrays of posterior.zarr. rows: one record for each step."""
    unknown, data, observation = experiment.unknown, experiment.data, experiment.observation
    ax, ay = unknown.axes(experiment.prior.shape), data.axes(observation.y.shape)
    physical = experiment.units.to_simulator

    observed = _single(data, observation.y, ay)
    if observation.std is not None:
        observed["std"] = (ay, observation.std.numpy(), {"units": data.unit})
    else:
        observed["covariance"] = (("datum_1", "datum_2"), observation.covariance.numpy())
    observed["mask"] = (ay, observation.mask.numpy())
    before = _members(unknown, physical(outcome.prior_x), ax)
    groups = {
        "posterior": _members(unknown, physical(outcome.x), ax),
        "prior_samples": before.merge(_members(data, outcome.prior_y, ay)),
        "observation": observed,
        "predicted": _members(data, outcome.predicted, ay),
        "trace": xr.Dataset({k: ("step", np.array([r[k] for r in rows])) for k in rows[0]}),
    }
    if experiment.truth is not None:
        groups["truth"] = _single(unknown, experiment.truth, ax)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(
        Conventions="CF-1.11",
        source=f"enkg {version('enkg')}",
        method=type(experiment.guidance).__name__,
        seed=experiment.seed,
        unknown=unknown.name,
        data=data.name,
        colour_map=unknown.colour_map,
    )
    return tree


def _members(label: Field, values: Tensor, axes: tuple[str, ...]) -> xr.Dataset:
    array = values.detach().cpu().numpy()
    coords = {"member": np.arange(len(array)), **label.coords}
    return xr.Dataset({label.name: (("member", *axes), array, label.attributes())}, coords=coords)


def _single(label: Field, values: Tensor, axes: tuple[str, ...]) -> xr.Dataset:
    return _members(label, values[None], axes).isel(member=0, drop=True)
