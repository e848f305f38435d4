"""Training an autoencoder.

folder/  card.toml, weights.safetensors     the autoencoder
         figures/reconstructions.png        held-out samples, and what decode(encode(.)) makes
         training.json, checkpoint.pt       while it is unfinished
folder/latent/                              the prior over its latents, by `enkg.learned.train`
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from enkg.comm import ALONE
from enkg.errors import InputError, StoreError
from enkg.field import Field
from enkg.learned import card, keep
from enkg.learned.autoencoder import Autoencoder, Coder, objective, reconstruction_error
from enkg.learned.base import Base, fitted
from enkg.learned.batches import batches
from enkg.learned.latent_prior import TrainedAutoencoder
from enkg.learned.loop import EVERY, SMOOTH, Unseen, Watcher
from enkg.learned.prepare import FITTED, MEASURED
from enkg.learned.sources import Samples, check, samples, split
from enkg.learned.training import Training
from enkg.store import claimed, versions
from enkg.units import Affine, Log

COOLING = 0.5
"""Share of the steps over which the learning rate falls to zero."""


@dataclass(frozen=True, eq=False)
class Task:
    """What decides the weights, for the record."""

    samples: Samples
    units: Affine | Log
    config: Autoencoder

    @property
    def steps(self) -> int:
        return self.config.steps


@dataclass(frozen=True, eq=False)
class Given:
    """The samples, and the network to learn; a `Watcher` sees these as it does `Prepared`."""

    samples: Samples
    learnt: ndarray
    held_out: ndarray
    units: Affine | Log
    module: Coder

    def reference(self, which: str) -> Tensor:
        """Up to `MEASURED` of the held-out or the learnt samples, in the prior's numbers."""
        indices = self.held_out if which == "held_out" else self.learnt
        return self.units.to_prior(torch.from_numpy(self.samples.rows(indices[:MEASURED])))


def train_autoencoder(
    config: Autoencoder,
    source: Any,
    folder: str | Path,
    units: Affine | Log | None = None,
    *,
    unknown: Field | None = None,
    others: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    watcher: Watcher | None = None,
) -> TrainedAutoencoder:
    """Trains an autoencoder and leaves it in `folder`; returns it.

    source: samples (N, *X) in physical units, all that `enkg.learned.samples` takes. units: from
    numbers of order one to physical ones; None takes mean and standard deviation of all points.
    unknown: name, axes and unit of a member. others: more sets of samples, by name, whose errors go
    on the card. told: name, about, limits, recipe, licence, for the card. resume: go on with an
    unfinished training, step by step as if it had never stopped, begin if there is none, and return
    the autoencoder of a finished one. overwrite: replace an autoencoder that is there. force: go on
    although the training has changed.

    Raises InputError for samples or settings that do not work, StoreError for a folder that holds
    something else. Cost: `steps` passes of `batch` samples through encoder and decoder, and back.
    """
    folder, watcher = Path(folder), watcher or Unseen()
    if resume and is_finished(folder):
        return _finished(config, folder)
    given = _given(config, source, units)
    with claimed(folder):
        task = cast(Training, Task(given.samples, given.units, config))
        record = keep.Record(task, "", ())
        keep.begin(folder, task, record, resume, overwrite, force, ALONE)
        keep.clear(folder, record, given.samples, resume, force)
        try:
            run = Run(config, given)
            state = keep.checkpoint(folder) if resume else None
            if state is not None:
                run.restore(state)
            _learn(run, folder, watcher)
            watcher.measuring()
            return _finish(run, folder, unknown or Field("x"), others or {}, told or {})
        finally:
            watcher.ended()


class Run:
    """The state of a training between two steps."""

    def __init__(self, config: Autoencoder, given: Given) -> None:
        self.config, self.given = config, given
        self.device = torch.device(config.device)
        self.model = given.module.to(self.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.99))
        self.step, self.seconds, self.speed = 0, 0.0, 0.0
        self.recent: list[float] = []

    def learn(self, batch: Tensor) -> tuple[float, float]:
        """One step; returns the loss, averaged over the last ones, and the learning rate."""
        begin = time.perf_counter()
        c, shape = self.config, self.model.inner
        x = self.given.units.to_prior(batch)
        generator = torch.Generator().manual_seed((c.seed * 1_000_003 + self.step) % (1 << 63))
        noise = torch.randn((len(x), *shape), generator=generator).to(self.device)
        rate = c.rate * min(1.0, (c.steps - self.step) / (COOLING * c.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = objective(self.model, x.to(self.device), noise, c.kl)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        if not bool(norm.isfinite()):
            raise InputError(
                f"the gradient of step {self.step + 1} is not finite; lower the rate, or give "
                "units that make the samples of order one"
            )
        self.optimiser.step()
        self.step += 1
        self.recent = [*self.recent[1 - SMOOTH :], float(loss.detach())]
        took = time.perf_counter() - begin
        self.seconds += took
        self.speed = len(x) / took
        return sum(self.recent) / len(self.recent), rate

    def error(self, which: str) -> float:
        """Root-mean-square error a point of reconstructed samples, in the prior's numbers."""
        return reconstruction_error(self.model, self.given.reference(which).to(self.device))

    def state(self) -> dict[str, Any]:
        """All of it but the samples; `enkg.learned.keep` saves it."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "recent": self.recent,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises StoreError where the checkpoint is of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise StoreError(
                "the checkpoint is of another network than the training has now; overwrite=True "
                "begins anew"
            ) from error
        self.step, self.seconds = state["step"], state["seconds"]
        self.recent = state["recent"]


def linear_error(base: Base, x: Tensor) -> float:
    """The same error of principal components."""
    basis = base.basis
    assert basis is not None
    centred = (x - base.mean).flatten(1)
    return float((centred - (centred @ basis) @ basis.T).square().mean().sqrt())


def is_finished(folder: str | Path) -> bool:
    """Whether a folder holds an autoencoder that is not being trained any more."""
    return (Path(folder) / card.CARD).is_file() and not (Path(folder) / keep.RECORD).is_file()


def _finished(config: Autoencoder, folder: Path) -> TrainedAutoencoder:
    found = TrainedAutoencoder(folder)
    steps = found.card["training"]["steps"]
    if steps != config.steps:
        raise StoreError(
            f"{folder} holds an autoencoder that was trained for {steps:,} steps, and its state is "
            f"not kept; {config.steps:,} steps begin anew: give another folder, or overwrite=True"
        )
    return found


def _given(config: Autoencoder, source: Any, units: Affine | Log | None) -> Given:
    found = samples(source)
    check(found)
    learnt, held_out = split(len(found), config.held_out, config.seed)
    physical = torch.from_numpy(found.rows(_spread(learnt)))
    units = units or Affine(
        scale=float(f"{float(physical.double().std()):.6g}"),
        offset=float(f"{float(physical.double().mean()):.6g}"),
    )
    x = units.to_prior(physical)
    if not bool(x.isfinite().all()):
        raise InputError("the units make NaN or infinity of some samples")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = Coder(config, found.shape)
    if config.learns_the_rest:
        base = fitted("components", x, module.basis.shape[1])
        assert base.basis is not None
        module.mean.copy_(base.mean)
        module.basis[:, : base.basis.shape[1]] = base.basis
    return Given(found, learnt, held_out, units, module)


def _spread(indices: ndarray) -> ndarray:
    """Up to `FITTED` of them, from first to last."""
    return indices[np.linspace(0, len(indices) - 1, min(FITTED, len(indices))).astype(int)]


def _learn(run: Run, folder: Path, watcher: Watcher) -> None:
    c, given = run.config, run.given
    # A watcher asks of these only what an autoencoder has too.
    watcher.started(cast(Training, _Shown(c)), cast(Any, given), run.step)
    looks = {round(c.steps * (k + 1) / c.looks) for k in range(c.looks)}
    saved = time.perf_counter()
    todo = batches(given.samples, given.learnt, c.batch, c.seed, run.step, c.steps)
    whole = True
    try:
        for batch in todo:
            whole = False
            loss, rate = run.learn(batch)
            whole = True
            watcher.stepped(run.step, loss, rate, run.speed)
            if run.step in looks:
                error = run.error("held_out") if len(given.held_out) else float("nan")
                watcher.looked(keep.Row(run.step, sqrt(abs(loss)), error, rate, run.seconds))
            if run.step in looks or time.perf_counter() - saved > EVERY:
                keep.save(folder, cast(Any, run))
                saved = time.perf_counter()
    except BaseException:
        if whole and run.step:
            keep.save(folder, cast(Any, run))
        raise


class _Shown:
    """What a `Watcher` may ask of a training."""

    def __init__(self, config: Autoencoder) -> None:
        self.steps, self.batch = config.steps, config.batch

    def cost(self, shape: tuple[int, ...]) -> str:
        return f"{self.steps:,} steps of {self.batch} samples of {prod(shape):,} numbers"


@torch.no_grad()
def _finish(
    run: Run, folder: Path, unknown: Field, others: Mapping[str, Any], told: Mapping[str, Any]
) -> TrainedAutoencoder:
    """Shift and scale of the latents, weights, errors as they are read back, the card."""
    from enkg.learned import figures

    config, given, model = run.config, run.given, run.model.cpu().eval()
    x = given.units.to_prior(torch.from_numpy(given.samples.rows(_spread(given.learnt))))
    z = torch.cat([model.posterior(part)[0] for part in x.split(256)])
    model.shift.copy_(z.mean(dim=(0, 2, 3)).reshape(-1, 1, 1))
    model.scale.copy_(z.std(dim=(0, 2, 3)).reshape(-1, 1, 1))
    tensors = model.state_dict()
    if config.half:
        exact = ("mean", "basis", "shift", "scale")
        tensors = {n: t if n in exact else t.to(torch.float16) for n, t in tensors.items()}
    digest = card.save_weights(folder, tensors)
    written = _written(run, unknown, told, digest)
    card.write(folder, written)
    coder = TrainedAutoencoder(folder)
    base = fitted("components", x, prod(model.inner))
    sets = {name: given.units.to_prior(_as_tensor(each)) for name, each in others.items()}
    for which, indices in (("learnt", given.learnt), ("held_out", given.held_out)):
        if len(indices):
            sets[which] = given.reference(which)
    errors = {
        name: {"error": reconstruction_error(coder, each), "linear": linear_error(base, each)}
        for name, each in sets.items()
    }
    card.write(folder, {**written, "errors": errors})
    show = given.reference("held_out" if len(given.held_out) else "learnt")[:8]
    (folder / keep.FIGURES).mkdir(exist_ok=True)
    figures.samples_figure(
        given.units.to_simulator(coder.decode(coder.encode(show))),
        given.units.to_simulator(show),
        replace(unknown, long_name=f"{unknown.long_name or unknown.name}, reconstructed"),
        folder / keep.FIGURES / "reconstructions.png",
    )
    for name in (keep.RECORD, keep.CHECKPOINT):
        (folder / name).unlink(missing_ok=True)
    return TrainedAutoencoder(folder)


def _as_tensor(source: Any) -> Tensor:
    found = samples(source)
    return torch.from_numpy(found.rows(np.arange(len(found))))


def _written(run: Run, unknown: Field, told: Mapping[str, Any], digest: str) -> dict[str, Any]:
    config, given, units = run.config, run.given, run.given.units
    own = ("channels", "latent", "layers", "groups", "periodic", "attention", "linear", "kl")
    learnt = ("steps", "batch", "rate", "seed")
    settings = asdict(config)
    return {
        "name": told.get("name", ""),
        "about": told.get("about", ""),
        "limits": list(told.get("limits", ())),
        "licence": told.get("licence", ""),
        "member": {
            "shape": list(given.samples.shape),
            "name": unknown.name,
            "unit": unknown.unit,
            "long_name": unknown.long_name,
            "dims": list(unknown.dims) if unknown.dims else None,
            "colour_map": unknown.colour_map,
        },
        "units": {"kind": type(units).__name__, **asdict(units)},
        "autoencoder": {"latents": list(run.model.inner), **{k: settings[k] for k in own}},
        "training": {
            "samples": len(given.learnt),
            "held_out": len(given.held_out),
            "recipe": told.get("recipe", ""),
            **{k: settings[k] for k in learnt},
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "loss": sum(run.recent) / len(run.recent),
            "stored": "float16" if config.half else "float32",
            "seconds": round(run.seconds, 1),
            "versions": {k: v for k, v in versions().items() if v and k in ("enkg", "torch")},
        },
        "files": {"weights": digest},
    }
