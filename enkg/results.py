"""What a run found: its numbers (summary.json) and its arrays (posterior.zarr)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from enkg import ensemble, metrics
from enkg.bounds import chi_square
from enkg.counted import counted
from enkg.diagnose import Ranks, most_error, verdict
from enkg.distance import Distance, distance
from enkg.experiment import Experiment
from enkg.field import Field
from enkg.prior import Gaussian

log = logging.getLogger("enkg")

RANKED = 512
"""Members of which effective rank and distance from the prior are taken."""


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
    vjps: int
    simulator_seconds: float
    remarks: tuple[str, ...] = ()
    low_calls: int = 0


def summarise(
    experiment: Experiment,
    outcome: Outcome,
    rows: Sequence[Mapping[str, float]] = (),
    cores: int = 1,
) -> dict[str, Any]:
    """The numbers of summary.json, all but the wall time.

    rows: one record for each step. cores: threads of the prior, which is asked whether the members
    look like its samples.
    """
    observation, guidance, x = experiment.observation, experiment.guidance, outcome.x

    def misfit(y: Tensor) -> float | None:
        living = y[ensemble.alive(y)]
        return observation.misfit_per_datum(living) if len(living) else None

    before = ensemble.spread(outcome.prior_x)
    spread = ensemble.spread(x) / before if before > 0 else float("nan")
    after = misfit(outcome.predicted)
    assert after is not None  # forward refuses a sweep without survivors
    ranks, far = _ranks(outcome), _distance(experiment, outcome, cores)
    found: dict[str, Any] = {}
    if experiment.truth is not None:
        physical = experiment.physical(x).cpu()
        found = {
            "relative_error": metrics.relative_error(physical.double().mean(0), experiment.truth),
            "coverage_90": metrics.coverage(physical, experiment.truth, 0.9),
            "spread_skill": metrics.spread_skill(physical, experiment.truth),
            "crps": metrics.crps(physical, experiment.truth),
        }
    judged = verdict(
        law=guidance.posterior_law,
        beta=outcome.beta,
        misfit_per_datum=after,
        data=observation.count,
        spread=spread,
        members=len(x),
        failed_share=outcome.failed / max(outcome.asked, 1),
        ranks=ranks,
        distance=far,
        spread_skill=found.get("spread_skill"),
        remarks=outcome.remarks,
    )
    return {
        "method": type(guidance).__name__,
        "members": len(x),
        "data": observation.count,
        "calls": outcome.calls,
        **_low(experiment, outcome),
        "failed": outcome.failed,
        "causes": dict(outcome.causes),
        "vjps": outcome.vjps,
        "denoiser_calls": outcome.denoiser_calls,
        "denoiser_vjps": outcome.denoiser_vjps,
        "simulator_seconds": outcome.simulator_seconds,
        "prior_misfit_per_datum": misfit(outcome.prior_y),
        "misfit_per_datum": after,
        "spread": spread,
        "diagnostics": {
            "misfit_bounds": chi_square(observation.count),
            "effective_rank": ranks.posterior,
            "prior_effective_rank": ranks.prior,
            "effective_rank_members": ranks.members,
            "distance_from_prior": None if far is None else far.value,
            "distance_bounds": None if far is None else far.bounds,
            "distance_denoiser_calls": 0 if far is None else far.denoiser_calls,
            "spread_skill_at_least": 1 / most_error(ranks.posterior) if found else None,
        },
        "tempering": _tempering(rows),
        "trusted": judged.trusted,
        "reason": judged.reason,
        "remarks": list(outcome.remarks),
        "metrics": found,
    }


def _ranks(outcome: Outcome) -> Ranks:
    """Of as many members as prior samples: the effective rank depends on the number."""
    count = min(len(outcome.x), len(outcome.prior_x), RANKED)
    return Ranks(
        ensemble.effective_rank(outcome.x[:count]),
        ensemble.effective_rank(outcome.prior_x[:count]),
        count,
    )


def _distance(experiment: Experiment, outcome: Outcome, cores: int) -> Distance | None:
    """None where the prior cannot tell: a method may never have asked its denoiser."""
    prior, x = experiment.prior, outcome.x
    if not isinstance(prior, Gaussian):
        prior = counted(prior, experiment.chunk, x.device, cores)
    try:
        return distance(prior, x[:RANKED], outcome.prior_x, experiment.seed)
    except Exception as error:  # a finished run is not lost for a diagnosis
        log.warning("no distance from the prior: %s: %s", type(error).__name__, error)
        return None


def _tempering(rows: Sequence[Mapping[str, float]]) -> dict[str, list[Any]]:
    """Noise level, power and likelihood spent of each step that used some of it."""
    spent = [(step, row) for step, row in enumerate(rows, 1) if row["power"] > 0]
    columns = {key: [row[key] for _, row in spent] for key in ("sigma", "power", "beta")}
    return {"step": [step for step, _ in spent], **columns}


def _low(experiment: Experiment, outcome: Outcome) -> dict[str, float]:
    """Calls of the low-fidelity simulator, and what all calls cost in those of the simulator."""
    if experiment.low is None:
        return {}
    equivalents = outcome.calls + experiment.low.cost * outcome.low_calls
    return {"low_calls": outcome.low_calls, "call_equivalents": equivalents}


def tabulate(
    experiment: Experiment, outcome: Outcome, rows: Sequence[dict[str, float]]
) -> xr.DataTree:
    """The arrays of posterior.zarr. rows: one record for each step."""
    unknown, data, observation = experiment.unknown, experiment.data, experiment.observation
    ax, ay = unknown.axes(experiment.shape), data.axes(observation.y.shape)
    physical = experiment.physical

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
