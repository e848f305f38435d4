"""Imaging operators on images of 8 x 8 points with values in about [-1, 1].

    box        all points outside the central 4 x 4 box                    (B, 48)
    random     19 points, chosen once                                      (B, 19)
    sr2, sr4   means of blocks of 2 x 2 or 4 x 4 points                    (B, 4, 4), (B, 2, 2)
    blur       Gaussian of standard deviation 1 point along both axes      (B, 8, 8)
    hdr        clip(2 x, -1, 1): high dynamic range, both ends are lost    (B, 8, 8)
    phase      |F u| with u = (x + 1) / 2 in the middle of 16 x 16 zeros   (B, 16, 16)

F is the orthonormal discrete Fourier transform, so the squares of a `phase` answer add up to those
of u. The blur renormalises its kernel where the edge cuts it, so a constant image stays. All but
hdr and phase are linear; a shift of u or a turn by 180 degrees leaves `phase` unchanged.

The tasks are those usual for diffusion priors (Chung et al. 2023, arXiv 2209.14687; Zhang et al.
2024, arXiv 2407.01521), in small. Each row of an answer depends on its own row alone, bit for bit:
there are no matrix products, and all sums run in one order. Microseconds a member.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy import ndarray

SIZE = 8
PADDED = 16
BOX = slice(2, 6)
KEPT = 19
KEPT_SEED = 0


def _outside_the_box() -> ndarray:
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[BOX, BOX] = False
    return np.flatnonzero(outside)


def _kept() -> ndarray:
    return np.sort(np.random.default_rng(KEPT_SEED).permutation(SIZE * SIZE)[:KEPT])


PLACES: Mapping[str, ndarray] = {"box": _outside_the_box(), "random": _kept()}
"""Places of the data of `box` and `random`, in the flattened image."""


def box(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 48)."""
    return x.reshape(len(x), SIZE * SIZE)[:, PLACES["box"]]


def random(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 19)."""
    return x.reshape(len(x), SIZE * SIZE)[:, PLACES["random"]]


def sr2(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 4, 4)."""
    return _block_means(x, 2)


def sr4(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 2, 2)."""
    return _block_means(x, 4)


def _block_means(x: ndarray, side: int) -> ndarray:
    parts = [x[:, i::side, j::side] for i in range(side) for j in range(side)]
    return _sum(parts) / side**2


def _sum(parts: list[ndarray]) -> ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _blur_taps() -> ndarray:
    place = np.arange(SIZE)
    taps = np.exp(-0.5 * (place[:, None] - place) ** 2)
    return taps / taps.sum(axis=1, keepdims=True)


BLUR = _blur_taps()


def blur(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 8, 8)."""
    return _along_both(BLUR, x)


def _along_rows(taps: ndarray, x: ndarray) -> ndarray:
    """sum_k taps[., k] x[:, k, :]."""
    taps = taps.astype(x.dtype)
    return _sum([taps[:, k, None] * x[:, None, k, :] for k in range(x.shape[1])])


def _along_both(taps: ndarray, x: ndarray) -> ndarray:
    return _along_rows(taps, _along_rows(taps, x).swapaxes(1, 2)).swapaxes(1, 2)


def hdr(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 8, 8)."""
    return np.clip(2 * x, -1, 1)


def _angles() -> ndarray:
    # The place of the image among the zeros has no influence on the magnitude.
    return 2 * np.pi / PADDED * np.outer(np.arange(PADDED), np.arange(SIZE))


COSINE, SINE = np.cos(_angles()), np.sin(_angles())


def phase(x: ndarray) -> ndarray:
    """(B, 8, 8) to (B, 16, 16), not negative."""
    u = (x + 1) / 2
    real, imaginary = _along_rows(COSINE, u), -_along_rows(SINE, u)
    real, imaginary = real.swapaxes(1, 2), imaginary.swapaxes(1, 2)
    a = _along_rows(COSINE, real) + _along_rows(SINE, imaginary)
    b = _along_rows(COSINE, imaginary) - _along_rows(SINE, real)
    return np.sqrt(a * a + b * b).swapaxes(1, 2) / PADDED


LINEAR: Mapping[str, Callable[[ndarray], ndarray]] = {
    "box": box,
    "random": random,
    "sr2": sr2,
    "sr4": sr4,
    "blur": blur,
}
OPERATORS: Mapping[str, Callable[[ndarray], ndarray]] = {**LINEAR, "hdr": hdr, "phase": phase}
