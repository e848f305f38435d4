"""What all imaging operators share: shapes, transposes, and a decomposition into singular values.

An operator takes images (B, H, W) to data (B, *Y). It is frozen: masks, kernels and matrices follow
from its fields alone. A row of an answer depends on its own row alone, bit for bit, and so does a
row of an adjoint, a pseudo-inverse or a gradient.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
from numpy import ndarray

Shape = tuple[int, ...]
SUMMED = 16
"""Matrices of up to this size are applied term by term."""


@dataclass(frozen=True, eq=False)
class Operator:
    """Images (B, H, W) to data (B, *Y). shape: (H, W)."""

    shape: tuple[int, int]

    @cached_property
    def data_shape(self) -> Shape:
        """Y; by default that of the images."""
        return self.shape

    def __call__(self, x: ndarray) -> ndarray:
        return self._answer(batch("x", x, self.shape))

    def _answer(self, x: ndarray) -> ndarray:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """y = A x."""

    def adjoint(self, v: ndarray) -> ndarray:
        """A^T v, (B, *Y) to (B, H, W)."""
        return self._transpose(batch("v", v, self.data_shape))

    def _transpose(self, v: ndarray) -> ndarray:
        raise NotImplementedError


class SVD(Protocol):
    """A = U diag(s) V^T without the zeros: K positive singular values s, in any order."""

    @property
    def s(self) -> ndarray: ...
    def ut(self, y: ndarray) -> ndarray:
        """U^T y, (B, *Y) to (B, K)."""
        ...

    def u(self, z: ndarray) -> ndarray:
        """U z, (B, K) to (B, *Y)."""
        ...

    def vt(self, x: ndarray) -> ndarray:
        """V^T x, (B, H, W) to (B, K)."""
        ...

    def v(self, z: ndarray) -> ndarray:
        """V z, (B, K) to (B, H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class Decomposed(Linear):
    """A linear operator with its compact singular value decomposition, `svd`.

    cut: singular values below this share of the largest count as zero in `pinv`; `svd` keeps them.
    With cut = 0, A A^+ A = A to rounding, and A^+ of a blur makes of noise what it will.
    """

    cut: float = 0.0

    @cached_property
    def svd(self) -> SVD:
        raise NotImplementedError

    def pinv(self, y: ndarray) -> ndarray:
        """A^+ y, (B, *Y) to (B, H, W)."""
        svd = self.svd
        z = svd.ut(batch("y", y, self.data_shape))
        large = svd.s >= self.cut * svd.s.max()
        inverse = np.where(large, 1 / svd.s, 0).astype(z.dtype)
        return svd.v(z * inverse)


@dataclass(frozen=True, eq=False)
class Scaled:
    """The decomposition of an operator with A A^T = s^2 I: U = I and V = A^T / s."""

    operator: Linear
    value: float

    @cached_property
    def s(self) -> ndarray:
        return np.full(prod(self.operator.data_shape), self.value)

    def ut(self, y: ndarray) -> ndarray:
        return batch("y", y, self.operator.data_shape).reshape(len(y), -1)

    def u(self, z: ndarray) -> ndarray:
        return z.reshape(len(z), *self.operator.data_shape)

    def vt(self, x: ndarray) -> ndarray:
        return self.operator(x).reshape(len(x), -1) / self.value

    def v(self, z: ndarray) -> ndarray:
        return self.operator.adjoint(self.u(z)) / self.value


def batch(name: str, x: ndarray, shape: Shape) -> ndarray:
    """The array in C order and floating point; ValueError if it is not (B, *shape)."""
    x = np.asarray(x)
    if x.ndim != 1 + len(shape) or x.shape[1:] != tuple(shape):
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"{name} has shape {x.shape}; expected ({expected})")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    return np.ascontiguousarray(x)


def check_shape(shape: tuple[int, int], factor: int = 1) -> None:
    """ValueError where the shape is not two whole numbers that the factor divides."""
    if len(shape) != 2 or any(n < 1 or n % factor for n in shape):
        each = f"two multiples of {factor}" if factor > 1 else "two positive whole numbers"
        raise ValueError(f"the image has shape {tuple(shape)}; expected {each}")


def summed(parts: list[ndarray]) -> ndarray:
    """The sum, from the first to the last."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def along(taps: ndarray, x: ndarray) -> ndarray:
    """sum_k taps[., k] x[:, k, :], (m, n) and (B, n, W) to (B, m, W).

    Small sums run term by term, so that no last bit depends on a library for matrix products;
    large ones are one product for each row of the batch.
    """
    taps = taps.astype(x.dtype)
    if max(taps.shape) > SUMMED:
        return np.matmul(taps, np.ascontiguousarray(x))
    return summed([taps[:, k, None] * x[:, None, k, :] for k in range(x.shape[1])])


def along_both(rows: ndarray, columns: ndarray, x: ndarray) -> ndarray:
    """`along` axis 1 with `rows`, then along axis 2 with `columns`; in C order."""
    y = along(columns, along(rows, x).swapaxes(1, 2)).swapaxes(1, 2)
    return np.ascontiguousarray(y)
