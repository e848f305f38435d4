"""Closure quantities: what survives the unknown gains of the stations, and which of them to keep.

A station i multiplies every visibility it takes part in by an unknown complex gain g_i. The gains
cancel in two kinds of products (Jennison 1958; Twiss, Carter & Little 1960):

    closure phase, triangle (a, b, c):       phi = arg V_ab + arg V_bc - arg V_ac
    log closure amplitude, (1, 2, 3, 4):     l   = ln|V_12| + ln|V_34| - ln|V_14| - ln|V_23|

Conventions of this package

- One row of the visibility table is one baseline at one time, stored once, from the station with
  the lower number to the station with the higher number. V_ba = conj(V_ab) is never stored.
- A triangle is three row numbers (ab, bc, ac) with a < b < c; the third one is conjugated.
- A quadrangle is four row numbers (12, 34, 14, 23); the last two are divided by.
- Number the stations by falling sensitivity: station 0 is then the reference.

Closures are highly redundant: of the closure phases of N stations only (N-1)(N-2)/2 are
independent, of the log closure amplitudes N(N-3)/2. `minimal_closures` keeps an independent set.

References:
    Jennison (1958), MNRAS 118, 276.
    Twiss, Carter & Little (1960), The Observatory 80, 153.
    Thompson, Moran & Swenson (2017), Interferometry and Synthesis in Radio Astronomy.
    Blackburn et al. (2020), ApJ 894, 31: closure statistics and minimal sets.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

TRIANGLE_SIGNS = np.array([1, 1, -1])
QUADRANGLE_SIGNS = np.array([1, 1, -1, -1])


def closure_phasors(visibility: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """exp(i phi) of the closure phases; never wraps, so averages and differences are safe.

    visibility: complex, shape (..., M), any unit. triangles: row numbers, shape (T, 3).
    Returns shape (..., T). A zero visibility gives NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        phasor = visibility / np.abs(visibility)
    ab, bc, ac = (phasor[..., triangles[:, k]] for k in range(3))
    return ab * bc * np.conj(ac)


def closure_phases(visibility: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Closure phases in radians, in (-pi, pi]; shapes as in `closure_phasors`."""
    return np.angle(closure_phasors(visibility, triangles))


def log_closure_amplitudes(visibility: np.ndarray, quadrangles: np.ndarray) -> np.ndarray:
    """Natural logarithms of the closure amplitudes, not debiased.

    visibility: complex, shape (..., M), any unit. quadrangles: row numbers, shape (Q, 4).
    Returns shape (..., Q). A zero visibility gives NaN or an infinity.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_amplitude = np.log(np.abs(visibility))
        v12, v34, v14, v23 = (log_amplitude[..., quadrangles[:, k]] for k in range(4))
        return v12 + v34 - v14 - v23


def incidence(closures: np.ndarray, rows: int) -> np.ndarray:
    """Closures as a linear map of phases (triangles) or log amplitudes (quadrangles).

    closures: shape (T, 3) or (Q, 4). rows: the number M of visibilities. Returns shape (T or Q, M)
    with entries -1, 0, 1.
    """
    signs = TRIANGLE_SIGNS if closures.shape[1] == 3 else QUADRANGLE_SIGNS
    matrix = np.zeros((len(closures), rows))
    matrix[np.arange(len(closures))[:, None], closures] = signs
    return matrix


def row_numbers(name: str, given: ArrayLike, columns: int, rows: int) -> np.ndarray:
    """Check a closure table: shape (., columns), whole numbers in [0, rows)."""
    table = np.asarray(given)
    if table.size == 0:
        return np.empty((0, columns), dtype=np.intp)
    if table.ndim != 2 or table.shape[1] != columns or table.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {table.shape} and dtype {table.dtype}; expected whole numbers of "
            f"shape (any, {columns})"
        )
    if table.min() < 0 or table.max() >= rows:
        raise ValueError(
            f"{name} holds row numbers {table.min()} to {table.max()}; there are {rows} baselines, "
            f"so expected 0 to {rows - 1}"
        )
    return table.astype(np.intp)


def minimal_closures(
    time: ArrayLike, station1: ArrayLike, station2: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """An independent, complete set of triangles and quadrangles for every time.

    time: shape (M,), any unit; rows with exactly equal times belong together.
    station1, station2: station numbers, shape (M,), station1 < station2; station 0 is preferred.
    Returns triangles (T, 3) and quadrangles (Q, 4), row numbers, ordered by time.

    Candidates are tried in a fixed order and kept when they are linearly independent of those
    already kept. Triangles with the reference station come first, and quadrangles
    (0, i, j, j+1), j+1 = i replaced by 1: where all baselines are present these are the whole set,
    and the set of the eht-imaging package. Where baselines are missing the others fill the gap.
    Cost: some 50 ms for 22 scans of 7 stations.
    """
    time, station1, station2 = np.asarray(time), np.asarray(station1), np.asarray(station2)
    if not (time.shape == station1.shape == station2.shape and time.ndim == 1):
        raise ValueError(
            f"time, station1 and station2 have shapes {time.shape}, {station1.shape} and "
            f"{station2.shape}; give three vectors of the same length, one entry per visibility"
        )
    if np.any(station1 >= station2):
        row = int(np.argmax(station1 >= station2))
        raise ValueError(
            f"row {row} runs from station {station1[row]} to station {station2[row]}; store every "
            "baseline from the lower to the higher station number (swap the two, negate u and v, "
            "conjugate the visibility)"
        )
    triangles: list[tuple[int, ...]] = []
    quadrangles: list[tuple[int, ...]] = []
    for moment in np.unique(time):
        rows = np.flatnonzero(time == moment)
        pairs = [(int(station1[row]), int(station2[row])) for row in rows]
        if len(set(pairs)) < len(pairs):
            raise ValueError(
                f"a baseline occurs twice at time {moment}; average or remove the copy"
            )
        row_of = dict(zip(pairs, (int(row) for row in rows), strict=True))
        stations = sorted({station for pair in pairs for station in pair})
        triangles += _independent(_triangle_candidates(stations, row_of), rows, TRIANGLE_SIGNS)
        quadrangles += _independent(
            _quadrangle_candidates(stations, row_of), rows, QUADRANGLE_SIGNS
        )
    return (
        np.array(triangles, dtype=np.intp).reshape(-1, 3),
        np.array(quadrangles, dtype=np.intp).reshape(-1, 4),
    )


def _triangle_candidates(
    stations: list[int], row_of: dict[tuple[int, int], int]
) -> list[tuple[int, ...]]:
    """All triangles whose three baselines are present; those with the first station lead."""
    candidates = []
    for a, b, c in combinations(stations, 3):
        sides = (a, b), (b, c), (a, c)
        if all(side in row_of for side in sides):
            candidates.append(tuple(row_of[side] for side in sides))
    return candidates


def _quadrangle_candidates(
    stations: list[int], row_of: dict[tuple[int, int], int]
) -> list[tuple[int, ...]]:
    """All quadrangles whose four baselines are present; the preferred minimal pattern leads."""
    preferred = [
        (0, i, j, 1 if j == i - 1 else j + 1) for i in range(3, len(stations)) for j in range(1, i)
    ]
    others = [
        quadrangle
        for p, q, r, s in combinations(range(len(stations)), 4)
        for quadrangle in ((p, q, r, s), (p, q, s, r), (p, r, q, s))
    ]
    candidates = []
    for quadrangle in preferred + others:
        one, two, three, four = (stations[k] for k in quadrangle)
        sides = [
            (min(side), max(side))
            for side in ((one, two), (three, four), (one, four), (two, three))
        ]
        if all(side in row_of for side in sides):
            candidates.append(tuple(row_of[side] for side in sides))
    return candidates


def _independent(
    candidates: list[tuple[int, ...]], rows: np.ndarray, signs: np.ndarray
) -> list[tuple[int, ...]]:
    """The candidates that are linearly independent of those kept before them (Gram-Schmidt)."""
    column = {int(row): k for k, row in enumerate(rows)}
    basis = np.zeros((len(rows), len(rows)))
    kept: list[tuple[int, ...]] = []
    for candidate in candidates:
        vector = np.zeros(len(rows))
        vector[[column[row] for row in candidate]] = signs
        for _ in range(2):  # the second pass removes what rounding left of the first
            vector = vector - basis[: len(kept)].T @ (basis[: len(kept)] @ vector)
        length = np.linalg.norm(vector)
        if length > 1e-6:
            basis[len(kept)] = vector / length
            kept.append(candidate)
    return kept
