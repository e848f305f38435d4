"""Blurs by a kernel: y = k * x, circular with a decomposition, or with the image's own edges.

    Circular       the image repeats beyond its edges; exact decomposition by one FFT
    Convolution    the image goes on as its mirror image, or as zeros
    Dense          the decomposition of a small operator, by its matrix

A circular blur is A = F^H diag(h) F with h the transform of the kernel. Its singular values are
|h|, its right vectors the real Fourier basis cos + sin (Hartley 1942; Bracewell 1984), whose
coefficient is Re F - Im F, and U = P V with P = F^H diag(h / |h|) F, real and orthogonal. Waves of
a frequency and of its opposite have the same |h|, so any real basis of the two will do.

`motion_kernel` draws the path of a shaken camera: a walk of constant speed whose direction drifts
at random. The kernel is an array that the operator keeps; nothing is drawn later.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
from numpy import ndarray

from simulators.images.base import Decomposed, Linear, Shape, along, batch, check_shape
from simulators.images.separable import gaussian_radius, padding

LARGEST_DENSE = 1024
STEPS = 400  # of the path of a motion blur


def _kernel(kernel: ndarray) -> ndarray:
    kernel = np.array(kernel, dtype=np.float64)
    if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not np.isfinite(kernel).all():
        raise ValueError(
            f"the kernel has shape {kernel.shape}; expected finite numbers with an odd number of "
            "rows and of columns, the middle being the point itself"
        )
    kernel.setflags(write=False)
    return kernel


@dataclass(frozen=True, eq=False)
class Circular(Decomposed):
    """y[i] = sum_d kernel[d] x[i - d] on a torus; the kernel may be larger than the image."""

    kernel: ndarray = field(kw_only=True)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        object.__setattr__(self, "kernel", _kernel(self.kernel))

    @cached_property
    def transfer(self) -> ndarray:
        """h, (H, W), complex."""
        wrapped = np.zeros(self.shape)
        reach = [np.arange(n) - n // 2 for n in self.kernel.shape]
        rows, columns = (d % n for d, n in zip(reach, self.shape, strict=True))
        np.add.at(wrapped, (rows[:, None], columns[None, :]), self.kernel)
        return np.fft.fft2(wrapped)

    def _answer(self, x: ndarray) -> ndarray:
        return filtered(self.transfer, x)

    def _transpose(self, v: ndarray) -> ndarray:
        return filtered(self.transfer.conj(), v)

    @cached_property
    def svd(self) -> "FourierSVD":
        s = np.abs(self.transfer)
        kept = s > np.finfo(float).eps * prod(self.shape) ** 0.5 * s.max()
        phase = np.where(kept, self.transfer / np.where(kept, s, 1), 1)
        return FourierSVD(s[kept], np.flatnonzero(kept), phase)


def filtered(transfer: ndarray, x: ndarray) -> ndarray:
    """F^H diag(transfer) F x, (B, H, W), real."""
    y = np.fft.ifft2(transfer.astype(np.result_type(x.dtype, np.complex64)) * np.fft.fft2(x))
    return np.ascontiguousarray(y.real)


@dataclass(frozen=True, eq=False)
class FourierSVD:
    """The real Fourier basis; kept: the frequencies that pass; phase: h / |h|, (H, W)."""

    s: ndarray
    kept: ndarray
    phase: ndarray

    def ut(self, y: ndarray) -> ndarray:
        return self.vt(filtered(self.phase.conj(), batch("y", y, self.phase.shape)))

    def u(self, z: ndarray) -> ndarray:
        return filtered(self.phase, self.v(z))

    def vt(self, x: ndarray) -> ndarray:
        f = np.fft.fft2(batch("x", x, self.phase.shape), norm="ortho")
        return (f.real - f.imag).reshape(len(x), -1)[:, self.kept]

    def v(self, z: ndarray) -> ndarray:
        z = batch("z", z, self.s.shape)
        full = np.zeros((len(z), self.phase.size), dtype=z.dtype)
        full[:, self.kept] = z
        f = np.fft.fft2(full.reshape(-1, *self.phase.shape), norm="ortho")
        return f.real - f.imag


@dataclass(frozen=True, eq=False)
class Convolution(Linear):
    """y[i] = sum_d kernel[d] x[i - d], the image going on as its mirror image or as zeros.

    Term by term over the kernel's points that are not zero.
    """

    kernel: ndarray = field(kw_only=True)
    edges: Literal["reflect", "zero"] = field(kw_only=True, default="reflect")

    def __post_init__(self) -> None:
        check_shape(self.shape)
        object.__setattr__(self, "kernel", _kernel(self.kernel))
        padding(self.shape[0], 0, self.edges)

    @cached_property
    def _sources(self) -> list[ndarray]:
        """Where the points of the padded axes come from."""
        pairs = zip(self.shape, self.kernel.shape, strict=True)
        return [padding(n, k // 2, self.edges) for n, k in pairs]

    @cached_property
    def _terms(self) -> list[tuple[int, int, float]]:
        """First row and column of the padded image, and the weight."""
        rows, columns = self.kernel.shape
        places = np.argwhere(self.kernel)
        return [
            (rows - 1 - int(i), columns - 1 - int(j), float(self.kernel[i, j])) for i, j in places
        ]

    def _answer(self, x: ndarray) -> ndarray:
        rows, columns = self._sources
        padded = x[:, np.maximum(rows, 0)][:, :, np.maximum(columns, 0)]
        padded = padded * ((rows >= 0)[:, None] & (columns >= 0)).astype(x.dtype)
        y, (h, w) = np.zeros_like(x), self.shape
        for i, j, weight in self._terms:
            y += x.dtype.type(weight) * padded[:, i : i + h, j : j + w]
        return y

    def _transpose(self, v: ndarray) -> ndarray:
        rows, columns = self._sources
        h, w = self.shape
        padded = np.zeros((len(v), len(rows), len(columns)), dtype=v.dtype)
        for i, j, weight in self._terms:
            padded[:, i : i + h, j : j + w] += v.dtype.type(weight) * v
        folded = np.zeros((len(v), h, len(columns)), dtype=v.dtype)
        for k in np.flatnonzero(rows >= 0):
            folded[:, rows[k]] += padded[:, k]
        x = np.zeros_like(v)
        for k in np.flatnonzero(columns >= 0):
            x[:, :, columns[k]] += folded[:, :, k]
        return x


@dataclass(frozen=True, eq=False)
class Dense(Decomposed):
    """A linear operator of at most 1,024 points with the decomposition of its matrix.

    Answers and adjoints are those of the operator itself. The decomposition of 32 x 32 points takes
    about a second.
    """

    operator: Linear = field(kw_only=True)

    def __post_init__(self) -> None:
        if tuple(self.shape) != tuple(self.operator.shape):
            raise ValueError(f"shape is {self.shape}; that of the operator {self.operator.shape}")
        if prod(self.shape) > LARGEST_DENSE:
            raise ValueError(
                f"an image of {self.shape} has more than {LARGEST_DENSE} points; a circular blur "
                "has a decomposition at any size"
            )

    @cached_property
    def data_shape(self) -> Shape:
        return self.operator.data_shape

    def _answer(self, x: ndarray) -> ndarray:
        return self.operator(x)

    def _transpose(self, v: ndarray) -> ndarray:
        return self.operator.adjoint(v)

    @cached_property
    def svd(self) -> "DenseSVD":
        d = prod(self.shape)
        columns = self.operator(np.eye(d).reshape(d, *self.shape)).reshape(d, -1)
        u, s, vt = np.linalg.svd(columns.T, full_matrices=False)
        kept = s > np.finfo(float).eps * max(columns.shape) * s.max()
        return DenseSVD(s[kept], u[:, kept], vt[kept].T, self.shape, self.data_shape)


@dataclass(frozen=True, eq=False)
class DenseSVD:
    """Singular vectors in columns; x and y: shapes of an image and of its data."""

    s: ndarray
    left: ndarray
    right: ndarray
    x: Shape
    y: Shape

    def ut(self, y: ndarray) -> ndarray:
        return self._times(self.left.T, batch("y", y, self.y))

    def u(self, z: ndarray) -> ndarray:
        return self._times(self.left, batch("z", z, self.s.shape)).reshape(-1, *self.y)

    def vt(self, x: ndarray) -> ndarray:
        return self._times(self.right.T, batch("x", x, self.x))

    def v(self, z: ndarray) -> ndarray:
        return self._times(self.right, batch("z", z, self.s.shape)).reshape(-1, *self.x)

    @staticmethod
    def _times(matrix: ndarray, values: ndarray) -> ndarray:
        return along(matrix, values.reshape(len(values), -1, 1))[:, :, 0]


def gaussian_kernel(std: float, radius: int | None = None) -> ndarray:
    """(2 radius + 1) points a side, sum one."""
    reach = gaussian_radius(std) if radius is None else radius
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def circular_gaussian(
    shape: tuple[int, int], std: float = 3.0, radius: int | None = None, cut: float = 0.0
) -> Circular:
    """A Gaussian blur on a torus."""
    return Circular(shape, cut, kernel=gaussian_kernel(std, radius))


def motion_kernel(size: int = 61, intensity: float = 0.5, seed: int = 0) -> ndarray:
    """A random path across a window of size x size points, (size, size), sum one.

    intensity: from 0, a straight line, to 1, a scribble: the direction drifts by a random walk
    whose standard deviation over the whole path is pi times the intensity. The path is centred on
    its mean, made to fit the window, and spread over the nearest four points at each step.
    """
    if size < 1 or size % 2 == 0 or not 0 <= intensity <= 1:
        raise ValueError(f"size {size} and intensity {intensity}; expected an odd size and 0 to 1")
    random = np.random.default_rng(seed)
    turn = np.pi * intensity / STEPS**0.5 * random.standard_normal(STEPS)
    angle = random.uniform(0, 2 * np.pi) + np.cumsum(turn)
    path = np.cumsum(np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0)
    path -= path.mean(axis=0)
    path *= (size - 1) / 2 / np.abs(path).max() * 0.999
    path += size // 2
    low = np.floor(path).astype(int)
    share = path - low
    kernel = np.zeros((size + 1, size + 1))
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - share[:, 0]) * np.abs(1 - j - share[:, 1])
            np.add.at(kernel, (low[:, 0] + i, low[:, 1] + j), weight)
    kernel = kernel[:size, :size]
    return kernel / kernel.sum()


def motion_blur(
    shape: tuple[int, int],
    size: int = 61,
    intensity: float = 0.5,
    seed: int = 0,
    edges: Literal["reflect", "zero", "circular"] = "reflect",
) -> Convolution | Circular:
    """The blur of a `motion_kernel`, which the operator keeps as `kernel`."""
    kernel = motion_kernel(size, intensity, seed)
    if edges == "circular":
        return Circular(shape, kernel=kernel)
    return Convolution(shape, kernel=kernel, edges=edges)
