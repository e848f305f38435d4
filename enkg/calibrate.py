"""enkg calibrate: many inversions of synthetic truths, and what they say of the intervals.

Each truth is a sample of the experiment's prior, its data come from the experiment's simulator, and
noise from its observation; the inversion is a run as any other, in a directory of its own:

    synthetic/        experiment.json: what is calibrated; 000.npz: truth and data
    truth-000/        the run
    figures/          ranks.png, coverage.png, spread_skill.png
    calibration.json  the numbers (`enkg.calibration`), written last

So a calibration that was stopped goes on with the same command, and more truths can be asked of
one that is finished. `truth`, the data and `analyse` of the experiment itself are not used.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from enkg import calibration_report, random, store
from enkg.beat import Observer, Silent
from enkg.calibration import Score, calibration, components, score
from enkg.comm import ALONE, Comm, once, one_for_all
from enkg.counted import counted
from enkg.errors import EnkgError, EnsembleFailure, InputError, StoreError
from enkg.execute import opened
from enkg.execute.identity import identity_of
from enkg.experiment import Experiment
from enkg.forward import Forward
from enkg.machine import device
from enkg.random import Stream
from enkg.run import run
from enkg.sample import start

SYNTHETIC, NUMBERS = "synthetic", "calibration.json"
ATTEMPTS = 20
"""Prior samples tried as one truth, where the simulator fails."""


class Witness(Observer, Protocol):
    """Sees a calibration, and the runs in it."""

    def scored(self, number: int, truths: int, found: Score) -> None: ...


class Nobody(Silent):
    """Watches nothing."""

    def scored(self, number: int, truths: int, found: Score) -> None: ...


@dataclass(frozen=True)
class Calibration:
    """calibrated: no test failed. reason: one sentence. numbers: those of calibration.json."""

    calibrated: bool
    reason: str
    numbers: dict[str, Any]


def calibrate(
    experiment: Experiment,
    truths: int,
    directory: str | Path,
    *,
    force: bool = False,
    witness: Witness | None = None,
    source: Path | None = None,
    arguments: Sequence[str] = (),
    comm: Comm = ALONE,
) -> Calibration:
    """Inverts the data of so many samples of the prior and compares intervals with truths.

    directory: where the runs go; what is finished there is not done again, and what was interrupted
    goes on. force: also where the experiment has changed. `experiment.seed` decides truths, noise
    and the seeds of the runs. comm: as for `enkg.run`.

    Cost: that many runs, and one simulator call for each truth.

    Raises InputError for less than two truths, StoreError for a directory of something else,
    EnsembleFailure where a run has too few survivors.
    """
    if truths < 2:
        raise InputError(f"{truths} truths; a calibration needs at least 2, better 50")
    folder, seed = Path(directory), experiment.seed
    witness = witness or Nobody()
    scores: list[Score] = []
    directions = torch.empty(0)
    with one_for_all(comm), _Claim(folder, comm):
        once(comm, lambda: _begun(experiment, folder, force, source, arguments))
        for number in range(truths):
            try:
                truth, y, own = once(comm, lambda n=number: _synthetic(experiment, folder, n))
                each = replace(
                    experiment,
                    observation=replace(experiment.observation, y=y),
                    truth=truth,
                    seed=own,
                    analyse=None,
                )
                tree = run(
                    each,
                    folder / f"truth-{number:03d}",
                    resume=True,
                    force=force,
                    observer=witness,
                    comm=comm,
                    figures=False,
                )
            except EnkgError as error:
                error.add_note(f"this was truth {number} of {folder}")
                raise
            if comm.rank > 0:
                continue
            x, samples, known = _arrays(tree)
            if number == 0:
                directions = components(samples)
            summary = store.summary(folder / f"truth-{number:03d}")
            scores.append(score(x, samples, known, directions, (seed, number), summary))
            witness.scored(number, truths, scores[-1])
        found = once(comm, lambda: _written(experiment, scores, folder))
    return Calibration(found["calibrated"], found["reason"], found)


def is_calibration(directory: str | Path) -> bool:
    """Whether `calibrate` has begun there."""
    return (Path(directory) / SYNTHETIC / store.RECORD).is_file()


def numbers(directory: str | Path) -> dict[str, Any]:
    """What calibration.json of a finished calibration holds; StoreError where there is none."""
    file = Path(directory) / NUMBERS
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"the calibration in {directory} is not finished; the command that began it goes on"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}") from error


class _Claim:
    """The directory is this calibration's alone; rank 0 holds the lock."""

    def __init__(self, folder: Path, comm: Comm) -> None:
        self.lock, self.comm = store.claimed(folder), comm

    def __enter__(self) -> None:
        once(self.comm, self.lock.__enter__)

    def __exit__(self, *error: Any) -> None:
        if self.comm.rank == 0:
            self.lock.__exit__(*error)


def _begun(
    experiment: Experiment,
    folder: Path,
    force: bool,
    source: Path | None,
    arguments: Sequence[str],
) -> None:
    """Makes the directory, or sees that it is this experiment's."""
    record = store.provenance(replace(experiment, truth=None, analyse=None), source, arguments)
    record["simulator"] = identity_of(experiment.simulator, strict=False)
    place = folder / SYNTHETIC
    if (place / store.RECORD).is_file():
        try:
            store.check_unchanged(place, record, force)
        except StoreError as error:
            raise StoreError(str(error).replace(str(place), str(folder))) from error
        return
    if any(file.name not in (store.LOCK, SYNTHETIC) for file in folder.iterdir()):
        raise StoreError(f"{folder} holds files that no calibration wrote; choose another --out")
    place.mkdir(exist_ok=True)
    store.write_json(place / store.RECORD, record)


def _synthetic(experiment: Experiment, folder: Path, number: int) -> tuple[Tensor, Tensor, int]:
    """Truth in the simulator's units, its data with noise, and the seed of its run."""
    file = folder / SYNTHETIC / f"{number:03d}.npz"
    if file.is_file():
        with np.load(file) as kept:
            truth, y, seed = (torch.from_numpy(kept[name]) for name in ("truth", "y", "seed"))
        return truth, y, int(seed)
    truth, y, seed = _drawn(experiment, number)
    partial = file.with_name(file.name + store.PARTIAL)
    with partial.open("wb") as stream:
        np.savez(stream, truth=truth.numpy(), y=y.numpy(), seed=np.int64(seed))
    os.replace(partial, file)
    return truth, y, seed


def _drawn(experiment: Experiment, number: int) -> tuple[Tensor, Tensor, int]:
    place = device(experiment.device, ALONE)
    dtype = torch.float64 if experiment.double else torch.float32
    like = torch.empty(0, dtype=dtype, device=place)
    prior = counted(experiment.prior, experiment.chunk, place, torch.get_num_threads())
    with opened(experiment.simulator, experiment.failure, None) as evaluator:
        for attempt in range(ATTEMPTS):
            lot = random.generators(experiment.seed, Stream.TRUTH, [number], attempt)[0]
            of_truth, of_noise, own = lot.integers(2**31, size=3).tolist()
            x = start(prior, 0.0, of_truth, [0], like)
            try:
                clean = Forward(experiment, evaluator, lambda done, total: None)(x)[0].cpu()
            except EnsembleFailure as error:
                if attempt == ATTEMPTS - 1:
                    error.add_note(f"{ATTEMPTS} prior samples in a row could not be truths")
                    raise
                continue
            truth = experiment.physical(x)[0].cpu()
            return truth, experiment.observation.perturb(clean, of_noise), own
    raise AssertionError


def _arrays(tree: xr.DataTree) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior, prior samples and truth."""
    name = tree.attrs["unknown"]
    groups = ("posterior", "prior_samples", "truth")
    x, samples, truth = (torch.from_numpy(tree[g].to_dataset()[name].values) for g in groups)
    return x, samples, truth


def _written(experiment: Experiment, scores: Sequence[Score], folder: Path) -> dict[str, Any]:
    found = {
        "method": type(experiment.guidance).__name__,
        "members": experiment.guidance.members,
        "seed": experiment.seed,
        **calibration(scores, int(np.prod(experiment.shape))),
    }
    found = store.plain(found)
    calibration_report.figures(found, folder / store.FIGURES)
    store.write_json(folder / NUMBERS, found)
    return found
