"""A prior in other numbers: x = a u + b for u of a prior, noise levels and all.

D(x, sigma) = a D_u((x - b) / a, sigma / a) + b,    J_D(x, sigma) = J_Du((x - b) / a, sigma / a)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

from enkg.arrays import tensor
from enkg.errors import InputError
from enkg.latent import Decoding
from enkg.prior import Drawable, Flowing, Prior, White, vjp


@dataclass(frozen=True, eq=False)
class Rescaled:
    """The prior of x = scale u + offset for u of `prior`. Made by `rescaled`."""

    prior: Any
    scale: float
    offset: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.prior.shape

    def inside(self, x: Tensor) -> Tensor:
        """u of x, (J, *X)."""
        return (x - self.offset.to(x)) / self.scale

    def outside(self, u: Tensor) -> Tensor:
        """x of u, (J, *X)."""
        return self.scale * u + self.offset.to(u)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.outside(self.prior.denoise(self.inside(x), sigma / self.scale))

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        return vjp(self.prior, self.inside(x), sigma / self.scale, v)

    def __reduce__(self) -> tuple[Any, ...]:
        return rescaled, (self.prior, self.scale, self.offset)


class _Draws(Rescaled):
    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        return self.outside(self.prior.draw(seed, members, step))


class _Flows(Rescaled):
    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        inside = self.prior.flow(self.inside(x), sigma / self.scale, to / self.scale)
        return self.outside(inside)


class _IsWhite(Rescaled):
    @property
    def scales(self) -> Tensor:
        return self.scale * self.prior.scales

    def from_white(self, z: Tensor) -> Tensor:
        return self.outside(self.prior.from_white(z))


def rescaled(prior: Prior, scale: float, offset: Any = 0.0) -> Rescaled:
    """The prior of x = scale u + offset for u of `prior`, with all its abilities.

    scale: a positive number; noise levels grow with it. offset: a number, or an array that
    broadcasts to a member. For a network on [-1, 1] and a method whose settings are meant for
    [0, 1], take scale 1/2 and offset 1/2. The way to the simulator's units is `Experiment.units`
    and needs none of this. Raises InputError for a latent prior: rescale the one inside.
    """
    if not isinstance(prior, Prior):
        raise InputError(
            f"the prior is a {type(prior).__name__}; expected an object with `shape` and "
            "`denoise(x, sigma)`"
        )
    if isinstance(prior, Decoding):
        raise InputError(
            "a latent prior cannot be rescaled as a whole; rescale the prior inside: "
            "enkg.latent(rescaled(prior, scale), decode, shape)"
        )
    if not 0 < scale < inf:
        raise InputError(f"scale is {scale}; expected a positive number")
    offset = tensor(offset)
    shape = tuple(prior.shape)
    fits = len(offset.shape) <= len(shape) and all(
        size in (1, full) for size, full in zip(offset.shape[::-1], shape[::-1], strict=False)
    )
    if not fits or not bool(offset.isfinite().all()):
        raise InputError(
            f"an offset of shape {tuple(offset.shape)}; expected finite numbers that broadcast to "
            f"a member, {shape}"
        )
    kinds = {Drawable: _Draws, Flowing: _Flows, White: _IsWhite}
    able = [kind for ability, kind in kinds.items() if isinstance(prior, ability)]
    kind = type("Rescaled", (*able, Rescaled), {"__module__": __name__})
    return kind(prior, float(scale), offset)
