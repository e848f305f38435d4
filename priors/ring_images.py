"""The analytic RIAF-like ring prior: images of a thin glowing disc around a black hole.

It is a procedural stand-in for simulated images of a radiatively inefficient accretion flow
(RIAF). It is *not* a fluid or radiation simulation and was never compared with one. Three parts
are added: the direct image of an equatorial disc, a photon ring, and a faint halo.

Lengths in the disc are in units of the angular gravitational radius thg = GM/(c^2 D). Screen
coordinates (x, y) are turned by a position angle, y along the projected spin; b = |(x, y)|. With
inclination i and disc azimuth phi (phi = 0 towards the observer), a screen point shows the disc at

    kappa = sqrt((x/b)^2 + (y/b)^2/cos^2 i)
    sin phi = (x/b)/kappa,   cos phi = -(y/b)/(kappa cos i),   c = sin i cos phi
    q = (1 - c)/(1 + c),     r = sqrt(q^2 + b^2/(1 - c^2)) - q

where r inverts the light bending formula of Beloborodov (2002) for a black hole without spin.
The photon leaves at angle a from the radius, in the frame at rest there, and the gas moves at
speed beta in the plane, as in Narayan et al. (2021):

    cos a = 1 - (1 - c)(1 - 2/r),   k_phi = -sin a sin i sin phi/sqrt(1 - c^2)
    |k_z| = sin a cos i/sqrt(1 - c^2)
    beta = B min(1, (6/r)^(1/4)),   (beta_r, beta_phi) = beta (cos chi, sin chi)
    g = sqrt(1 - 2/r) sqrt(1 - beta^2)/(1 - beta_r cos a - beta_phi k_phi)
    j = (r/rp)^p1/(1 + (r/rp)^(p1 + p2))
    direct image  I0 ~ 1[r > 2.02] j g^(3 + alpha) exp(s G)/max(|k_z|, 0.15)

G is a Matern field of unit variance on (ln(r/2), phi), long along a trailing log spiral, after the
inhomogeneous fields of Lee & Gammie (2021). The photon ring I1 decays from the circle of radius
sqrt(27)(1 - 0.055 a^2) about (a sin i, 0), as exp(-d/(1.5 w)) outside and exp(-d/w) inside, times
max(0.05, 1 - B sin chi sin i x/b)^2. Its shift and shrinking with the spin a only imitate the
curve of Bardeen (1973). The halo is a Gaussian. The image is

    I = (1 - fh) [(1 - f1) I0 + f1 I1] + fh H,   each part of sum one,

blurred, faded at the border and normalised (`priors.image_canvas`).

To be said with every result obtained with this prior:

- It *always* holds a ring about the image centre. Finding a ring with it is no detection.
- thg is log-normal about 3.8 uas, the mass of M87* that the Event Horizon Telescope itself found
  (EHT Collaboration 2019). The default scatter of 35 % keeps the size open; a scatter of 15 %
  uses that result as an input.
- Run the control prior (`priors.control_images`), which makes no rings, beside it, and print the
  prior's own numbers beside the posterior's.

References:
    Bardeen 1973, in Black Holes (Les Astres Occlus), p. 215.
    Beloborodov 2002, ApJ 566, L85.
    Event Horizon Telescope Collaboration 2019, ApJ 875, L1 and L6.
    Lee & Gammie 2021, ApJ 906, 39.
    Narayan et al. 2021, ApJ 912, 35.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from priors.image_canvas import (
    Array,
    Canvas,
    Progress,
    columns,
    gaussian,
    keyed_generators,
    paint,
    shared,
    uniform,
    unit_field,
)

VERSION = 1  # raise it whenever the images of a given seed change
STREAM = 1
FIELD = 128  # cells of the texture field along ln(r/2) and along phi
FIELD_DEPTH = 4.0  # the field spans ln(r/2) in [0, 4), out to r = 109
HORIZON = 2.02
TAIL = 3.0  # thg stays within 3 standard deviations, so that the largest ring fits the image
SHADOW_RADIUS = float(np.sqrt(27))


@dataclass(frozen=True)
class Rings:
    """What defines N ring images up to their texture. Every field has shape (N,).

    Lengths marked uas are on the sky; other lengths are in gravitational radii; angles in radians.
    """

    thg_uas: Array  # angular gravitational radius GM/(c^2 D)
    cos_inclination: Array  # 1 is face-on
    position_angle: Array  # of the projected spin, east of north
    handedness: Array  # +1: the gas turns anticlockwise about the spin as seen from its tip
    peak_radius: Array  # rp, where the emissivity turns over
    inner_slope: Array  # p1
    outer_slope: Array  # p2
    speed: Array  # B, of the gas inside r = 6, in units of c
    flow_angle: Array  # chi: pi/2 is rotation, pi is infall
    spectral_index: Array  # alpha
    texture: Array  # s, standard deviation of the log brightness
    texture_along: Array  # l1, correlation length along the spiral, in ln r and radians
    texture_across: Array  # l2, correlation length across the spiral
    spiral_pitch: Array  # angle between the spiral and a circle
    ring_fraction: Array  # f1, share of the photon ring
    spin: Array  # a
    ring_width: Array  # w, decay length inside the photon ring
    halo_fraction: Array  # fh
    halo_fwhm_uas: Array  # along the spin
    halo_ratio: Array  # width across the spin over width along it
    halo_offset_uas: Array  # along the spin
    blur_fwhm_uas: Array

    @property
    def diameter_uas(self) -> Array:
        """Photon-ring diameter of a black hole without spin, 2 sqrt(27) thg, shape (N,)."""
        return 2 * SHADOW_RADIUS * self.thg_uas


def ring_images(
    count: int,
    seed: int,
    *,
    pixels: int = 64,
    field_of_view_uas: float = 128.0,
    mass_scale_uas: float = 3.8,
    mass_scatter: float = 0.35,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Draw ring images, shape (count, pixels, pixels), float32, non-negative, each of sum one.

    count, seed: image i depends on (seed, i) alone, so a longer request begins with a shorter one.
    pixels, field_of_view_uas: the canvas; row 0 is north, column 0 is east.
    mass_scale_uas: median of the angular gravitational radius thg, in uas.
    mass_scatter: standard deviation of ln thg, cut at 3 standard deviations.
    workers, progress: threads, and a callback (images done, count).
    Cost at 64 x 64: about 1.3 ms of one core an image; 4,000 take 2.9 s on 2 idle cores.
    """
    canvas = Canvas(pixels, field_of_view_uas)
    _check_mass(canvas, mass_scale_uas, mass_scatter)

    def painter(samples: range) -> NDArray[np.float32]:
        generators = keyed_generators(seed, samples, STREAM)
        rings = _draw(generators, mass_scale_uas, mass_scatter)
        return render(rings, canvas, texture_field(rings, generators))

    return paint(painter, count, canvas, workers, progress)


def draw_rings(
    count: int, seed: int, mass_scale_uas: float = 3.8, mass_scatter: float = 0.35
) -> Rings:
    """The parameters behind `ring_images(count, seed, ...)`, for truths and checks."""
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one image.")
    return _draw(keyed_generators(seed, range(count), STREAM), mass_scale_uas, mass_scatter)


def _draw(
    generators: list[np.random.Generator], mass_scale_uas: float, mass_scatter: float
) -> Rings:
    """One row of uniform numbers per sample, mapped to the distributions of the prior."""
    rows = iter(np.stack([generator.random(22) for generator in generators], axis=1))
    deviation = ndtri(uniform(rows, ndtr(-TAIL), ndtr(TAIL)))
    return Rings(
        thg_uas=mass_scale_uas * np.exp(mass_scatter * deviation),
        cos_inclination=uniform(rows, float(np.cos(np.deg2rad(65))), 1.0),
        position_angle=uniform(rows, 0, 2 * np.pi),
        handedness=np.where(next(rows) < 0.5, -1.0, 1.0),
        peak_radius=np.exp(uniform(rows, float(np.log(2.5)), float(np.log(7)))),
        inner_slope=uniform(rows, 0, 3),
        outer_slope=uniform(rows, 2.5, 6),
        speed=uniform(rows, 0.1, 0.75),
        flow_angle=uniform(rows, np.pi / 2, np.pi),
        spectral_index=uniform(rows, 0.5, 1.5),
        texture=uniform(rows, 0.1, 0.8),
        texture_along=uniform(rows, 0.5, 2),
        texture_across=uniform(rows, 0.1, 0.4),
        spiral_pitch=np.deg2rad(20 + 8 * ndtri(np.maximum(next(rows), 1e-12))),
        ring_fraction=uniform(rows, 0.03, 0.25),
        spin=uniform(rows, -0.95, 0.95),
        ring_width=uniform(rows, 0.15, 0.6),
        halo_fraction=uniform(rows, 0, 0.3),
        halo_fwhm_uas=uniform(rows, 40, 100),
        halo_ratio=uniform(rows, 0.4, 1),
        halo_offset_uas=uniform(rows, -20, 20),
        blur_fwhm_uas=uniform(rows, 2, 8),
    )


def texture_field(rings: Rings, generators: list[np.random.Generator]) -> NDArray[np.float32]:
    """The field G on (ln(r/2), phi), shape (N, FIELD, FIELD), mean 0, variance 1.

    Spectrum (1 + l1^2 k1^2 + l2^2 k2^2)^-2: Matern of smoothness 1 in two dimensions, with k1 along
    a spiral that trails the rotation and k2 across it.
    """
    k_log_r = (2 * np.pi / FIELD_DEPTH) * np.fft.fftfreq(FIELD, 1 / FIELD).astype(np.float32)
    k_phi = np.fft.rfftfreq(FIELD, 1 / FIELD).astype(np.float32)
    sine, cosine = columns(np.sin(rings.spiral_pitch), np.cos(rings.spiral_pitch))
    along, across = columns(rings.texture_along, rings.texture_across)
    k1 = sine * k_log_r[:, None] - cosine * k_phi
    k2 = cosine * k_log_r[:, None] + sine * k_phi
    return unit_field(generators, (1 + (along * k1) ** 2 + (across * k2) ** 2) ** -2)


def impact_parameter(r: Array | float, c: Array | float = 0.0) -> Array:
    """b of a photon emitted at radius r, with c the cosine between radius and line of sight.

    Beloborodov (2002), in gravitational radii; c = 0 everywhere on a face-on disc.
    """
    r, c = np.asarray(r, float), np.asarray(c, float)
    q = (1 - c) / (1 + c)
    return np.sqrt((1 - c * c) * ((r + q) ** 2 - q * q))


def emission_radius(b: Array, c: Array) -> Array:
    """The inverse of `impact_parameter`: where the photon seen at b left the disc."""
    q = (1 - c) / (1 + c)
    return np.sqrt(q * q + b * b / (1 - c * c)) - q


def render(rings: Rings, canvas: Canvas, field: Array | None = None) -> NDArray[np.float32]:
    """Paint the images of N rings, shape (N, n, n), float32, each of sum one.

    field: texture G on (ln(r/2), phi), shape (N, FIELD, FIELD); None paints a smooth disc.
    """
    across, along = canvas.rotated(rings.position_angle, rings.handedness)
    (thg,) = columns(rings.thg_uas)
    x, y = across / thg, along / thg
    b = np.maximum(np.sqrt(x * x + y * y), np.float32(1e-6))
    f1, fh = columns(rings.ring_fraction, rings.halo_fraction)
    direct = _direct_image(rings, x / b, y / b, b, field)
    ring = _photon_ring(rings, x, y, b, canvas.field_of_view_uas / canvas.fine / thg)
    halo = _halo(rings, across, along)
    light = shared((1 - fh) * (1 - f1), direct) + shared((1 - fh) * f1, ring)
    return canvas.finish(light + shared(fh, halo), rings.blur_fwhm_uas)


def _direct_image(rings: Rings, x: Array, y: Array, b: Array, field: Array | None) -> Array:
    """I0 up to a factor; x and y are the direction cosines on the screen, shape (N, 2n, 2n)."""
    cos_i, B, chi = columns(rings.cos_inclination, rings.speed, rings.flow_angle)
    rp, p1, p2 = columns(rings.peak_radius, rings.inner_slope, rings.outer_slope)
    alpha, s = columns(rings.spectral_index, rings.texture)
    sin_i = np.sqrt(1 - cos_i * cos_i)

    y_deprojected = y / cos_i
    kappa = np.sqrt(x * x + y_deprojected * y_deprojected)
    sin_phi, cos_phi = x / kappa, -y_deprojected / kappa
    c = sin_i * cos_phi
    r = emission_radius(b, c)
    outside = r > HORIZON
    r = np.maximum(r, np.float32(HORIZON))
    log_r = np.log(r)

    redshift = 1 - 2 / r
    cos_a = 1 - (1 - c) * redshift
    tangential = np.sqrt((1 - cos_a * cos_a) / (1 - c * c))  # sin a / sqrt(1 - c^2)
    k_phi, k_z = -tangential * sin_i * sin_phi, tangential * cos_i
    beta = B * np.minimum(1, np.sqrt(np.sqrt(6 / r)))
    doppler = 1 - beta * (np.cos(chi) * cos_a + np.sin(chi) * k_phi)
    log_g = 0.5 * np.log(redshift * (1 - beta * beta)) - np.log(doppler)
    log_rp = log_r - np.log(rp)
    log_light = p1 * log_rp + (3 + alpha) * log_g
    if field is not None:
        log_light += s * _interpolate(field, log_r - np.float32(np.log(2)), sin_phi, cos_phi)
    turnover = 1 + np.exp((p1 + p2) * log_rp)
    return outside * np.exp(log_light) / (turnover * np.maximum(k_z, np.float32(0.15)))


def _interpolate(field: Array, depth: Array, sin_phi: Array, cos_phi: Array) -> Array:
    """Bilinear look-up of the periodic texture at (depth, phi), shape (N, 2n, 2n).

    Columns are counted from phi = -pi; the field is stationary, so any origin serves.
    """
    wrapped = np.pad(field, ((0, 0), (0, 1), (0, 1)), mode="wrap")
    row = np.minimum(depth * np.float32(FIELD / FIELD_DEPTH), np.float32(FIELD - 1e-3))
    column = (np.arctan2(sin_phi, cos_phi) + np.float32(np.pi)) * np.float32(FIELD / (2 * np.pi))
    column = np.clip(column, 0, np.float32(FIELD - 1e-3))
    top, left = row.astype(np.int32), column.astype(np.int32)
    row -= top
    column -= left
    stride = FIELD + 1
    corner = left + stride * top + (stride * stride) * np.arange(len(field))[:, None, None]
    cells = wrapped.reshape(-1)
    above = cells.take(corner, mode="wrap")
    above += column * (cells.take(corner + 1, mode="wrap") - above)
    below = cells.take(corner + stride, mode="wrap")
    below += column * (cells.take(corner + (stride + 1), mode="wrap") - below)
    return above + row * (below - above)


def _photon_ring(rings: Rings, x: Array, y: Array, b: Array, cell: Array) -> Array:
    """I1 up to a factor, shape (N, 2n, 2n); cell is a fine pixel in gravitational radii."""
    cos_i, B, chi = columns(rings.cos_inclination, rings.speed, rings.flow_angle)
    a, width = columns(rings.spin, rings.ring_width)
    sin_i = np.sqrt(1 - cos_i * cos_i)
    radius = SHADOW_RADIUS * (1 - 0.055 * a * a)
    distance = np.hypot(x - a * sin_i, y) - radius.astype(np.float32)
    width = np.maximum(width, cell)  # a thinner ring would be beaded by the grid
    decay = np.where(distance > 0, distance / (-1.5 * width), distance / width)
    boost = np.maximum(np.float32(0.05), 1 - (B * np.sin(chi) * sin_i) * (x / b))
    return np.exp(decay) * boost * boost


def _halo(rings: Rings, across: Array, along: Array) -> Array:
    """H up to a factor, shape (N, 2n, 2n)."""
    fwhm, ratio, offset = columns(rings.halo_fwhm_uas, rings.halo_ratio, rings.halo_offset_uas)
    return gaussian(along - offset, across, fwhm, fwhm * ratio)


def _check_mass(canvas: Canvas, mass_scale_uas: float, mass_scatter: float) -> None:
    if not mass_scale_uas > 0 or not mass_scatter >= 0:
        raise ValueError(
            f"mass_scale_uas is {mass_scale_uas} and mass_scatter is {mass_scatter}; give a "
            "positive scale in uas and a scatter of 0 or more (0.35 is 35 %)."
        )
    largest = SHADOW_RADIUS * mass_scale_uas * float(np.exp(TAIL * mass_scatter))
    if largest > canvas.clear_radius_uas:
        raise ValueError(
            f"the largest ring of this prior has a radius of {largest:.0f} uas, but a field of "
            f"view of {canvas.field_of_view_uas:g} uas is clear to {canvas.clear_radius_uas:.0f} "
            "uas only; widen field_of_view_uas, or lower mass_scale_uas or mass_scatter."
        )
