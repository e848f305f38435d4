"""The stations of the Event Horizon Telescope in 2017, and their baselines as the Earth turns.

For simulated arrays. For measured data use the u, v of the file: its station positions differ from
the table by up to some hundred metres.

With H the hour angle of the source at Greenwich, delta its declination, and B = (X, Y, Z) the
baseline, first station minus second, in geocentric coordinates (X towards Greenwich, Z north):

    u = (sin H X + cos H Y) / lambda
    v = (-sin delta cos H X + sin delta sin H Y + cos delta Z) / lambda

References:
    Thompson, Moran & Swenson (2017), Interferometry and Synthesis in Radio Astronomy.
    EHT Collaboration (2019b), ApJL 875, L2: the array of April 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

STATIONS: dict[str, tuple[float, float, float]] = {
    "AA": (2225061.164, -5440057.370, -2481681.150),  # ALMA
    "AP": (2225039.530, -5441197.630, -2479303.360),  # APEX
    "AZ": (-1828796.200, -5054406.800, 3427865.200),  # SMT
    "LM": (-768713.964, -5988541.798, 2063275.947),  # LMT
    "PV": (5088967.900, -301681.600, 3825015.800),  # IRAM 30 m
    "SM": (-5464523.400, -2493147.080, 2150611.750),  # SMA
    "JC": (-5464584.680, -2493001.170, 2150653.980),  # JCMT
    "SP": (0.01, 0.01, -6359609.7),  # SPT
}
"""Geocentric positions in metres, by two-letter code."""

M87_RIGHT_ASCENSION = 12.5137287
"""Hours."""

M87_DECLINATION = 12.3911232
"""Degrees."""

SPEED_OF_LIGHT = 299792458.0


@dataclass(frozen=True, eq=False)
class Coverage:
    """Baselines of an array, one row per baseline and time; M rows, ordered by time.

    time: hours UTC after the start of the day. station1 < station2: numbers into stations.
    u, v: wavelengths.
    """

    stations: tuple[str, ...]
    time: np.ndarray
    station1: np.ndarray
    station2: np.ndarray
    u: np.ndarray
    v: np.ndarray


def greenwich_hour_angle(
    mjd: int, hours: ArrayLike, right_ascension: float = M87_RIGHT_ASCENSION
) -> np.ndarray:
    """Hour angle at Greenwich in radians, from mean sidereal time, without precession or nutation.

    mjd: day (modified Julian date at 0 h). hours: UTC after 0 h. right_ascension: hours.
    """
    sidereal = 6.697374558 + 0.06570982441908 * (mjd - 51544.5)
    sidereal = sidereal + 1.00273790935 * np.asarray(hours, dtype=np.float64)
    return (sidereal - right_ascension) % 24 * (np.pi / 12)


def coverage(
    stations: Sequence[str],
    hours: ArrayLike,
    mjd: int = 57854,
    right_ascension: float = M87_RIGHT_ASCENSION,
    declination: float = M87_DECLINATION,
    frequency: float = 227.0707e9,
    lowest_elevation: float = 10.0,
) -> Coverage:
    """u, v of every pair of stations that both see the source, at the given times.

    stations: codes out of `STATIONS`, the most sensitive first. hours: UTC, shape (K,).
    right_ascension: hours. declination, lowest_elevation: degrees. frequency: Hz.
    """
    unknown = [code for code in stations if code not in STATIONS]
    if unknown or len(set(stations)) < len(stations):
        raise ValueError(
            f"stations is {list(stations)}; give different codes out of {list(STATIONS)}"
        )
    if frequency <= 0:
        raise ValueError(f"frequency is {frequency}; give a positive number of Hz")
    position = np.array([STATIONS[code] for code in stations])
    times = np.sort(np.atleast_1d(np.asarray(hours, dtype=np.float64)))
    first, second = np.triu_indices(len(stations), k=1)
    rows = []
    sin_d, cos_d = np.sin(np.deg2rad(declination)), np.cos(np.deg2rad(declination))
    hour_angles = greenwich_hour_angle(mjd, times, right_ascension)
    for time, hour_angle in zip(times, hour_angles, strict=True):
        sin_h, cos_h = np.sin(hour_angle), np.cos(hour_angle)
        to_source = np.array([cos_d * cos_h, -cos_d * sin_h, sin_d])
        to_east = np.array([sin_h, cos_h, 0.0])
        to_north = np.array([-sin_d * cos_h, sin_d * sin_h, cos_d])
        elevation = np.rad2deg(np.arcsin(position @ to_source / np.linalg.norm(position, axis=1)))
        up = elevation >= lowest_elevation
        both = up[first] & up[second]
        baseline = (position[first] - position[second])[both] * (frequency / SPEED_OF_LIGHT)
        u, v = baseline @ to_east, baseline @ to_north
        rows.append((np.full(both.sum(), time), first[both], second[both], u, v))
    if not rows or not sum(len(row[0]) for row in rows):
        raise ValueError(
            f"no two of {list(stations)} see the source above {lowest_elevation} degrees at any "
            f"of {len(times)} times; in April M87 is up between about 1 h and 8 h UTC"
        )
    time, station1, station2, u, v = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Coverage(tuple(stations), time, station1, station2, u, v)
