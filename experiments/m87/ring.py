"""Fit of a ring to images: diameter, width, asymmetry, position angle, central brightness.

Method, on the image as it is (not blurred):

1. From a centre, 180 rays at equal position angles; brightness along each by bilinear interpolation
   every 0.5 microarcseconds from 0 to 60 (zero outside the image). r_pk = radius of the largest
   value with r in [8, 50].
2. The centre minimises   std(r_pk) / mean(r_pk) + fraction(r_pk <= 8.5) + 10 [mean(r_pk) < 10]:
   first on a 17 x 17 grid, one pixel apart, around the centroid of the image, with every sixth ray
   and steps of 2 microarcseconds; then by Nelder-Mead with all rays and steps. (On 96 ring-like
   images with all rays on the grid too, diameters differed by at most 0.34.)
3. diameter = 2 mean(r_pk);  diameter_spread = 2 std(r_pk) over rays.
4. width = median over rays of the full width at half of that ray's peak, no background subtracted,
   the crossings interpolated linearly. Rays that stay above half on one side are left out; if they
   are more than half of all, the width is NaN.
5. On the circle of that diameter, with theta the position angle (east of north):
   A exp(i PA) = sum I exp(i theta) / sum I;  asymmetry = A, position_angle = PA in [0, 360).
6. central_fraction = mean brightness within 5 microarcseconds / mean brightness on the circle.

The diameter is that of the peak. Blurring an image makes this smaller than the diameter of the ring
behind it; no correction is made. The fit is for rings only: a member is refused, with NaN and a
reason, when more than 20 % of its rays peak at an end of [8, 50], as those of a blob do, of a
double source or of a short arc. A long arc passes and reads small (half a ring of diameter 42 gives
28 with a spread of 8), and so may pure noise (spread 23): look at diameter_spread too.

References:
    EHT Collaboration (2019d), ApJL 875, L4: the ring parameters, whose definitions this follows in
    spirit, not to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

ANGLES = 180
STEP = 0.5
OUTER = 60.0
SEARCH = (8.0, 50.0)
REFUSED_FRACTION = 0.2
"""Microarcseconds and counts of the method above."""


@dataclass(frozen=True, eq=False)
class RingFits:
    """Ring parameters, one entry per member, shape (B,); NaN where there is a reason.

    Lengths in microarcseconds, position_angle in degrees east of north in [0, 360), east and north:
    the centre relative to the middle of the image. reason: "" for a good fit.
    """

    diameter: np.ndarray
    diameter_spread: np.ndarray
    width: np.ndarray
    asymmetry: np.ndarray
    position_angle: np.ndarray
    central_fraction: np.ndarray
    east: np.ndarray
    north: np.ndarray
    reason: tuple[str, ...]

    @property
    def good(self) -> np.ndarray:
        """Which members were fitted, shape (B,)."""
        return np.array([not reason for reason in self.reason], dtype=bool)

    def quantiles(self, levels: tuple[float, ...] = (0.16, 0.5, 0.84)) -> dict[str, np.ndarray]:
        """Quantiles of every parameter over the fitted members; angles around their own mean."""
        result = {}
        for name in PARAMETERS:
            values = getattr(self, name)[self.good]
            if not len(values):
                result[name] = np.full(len(levels), np.nan)
            elif name == "position_angle":
                middle = np.rad2deg(np.angle(np.exp(1j * np.deg2rad(values)).mean()))
                offset = (values - middle + 180) % 360 - 180
                result[name] = (np.quantile(offset, levels) + middle) % 360
            else:
                result[name] = np.nanquantile(values, levels)
        return result


PARAMETERS = (
    "diameter",
    "diameter_spread",
    "width",
    "asymmetry",
    "position_angle",
    "central_fraction",
    "east",
    "north",
)


def fit_rings(images: ArrayLike, field_of_view: float) -> RingFits:
    """Fit a ring to each image of (B, n, n), row 0 north, column 0 east.

    field_of_view in microarcseconds. Brightness in any unit. A member's fit depends on that member
    alone. Cost: 20 ms per image of 64 x 64 on one core.
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images have shape {images.shape}; expected (B, n, n), members first"
            + ("; for one image give image[None]" if images.ndim == 2 else "")
        )
    if not 0 < field_of_view < np.inf:
        raise ValueError(
            f"field_of_view is {field_of_view}; give microarcseconds, for instance 128"
        )
    fits = [_fit(image, field_of_view / images.shape[1]) for image in images]
    columns = {
        name: np.array([fit.get(name, np.nan) for fit, _ in fits], dtype=np.float64)
        for name in PARAMETERS
    }
    return RingFits(**columns, reason=tuple(reason for _, reason in fits))


class _Rays:
    """Positions along rays from a centre, in pixels, and the radii that belong to them."""

    def __init__(self, angles: int, radii: np.ndarray, pixel: float) -> None:
        self.theta = 2 * np.pi * np.arange(angles) / angles
        self.radii = radii
        # A step east is a step to lower columns; a step north a step to lower rows.
        self.row = -np.cos(self.theta)[:, None] * radii / pixel
        self.column = -np.sin(self.theta)[:, None] * radii / pixel

    def sample(self, image: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Brightness, shape (..., angles, radii), for centres (row, column) of shape (..., 2)."""
        row = centre[..., 0, None, None] + self.row
        column = centre[..., 1, None, None] + self.column
        return map_coordinates(image, [row, column], order=1, mode="constant", cval=0.0)

    def peaks(self, image: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Radius of the largest brightness of each ray, shape (..., angles)."""
        return self.radii[self.sample(image, centre).argmax(axis=-1)]


def _scatter(peaks: np.ndarray) -> np.ndarray:
    """What the centre minimises, shape (...,) from (..., angles)."""
    mean = peaks.mean(axis=-1)
    at_edge = (peaks <= SEARCH[0] + STEP).mean(axis=-1)
    return peaks.std(axis=-1) / mean + at_edge + 10.0 * (mean < SEARCH[0] + 2)


def _fit(image: np.ndarray, pixel: float) -> tuple[dict[str, float], str]:
    """Ring parameters of one image (n, n) and the reason why there are none."""
    if not np.isfinite(image).all():
        return {}, "the image is not finite"
    flux = image.sum()
    if not flux > 0:
        return {}, "the image has no positive total flux"
    image = image / flux
    searched = np.arange(SEARCH[0], SEARCH[1] + STEP / 2, STEP)
    coarse = _Rays(ANGLES // 6, searched[::4], pixel)
    fine = _Rays(ANGLES, searched, pixel)

    index = np.arange(len(image))
    centroid = np.array([image.sum(axis=1) @ index, image.sum(axis=0) @ index])
    offset = np.arange(-8, 9)
    grid = centroid + np.stack(np.meshgrid(offset, offset, indexing="ij"), axis=-1).reshape(-1, 2)
    start = grid[_scatter(coarse.peaks(image, grid)).argmin()]
    best = minimize(
        lambda centre: float(_scatter(fine.peaks(image, centre))),
        start,
        method="Nelder-Mead",
        options={
            "initial_simplex": start + np.array([[0, 0], [0.5, 0], [0, 0.5]]),
            "xatol": 0.05,
            "fatol": 1e-3,
            "maxfev": 120,
        },
    )
    centre = np.asarray(best.x)
    peaks = fine.peaks(image, centre)
    at_edge = float(((peaks <= SEARCH[0]) | (peaks >= SEARCH[1])).mean())
    if at_edge > REFUSED_FRACTION:
        return {}, (
            f"no ring: {at_edge:.0%} of the rays peak at {SEARCH[0]:.0f} or {SEARCH[1]:.0f} "
            "microarcseconds, the ends of the search"
        )
    return _describe(image, pixel, centre, peaks), ""


def _describe(
    image: np.ndarray, pixel: float, centre: np.ndarray, peaks: np.ndarray
) -> dict[str, float]:
    """Steps 3 to 6 for a known centre and known peaks."""
    middle = (len(image) - 1) / 2
    radius = peaks.mean()
    whole = _Rays(ANGLES, np.arange(0, OUTER + STEP / 2, STEP), pixel)
    profile = whole.sample(image, centre)
    circle = _Rays(ANGLES, np.array([radius]), pixel).sample(image, centre)[:, 0]
    moment = (circle * np.exp(1j * whole.theta)).sum() / circle.sum()
    # Few pixels have their middle within 5 microarcseconds: sample the disc, evenly in area.
    disc = _Rays(36, 5 * np.sqrt((np.arange(10) + 0.5) / 10), pixel).sample(image, centre)
    return {
        "diameter": 2 * radius,
        "diameter_spread": 2 * peaks.std(),
        "width": _width(profile, whole.radii, np.rint(peaks / STEP).astype(int)),
        "asymmetry": abs(moment),
        "position_angle": float(np.rad2deg(np.angle(moment)) % 360),
        "central_fraction": disc.mean() / circle.mean(),
        "east": float((middle - centre[1]) * pixel),
        "north": float((middle - centre[0]) * pixel),
    }


def _width(profile: np.ndarray, radii: np.ndarray, peak: np.ndarray) -> float:
    """Median full width at half maximum of profiles (angles, radii) with peaks at index `peak`."""
    angle = np.arange(len(profile))
    half = profile[angle, peak] / 2
    below = profile < half[:, None]
    index = np.arange(len(radii))
    inside = below & (index < peak[:, None])
    outside = below & (index > peak[:, None])
    inner = len(radii) - 1 - inside[:, ::-1].argmax(axis=1)  # last index below half before the peak
    outer = outside.argmax(axis=1)  # first index below half after the peak
    closed = inside.any(axis=1) & outside.any(axis=1)
    if closed.mean() < 0.5:
        return np.nan
    angle, half, inner, outer = angle[closed], half[closed], inner[closed], outer[closed]

    def crossing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Radius where the profile passes half, between neighbours `low` (below) and `high`."""
        share = (half - profile[angle, low]) / (profile[angle, high] - profile[angle, low])
        return radii[low] + share * (radii[high] - radii[low])

    return float(np.median(crossing(outer, outer - 1) - crossing(inner, inner + 1)))
