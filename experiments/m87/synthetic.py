"""Synthetic observations: a known image seen through an array, with thermal noise and gains.

The visibility of baseline (i, j) in one scan becomes

    V_ij  ->  g_i conj(g_j) V_ij + e_ij,      e_ij complex Gaussian

with a gain per station and scan. Closures do not feel the gains, but for the ratio of signal to
noise; they and their errors are computed from the noisy visibilities, as for real data.

Thermal errors of a simulated array follow the radiometer equation

    sigma_ij = sqrt(SEFD_i SEFD_j / (2 bandwidth time)) / efficiency.

References:
    Thompson, Moran & Swenson (2017), Interferometry and Synthesis in Radio Astronomy.
    EHT Collaboration (2019b), ApJL 875, L2: sensitivities of the stations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.m87.data import ClosureData, table
from simulators.black_hole import BlackHole, coverage
from simulators.black_hole.array import M87_DECLINATION, M87_RIGHT_ASCENSION

SEFD: dict[str, float] = {
    "AA": 70.0,
    "AP": 4900.0,
    "AZ": 14400.0,
    "LM": 3600.0,
    "PV": 3600.0,
    "SM": 6050.0,  # mean of 5600 (R) and 6500 (L)
    "JC": 10000.0,
    "SP": 16900.0,
}
"""System equivalent flux densities in Jy, from the public array file of April 2017."""


def synthetic_data(
    image: ArrayLike,
    data: ClosureData,
    field_of_view: float,
    seed: int,
    *,
    systematic_errors: bool = True,
    station_phases: bool = True,
    gain_spread: float = 0.0,
) -> ClosureData:
    """What the array of `data` would have measured of an image (n, n) in Jy per pixel.

    Same baselines, times, closure sets and thermal errors as `data`. systematic_errors: draw the
    systematic part of the error budget too (a fraction data.systematics of |V|, independent per
    row), so that the errors of the result are those that were drawn. station_phases: a random
    phase per station and scan. gain_spread: standard deviation of ln |gain|.
    """
    exact = _visibilities(image, data.u, data.v, field_of_view)
    corrupt = _corrupt(
        exact,
        np.hypot(data.thermal, data.systematics * np.abs(exact) * systematic_errors),
        data.time,
        data.station1,
        data.station2,
        np.random.default_rng(seed),
        station_phases,
        gain_spread,
    )
    return replace(data, visibility=corrupt, provenance=_described(seed, data.provenance))


def observe(
    image: ArrayLike,
    field_of_view: float,
    seed: int,
    *,
    stations: Sequence[str] = ("AA", "LM", "AZ", "PV", "SM"),
    hours: ArrayLike = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    mjd: int = 57854,
    frequency: float = 227.0707e9,
    bandwidth: float = 1.856e9,
    scan_seconds: float = 300.0,
    efficiency: float = 0.88,
    systematics: float = 0.02,
    systematic_errors: bool = True,
    station_phases: bool = True,
    gain_spread: float = 0.0,
    products: tuple[str, ...] = ("closure_phase", "log_closure_amplitude"),
) -> ClosureData:
    """An observation of M87 with an array of 2017 stations, from an image (n, n) in Jy per pixel.

    hours: UTC of the scans. bandwidth and frequency in Hz; efficiency: 0.88 for two-bit sampling.
    The rest as in `synthetic_data`.
    """
    track = coverage(stations, hours, mjd=mjd, frequency=frequency)
    sefd = np.array([SEFD[code] for code in track.stations])
    thermal = (
        np.sqrt(sefd[track.station1] * sefd[track.station2] / (2 * bandwidth * scan_seconds))
        / efficiency
    )
    exact = _visibilities(image, track.u, track.v, field_of_view)
    corrupt = _corrupt(
        exact,
        np.hypot(thermal, systematics * np.abs(exact) * systematic_errors),
        track.time,
        track.station1,
        track.station2,
        np.random.default_rng(seed),
        station_phases,
        gain_spread,
    )
    names = np.array(track.stations)
    return table(
        track.time,
        names[track.station1],
        names[track.station2],
        track.u,
        track.v,
        corrupt,
        thermal,
        systematics=systematics,
        products=tuple(products),
        right_ascension=M87_RIGHT_ASCENSION,
        declination=M87_DECLINATION,
        frequency=frequency,
        mjd=mjd,
        provenance=_described(seed, {}),
    )


def _described(seed: int, provenance: Any) -> dict[str, Any]:
    return {**provenance, "visibilities": f"SYNTHETIC, seed {seed}"}


def _visibilities(
    image: ArrayLike, u: np.ndarray, v: np.ndarray, field_of_view: float
) -> np.ndarray:
    """Exact visibilities (M,) of one image (n, n)."""
    image = np.asarray(image)
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise ValueError(f"the image has shape {image.shape}; expected one square image (n, n)")
    if not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinity; give finite brightness in Jy per pixel")
    simulator = BlackHole(
        u,
        v,
        np.empty((0, 3), int),
        np.empty((0, 4), int),
        len(image),
        field_of_view,
        products=("visibility",),
        dtype="float64",
    )
    return simulator.visibilities(image[None])[0]


def _corrupt(
    exact: np.ndarray,
    sigma: np.ndarray,
    time: np.ndarray,
    station1: np.ndarray,
    station2: np.ndarray,
    rng: np.random.Generator,
    station_phases: bool,
    gain_spread: float,
) -> np.ndarray:
    """Station gains and Gaussian errors; sigma per real and imaginary part, all shape (M,).

    The errors are drawn first, so that the same seed gives the same errors with and without gains.
    They are turned with the station phases: a rotated complex Gaussian is the same Gaussian.
    """
    error = sigma * (rng.standard_normal(len(exact)) + 1j * rng.standard_normal(len(exact)))
    _, scan = np.unique(time, return_inverse=True)
    shape = scan.max() + 1, max(station1.max(), station2.max()) + 1
    phase = rng.uniform(0, 2 * np.pi, shape) * station_phases
    gain = np.exp(gain_spread * rng.standard_normal(shape))
    rotation = np.exp(1j * (phase[scan, station1] - phase[scan, station2]))
    return rotation * (gain[scan, station1] * gain[scan, station2] * exact + error)
