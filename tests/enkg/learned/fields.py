"""Fields on a small torus whose law is known, and trainings that are over in a moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import enkg
from enkg.learned import Training, UNet
from enkg.learned.loop import Unseen

SIZE = 8
SMALL = UNet((4, 8), groups=4)


def stationary(size: int = SIZE, exponent: float = 2.0) -> enkg.Gaussian:
    """A Gaussian field of unit variance at every point, with power (1 + |k|^2)^-exponent."""
    k = torch.fft.fftfreq(size, dtype=torch.float64) * size
    power = (1 + k[:, None] ** 2 + k**2) ** -exponent
    shape = (size, size)
    return enkg.Gaussian(
        torch.zeros(shape), (power / power.mean()).reshape(-1), enkg.RealFourier(shape)
    )


def drawn(count: int, size: int = SIZE) -> Tensor:
    """Samples of `stationary`, float32."""
    return stationary(size).draw(0, range(count), 0).float()


@dataclass(frozen=True)
class Pointwise:
    """A network of one's own for members of any shape: a layer for each point."""

    width: int = 4

    def build(self, shape: Sequence[int], inputs: int) -> nn.Module:
        channels = 1 if len(shape) == 2 else shape[0]
        return _Layers(inputs * channels, self.width, channels)


class _Layers(nn.Module):
    def __init__(self, inputs: int, width: int, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(inputs + 1, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        times = (time / 250).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        return self.last(torch.tanh(self.first(torch.cat([x, times], dim=1))))


def training(**changes: Any) -> Training:
    """Six steps on forty samples, without figures of merit."""
    settings: dict[str, Any] = {
        "samples": drawn(40),
        "network": Pointwise(),
        "steps": 6,
        "batch": 8,
        "looks": 1,
        "drawn": 4,
        "warmup": 2,
        "device": "cpu",
        "held_out": 0,
    }
    return Training(**(settings | changes))


class Cut(Exception):
    """Raised by `Cutting`."""


class Cutting(Unseen):
    """Stops a training after a step."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error or Cut()
        self.first, self.ends = -1, 0

    def started(self, training: Any, prepared: Any, step: int) -> None:
        self.first = step

    def stepped(self, step: int, loss: float, rate: float, speed: float) -> None:
        if step == self.step:
            raise self.error

    def ended(self) -> None:
        self.ends += 1
