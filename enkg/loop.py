"""The guided loop of a run: steps of the method, until it is finished; and the way back into it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from enkg import ensemble
from enkg.beat import Beat
from enkg.comm import Comm, by_unknown, together
from enkg.counted import Counted, counted
from enkg.errors import EnsembleFailure
from enkg.experiment import Experiment
from enkg.forward import Forward
from enkg.guidance import Guidance, Info, State
from enkg.journal import Journal, Standing
from enkg.machine import device, threads
from enkg.observation import Observation
from enkg.operator import check
from enkg.sample import start
from enkg.simulator import Evaluator

log = logging.getLogger("enkg")


def able(experiment: Experiment) -> None:
    """Raises MissingCapability where the simulator lacks what the method needs."""
    for need in experiment.guidance.needs:
        check(experiment, need, experiment.guidance.of_pixels)


@dataclass(frozen=True, eq=False)
class Ended:
    """The end of the loop. predicted: data of the first members of the ensemble. earlier: seconds
    that the run had taken before it was resumed."""

    standing: Standing
    predicted: Tensor
    earlier: float


def guided(
    experiment: Experiment,
    evaluator: Evaluator,
    observer: Beat,
    journal: Journal,
    comm: Comm,
    low: Evaluator | None = None,
) -> Ended:
    """All steps of the run that have not been done yet. Collective. low: of `experiment.low`."""
    begin = perf_counter()
    guidance, observation = experiment.guidance, experiment.observation
    dtype = torch.float64 if experiment.double else torch.float32
    place = together(comm, lambda: device(experiment.device, comm))
    like = torch.empty(0, dtype=dtype, device=place)
    prior = counted(experiment.prior, experiment.chunk, place, torch.get_num_threads())
    forward = Forward(experiment, evaluator, observer.simulating, comm, low=low)
    observer.counts = forward.count
    log.info("%s, %d members, seed %d", type(guidance).__name__, guidance.members, experiment.seed)

    observer.started(experiment, guidance.sweeps_for(experiment.prior))
    try:
        with threads(1):
            standing = journal.restore(guidance.state, like)
            if standing is None:
                standing = Standing(_begun(experiment, prior, like, comm), forward.count)
            else:
                prior.calls = standing.denoiser_calls if comm.rank == 0 else 0  # of all ranks
                prior.vjps = standing.denoiser_vjps if comm.rank == 0 else 0
                forward.operator.vjps = standing.vjps if comm.rank == 0 else 0
                observer.counts = standing.count
                log.info("going on after step %d", standing.state.step)
                prior.first = standing.state.first
            forward.go_on(standing.count, journal.ledger)
            earlier = standing.seconds
            try:
                while not standing.state.finished:
                    state, info = guidance.step(standing.state, prior, forward, observation)
                    if experiment.failure.drop:
                        state = _without_the_dead(guidance, state, info)
                        prior.first = state.first
                    if standing.first is None and (info.evaluated or not guidance.begins_at_prior):
                        standing.first = _first_ensemble(guidance, state, info, prior, observation)
                    standing.seconds = earlier + perf_counter() - begin
                    row = _row(info, forward, prior, standing.seconds, comm)
                    _log_step(row)
                    standing.state, standing.rows = state, (*standing.rows, row)
                    standing.denoiser_calls = int(row["denoiser_calls"])
                    standing.denoiser_vjps = int(row["denoiser_vjps"])
                    standing.vjps = int(row["vjps"])
                    observer.stepped(info, row)
                    journal.keep(standing)
                predicted = forward(_first(standing.state, experiment.predicted))
            except EnsembleFailure:
                journal.pardon(forward.latest)
                raise
    finally:
        observer.ended()
    return Ended(standing, predicted, earlier)


def _begun(experiment: Experiment, prior: Counted, like: Tensor, comm: Comm) -> State:
    guidance = experiment.guidance
    state = guidance.init(prior, experiment.seed, like, comm)
    return replace(state, remarks=(*state.remarks, *guidance.doubts(prior)))


def _first(state: State, count: int) -> Tensor:
    """This rank's part of the first members of all."""
    first = state.first
    return state.x[: max(0, count - first)]


def _first_ensemble(
    guidance: Guidance, state: State, info: Info, prior: Counted, observation: Observation
) -> tuple[Tensor, Tensor]:
    """Prior samples of this rank's members and the data of all; NaN where nobody simulated them."""
    if guidance.begins_at_prior:
        return info.evaluated[0]
    x = start(prior, 0.0, state.seed, state.members, state.x)
    return x, torch.full((len(state.everyone), *observation.y.shape), torch.nan)


def _without_the_dead(guidance: Guidance, state: State, info: Info) -> State:
    living = torch.ones(0, dtype=torch.bool)
    for _, y in info.evaluated:
        now = ensemble.alive(y).cpu()
        living = now if not len(living) else living & now
    if not len(living) or bool(living.all()):
        return state
    return guidance.drop(state, living)


def _row(
    info: Info, forward: Forward, prior: Counted, seconds: float, comm: Comm
) -> dict[str, float]:
    spread = float("nan")
    if info.evaluated:
        variance = by_unknown(comm, info.evaluated[-1][0], ensemble.variance)
        spread = float(variance.mean().sqrt())
    row: dict[str, float] = {
        "sigma": info.sigma,
        "power": info.power,
        "beta": info.beta,
        "misfit_per_datum": float("nan") if info.misfit is None else info.misfit,
        "spread": spread,
        "calls": forward.count.calls,
        "failed": forward.count.failed,
        "vjps": sum(comm.gather(forward.operator.all_vjps)),
        "denoiser_calls": sum(comm.gather(prior.calls)),
        "denoiser_vjps": sum(comm.gather(prior.vjps)),
        "seconds": seconds,
    }
    if forward.low is not None:
        row["low_calls"] = forward.count.low_calls
    return row


def _log_step(row: Mapping[str, float]) -> None:
    log.info(" ".join(f"{k}={v:.6g}" for k, v in row.items()))
