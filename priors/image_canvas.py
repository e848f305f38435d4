"""The canvas on which the procedural sky images are painted.

An image covers a square of the sky. Row 0 is north, column 0 is east, so pixel (row, column) of
an n x n image with pixels of p = field_of_view / n sits at

    east = p ((n - 1)/2 - column),    north = p ((n - 1)/2 - row).

Light is painted on a grid twice as fine and then finished in the same way for every recipe:

1. blurred by a round Gaussian and summed over 2 x 2 fine pixels;
2. faded out towards the border by 1/(1 + exp((rho - 0.92)/0.03)), with rho = 1 at half the field
   of view, so that no image has an edge;
3. divided by its sum.

Sample i of a recipe depends on (seed, i) alone. Its random numbers come from a generator keyed by
that pair, and samples are always painted in full chunks of the same width. So a longer request
begins with the images of a shorter one, bit for bit, whatever the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.special import expit

Array = NDArray[np.floating]
Progress = Callable[[int, int], None]

CHUNK = 8  # images painted together: their working arrays of .5 MB stay in the cache
TAPER_START, TAPER_WIDTH = 0.92, 0.03
FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


@dataclass(frozen=True)
class Canvas:
    """A square of the sky.

    pixels: n, pixels along each side of a finished image.
    field_of_view_uas: length of a side, in microarcseconds.
    """

    pixels: int = 64
    field_of_view_uas: float = 128.0

    def __post_init__(self) -> None:
        if self.pixels < 8:
            raise ValueError(f"pixels is {self.pixels}; give at least 8, a ring needs that many.")
        if not self.field_of_view_uas > 0:
            raise ValueError(
                f"field_of_view_uas is {self.field_of_view_uas}; give a positive width in uas."
            )

    @property
    def fine(self) -> int:
        """Fine pixels along a side, 2 n."""
        return 2 * self.pixels

    @property
    def clear_radius_uas(self) -> float:
        """Radius at which the fade towards the border has halved the light, in uas."""
        return TAPER_START * self.field_of_view_uas / 2

    def axis(self, points: int) -> NDArray[np.float32]:
        """Centres of `points` equal cells along a side, descending, shape (points,), in uas."""
        cell = self.field_of_view_uas / points
        return (cell * ((points - 1) / 2 - np.arange(points))).astype(np.float32)

    def rotated(
        self, position_angle: Array, handedness: Array | float = 1.0
    ) -> tuple[Array, Array]:
        """Fine-grid coordinates (across, along) of axes turned by a position angle.

        position_angle: direction of `along`, radians east of north, shape (B,).
        handedness: +1, or -1 to mirror `across`, shape (B,) or a number.
        Returns two arrays of shape (B, 2n, 2n) in uas. With +1 and angle 0, `along` points north
        and `across` points west, which is to the right on the sky.
        """
        axis = self.axis(self.fine)
        east, north = axis[None, None, :], axis[None, :, None]
        sine, cosine = columns(np.sin(position_angle), np.cos(position_angle))
        (hand,) = columns(np.broadcast_to(handedness, position_angle.shape))
        return hand * (sine * north - cosine * east), east * sine + north * cosine

    def blur(self, light: Array, fwhm_uas: Array) -> NDArray[np.float32]:
        """Blur fine light and sum it into pixels, shape (B, 2n, 2n) -> (B, n, n).

        fwhm_uas: full width at half maximum of the round Gaussian, shape (B,).
        The kernel is the sampled Gaussian: positive and of sum one, so light is neither made nor
        lost, except what crosses the border. A dark margin of 1/8 of the field keeps that light
        from coming back on the other side. Cost: two FFTs an image.
        """
        fine, cell = self.fine, self.field_of_view_uas / self.fine
        padded = fine + 2 * (fine // 16)
        sigma = np.maximum(np.asarray(fwhm_uas, float) / FWHM_PER_SIGMA, 1e-3 * cell)[:, None]
        lags = cell * np.fft.fftfreq(padded, 1 / padded)
        kernel = np.exp(-0.5 * (lags / sigma) ** 2)
        transfer = np.fft.fft(kernel / kernel.sum(1, keepdims=True)).real.astype(np.float32)
        light = light.astype(np.float32, copy=False)
        spectrum = np.asarray(rfft2(light, s=(padded, padded), axes=(1, 2)))
        spectrum *= transfer[:, :, None] * transfer[:, None, : padded // 2 + 1]
        blurred = np.asarray(irfft2(spectrum, s=(padded, padded), axes=(1, 2)))[:, :fine, :fine]
        rows = blurred[:, 0::2] + blurred[:, 1::2]
        return np.maximum(rows[:, :, 0::2] + rows[:, :, 1::2], 0)

    def taper(self) -> NDArray[np.float32]:
        """The fade towards the border, shape (n, n): 1 inside, 1/2 at rho = 0.92."""
        axis = self.axis(self.pixels) / (self.field_of_view_uas / 2)
        rho = np.hypot(axis[:, None], axis[None, :])
        return expit((TAPER_START - rho) / TAPER_WIDTH).astype(np.float32)

    def finish(self, light: Array, fwhm_uas: Array) -> NDArray[np.float32]:
        """Blur, reduce, fade and normalise: (B, 2n, 2n) -> (B, n, n), each of sum one."""
        images = self.blur(light, fwhm_uas) * self.taper()
        return images / images.sum((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)


def keyed_generators(seed: int, samples: range, stream: int) -> list[np.random.Generator]:
    """One generator per sample, keyed by (seed, stream, sample).

    stream tells recipes apart, so that two recipes with one seed are independent.
    """
    return [
        np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(stream, i))))
        for i in samples
    ]


def unit_field(generators: list[np.random.Generator], power: Array) -> NDArray[np.float32]:
    """Periodic Gaussian random fields of mean 0 and variance 1.

    power: spectral density at the half-plane wavenumbers of `irfft2`, any scale, shape
    (B, m, m/2 + 1). Returns shape (B, m, m). Cost: 2 m^2 normal numbers and one FFT an image.
    """
    rows, columns = power.shape[1:]
    noise = np.empty((len(generators), rows, columns, 2), np.float32)
    for generator, target in zip(generators, noise, strict=True):
        generator.standard_normal(dtype=np.float32, out=target)
    # The inverse transform takes columns 0 and m/2 once, and keeps the real half of their power;
    # it takes every other column twice, for +k and -k.
    ends = power[:, :, [0, -1]].sum((1, 2), keepdims=True)
    amplitude = np.sqrt(power / (2 * power.sum((1, 2), keepdims=True) - ends))
    amplitude[:, :, [0, -1]] *= np.float32(np.sqrt(2))
    amplitude *= np.float32(rows * rows / np.sqrt(2))
    spectrum = noise.view(np.complex64)[..., 0] * amplitude
    return np.asarray(irfft2(spectrum, s=(rows, rows), axes=(1, 2)))


def paint(
    painter: Callable[[range], Array],
    count: int,
    canvas: Canvas,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Fill an array of `count` images chunk by chunk, on a few threads.

    painter: maps a full chunk of sample numbers to images (CHUNK, n, n). The last chunk is painted
        whole too, and what was not asked for is dropped.
    workers: threads; by default one per core, at most 8. The images do not depend on it.
    progress: called with (images done, count) after every chunk, from the calling thread.
    Returns shape (count, n, n), float32.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one image.")
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}; give at least 1 thread, or None for one a core.")
    images = np.empty((count, canvas.pixels, canvas.pixels), np.float32)
    # Freeing a large block tells the C library (glibc) to keep freed memory instead of handing it
    # back to the kernel; page faults would otherwise take half of the time.
    np.empty(1 << 24, np.uint8)
    starts = range(0, count, CHUNK)
    with ThreadPoolExecutor(workers) as pool:
        chunks = pool.map(lambda start: painter(range(start, start + CHUNK)), starts)
        for start, chunk in zip(starts, chunks, strict=True):
            done = min(start + CHUNK, count)
            images[start:done] = chunk[: done - start]
            if progress is not None:
                progress(done, count)
    return images


def uniform(rows: Iterator[Array], low: float, high: float) -> Array:
    """The next row of numbers in [0, 1), stretched to [low, high)."""
    return low + (high - low) * next(rows)


def columns(*values: Array) -> tuple[NDArray[np.float32], ...]:
    """Per-image numbers, shape (N,), as float32 of shape (N, 1, 1)."""
    return tuple(np.asarray(value, np.float32)[:, None, None] for value in values)


def gaussian(u: Array, v: Array, fwhm_u: Array, fwhm_v: Array) -> Array:
    """An elliptical Gaussian of peak 1 with the given full widths at half maximum."""
    u, v = u / fwhm_u, v / fwhm_v
    return np.exp(np.float32(-4 * np.log(2)) * (u * u + v * v))


def shared(share: Array, light: Array) -> Array:
    """Light of shape (N, 2n, 2n) scaled to the total `share`, shape (N, 1, 1)."""
    return light * (share / light.sum((1, 2), keepdims=True))
