"""The map between the prior's numbers and the simulator's, in one place.

A prior works best on numbers of order one; a simulator wants kelvin or vorticity. `Affine` serves
fields of either sign, `Log` serves positive ones.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from enkg.arrays import tensor
from enkg.errors import InputError


class Units(Protocol):
    """Maps ensembles, shape (J, *X), element by element; the shape stays."""

    def to_simulator(self, x: Tensor) -> Tensor:
        """From the prior's numbers to the simulator's."""
        ...

    def to_prior(self, x: Tensor) -> Tensor:
        """From the simulator's numbers to the prior's; the inverse of `to_simulator`."""
        ...


@dataclass(frozen=True, eq=False)
class Affine:
    """physical = offset + scale * x. Both may be numbers or arrays of the shape of one member."""

    scale: float | Tensor = 1.0
    offset: float | Tensor = 0.0

    def __post_init__(self) -> None:
        _as_numbers(self)

    def to_simulator(self, x: Tensor) -> Tensor:
        return _like(self.offset, x) + _like(self.scale, x) * x

    def to_prior(self, x: Tensor) -> Tensor:
        return (x - _like(self.offset, x)) / _like(self.scale, x)


@dataclass(frozen=True, eq=False)
class Log:
    """physical = exp(clip(offset + scale * x)), always positive.

    `lowest` and `highest` bound the logarithm, so that a wild member stays finite; between the
    bounds `to_prior` is the exact inverse.
    """

    scale: float | Tensor = 1.0
    offset: float | Tensor = 0.0
    lowest: float = -50.0
    highest: float = 50.0

    def __post_init__(self) -> None:
        _as_numbers(self)
        if not self.lowest < self.highest:
            raise InputError(f"Log units clip to [{self.lowest}, {self.highest}], an empty range")

    def to_simulator(self, x: Tensor) -> Tensor:
        log = _like(self.offset, x) + _like(self.scale, x) * x
        return log.clamp(self.lowest, self.highest).exp()

    def to_prior(self, x: Tensor) -> Tensor:
        if bool((x <= 0).any()):
            raise InputError(
                f"Log units take positive numbers; the smallest given is {float(x.min()):.3g}. "
                "Use Affine units for fields of either sign"
            )
        return (x.log() - _like(self.offset, x)) / _like(self.scale, x)


def _like(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x) if isinstance(value, Tensor) else value


def _as_numbers(units: "Affine | Log") -> None:
    """Lets scale and offset be given as NumPy arrays, and checks them."""
    for name in ("scale", "offset"):
        value = getattr(units, name)
        if not isinstance(value, int | float | Tensor):
            object.__setattr__(units, name, tensor(value))
    values, offset = torch.as_tensor(units.scale), torch.as_tensor(units.offset)
    if not bool(offset.isfinite().all()):
        raise InputError("the offset of the units must be finite")
    if not bool(values.isfinite().all()) or bool((values == 0).any()):
        raise InputError("the scale of the units must be finite and nowhere zero")
