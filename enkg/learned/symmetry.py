"""Symmetries of the unknown: maps after which a sample is as likely as before.

A network that sees each sample after a random element of the group learns a symmetric prior, and
as much as from all these copies. A symmetry is a function of a batch and a generator; three are
here, and any function that keeps the shape will do (its `repr` is what the card says).

    (Shift(-1), Shift(-2))                      # a torus, every translation
    (Rotate(), Reflect((-1,)))                  # the eight symmetries of a square
    (Shift(0), Shift(1, step=16),               # vorticity under a stirring -4 cos(4 y), 64 points:
     Reflect((0,), -1.0, True, shift=(1, 8)),   #   w(x, y) -> -w(-x, y + pi / 4)
     Reflect((0, 1), periodic=True))            #   w(x, y) -> w(-x, -y)

Random numbers are drawn on the CPU, so they are the same whatever the device of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from enkg.errors import InputError


class Symmetry(Protocol):
    """A group of maps of members, from which one is drawn for each row."""

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Each row after a random element of the group, (B, *X) to (B, *X), dtype and device kept.

        generator: on the CPU.
        """
        ...


def symmetrised(x: Tensor, symmetries: Sequence[Symmetry], generator: Generator) -> Tensor:
    """A random element of each symmetry in turn, for each row: (B, *X) to (B, *X)."""
    if generator.device.type != "cpu":
        raise InputError(
            f"the generator of the symmetries is on {generator.device}; give one on the CPU, so "
            "that all devices see the same draws"
        )
    for symmetry in symmetries:
        moved = symmetry(x, generator)
        if moved.shape != x.shape:
            raise InputError(
                f"the symmetry {symmetry} made shape {tuple(moved.shape)} of {tuple(x.shape)}; a "
                "symmetry keeps the shape"
            )
        x = moved
    return x


@dataclass(frozen=True)
class Shift:
    """Periodic translation along one axis, by a random multiple of `step` points.

    axis: of a member; negative ones count from the end. step: divides the points along the axis. It
    is 1 where the system is the same everywhere, and the period of what stirs it otherwise. Cost:
    one copy.
    """

    axis: int
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InputError(f"{self}: the step is a number of points, at least 1")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        (dim,) = _dims(self, x, (self.axis,))
        points = x.shape[dim]
        if points % self.step:
            raise InputError(
                f"{self}: {self.step} does not divide the {points} points along axis {self.axis} "
                f"of a member of shape {tuple(x.shape[1:])}; give the period of the system in "
                "points, or other samples"
            )
        shifts = self.step * torch.randint(points // self.step, (len(x), 1), generator=generator)
        index = (torch.arange(points) - shifts) % points
        shape = [points if d == dim else 1 for d in range(1, x.dim())]
        return x.take_along_dim(index.reshape(-1, *shape).to(x.device), dim)


@dataclass(frozen=True)
class Reflect:
    """With probability 1/2, reverses the order along some axes, all together, times `sign`.

    axes: of a member; negative ones count from the end. sign: -1 for a field that a mirror turns
    round, such as vorticity; of several fields (channels on axis 0 of a member), one sign for each,
    such as (1, -1, 1) for height and two velocities. periodic: on a torus, about point 0 (point i
    goes to -i); else about the middle of the box. shift: (axis, points) of the translation that
    goes with a glide reflection, which is periodic along that axis; twice a glide is a translation
    by twice the points, so `Shift` with that step belongs to it. Cost: two copies.
    """

    axes: Sequence[int]
    sign: float | tuple[float, ...] = 1.0
    periodic: bool = False
    shift: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        signs = self.sign if isinstance(self.sign, tuple) else (self.sign,)
        if any(abs(sign) != 1 for sign in signs):
            raise InputError(f"{self}: a sign is 1 or -1")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        chosen = torch.randint(2, (len(x),), generator=generator).bool().to(x.device)
        return torch.where(chosen.reshape(-1, *[1] * (x.dim() - 1)), self.reflected(x), x)

    def reflected(self, x: Tensor) -> Tensor:
        """All rows reflected, (B, *X) to (B, *X)."""
        dims = _dims(self, x, self.axes)
        out = x.flip(dims)
        if self.periodic:
            out = out.roll([1] * len(dims), dims)
        if self.shift is not None:
            axis, points = self.shift
            out = out.roll(points, _dims(self, x, (axis,)))
        return out * self._signs(x)

    def _signs(self, x: Tensor) -> Tensor:
        signs = torch.as_tensor(self.sign, dtype=x.dtype, device=x.device)
        if signs.dim() == 0:
            return signs
        if x.dim() < 2 or x.shape[1] != len(signs):
            raise InputError(
                f"{self}: {len(signs)} signs for a member of shape {tuple(x.shape[1:])}; give one "
                "for each field along its first axis, or a single number"
            )
        return signs.reshape(-1, *[1] * (x.dim() - 2))


@dataclass(frozen=True)
class Rotate:
    """Rotation by a random multiple of 90 degrees about the middle, in the last two axes.

    For scalar fields on a square; the components of a vector would have to turn as well. Cost: one
    copy.
    """

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        if x.dim() < 3 or x.shape[-1] != x.shape[-2]:
            raise InputError(
                f"{self} needs members whose last two axes are equally long; these have shape "
                f"{tuple(x.shape[1:])}"
            )
        turns = torch.randint(4, (len(x),), generator=generator)
        points = torch.arange(x.shape[-1] ** 2).reshape(x.shape[-2:])
        turned = torch.stack([points.rot90(k).flatten() for k in range(4)])
        flat = x.reshape(len(x), -1, points.numel())
        return flat.take_along_dim(turned[turns].unsqueeze(1).to(x.device), 2).reshape(x.shape)


def _dims(symmetry: Symmetry, x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """Axes of a member as dimensions of the batch."""
    count = x.dim() - 1
    dims = tuple(axis % count + 1 if -count <= axis < count else 0 for axis in axes)
    if 0 in dims or len(set(dims)) < len(dims) or not dims:
        raise InputError(
            f"{symmetry}: axes {tuple(axes)} of a member of shape {tuple(x.shape[1:])}; give "
            f"different ones between {-count} and {count - 1}"
        )
    return dims
