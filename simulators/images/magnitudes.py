"""The images whose Fourier magnitudes are given: what alternating projections need.

y = |F u| with u on a grid of P x Q points, the image in its first H x W corner, F the orthonormal
Fourier transform. Among all real u the nearest to a given one with magnitudes y is

    Re F^-1 [y' F u / |F u|],    y' the mean of y over each frequency and its opposite

since a real u has the same magnitude at both; for y of a real image y' = y. Where F u = 0 the phase
is taken to be zero (Fienup 1982, "Phase retrieval algorithms: a comparison", Applied Optics 21).
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from simulators.images.base import batch


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """shape: (H, W) of the image. grid: (P, Q). Images have values in [-1, 1], u = (x + 1) / 2."""

    shape: tuple[int, int]
    grid: tuple[int, int]

    @property
    def support(self) -> ndarray:
        """True where the image is, (P, Q)."""
        place = np.zeros(self.grid, dtype=bool)
        place[: self.shape[0], : self.shape[1]] = True
        return place

    def onto(self, u: ndarray, y: ndarray) -> ndarray:
        """The nearest real arrays with magnitudes y, (B, P, Q) and (P, Q) to (B, P, Q).

        Magnitudes below zero count as zero; those that are NaN stay as they are. One pair of
        Fourier transforms a row.
        """
        z = np.fft.fft2(batch("u", u, self.grid), norm="ortho")
        size = np.abs(z)
        phase = np.where(size == 0, 1, z / np.where(size == 0, 1, size))
        wanted = np.where(np.isnan(y), size, np.maximum(y, 0))
        return np.ascontiguousarray(np.fft.ifft2(wanted * phase, norm="ortho").real)

    def crop(self, u: ndarray) -> ndarray:
        """The image 2 u - 1, (B, P, Q) to (B, H, W)."""
        u = batch("u", u, self.grid)[:, : self.shape[0], : self.shape[1]]
        return np.ascontiguousarray(2 * u - 1)
