"""Denoising and inpainting: y = x, or the points of x that were kept.

The rows of A are those of the identity, so A A^T = I, A^+ = A^T and all singular values are 1.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy import ndarray

from simulators.images.base import Decomposed, Scaled, Shape, check_shape


@dataclass(frozen=True, eq=False)
class Identity(Decomposed):
    """y = x: denoising."""

    def __post_init__(self) -> None:
        check_shape(self.shape)

    def _answer(self, x: ndarray) -> ndarray:
        return x.copy()

    def _transpose(self, v: ndarray) -> ndarray:
        return v.copy()

    @cached_property
    def svd(self) -> Scaled:
        return Scaled(self, 1.0)


@dataclass(frozen=True, eq=False)
class Inpainting(Decomposed):
    """The values at some places of the flattened image, in ascending order: (B, H, W) to (B, K)."""

    places: ndarray = field(kw_only=True)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        places, size = np.unique(self.places), self.shape[0] * self.shape[1]
        if not len(places) or len(places) < np.size(self.places):
            raise ValueError("the places of an inpainting must be different, and at least one")
        if not np.issubdtype(places.dtype, np.integer) or places[0] < 0 or places[-1] >= size:
            raise ValueError(
                f"the places of an inpainting of {self.shape} points must be whole numbers from 0 "
                f"to {size - 1}"
            )
        object.__setattr__(self, "places", places)

    @cached_property
    def data_shape(self) -> Shape:
        return (len(self.places),)

    def _answer(self, x: ndarray) -> ndarray:
        return x.reshape(len(x), -1)[:, self.places]

    def _transpose(self, v: ndarray) -> ndarray:
        x = np.zeros((len(v), self.shape[0] * self.shape[1]), dtype=v.dtype)
        x[:, self.places] = v
        return x.reshape(-1, *self.shape)

    @cached_property
    def svd(self) -> Scaled:
        return Scaled(self, 1.0)


def box_inpainting(
    shape: tuple[int, int], size: tuple[int, int] | None = None, at: tuple[int, int] | None = None
) -> Inpainting:
    """All points outside a box; by default of half the image's sides, in the middle.

    size: rows and columns of the box; at: its first row and column.
    """
    check_shape(shape)
    size = size or (shape[0] // 2, shape[1] // 2)
    at = at or ((shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2)
    if any(a < 0 or s < 1 or a + s > n for a, s, n in zip(at, size, shape, strict=True)):
        raise ValueError(f"a box of {size} points at {at} does not fit an image of {shape}")
    outside = np.ones(shape, dtype=bool)
    outside[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = False
    return Inpainting(shape, places=np.flatnonzero(outside))


def random_inpainting(
    shape: tuple[int, int], missing: float = 0.7, seed: int = 0, kept: int | None = None
) -> Inpainting:
    """Points chosen once; `kept` of them, by default the share 1 - missing, rounded."""
    check_shape(shape)
    size = shape[0] * shape[1]
    kept = round((1 - missing) * size) if kept is None else kept
    if not 1 <= kept <= size:
        raise ValueError(f"{kept} points kept of {size}; expected at least one and at most all")
    order = np.random.default_rng(seed).permutation(size)
    return Inpainting(shape, places=np.sort(order[:kept]))
