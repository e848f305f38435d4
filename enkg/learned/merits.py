r"""How good is a learned prior? Figures of merit against samples that the training never saw.

All samples are tensors (N, *X) in the prior's numbers, whatever their dtype and device.

denoising     The rms error a point of D(x_0 + sigma n, sigma), against that of the best linear
              denoiser and, where the law of the samples is known, of the exact one D*. As D* is
              the conditional mean, E|D - x_0|^2 = E|D* - x_0|^2 + E|D - D*|^2: what a network adds
              to the least possible error is its distance from D*.
distance      Are held-out data typical of the prior's samples? As of the members of a run
              (`enkg.distance`).
spectrum, values, energy, memory
              Samples of the prior against held-out data (`enkg.learned.compare`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.distance import distance
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.learned.compare import (
    Copies,
    Energy,
    Memory,
    Spectrum,
    Values,
    energy,
    memory,
    spectra,
    subset,
    values,
)
from enkg.prior import Prior
from enkg.random import Stream
from enkg.sample import Flow, ancestral, start
from enkg.schedule import karras

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
ASKED = 256
"""Held-out samples that the denoisers are asked about."""
SIGMA_MIN = 0.002


@dataclass(frozen=True)
class Denoising:
    """Rms errors a point at each of `sigmas`, in prior units.

    ratio: learned / linear, with its standard error over samples and noises. With an exact
    denoiser also `exact`, its error; `difference`, rms of learned - exact; and `excess`, by which
    share the learned error exceeds the exact one: sqrt(1 + difference^2 / exact^2) - 1.
    """

    sigmas: tuple[float, ...]
    learned: tuple[float, ...]
    linear: tuple[float, ...]
    ratio: tuple[float, ...]
    ratio_error: tuple[float, ...]
    exact: tuple[float, ...] | None = None
    difference: tuple[float, ...] | None = None
    excess: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Merits:
    """All figures of merit. spectrum: None but for members (H, W). distance: of held-out data from
    the prior, with its bounds; None for a prior without spread. lost: samples that held NaN or
    infinity, and are left out."""

    denoising: Denoising
    spectrum: Spectrum | None
    values: Values
    energy: Energy
    memory: Memory
    distance: float | None
    distance_bounds: tuple[float, float] | None
    samples: int
    lost: int
    held_out: int
    training: int

    def as_dict(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries alone, for TOML or JSON; what is None is left out."""
        return _plain(asdict(self))


def measure(
    prior: Prior,
    held_out: Tensor,
    training: Tensor,
    samples: Tensor,
    linear: Prior,
    exact: Prior | None = None,
    seed: int = 0,
    sigmas: Sequence[float] = SIGMAS,
    copies: Copies | None = None,
) -> Merits:
    """All figures of merit of a prior.

    samples: drawn beforehand (`draw`). linear: the Gaussian fitted to the training data. exact: the
    law of the data itself, where it is known. copies: see `nearest`. Cost: `ASKED` denoiser calls
    for each of `sigmas`, 384 for the distance, and `PAIRS` by len(training) distances twice.
    """
    good = alive(samples)
    lost, samples = int((~good).sum()), samples[good].to(held_out)
    given = {"held-out": held_out, "training": training, "finite drawn": samples}
    for name, x in given.items():
        if len(x) < 2 or tuple(x.shape[1:]) != tuple(prior.shape):
            raise InputError(
                f"{name} samples of shape {tuple(x.shape)}; expected (N, *X) with X = "
                f"{tuple(prior.shape)} and at least 2 of them"
            )
    if not float(held_out.double().std()) > 0:
        raise InputError("all values of the held-out samples are equal, or one is not finite")
    real = subset(training, len(samples), seed, 0).to(held_out)
    asked = subset(held_out, ASKED, seed, 1)
    with torch.no_grad():
        found = distance(prior, asked, samples, seed)
    return Merits(
        denoising(prior, asked, sigmas, linear, exact, seed),
        spectra(samples, held_out, real),
        values(samples, held_out, real, seed),
        energy(samples, held_out, training, seed),
        memory(samples, held_out, training, copies, seed),
        found.value if found else None,
        found.bounds if found else None,
        len(samples),
        lost,
        len(held_out),
        len(training),
    )


@torch.no_grad()
def draw(
    prior: Prior,
    count: int,
    seed: int,
    sigma_max: float = 80.0,
    levels: int = 20,
    eta: float = 0.0,
    chunk: int = 64,
    like: Tensor | None = None,
) -> Tensor:
    """Samples of the prior, (count, *X), keyed by (seed, sample), with the dtype and device of
    `like` (float32 on the CPU).

    eta = 0: the flow by Heun's method, two denoiser calls a sample and level; closed forms where
    the prior has them (`enkg.sample.start`). eta > 0: the reverse SDE, one call. Levels are those
    of Karras et al. from sigma_max, which must be large against the prior's spread, to 0.002.
    """
    if count < 1 or chunk < 1 or levels < 1 or not sigma_max > SIGMA_MIN or not 0 <= eta <= 1:
        raise InputError(
            f"count={count}, chunk={chunk}, levels={levels}, sigma_max={sigma_max}, eta={eta}; "
            f"expected whole numbers from 1, sigma_max above {SIGMA_MIN}, and 0 <= eta <= 1"
        )
    like = torch.empty(0) if like is None else like
    flow = Flow(levels=levels, fewest=levels, sigma_min=SIGMA_MIN)
    sigmas = [*karras(levels + 1, sigma_max, SIGMA_MIN).tolist(), 0.0]
    parts = []
    for first in range(0, count, chunk):
        members = range(first, min(first + chunk, count))
        if eta == 0:
            parts.append(start(prior, 0.0, seed, members, like, sigma_max, flow))
        else:
            x = start(prior, sigma_max, seed, members, like, sigma_max, flow)
            parts.append(ancestral(prior, x, sigmas, seed, members, eta))
    return torch.cat(parts)


@torch.no_grad()
def denoising(
    prior: Prior,
    held_out: Tensor,
    sigmas: Sequence[float],
    linear: Prior,
    exact: Prior | None = None,
    seed: int = 0,
    chunk: int = 64,
) -> Denoising:
    """Errors of the denoisers on the same held-out samples (N, *X), with the same noise for all.

    Noise is keyed by (seed, sample, level). Cost: N calls of each denoiser a level.
    """
    table: dict[str, list[float]] = {}

    def add(name: str, value: Tensor | float) -> None:
        table.setdefault(name, []).append(float(value))

    for level, sigma in enumerate(sigmas):
        squares: dict[str, list[Tensor]] = {}
        for first in range(0, len(held_out), chunk):
            x = held_out[first : first + chunk]
            members = range(first, first + len(x))
            noisy = x + sigma * random.normal(
                x.shape[1:], seed, Stream.REFERENCE, members, level
            ).to(x)
            learned = prior.denoise(noisy, sigma)
            errors = {"learned": learned - x, "linear": linear.denoise(noisy, sigma) - x}
            if exact is not None:
                best = exact.denoise(noisy, sigma)
                errors |= {"exact": best - x, "difference": learned - best}
            for name, e in errors.items():
                squares.setdefault(name, []).append(rows(e.double()).square().mean(dim=1))
        each = {name: torch.cat(parts) for name, parts in squares.items()}
        rms = {name: s.mean().sqrt() for name, s in each.items()}
        for name, value in rms.items():
            add(name, value)
        ratio = rms["learned"] / rms["linear"]
        scatter = each["learned"] / rms["learned"] ** 2 - each["linear"] / rms["linear"] ** 2
        add("ratio", ratio)
        add("ratio_error", 0.5 * ratio * scatter.std() / len(held_out) ** 0.5)
        if exact is not None:
            add("excess", (1 + (rms["difference"] / rms["exact"]) ** 2).sqrt() - 1)
    levels = tuple(float(s) for s in sigmas)
    return Denoising(levels, **{name: tuple(column) for name, column in table.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items() if v is not None}
    return list(value) if isinstance(value, tuple) else value
