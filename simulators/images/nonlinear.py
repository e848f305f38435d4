"""Phase retrieval, a nonlinear blur and JPEG.

    Phase          |F u| with u = (x + 1) / 2 among zeros, F the orthonormal Fourier transform
    NonlinearBlur  log(k * exp(b x)) / b: light is blurred, and the film answers to its logarithm
    JPEG           decode(encode(x)) by Pillow's encoder

`Phase`: squares of an answer add up to those of u (Parseval), since F is orthonormal. A shift of u
among the zeros and a turn by 180 degrees leave it unchanged. `pinv` is |F^-1 y| around its origin,
cut to the size of the image: the surrogate that is usual, and a poor one.

`NonlinearBlur` is not the published benchmark of that name, which is a neural network (Tran et al.
2021, "Explore image deblurring via encoded blur kernel space") whose weights are not available
here. With b = 3, white is e^6 = 400 times as bright as black, and bright points spread over dark
ones. b -> 0 gives the linear blur. Its gradient is exact.

`JPEG` has no gradient that says anything: its answer is a step function. It offers none.
"""

from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO

import numpy as np
from numpy import ndarray

from simulators.images.base import SUMMED, Linear, Operator, Shape, along, batch, check_shape
from simulators.images.magnitudes import Magnitudes


@dataclass(frozen=True, eq=False)
class Phase(Operator):
    """Magnitudes on a grid `oversampling` times as long a side, (B, P, Q), not negative."""

    oversampling: float = 2.0

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not self.oversampling >= 1:
            raise ValueError(f"oversampling is {self.oversampling}; expected at least 1")

    @cached_property
    def data_shape(self) -> Shape:
        return tuple(round(self.oversampling * n) for n in self.shape)

    @cached_property
    def project(self) -> Magnitudes:
        """The projection onto images with given magnitudes, for alternating projections."""
        rows, columns = self.data_shape
        return Magnitudes(self.shape, (rows, columns))

    def _answer(self, x: ndarray) -> ndarray:
        u = (x + 1) / 2
        if max(self.data_shape) <= SUMMED:
            return self._summed(u)
        return np.abs(self._transform(u))

    def _transform(self, u: ndarray) -> ndarray:
        # The place of the image among the zeros has no influence on the magnitude.
        return np.fft.fft2(u, s=self.data_shape, norm="ortho")

    @cached_property
    def _waves(self) -> list[tuple[ndarray, ndarray]]:
        """Cosine and sine along both axes, (P, H) and (Q, W)."""
        pairs = zip(self.data_shape, self.shape, strict=True)
        angles = [2 * np.pi / p * np.outer(np.arange(p), np.arange(n)) for p, n in pairs]
        return [(np.cos(angle), np.sin(angle)) for angle in angles]

    def _summed(self, u: ndarray) -> ndarray:
        """Small images, by sums in one order."""
        (cosine, sine), (cosine_2, sine_2) = self._waves
        real, imaginary = along(cosine, u), -along(sine, u)
        real, imaginary = real.swapaxes(1, 2), imaginary.swapaxes(1, 2)
        a = along(cosine_2, real) + along(sine_2, imaginary)
        b = along(cosine_2, imaginary) - along(sine_2, real)
        scale = np.sqrt(self.data_shape[0] * self.data_shape[1]).astype(u.dtype)
        return np.ascontiguousarray((np.sqrt(a * a + b * b)).swapaxes(1, 2) / scale)

    def vjp(self, x: ndarray, v: ndarray) -> ndarray:
        """1/2 Re F^H (v z / |z|) on the image, z = F u; a magnitude of zero passes nothing on."""
        u = (batch("x", x, self.shape) + 1) / 2
        z = self._transform(u)
        size = np.abs(z)
        pulled = batch("v", v, self.data_shape) * (z * (1 / np.where(size == 0, 1, size)))
        back = np.fft.ifft2(pulled, norm="ortho").real
        return np.ascontiguousarray(back[:, : self.shape[0], : self.shape[1]]) / 2

    def pinv(self, y: ndarray) -> ndarray:
        """2 |F^-1 y| - 1, its origin in the middle of the image."""
        middle = (self.shape[0] // 2, self.shape[1] // 2)
        u = np.abs(np.fft.ifft2(batch("y", y, self.data_shape), norm="ortho"))
        u = np.roll(u, middle, axis=(1, 2))[:, : self.shape[0], : self.shape[1]]
        return np.ascontiguousarray(2 * u - 1)


@dataclass(frozen=True, eq=False)
class NonlinearBlur(Operator):
    """log(A exp(b x)) / b for a blur A whose weights are positive and sum to one."""

    blur: Linear = field(kw_only=True)
    contrast: float = field(kw_only=True, default=3.0)

    def __post_init__(self) -> None:
        sizes = {tuple(self.shape), tuple(self.blur.shape), tuple(self.blur.data_shape)}
        if len(sizes) > 1:
            raise ValueError(
                f"shape is {self.shape}; the blur takes {self.blur.shape} to {self.blur.data_shape}"
            )
        if not self.contrast > 0:
            raise ValueError(f"contrast is {self.contrast}; expected a positive number")

    def _light(self, x: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Largest value m of each image, exp(b (x - m)), and that blurred."""
        top = x.max(axis=(1, 2), keepdims=True)
        light = np.exp(self.contrast * (x - top))
        return top, light, self.blur(light)

    def _answer(self, x: ndarray) -> ndarray:
        top, _, blurred = self._light(x)
        return top + np.log(blurred) / self.contrast

    def vjp(self, x: ndarray, v: ndarray) -> ndarray:
        """exp(b x) A^T (v / A exp(b x))."""
        _, light, blurred = self._light(batch("x", x, self.shape))
        return light * self.blur.adjoint(batch("v", v, self.shape) / blurred)

    def pinv(self, y: ndarray) -> ndarray:
        """y itself."""
        return batch("y", y, self.shape).copy()


@dataclass(frozen=True, eq=False)
class JPEG(Operator):
    """What is left of a grayscale image after Pillow's JPEG encoder at that quality, 1 to 95.

    Values are clipped to [-1, 1] and rounded to 256 levels first. An image with a NaN gives NaN.
    Needs Pillow (extra `images`). Some 0.2 ms for 64 x 64 points.
    """

    quality: int = 10

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not 1 <= self.quality <= 95:
            raise ValueError(f"the quality is {self.quality}; expected 1 to 95")

    def _answer(self, x: ndarray) -> ndarray:
        y = np.full_like(x, np.nan)
        for image, row in zip(y, x, strict=True):
            if not np.isnan(row).any():
                image[:] = self._coded(row)
        return y

    def _coded(self, row: ndarray) -> ndarray:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError(
                'JPEG needs Pillow; give pip install -e ".[images]" -c constraints.txt'
            ) from error
        levels = np.rint(np.clip((row + 1) / 2, 0, 1) * 255).astype(np.uint8)
        with BytesIO() as file:
            Image.fromarray(levels).save(file, format="JPEG", quality=self.quality)
            file.seek(0)
            with Image.open(file) as decoded:
                return np.asarray(decoded).astype(row.dtype) / 255 * 2 - 1

    def pinv(self, y: ndarray) -> ndarray:
        """y itself: to decode is the best guess."""
        return batch("y", y, self.shape).copy()
