"""A training: everything that decides which prior comes out of it."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from enkg.errors import InputError
from enkg.field import Field
from enkg.learned.base import Kind
from enkg.learned.generated import Generated
from enkg.learned.network import Architecture, UNet
from enkg.learned.sources import Samples, samples
from enkg.learned.symmetry import Symmetry
from enkg.learned.trained import Precision
from enkg.prior import Prior
from enkg.units import Affine, Log


@dataclass(frozen=True)
class LogNormal:
    """Noise levels to learn at: ln sigma ~ N(mean, std^2), in the prior's numbers.

    Should cover where the denoiser is not nearly linear; far outside it the base is exact. Karras
    et al. have -1.2 and 1.2 for images of standard deviation 0.5.
    """

    mean: float = -0.5
    std: float = 1.4

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise InputError(f"the noise levels have std={self.std}; expected a positive number")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels, shape (count,), on the device of the generator."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (self.mean + self.std * normal).exp()

    def quantiles(self, count: int) -> Tensor:
        """The middles of `count` parts of equal probability, shape (count,)."""
        u = (torch.arange(count) + 0.5) / count
        return (self.mean + self.std * torch.special.ndtri(u)).exp()


@dataclass(frozen=True, eq=False)
class Training:
    """Turns samples of the unknown into a prior; `train` or `enkg train` runs it.

    The loss is that of Karras et al. 2022 around a Gaussian base (see `enkg.learned.denoiser`),
    minimised by Adam; what is kept is a running average of the weights.
    """

    samples: Samples | Generated | Any
    """What to learn from, in physical units: an array (N, *X), the path of a .npy, NetCDF or Zarr
    file or of a folder of .npy files, enkg.samples(...), or enkg.Generated(draw, count)."""
    unknown: Field = field(default_factory=lambda: Field("x"))
    """Name, axes and unit of a member."""
    units: Affine | Log | None = None
    """From numbers of order one to physical ones; None takes mean and standard deviation over
    all points of up to 8,192 samples. Log is for positive fields."""
    network: UNet | Architecture = field(default_factory=UNet)
    """The network that learns what the base misses."""
    base: Kind = "components"
    """The Gaussian that it learns around: principal components, the spectrum of fields on a torus,
    or white (the published form)."""
    components: int = 256
    """Of the base, at most."""
    symmetries: tuple[Symmetry, ...] = ()
    """Maps after which a sample is as likely as before: each is seen after random ones."""
    held_out: float | int = 0.1
    """Share or number of the samples that are not learnt from but measured with."""
    steps: int = 20_000
    """Steps of the optimiser; each sees `batch` samples."""
    batch: int = 64
    """Samples a step, over all GPUs."""
    rate: float = 1e-3
    """Learning rate. It rises over `warmup` steps and falls over the last part of the training."""
    warmup: int = 200
    """Steps over which the rate rises."""
    cooling: float = 0.3
    """Share of the steps over which the rate falls to zero."""
    average: float = 0.05
    """Width of the running average of the weights, as a share of the steps so far."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    noise: LogNormal = field(default_factory=LogNormal)
    """Noise levels to learn at."""
    precision: Precision = "float32"
    """In which the network computes while it learns; the weights are float32."""
    half: bool = False
    """Store the weights and the components of the base in float16: a file half as large."""
    sigma_max: float = 80.0
    """Where sampling begins; large against the widest direction of the samples."""
    seed: int = 0
    """Same seed, same batches and noise."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU where there is one."""
    workers: int = 0
    """Processes that read samples from files ahead; none are needed for what fits into memory."""
    looks: int = 10
    """How often samples are drawn and the held-out loss is measured on the way."""
    drawn: int = 256
    """Samples drawn for the figures of merit at the end."""
    data: Path | None = None
    """Where generated samples are kept; the folder `data` of the result if not given."""
    exact: Prior | None = None
    """The law of the samples, where it is known, to compare with: a prior in the same units."""
    name: str = ""
    """Of the prior; the name of its folder if not given."""
    about: str = ""
    """What it is a prior of."""
    limits: tuple[str, ...] = ()
    """What it does not know or should not be used for."""
    recipe: str = ""
    """Where the samples come from."""
    licence: str = ""
    """Of weights and samples."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "looks": 1, "components": 1, "drawn": 2}
        for name, lowest in (least | {"warmup": 0, "seed": 0}).items():
            if getattr(self, name) < lowest:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {lowest}")
        for name in ("rate", "clip", "sigma_max"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a positive number")
        for name in ("cooling", "average"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 < {name} <= 1")
        if self.base not in get_args(Kind):
            raise InputError(f"base is {self.base!r}; expected one of {', '.join(get_args(Kind))}")
        if self.precision not in get_args(Precision):
            raise InputError(
                f"precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}"
            )
        if not hasattr(self.network, "build"):
            raise InputError(
                f"the network is a {type(self.network).__name__}; expected enkg.UNet(...), or an "
                "object with build(shape, inputs)"
            )
        if not isinstance(self.samples, Generated):
            object.__setattr__(self, "samples", samples(self.samples))

    def scale(self, step: int) -> float:
        """Learning rate of a step in units of `rate`: a trapezium."""
        left = (self.steps - step) / max(1.0, self.cooling * self.steps)
        return min(1.0, (step + 1) / max(1, self.warmup), left)

    def cost(self, shape: tuple[int, ...]) -> str:
        """What it learns from, in one sentence."""
        return (
            f"{self.steps:,} steps of {self.batch} samples of shape {shape} "
            f"({prod(shape):,} numbers)"
        )
