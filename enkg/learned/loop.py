"""The training loop: steps of Adam, a running average of the weights, checkpoints.

    folder/  card.toml, weights.safetensors     the prior; usable, and better at each look
             history.csv                        loss, held-out loss, rate, seconds
             figures/                           samples, spectra, losses, denoising error
             training.json, checkpoint.pt       while it is unfinished
             data/                              generated samples

References: Karras et al. 2022, arXiv 2206.00364 (loss); Karras et al. 2024, arXiv 2312.02696,
equation 4 (the power-law average of the weights); Kingma and Ba 2015, arXiv 1412.6980 (Adam).
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from enkg import machine
from enkg.comm import ALONE, Comm, together
from enkg.errors import InputError, StoreError
from enkg.learned import keep
from enkg.learned.batches import batches
from enkg.learned.denoiser import Preconditioned
from enkg.learned.prepare import Prepared, prepare
from enkg.learned.symmetry import symmetrised
from enkg.learned.trained import Trained
from enkg.learned.training import Training
from enkg.store import claimed

log = logging.getLogger("enkg")

EVERY = 60.0
"""Seconds from one checkpoint to the next."""
LEVELS = 32
"""Noise levels of the held-out loss."""
SMOOTH = 50
"""Steps over which the loss that is shown is averaged."""


class Watcher(Protocol):
    """Sees a training and never steers it."""

    def preparing(self, done: int, total: int) -> None:
        """Samples are being drawn."""
        ...

    def started(self, training: Training, prepared: Prepared, step: int) -> None: ...

    def stepped(self, step: int, loss: float, rate: float, speed: float) -> None:
        """rate: learning rate. speed: samples a second."""
        ...

    def looked(self, row: keep.Row) -> None:
        """The held-out loss is measured, samples are drawn."""
        ...

    def measuring(self) -> None:
        """Steps are done; figures of merit are being measured."""
        ...

    def ended(self) -> None: ...


class Unseen:
    """A `Watcher` that shows nothing."""

    def preparing(self, done: int, total: int) -> None: ...

    def started(self, training: Training, prepared: Prepared, step: int) -> None: ...

    def stepped(self, step: int, loss: float, rate: float, speed: float) -> None: ...

    def looked(self, row: keep.Row) -> None: ...

    def measuring(self) -> None: ...

    def ended(self) -> None: ...


def train(
    training: Training,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    watcher: Watcher | None = None,
    comm: Comm = ALONE,
    source: str = "",
    arguments: Sequence[str] = (),
) -> Trained:
    """Trains and leaves the prior in `folder`; returns it.

    resume: go on with an unfinished training, step by step as if it had never stopped, begin if
    there is none, and return the prior of a finished one. overwrite: replace a prior that is there.
    force: go on although the training has changed. comm: the ranks of torchrun, one for each GPU;
    each learns from its part of every batch. source, arguments: for the record, the file and what
    was added to it.

    Raises InputError for samples or settings that do not work, StoreError for a folder that holds
    something else.
    """
    folder = Path(folder)
    watcher = watcher or Unseen()
    with ExitStack() as stack:
        stack.callback(watcher.ended)
        together(comm, lambda: _check_launcher(comm))
        if comm.rank == 0:
            stack.enter_context(claimed(folder))
        record = keep.Record(training, source, arguments)
        if keep.begin(folder, training, record, resume, overwrite, force, comm):
            return _trained(training, folder, record, resume, force, watcher, comm)
        return _prior(training, folder)


def _check_launcher(comm: Comm) -> None:
    if comm.size > 1 and not torch.distributed.is_initialized():
        raise InputError(
            "a training on several ranks is started by torchrun, which PyTorch brings: torchrun "
            "--nproc-per-node=4 -m enkg train FILE"
        )


def _trained(
    training: Training,
    folder: Path,
    record: keep.Record,
    resume: bool,
    force: bool,
    watcher: Watcher,
    comm: Comm,
) -> Trained:
    if comm.rank == 0:  # draws what is to be drawn; a prior that is there stays until all is well
        prepared = prepare(training, folder / keep.DATA, watcher.preparing)
        keep.clear(folder, record, prepared.samples, resume, force)
        comm.barrier()
    else:
        comm.barrier()
        prepared = prepare(training, folder / keep.DATA)
    device = machine.device(_device(training.device), comm)
    run = Run(training, prepared, device, comm)
    state = keep.checkpoint(folder) if resume else None
    if state is not None:
        run.restore(state)
    begun = run.step
    watcher.started(training, prepared, begun)
    looks = {round(training.steps * (k + 1) / training.looks) for k in range(training.looks)}
    saved = time.perf_counter()
    try:
        for batch in run.batches():
            loss, rate = run.learn(batch)
            watcher.stepped(run.step, loss, rate, run.speed)
            if comm.rank == 0 and run.step in looks:
                row = keep.look(folder, training, prepared, run)
                watcher.looked(row)
            if comm.rank == 0 and (run.step in looks or time.perf_counter() - saved > EVERY):
                keep.save(folder, run)
                saved = time.perf_counter()
    except BaseException:
        if comm.rank == 0 and run.whole and run.step > begun:
            keep.save(folder, run)
        raise
    comm.barrier()
    if comm.rank == 0:
        watcher.measuring()
        keep.finish(folder, training, prepared, run)
    comm.barrier()
    return _prior(training, folder)


def _prior(training: Training, folder: Path) -> Trained:
    return Trained(folder, network=None if keep.is_ours(training) else training.network)


class Run:
    """The state of a training between two steps."""

    def __init__(
        self, training: Training, prepared: Prepared, device: torch.device, comm: Comm
    ) -> None:
        self.training, self.prepared, self.device, self.comm = training, prepared, device, comm
        self.model = prepared.module.to(device)
        self.model.precision = training.precision
        self.average = AveragedModel(self.model, multi_avg_fn=power_law(training.average))
        self.optimiser = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.whole = True
        self.history: list[keep.Row] = []
        self.recent: list[float] = []
        self.speed = 0.0
        objective: nn.Module = _Objective(self.model)
        if comm.size > 1:
            ids = [device] if device.type == "cuda" else None
            objective = nn.parallel.DistributedDataParallel(objective, device_ids=ids)
        self.objective = objective

    def batches(self) -> Any:
        """What is left to learn from, step by step."""
        t = self.training
        found = self.prepared
        return batches(
            found.samples,
            found.learnt,
            t.batch,
            t.seed,
            self.step,
            t.steps,
            t.workers,
            self.comm.rank,
            self.comm.size,
        )

    def learn(self, batch: Tensor) -> tuple[float, float]:
        """One step; returns the loss, averaged over the last ones, and the learning rate."""
        begin = time.perf_counter()
        t, rank, size = self.training, self.comm.rank, self.comm.size
        x = self.prepared.units.to_prior(batch)
        if t.symmetries:
            x = symmetrised(x, t.symmetries, _generator(t.seed, self.step, rank, "cpu"))
        generator = _generator(t.seed, self.step, 0, self.device)
        mine = slice(rank * len(x), (rank + 1) * len(x))
        sigma = t.noise.draw(size * len(x), generator)[mine]
        shape = (size * len(x), *x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.device)[mine]
        rate = t.rate * t.scale(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.objective(x.to(self.device, non_blocking=True), sigma, noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        self.whole = False
        if bool(norm.isfinite()):
            self.optimiser.step()
        else:
            log.warning("step %d: the gradient is not finite; the step is left out", self.step + 1)
        self.average.update_parameters(self.model)
        self.step += 1
        self.whole = True
        self.recent = [*self.recent[1 - SMOOTH :], float(loss.detach())]
        if all(isnan(value) for value in self.recent):
            raise InputError(
                "the loss has been NaN for a while; lower the rate, or use precision='float32'"
            )
        took = time.perf_counter() - begin
        self.seconds += took
        speed = t.batch / took
        self.speed = speed if not self.speed else 0.95 * self.speed + 0.05 * speed
        return sum(self.recent) / len(self.recent), rate

    def averaged(self) -> Preconditioned:
        """The denoiser with the averaged weights."""
        module = self.average.module
        assert isinstance(module, Preconditioned)
        return module

    @torch.no_grad()
    def held_out(self) -> float:
        """Loss of the averaged weights over the held-out samples, the same noise each time."""
        found = self.prepared
        if not len(found.held_out):
            return float("nan")
        x = found.reference("held_out")[: 4 * LEVELS]
        x = x.repeat(-(-LEVELS // len(x)), *(1,) * (x.dim() - 1))[: max(len(x), LEVELS)]
        generator = torch.Generator().manual_seed(self.training.seed)
        sigma = self.training.noise.quantiles(LEVELS).repeat(-(-len(x) // LEVELS))[: len(x)]
        noise = torch.randn(x.shape, generator=generator)
        parts = zip(x.split(LEVELS), sigma.split(LEVELS), noise.split(LEVELS), strict=True)
        module = self.averaged().eval()
        losses = [module.loss(*(part.to(self.device) for part in each)) for each in parts]
        return float(torch.cat(losses).mean())

    def state(self) -> dict[str, Any]:
        """All of it but the samples."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": [list(row) for row in self.history],
            "recent": self.recent,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises StoreError where the checkpoint is of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise StoreError(
                "the checkpoint is of another network or base than the training has now; "
                "--overwrite begins anew"
            ) from error
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = [keep.Row(*row) for row in state["history"]]
        self.recent = state["recent"]


class _Objective(nn.Module):
    """The mean loss, as the forward pass that data-parallel training wants."""

    def __init__(self, model: Preconditioned) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return self.model.loss(x, sigma, noise).mean()


def power_law(width: float) -> Any:
    """A running average of the weights whose memory is that share of the steps so far.

    After n updates it moves to the next weights by (gamma + 1) / (n + gamma + 1), gamma = 1 /
    width, so that theta_t enters in proportion to t (t + 1) .. (t + gamma - 1), which is t^gamma
    for late t.
    """
    gamma = 1 / width

    def move(averages: Any, current: Any, count: Any) -> None:
        share = min(1.0, (gamma + 1) / (float(count) + gamma + 1))
        for average, value in zip(averages, current, strict=True):
            average.lerp_(value, share)

    return move


def _generator(seed: int, step: int, rank: int, device: Any) -> torch.Generator:
    key = (seed * 1_000_003 + step) * 4099 + rank
    return torch.Generator(device).manual_seed(key % (1 << 63))


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
