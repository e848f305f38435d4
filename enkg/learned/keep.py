"""What a training leaves in its folder, and how it goes on from there."""

import csv
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from enkg.comm import Comm, once
from enkg.ensemble import alive
from enkg.errors import StoreError
from enkg.learned import card, merits
from enkg.learned.base import fitted
from enkg.learned.compare import spectra
from enkg.learned.generated import Generated
from enkg.learned.network import UNet
from enkg.learned.prepare import Prepared, evenly, fingerprint
from enkg.learned.sources import Samples
from enkg.learned.trained import OWN, Trained
from enkg.learned.training import Training
from enkg.sketch import differences
from enkg.store import describe, versions, write_json

if TYPE_CHECKING:
    from enkg.learned.loop import Run

RECORD, CHECKPOINT, HISTORY, FIGURES, DATA = (
    "training.json",
    "checkpoint.pt",
    "history.csv",
    "figures",
    "data",
)
FREE = (
    "device",
    "workers",
    "data",
    "looks",
    "drawn",
    "exact",
    "about",
    "limits",
    "licence",
    "name",
    "unknown",
    "half",
    "sigma_max",
)
"""Fields of a training that may change while it is unfinished."""
EXACT = ("base_mean", "base_variance", "base_rest")
"""What is stored in float32 in any case."""
LEVELS = 32
"""Levels of the flow that draws them for the figures of merit."""
NEAREST = 16_384
"""Training samples at most that the figures of merit compare with."""
SHOWN = 8
"""Samples drawn at each look."""


class Row(NamedTuple):
    """One look. Losses are shares of the linear denoiser's square error."""

    step: int
    loss: float
    held_out: float
    rate: float
    seconds: float


class Record:
    """What training.json holds of a training that is not finished."""

    def __init__(self, training: Training, source: str, arguments: Sequence[str]) -> None:
        self.training = describe(training)
        self.training.pop("exact", None)
        self.source, self.arguments = source, list(arguments)


def begin(
    folder: Path,
    training: Training,
    record: Record,
    resume: bool,
    overwrite: bool,
    force: bool,
    comm: Comm,
) -> bool:
    """Checks that the folder is empty, or the training in it this one; False where it is finished.

    A training that stopped before its first checkpoint is replaced without being told.
    """
    return once(comm, lambda: _begun(folder, training, record, resume, overwrite, force))


def _begun(
    folder: Path, training: Training, record: Record, resume: bool, overwrite: bool, force: bool
) -> bool:
    begun = any((folder / name).is_file() for name in (CHECKPOINT, card.CARD))
    if (folder / RECORD).is_file() and begun:
        if resume:
            _unchanged(folder, record.training, force)
        elif not overwrite:
            raise StoreError(
                f"{folder} holds an unfinished training; --resume goes on with it, --overwrite "
                "begins anew"
            )
    elif (folder / card.CARD).is_file() and not overwrite:
        if resume and _is_finished(folder, training):
            return False
        raise StoreError(
            f"{folder} holds a prior; give another --out, or --overwrite to replace it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return True


def clear(folder: Path, record: Record, given: Samples, resume: bool, force: bool) -> None:
    """Removes what is to be replaced and writes the record, once the samples are known to be good.

    Raises StoreError where a training would go on with other samples.
    """
    samples = fingerprint(given)
    if resume and (folder / RECORD).is_file():
        before = json.loads((folder / RECORD).read_text()).get("samples", samples)
        if before != samples and (folder / CHECKPOINT).is_file() and not force:
            raise StoreError(
                f"{folder} holds a training that learns from other samples than those given now; "
                "--force goes on with these, --overwrite begins anew"
            )
    else:
        for name in (CHECKPOINT, HISTORY, card.CARD, card.WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / FIGURES, ignore_errors=True)
    write_json(folder / RECORD, vars(record) | {"samples": samples})


def _is_finished(folder: Path, training: Training) -> bool:
    """Whether the prior of a folder has had all the steps of this training."""
    told = card.read(folder)["training"]
    if told["finished"] and told["steps"] != training.steps:
        raise StoreError(
            f"{folder} holds a prior that was trained for {told['steps']:,} steps, and its state "
            f"is not kept; {training.steps:,} steps begin anew: give another --out, or --overwrite"
        )
    given, before = training.samples, told.get("fingerprint")
    if before and not isinstance(given, Generated) and fingerprint(given) != before:
        raise StoreError(
            f"{folder} holds a prior that learnt from other samples than those given now; give "
            "another --out, or --overwrite"
        )
    return told["finished"]


def _unchanged(folder: Path, now: dict[str, Any], force: bool) -> None:
    before = json.loads((folder / RECORD).read_text())["training"]
    changed = [d for d in differences(before, now) if d.split(".")[0] not in FREE]
    if changed and not force:
        raise StoreError(
            f"{folder} holds a training with other {', '.join(changed)}; --force goes on with what "
            "is given now, --overwrite begins anew"
        )


def checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state to go on from; None where there is none yet."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds, and says much
        raise StoreError(f"{path} is damaged; --overwrite begins anew") from error


def save(folder: Path, run: "Run") -> None:
    """Writes the checkpoint, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=CHECKPOINT, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(run.state(), file)
        os.replace(name, folder / CHECKPOINT)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def look(folder: Path, training: Training, prepared: Prepared, run: "Run") -> Row:
    """Measures, draws a few samples and their spectrum, and writes what there is of the prior."""
    from enkg.learned import figures

    begin = time.perf_counter()
    recent = sum(run.recent) / len(run.recent)
    row = Row(
        run.step, recent, run.held_out(), training.rate * training.scale(run.step), run.seconds
    )
    run.history.append(row)
    _history(folder, run)
    prior = write(folder, training, prepared, run, None)
    like = torch.empty(0, device=run.device)
    drawn = merits.draw(prior, SHOWN, training.seed, training.sigma_max, like=like).cpu()
    held = prepared.reference("held_out" if len(prepared.held_out) else "learnt")
    (folder / FIGURES).mkdir(exist_ok=True)
    units = prepared.units
    figures.samples_figure(
        units.to_simulator(drawn),
        units.to_simulator(held),
        training.unknown,
        folder / FIGURES / "samples.png",
    )
    good = drawn[alive(drawn)]
    if len(good) > 1:
        learnt = prepared.rows(evenly(prepared.learnt, len(good)))
        figures.spectrum_figure(spectra(good, held, learnt), folder / FIGURES / "spectrum.png")
    losses = {
        "step": [r.step for r in run.history],
        "training": [r.loss for r in run.history],
        "held out": [r.held_out for r in run.history],
    }
    figures.loss_figure(losses, folder / FIGURES / "loss.png")
    run.seconds += time.perf_counter() - begin
    return row


def finish(folder: Path, training: Training, prepared: Prepared, run: "Run") -> None:
    """Figures of merit, the last card; the checkpoint goes."""
    from enkg.learned import figures

    prior = write(folder, training, prepared, run, None)
    found = None
    if len(prepared.held_out) > 1:
        held = prepared.reference("held_out")
        learnt = prepared.rows(evenly(prepared.learnt, NEAREST))
        like = torch.empty(0, device=run.device)
        drawn = merits.draw(
            prior, training.drawn, training.seed, training.sigma_max, levels=LEVELS, like=like
        )
        found = merits.measure(
            prior,
            held.to(run.device),
            learnt.to(run.device),
            drawn,
            best_linear(training, prepared),
            training.exact,
            training.seed,
        )
        write(folder, training, prepared, run, found)
        units = prepared.units
        figures.samples_figure(
            units.to_simulator(drawn[:SHOWN].cpu()),
            units.to_simulator(held),
            training.unknown,
            folder / FIGURES / "samples.png",
        )
        figures.spectrum_figure(found.spectrum, folder / FIGURES / "spectrum.png")
        figures.denoising_figure(found.denoising, folder / FIGURES / "denoising.png")
    for name in (RECORD, CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def best_linear(training: Training, prepared: Prepared) -> Any:
    """The linear denoiser to compare with: the base, or principal components if it is white."""
    base = prepared.base
    if training.base == "white":
        base = fitted("components", prepared.rows(prepared.learnt[:8192]), training.components)
    return base.prior()


def write(
    folder: Path,
    training: Training,
    prepared: Prepared,
    run: "Run",
    found: merits.Merits | None,
) -> Trained:
    """Weights and card; returns the prior in the training's precision."""
    tensors = run.averaged().state_dict()
    if training.half:
        tensors = {n: t if n in EXACT else t.to(torch.float16) for n, t in tensors.items()}
    digest = card.save_weights(folder, tensors)
    unknown, units = training.unknown, prepared.units
    card.write(
        folder,
        {
            "name": training.name or folder.resolve().name,
            "about": training.about,
            "limits": list(training.limits),
            "licence": training.licence,
            "member": {
                "shape": list(prepared.samples.shape),
                "name": unknown.name,
                "unit": unknown.unit,
                "long_name": unknown.long_name,
                "dims": list(unknown.dims) if unknown.dims else None,
                "colour_map": unknown.colour_map,
            },
            "units": {
                "kind": type(units).__name__,
                **{f.name: _number(getattr(units, f.name)) for f in dataclasses.fields(units)},
            },
            "network": _network(training),
            "base": {"kind": training.base, "components": training.components},
            "training": _training(training, prepared, run),
            "merits": found.as_dict() if found else {},
            "files": {"weights": digest},
        },
    )
    own = None if is_ours(training) else training.network
    return Trained(folder, training.precision, own)


def is_ours(training: Training) -> bool:
    """Whether the card alone can build the network."""
    return type(training.network) is UNet


def _network(training: Training) -> dict[str, Any]:
    network = training.network
    if type(network) is UNet:
        return {"kind": "UNet", **dataclasses.asdict(network)}
    return {"kind": OWN, "name": type(network).__qualname__}


def _training(training: Training, prepared: Prepared, run: "Run") -> dict[str, Any]:
    return {
        "finished": run.step >= training.steps,
        "samples": len(prepared.learnt),
        "held_out": len(prepared.held_out),
        "recipe": training.recipe,
        "fingerprint": fingerprint(prepared.samples),
        "symmetries": [repr(s) for s in training.symmetries],
        "steps": run.step,
        "batch": training.batch,
        "seen": run.step * training.batch,
        "rate": training.rate,
        "noise_mean": training.noise.mean,
        "noise_std": training.noise.std,
        "sigma_max": training.sigma_max,
        "precision": training.precision,
        "stored": "float16" if training.half else "float32",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "loss": run.history[-1].loss if run.history else None,
        "held_out_loss": _finite(run.history[-1].held_out) if run.history else None,
        "seed": training.seed,
        "ranks": run.comm.size,
        "device": str(run.device),
        "seconds": round(run.seconds, 1),
        "versions": {k: v for k, v in versions().items() if v and k in ("enkg", "torch", "numpy")},
    }


def _history(folder: Path, run: "Run") -> None:
    with open(folder / HISTORY, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Row._fields)
        table.writerows([f"{v:.6g}" for v in row] for row in run.history)


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else value.tolist()


def _finite(value: float) -> float | None:
    return None if isnan(value) else value
