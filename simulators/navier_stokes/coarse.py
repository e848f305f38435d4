"""A flow on fewer points than its fields have: the low-fidelity partner of a finer solver."""

from dataclasses import dataclass

import numpy as np

from simulators.navier_stokes.solver import NavierStokes2D


def resampled(w: np.ndarray, size: int) -> np.ndarray:
    """Trigonometric interpolation of periodic fields, (B, s, s), at size x size points, float32.

    Wavenumbers that both grids resolve are kept, the others dropped; s and size are even. A field
    without wavenumbers at or above min(s, size) / 2 is kept exactly when size grows.
    """
    s, half = w.shape[-1], min(w.shape[-1], size) // 2
    if size == s:
        return np.asarray(w, dtype=np.float32)
    before = np.fft.rfft2(w)
    after = np.zeros((len(w), size, size // 2 + 1), dtype=before.dtype)
    after[:, :half, :half] = before[:, :half, :half]
    after[:, 1 - half :, :half] = before[:, 1 - half :, :half]
    return (np.fft.irfft2(after, s=(size, size)) * (size / s) ** 2).astype(np.float32)


@dataclass(frozen=True)
class Coarse:
    """The solver `flow` for fields of another size: (B, s, s) -> (B, s, s).

    Its wavenumbers are cut to those of the flow's grid, and the answer is interpolated back. A
    failed member stays a row of NaN. Half the points per side cost about an eighth: a quarter of
    the points, half of the steps.
    """

    flow: NavierStokes2D

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: vorticity (B, s, s), s even. Returns float32 of that shape."""
        return resampled(self.flow(resampled(x, self.flow.size)), x.shape[-1])

    def vjp(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """J(x)^T v: (B, s, s), (B, s, s) -> (B, s, s), float32; NaN for failed members.

        To resample up is, but for a factor (fine / coarse)^2, the transpose of resampling down; the
        factors of the two ways cancel.
        """
        down = self.flow.vjp(resampled(x, self.flow.size), resampled(v, self.flow.size))
        return resampled(down, x.shape[-1])
