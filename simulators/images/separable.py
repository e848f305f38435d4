"""Operators that act along rows and columns by themselves: A x = R x C^T.

    Separable      any two matrices R (m, H) and C (n, W)
    bicubic        a cubic filter as wide as the factor asks, then every factor-th point
    gaussian_blur  a Gaussian along both axes
    BlockMean      means of blocks

With R = Ur diag(r) Vr^T and C = Uc diag(c) Vc^T the singular values of A are all products r_i c_j,
and the vectors are those of the axes side by side: two decompositions of the size of a side.

The cubic filter is that of Keys 1981, "Cubic convolution interpolation for digital image
processing", with a = -1/2, stretched by the factor so that it also keeps out what the coarse grid
cannot hold; where the edge cuts it, its weights are divided by their sum. So do Pillow and torch.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy import ndarray

from simulators.images.base import (
    Decomposed,
    Scaled,
    Shape,
    along_both,
    batch,
    check_shape,
    summed,
)

Edges = Literal["reflect", "renormalised", "zero"]


@dataclass(frozen=True, eq=False)
class Separable(Decomposed):
    """A x = R x C^T. rows: R, (m, H); columns: C, (n, W). Data (m, n)."""

    rows: ndarray = field(kw_only=True)
    columns: ndarray = field(kw_only=True)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        given = (self.rows.shape[-1], self.columns.shape[-1])
        if self.rows.ndim != 2 or self.columns.ndim != 2 or given != tuple(self.shape):
            raise ValueError(
                f"matrices of shape {self.rows.shape} and {self.columns.shape} along the axes of "
                f"an image of {self.shape}; their second sizes must be those of the image"
            )

    @cached_property
    def data_shape(self) -> Shape:
        return (len(self.rows), len(self.columns))

    def _answer(self, x: ndarray) -> ndarray:
        return along_both(self.rows, self.columns, x)

    def _transpose(self, v: ndarray) -> ndarray:
        return along_both(self.rows.T, self.columns.T, v)

    @cached_property
    def svd(self) -> "AxesSVD":
        ur, r, vr = np.linalg.svd(self.rows, full_matrices=False)
        uc, c, vc = np.linalg.svd(self.columns, full_matrices=False)
        s = np.outer(r, c).ravel()
        rounding = np.finfo(float).eps * max(*self.shape, *self.data_shape)
        kept = np.flatnonzero(s > rounding * s.max())
        return AxesSVD(s[kept], kept, ur, uc, vr.T, vc.T)


@dataclass(frozen=True, eq=False)
class AxesSVD:
    """Singular vectors of both axes, in columns; `kept`: the products that are not zero."""

    s: ndarray
    kept: ndarray
    ur: ndarray
    uc: ndarray
    vr: ndarray
    vc: ndarray

    def ut(self, y: ndarray) -> ndarray:
        return self._to(self.ur, self.uc, batch("y", y, (len(self.ur), len(self.uc))))

    def u(self, z: ndarray) -> ndarray:
        return self._from(self.ur, self.uc, batch("z", z, self.s.shape))

    def vt(self, x: ndarray) -> ndarray:
        return self._to(self.vr, self.vc, batch("x", x, (len(self.vr), len(self.vc))))

    def v(self, z: ndarray) -> ndarray:
        return self._from(self.vr, self.vc, batch("z", z, self.s.shape))

    def _to(self, rows: ndarray, columns: ndarray, x: ndarray) -> ndarray:
        return along_both(rows.T, columns.T, x).reshape(len(x), -1)[:, self.kept]

    def _from(self, rows: ndarray, columns: ndarray, z: ndarray) -> ndarray:
        size = (rows.shape[1], columns.shape[1])
        full = np.zeros((len(z), size[0] * size[1]), dtype=z.dtype)
        full[:, self.kept] = z
        return along_both(rows, columns, full.reshape(-1, *size))


@dataclass(frozen=True, eq=False)
class BlockMean(Decomposed):
    """Means of blocks of side x side points: A A^T = I / side^2."""

    side: int = field(kw_only=True)

    def __post_init__(self) -> None:
        check_shape(self.shape, self.side)

    @cached_property
    def data_shape(self) -> Shape:
        return (self.shape[0] // self.side, self.shape[1] // self.side)

    def _answer(self, x: ndarray) -> ndarray:
        n = self.side
        return summed([x[:, i::n, j::n] for i in range(n) for j in range(n)]) / n**2

    def _transpose(self, v: ndarray) -> ndarray:
        return (v / self.side**2).repeat(self.side, axis=1).repeat(self.side, axis=2)

    @cached_property
    def svd(self) -> Scaled:
        return Scaled(self, 1 / self.side)


def bicubic(shape: tuple[int, int], factor: int = 4, cut: float = 0.0) -> Separable:
    """The image on a grid coarser by a whole factor, by the antialiased cubic filter."""
    check_shape(shape, factor)
    rows, columns = (cubic_taps(n, factor) for n in shape)
    return Separable(shape, cut, rows=rows, columns=columns)


def cubic_taps(size: int, factor: int) -> ndarray:
    """(size / factor, size); each row sums to one."""
    centre = (np.arange(size // factor) + 0.5) * factor - 0.5
    t = np.abs(np.arange(size) - centre[:, None]) / factor
    near, far = (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    taps = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return taps / taps.sum(axis=1, keepdims=True)


def gaussian_blur(
    shape: tuple[int, int],
    std: float = 3.0,
    edges: Edges = "reflect",
    radius: int | None = None,
    cut: float = 0.0,
) -> Separable:
    """A Gaussian of that standard deviation, in points, along both axes.

    edges: the image goes on beyond its edge as its mirror image (`reflect`, the last point once),
    as zeros (`zero`), or not at all, and the weights are divided by their sum (`renormalised`).
    radius: points on either side, by default 10 standard deviations, at least 1 and at most 30.
    A blur that is circular: `circular_gaussian`.
    """
    check_shape(shape)
    rows, columns = (gaussian_taps(n, std, edges, radius) for n in shape)
    return Separable(shape, cut, rows=rows, columns=columns)


def gaussian_taps(size: int, std: float, edges: Edges, radius: int | None = None) -> ndarray:
    """(size, size); each row sums to one, but for `zero`."""
    reach = gaussian_radius(std) if radius is None else radius
    if edges == "renormalised":
        step = np.arange(size)[:, None] - np.arange(size)
        taps = np.where(np.abs(step) <= reach, np.exp(-0.5 * (step / std) ** 2), 0.0)
        return taps / taps.sum(axis=1, keepdims=True)
    step = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (step / std) ** 2)
    kernel /= kernel.sum()
    padded = padding(size, reach, edges)
    taps = np.zeros((size, size))
    for i in range(size):
        source = padded[i : i + 2 * reach + 1]
        np.add.at(taps[i], source[source >= 0], kernel[source >= 0])
    return taps


def gaussian_radius(std: float) -> int:
    """10 standard deviations, at least 1 and at most 30 points; ValueError for a width of zero."""
    if not std > 0:
        raise ValueError(f"the blur has a standard deviation of {std}; expected a positive one")
    return min(max(round(10 * std), 1), 30)


def padding(size: int, reach: int, edges: Edges) -> ndarray:
    """Where each point of an axis, padded by `reach` at both ends, comes from; -1 is a zero."""
    if edges == "reflect":
        return np.pad(np.arange(size), reach, mode="reflect")
    if edges == "zero":
        return np.pad(np.arange(size), reach, constant_values=-1)
    raise ValueError(f"edges are {edges!r}; expected reflect or zero")
