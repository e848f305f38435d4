"""Reduced chi-squares of images against the measurement, per data product.

With hats for the model and the errors of the table (`data.py`):

    visibility              sum |V - V^|^2 / sigma^2 / (2 N)
    amplitude               sum (|V| - |V^|)^2 / sigma^2 / N
    closure_phase           2 sum (1 - cos(phi - phi^)) / sigma_phi^2 / N
    log_closure_amplitude   sum (l - l^)^2 / sigma_l^2 / N

These are the definitions of the eht-imaging package, with amplitudes not debiased. Values below one
are left as they are. Visibilities and amplitudes need images in Jy per pixel, and the visibilities
of real data carry unknown station phases: their chi-square means nothing before self-calibration.
A low chi-square is not success: an ensemble that overfits has one too.

References:
    Chael et al. (2018), ApJ 857, 23.
    EHT Collaboration (2019d), ApJL 875, L4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from experiments.m87.data import ClosureData
from simulators.black_hole import closure_phases, log_closure_amplitudes


@dataclass(frozen=True, eq=False)
class ChiSquares:
    """values: per product, shape (B,), NaN for a failed member. counts: N per product."""

    values: Mapping[str, np.ndarray]
    counts: Mapping[str, int]

    def __getitem__(self, product: str) -> np.ndarray:
        return self.values[product]


def chi_squares(
    images: ArrayLike, data: ClosureData, field_of_view: float, *, intra_site: bool = True
) -> ChiSquares:
    """Chi-squares of images (B, n, n) against the table, all four products.

    field_of_view in microarcseconds. intra_site=False leaves out the rows on intra-site baselines
    and the closures that contain one. A product without data has count 0 and value NaN.
    Cost: one float64 forward call, some 0.1 ms per image at n = 64.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images have shape {images.shape}; expected (B, n, n), members first"
            + ("; for one image give image[None]" if images.ndim == 2 else "")
        )
    simulator = data.simulator(images.shape[1], field_of_view, dtype="float64")
    return chi_squares_of(simulator.visibilities(images), data, intra_site=intra_site)


def chi_squares_of(
    visibility: np.ndarray, data: ClosureData, *, intra_site: bool = True
) -> ChiSquares:
    """As `chi_squares`, from model visibilities (B, M) in Jy."""
    if not intra_site:
        data = data.without_intra_site()
    rows = np.arange(len(data.u)) if intra_site else np.flatnonzero(~data.intra_site)
    measured, model, sigma = data.visibility[rows], visibility[:, rows], data.sigma[rows]
    phase = data.closure_phase - closure_phases(visibility, data.triangles)
    with np.errstate(invalid="ignore"):  # inf - inf, where two visibilities vanish
        log_amplitude = data.log_closure_amplitude - log_closure_amplitudes(
            visibility, data.quadrangles
        )
    terms = {
        "visibility": np.abs(measured - model) ** 2 / sigma**2 / 2,
        "amplitude": (np.abs(measured) - np.abs(model)) ** 2 / sigma**2,
        "closure_phase": 2 * (1 - np.cos(phase)) / data.closure_phase_std**2,
        "log_closure_amplitude": log_amplitude**2 / data.log_closure_amplitude_std**2,
    }
    counts = {name: term.shape[1] for name, term in terms.items()}
    nothing = np.full(len(visibility), np.nan)
    # Contiguous rows: numpy's order of summation, and so the last bit, depends on the layout.
    values = {
        name: np.ascontiguousarray(term).mean(axis=1) if counts[name] else nothing
        for name, term in terms.items()
    }
    return ChiSquares({k: np.where(np.isfinite(v), v, np.nan) for k, v in values.items()}, counts)


def chi_square_table(
    images: ArrayLike,
    data: ClosureData,
    field_of_view: float,
    products: tuple[str, ...] = ("closure_phase", "log_closure_amplitude"),
) -> str:
    """A table to print: median and range over members, per product, count and error budget.

    Every product is shown with and without intra-site baselines, and with and without the
    systematic error.
    """
    images = np.asarray(images)
    if images.ndim != 3 or not len(images):
        raise ValueError(
            f"images have shape {images.shape}; expected (B, n, n) with B of 1 or more"
        )
    simulator = data.simulator(images.shape[1], field_of_view, dtype="float64")
    visibility = simulator.visibilities(images)
    lines = [
        f"{'chi-square of':<22} {'systematics':>11} {'intra-site':>10} {'N':>5} "
        f"{'median':>9} {'lowest':>9} {'highest':>9}"
    ]
    for product in products:
        for fraction in sorted({data.systematics, 0.0}, reverse=True):
            for intra_site in (True, False):
                budget = replace(data, systematics=fraction)
                result = chi_squares_of(visibility, budget, intra_site=intra_site)
                alive = result[product][np.isfinite(result[product])]
                numbers = (
                    (np.median(alive), alive.min(), alive.max()) if len(alive) else (np.nan,) * 3
                )
                lines.append(
                    f"{product:<22} {fraction:>11.1%} {'with' if intra_site else 'without':>10} "
                    f"{result.counts[product]:>5} " + " ".join(f"{k:>9.3g}" for k in numbers)
                )
    failed = int(np.isnan(visibility).any(axis=1).sum())
    return "\n".join([*lines, f"{len(images)} members, {failed} of them failed"])
