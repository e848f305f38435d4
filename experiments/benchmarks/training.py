"""What learned priors cost: training, sampling, data loading, memory.

    python experiments/benchmarks/training.py

Samples a second that a network learns from and that it denoises, relative to the first row, for
64 x 64 fields on a torus; the share of a training that is spent on loading; the
peak memory of sampling against the size of the ensemble, which is flat but for the ensemble itself
as soon as it is larger than a chunk. Rows of azula's U-Net, the other candidate, are added where
azula is installed. Needs the extra enkg[train]. About four minutes on one core.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import enkg
from enkg.counted import counted
from enkg.learned.base import fitted
from enkg.learned.denoiser import TIMES, Preconditioned
from enkg.learned.loop import Run
from enkg.learned.prepare import prepare

SIZE, BATCH, SECONDS = 64, 16, 8.0
MEMBERS = (16, 64, 256, 1024)
CHUNK = 16
NETWORKS = {
    "(32, 64, 128), patch 2": enkg.UNet((32, 64, 128), patch=2, periodic=True),
    "(32, 64, 128), patch 4": enkg.UNet((32, 64, 128), patch=4, periodic=True),
    "(64, 128, 128), patch 4": enkg.UNet((64, 128, 128), patch=4, periodic=True),
    "(16, 32, 64, 64), patch 1": enkg.UNet((16, 32, 64, 64), patch=1, periodic=True),
}


@dataclass(frozen=True)
class Azula:
    """azula's U-Net on patches, with its own time embedding."""

    channels: tuple[int, ...] = (32, 64, 128)
    patch: int = 2

    def build(self, shape: Any, inputs: int) -> nn.Module:
        """As `enkg.UNet.build`, for members (H, W)."""
        layers, unet = import_module("azula.nn.layers"), import_module("azula.nn.unet")

        class Wrapped(nn.Module):
            def __init__(self, channels: tuple[int, ...], patch: int) -> None:
                super().__init__()
                self.patch = patch
                self.time = layers.SineEncoding(64)
                self.network = unet.UNet(
                    inputs * patch**2,
                    patch**2,
                    mod_features=64,
                    hid_channels=channels,
                    hid_blocks=(1,) * len(channels),
                    periodic=True,
                )

            def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
                x = nn.functional.pixel_unshuffle(x, self.patch)
                return nn.functional.pixel_shuffle(
                    self.network(x, self.time(time / TIMES)), self.patch
                )

        return Wrapped(self.channels, self.patch)


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak is not None:
        print(_peak(options.peak))
        return
    console = Console()
    fields = np.random.default_rng(0).standard_normal((512, SIZE, SIZE)).astype(np.float32)
    console.print(throughput(fields, torch.device(options.device)))
    console.print(loading(fields, options.device))
    console.print(memory())


def throughput(fields: np.ndarray, device: torch.device) -> Table:
    """Samples a second while learning and while denoising, and ratios to the first row."""
    table = Table("network", "weights", "precision", "learns/s", "ratio", "denoises/s", "ratio")
    table.title = f"{SIZE} x {SIZE}, batches of {BATCH}, {device}"
    first: tuple[float, float] | None = None
    for name, network, precision in _candidates():
        try:
            base = fitted("spectrum", torch.from_numpy(fields))
            model = Preconditioned(network.build((SIZE, SIZE), 2), base, (SIZE, SIZE)).to(device)
        except ImportError:
            continue
        model.precision = precision
        x = torch.from_numpy(fields[:BATCH]).to(device)
        sigma, noise = torch.rand(BATCH, device=device) + 0.1, torch.randn_like(x)
        optimiser = torch.optim.Adam(model.parameters())

        def learn() -> None:
            optimiser.zero_grad()  # noqa: B023
            model.loss(x, sigma, noise).mean().backward()  # noqa: B023
            optimiser.step()  # noqa: B023

        def denoise() -> None:
            with torch.no_grad():
                model(x, sigma)  # noqa: B023

        rates = (BATCH * _rate(learn, device), BATCH * _rate(denoise, device))
        first = first or rates
        weights = sum(p.numel() for p in model.parameters())
        cells = [f"{rates[0]:.1f}", f"{rates[0] / first[0]:.2f}"]
        cells += [f"{rates[1]:.1f}", f"{rates[1] / first[1]:.2f}"]
        table.add_row(name, f"{weights / 1e6:.2f} M", precision, *cells)
    return table


def _candidates() -> Iterator[tuple[str, Any, str]]:
    for name, network in NETWORKS.items():
        for precision in ("float32", "bfloat16"):
            yield name, network, precision
    name, network = next(iter(NETWORKS.items()))
    yield f"{name}, not periodic", replace(network, periodic=False), "float32"
    yield "azula (32, 64, 128), patch 2", Azula(), "float32"


def _rate(step: Callable[[], None], device: torch.device) -> float:
    step()
    _wait(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        step()
        _wait(device)
        count += 1
    return count / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def loading(fields: np.ndarray, device: str) -> Table:
    """Share of a training's time that is not spent in its steps, from memory."""
    training = enkg.Training(
        fields,
        network=next(iter(NETWORKS.values())),
        base="spectrum",
        symmetries=(enkg.Shift(0), enkg.Shift(1), enkg.Reflect((0, 1), periodic=True)),
        steps=20,
        batch=BATCH,
        device=device,
    )
    run = Run(training, prepare(training, Path()), torch.device(device), enkg.comm.ALONE)
    begin = time.perf_counter()
    for batch in run.batches():
        run.learn(batch)
    whole = time.perf_counter() - begin
    table = Table("steps", "seconds", "of which loading", title="Data loading")
    table.add_row("20", f"{whole:.1f}", f"{1 - run.seconds / whole:.1%}")
    return table


def memory() -> Table:
    """Peak memory of denoising ensembles, each in a process of its own."""
    table = Table("members", "ensemble [MiB]", "peak [MiB]", "over 16 members [MiB]")
    table.title = f"Peak memory of one denoiser call, chunks of {CHUNK}"
    first: float | None = None
    for members in MEMBERS:
        done = subprocess.run(
            [sys.executable, __file__, "--peak", str(members)],
            capture_output=True,
            text=True,
            check=True,
        )
        peak = float(done.stdout)
        first = peak if first is None else first
        held = members * SIZE**2 * 4 / 2**20
        table.add_row(str(members), f"{held:.1f}", f"{peak:.0f}", f"{peak - first:.0f}")
    return table


def _peak(members: int) -> float:
    fields = torch.randn(64, SIZE, SIZE)
    network = next(iter(NETWORKS.values())).build((SIZE, SIZE), 2)
    model = Preconditioned(network, fitted("spectrum", fields), (SIZE, SIZE)).eval()

    def f(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x, sigma)

    prior = counted(enkg.Denoiser(f, (SIZE, SIZE), per_row=True), CHUNK, torch.device("cpu"), 1)
    prior.denoise(torch.randn(members, SIZE, SIZE), 1.0)
    return _own_peak()


def _own_peak() -> float:
    """MiB. ru_maxrss will not do on Linux, where a process inherits it from the one before."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return float(lines["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
