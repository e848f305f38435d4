"""The measurement: a table of visibilities, its closures, and what is known about their errors.

A row is one baseline in one scan. Its thermal error is the standard deviation of the real part and
of the imaginary part, in Jy; a systematic error, a fraction f of |V|, is added in quadrature:

    sigma^2 = thermal^2 + (f |V|)^2
    closure phase          sigma_phi^2 = sum_3 (sigma/|V|)^2    (radians)
    log closure amplitude  sigma_l^2   = sum_4 (sigma/|V|)^2

with the observed |V|, not debiased. Closures that share a baseline are correlated; like the direct
chi-squares of the field, `std` ignores that. A closure phase enters y as the pair cos phi, sin phi,
each with the error sigma_phi. True phase errors are tangential only, so this is right in the weight
of a residual, but perturbing y with it adds a little radial noise, and where sigma_phi is near one
radian neither is Gaussian.

With y and std of this table and `simulator = data.simulator(...)` on the same products,

    || (y - simulator(x)) / std ||^2  =  N_cp chi2_cp  +  N_lca chi2_lca        exactly.

References:
    Blackburn et al. (2020), ApJ 894, 31: errors of closure quantities.
    EHT Collaboration (2019d), ApJL 875, L4: systematic errors and intra-site baselines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from simulators.black_hole import (
    BlackHole,
    closure_phases,
    log_closure_amplitudes,
    minimal_closures,
)

INTRA_SITE = 0.1e9
"""Baselines shorter than this (wavelengths) join two telescopes of one site."""


@dataclass(frozen=True, eq=False)
class ClosureData:
    """Scan-averaged visibilities of one observation and a minimal set of closures; see `table`.

    stations: codes, the highest median signal-to-noise ratio first. Per row, shape (M,): time
    (hours UTC after 0 h of day mjd), station1 < station2 (numbers into stations), u and v
    (wavelengths), visibility (Jy, complex), thermal (Jy, per real and imaginary part).
    systematics: the fraction f. triangles (T, 3), quadrangles (Q, 4): row numbers, as in
    `simulators/black_hole/closures.py`. products: what y holds, in order. flux, flux_std: total
    compact flux in Jy and its error; needed only for the product "total_flux". right_ascension in
    hours, declination in degrees, frequency in Hz. provenance: where the numbers come from and what
    was done to them.
    """

    stations: tuple[str, ...]
    time: np.ndarray
    station1: np.ndarray
    station2: np.ndarray
    u: np.ndarray
    v: np.ndarray
    visibility: np.ndarray
    thermal: np.ndarray
    triangles: np.ndarray
    quadrangles: np.ndarray
    systematics: float = 0.0
    products: tuple[str, ...] = ("closure_phase", "log_closure_amplitude")
    flux: float | None = None
    flux_std: float | None = None
    source: str = "M87"
    right_ascension: float = 0.0
    declination: float = 0.0
    frequency: float = 0.0
    mjd: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    # -- errors and closures of the table ----------------------------------------------------------

    @property
    def sigma(self) -> np.ndarray:
        """Error of the real and of the imaginary part of each visibility, Jy, shape (M,)."""
        return np.hypot(self.thermal, self.systematics * np.abs(self.visibility))

    @property
    def relative_error(self) -> np.ndarray:
        """sigma / |V|, shape (M,): the error of a phase in radians and of a log amplitude."""
        return self.sigma / np.abs(self.visibility)

    @property
    def closure_phase(self) -> np.ndarray:
        """Radians, shape (T,)."""
        return closure_phases(self.visibility, self.triangles)

    @property
    def closure_phase_std(self) -> np.ndarray:
        """Radians, shape (T,)."""
        return np.sqrt((self.relative_error[self.triangles] ** 2).sum(axis=1))

    @property
    def log_closure_amplitude(self) -> np.ndarray:
        """Natural logarithm, shape (Q,)."""
        return log_closure_amplitudes(self.visibility, self.quadrangles)

    @property
    def log_closure_amplitude_std(self) -> np.ndarray:
        """Shape (Q,)."""
        return np.sqrt((self.relative_error[self.quadrangles] ** 2).sum(axis=1))

    # -- the flat vector of an inversion -----------------------------------------------------------

    @property
    def y(self) -> np.ndarray:
        """The measurement in the simulator's order and units, shape (m,)."""
        parts = {
            "visibility": [np.real(self.visibility), np.imag(self.visibility)],
            "amplitude": [np.abs(self.visibility)],
            "closure_phase": [np.cos(self.closure_phase), np.sin(self.closure_phase)],
            "log_closure_amplitude": [self.log_closure_amplitude],
            "total_flux": [np.array([self._total_flux()[0]])],
        }
        return np.concatenate([part for name in self.products for part in parts[name]])

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of every entry of y, shape (m,)."""
        parts = {
            "visibility": [self.sigma, self.sigma],
            "amplitude": [self.sigma],
            "closure_phase": [self.closure_phase_std, self.closure_phase_std],
            "log_closure_amplitude": [self.log_closure_amplitude_std],
            "total_flux": [np.array([self._total_flux()[1]])],
        }
        return np.concatenate([part for name in self.products for part in parts[name]])

    def _total_flux(self) -> tuple[float, float]:
        if "total_flux" not in self.products:
            return np.nan, np.nan
        if self.flux is None or self.flux_std is None:
            raise ValueError(
                f"the product 'total_flux' needs flux and flux_std; they are {self.flux} and "
                f"{self.flux_std}; give both in Jy with dataclasses.replace(data, ...)"
            )
        return self.flux, self.flux_std

    def per_datum(self) -> dict[str, np.ndarray]:
        """What every entry of y is: arrays of shape (m,), usable as coordinates of a table.

        product: its name. label: for instance "cos AA-AZ-LM". time: hours UTC
        (NaN for the total flux). intra_site: whether an intra-site baseline takes part.
        """
        name, time, intra = self._baseline_names(), self.time, self.intra_site
        t, q = self.triangles, self.quadrangles
        columns: dict[str, list[tuple[list[str], np.ndarray, np.ndarray]]] = {
            "visibility": [([f"{p} {b}" for b in name], time, intra) for p in ("Re", "Im")],
            "amplitude": [([f"|V| {b}" for b in name], time, intra)],
            "closure_phase": [
                (
                    [f"{p} {b}" for b in self.triangle_names()],
                    time[t[:, 0]],
                    self.triangles_intra_site,
                )
                for p in ("cos", "sin")
            ],
            "log_closure_amplitude": [
                (
                    [f"ln {b}" for b in self.quadrangle_names()],
                    time[q[:, 0]],
                    self.quadrangles_intra_site,
                )
            ],
            "total_flux": [(["total flux"], np.array([np.nan]), np.array([False]))],
        }
        blocks = [(product, block) for product in self.products for block in columns[product]]
        return {
            "product": np.array([product for product, block in blocks for _ in block[0]]),
            "label": np.array([label for _, block in blocks for label in block[0]]),
            "time": np.concatenate([block[1] for _, block in blocks]),
            "intra_site": np.concatenate([block[2] for _, block in blocks]),
        }

    # -- who takes part ----------------------------------------------------------------------------

    @property
    def intra_site(self) -> np.ndarray:
        """Which rows join two telescopes of one site, shape (M,)."""
        return np.hypot(self.u, self.v) < INTRA_SITE

    @property
    def triangles_intra_site(self) -> np.ndarray:
        """Which triangles contain an intra-site baseline, shape (T,)."""
        return np.asarray(self.intra_site[self.triangles].any(axis=1))

    @property
    def quadrangles_intra_site(self) -> np.ndarray:
        """Which quadrangles contain an intra-site baseline, shape (Q,)."""
        return np.asarray(self.intra_site[self.quadrangles].any(axis=1))

    @property
    def triangle_stations(self) -> np.ndarray:
        """Station numbers (a, b, c) of the triangles, shape (T, 3)."""
        ab, bc = self.triangles[:, 0], self.triangles[:, 1]
        return np.stack([self.station1[ab], self.station2[ab], self.station2[bc]], axis=1)

    def triangle_names(self) -> list[str]:
        """For instance "AA-AZ-LM", T of them."""
        return ["-".join(self.stations[k] for k in three) for three in self.triangle_stations]

    def quadrangle_names(self) -> list[str]:
        """Numerator and denominator, for instance "AA-AZ.LM-PV/AA-PV.AZ-LM", Q of them."""
        name = self._baseline_names()
        return [f"{name[a]}.{name[b]}/{name[c]}.{name[d]}" for a, b, c, d in self.quadrangles]

    def _baseline_names(self) -> list[str]:
        pairs = zip(self.station1, self.station2, strict=True)
        return [f"{self.stations[a]}-{self.stations[b]}" for a, b in pairs]

    # -- other forms of the same table -------------------------------------------------------------

    def simulator(self, pixels: int, field_of_view: float, dtype: str = "float32") -> BlackHole:
        """The simulator of this table's products. field_of_view in microarcseconds."""
        return BlackHole(
            self.u,
            self.v,
            self.triangles,
            self.quadrangles,
            pixels,
            field_of_view,
            products=self.products,
            dtype=dtype,
        )

    def with_systematics(self, fraction: float) -> ClosureData:
        """The same table with another systematic error; 0 for thermal errors alone."""
        if not 0 <= fraction < 1:
            raise ValueError(
                f"systematics is {fraction}; give a fraction of the amplitude in [0, 1)"
            )
        return replace(
            self, systematics=fraction, provenance={**self.provenance, "systematics": fraction}
        )

    def without_intra_site(self) -> ClosureData:
        """The same closures less those that contain an intra-site baseline; all rows stay."""
        return replace(
            self,
            triangles=self.triangles[~self.triangles_intra_site],
            quadrangles=self.quadrangles[~self.quadrangles_intra_site],
            provenance={**self.provenance, "closures": "without those on intra-site baselines"},
        )

    def summary(self) -> str:
        """Counts, errors and provenance, one line each; to be printed with every result."""
        phase_error = _median(np.rad2deg(self.closure_phase_std))
        amplitude_error = _median(self.log_closure_amplitude_std)
        lines = [
            f"{self.source}, MJD {self.mjd}, {self.frequency / 1e9:.4f} GHz, stations "
            f"{' '.join(self.stations)}",
            f"{len(self.time)} visibilities in {len(np.unique(self.time))} scans, "
            f"{self.intra_site.sum()} of them intra-site",
            f"{len(self.triangles)} closure phases ({self.triangles_intra_site.sum()} with an "
            f"intra-site baseline), median error {phase_error:.2f} degrees",
            f"{len(self.quadrangles)} log closure amplitudes ({self.quadrangles_intra_site.sum()} "
            f"with an intra-site baseline), median error {amplitude_error:.3f}",
        ]
        return "\n".join([*lines, *(f"{key}: {value}" for key, value in self.provenance.items())])


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def table(
    time: ArrayLike,
    station1: ArrayLike,
    station2: ArrayLike,
    u: ArrayLike,
    v: ArrayLike,
    visibility: ArrayLike,
    thermal: ArrayLike,
    **described: Any,
) -> ClosureData:
    """Build the table from visibilities in any order: sort, orient, find the minimal closures.

    station1, station2: codes, in either order. The other columns as in `ClosureData`, shape (M,);
    described: its remaining fields (systematics, flux, source, provenance and so on). Stations are
    numbered by falling median |V|/thermal, so that the reference of the closures is the best one.
    """
    columns = [np.asarray(c) for c in (time, station1, station2, u, v, visibility, thermal)]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise ValueError(
            f"the columns of the table have shapes {[column.shape for column in columns]}; give "
            "seven vectors of one length, at least one row"
        )
    time, one, two, u, v, visibility, thermal = columns
    numbers = np.stack([time, u, v, np.real(visibility), np.imag(visibility), thermal])
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers).all(axis=0)).sum())
        raise ValueError(
            f"{bad} of {len(time)} visibilities hold NaN or infinity; remove those rows"
        )
    if np.any(visibility == 0) or np.any(thermal <= 0):
        raise ValueError(
            "a visibility is zero or its thermal error is not positive; closures need both to be "
            "non-zero, so remove those rows"
        )
    ratio = np.abs(visibility) / thermal
    codes = sorted(set(one.tolist()) | set(two.tolist()))
    median = {code: float(np.median(ratio[(one == code) | (two == code)])) for code in codes}
    stations = tuple(sorted(codes, key=lambda code: -median[code]))
    number = {code: k for k, code in enumerate(stations)}
    first = np.array([number[code] for code in one.tolist()])
    second = np.array([number[code] for code in two.tolist()])
    turn = first > second
    first, second = np.minimum(first, second), np.maximum(first, second)
    u, v = np.where(turn, -u, u), np.where(turn, -v, v)
    visibility = np.where(turn, np.conj(visibility), visibility).astype(np.complex128)
    order = np.lexsort((second, first, time))
    triangles, quadrangles = minimal_closures(time[order], first[order], second[order])
    return ClosureData(
        stations=stations,
        time=time[order].astype(np.float64),
        station1=first[order],
        station2=second[order],
        u=u[order].astype(np.float64),
        v=v[order].astype(np.float64),
        visibility=visibility[order],
        thermal=thermal[order].astype(np.float64),
        triangles=triangles,
        quadrangles=quadrangles,
        **described,
    )
