"""The control prior: images of compact sources that hold no ring.

A ring found under a prior made of rings (`priors.ring_images`) proves nothing. This recipe paints
sources of the same total extent, none of which has a hole at its centre by construction, and
sends them down the same path: the same canvas, blur, fade, halo and log-image coordinates. What
the data still say under this prior, they say themselves. No crescents are painted.

Each image is one of five kinds, equally likely, times a log-normal texture exp(s G) with G a
periodic Matern field of smoothness 1 on the sky. rho is the radius in units of the source's own
ellipse; u and v run along and across its axis.

    blobs      a Gaussian under a strong texture, s in [0.5, 1.5]
    disk       1 - m (1 - sqrt(1 - rho^2)) inside rho = 1, limb darkening m in [0, 1]
    double     two Gaussians apart, the second with 0.1 to 1 times the flux of the first
    streak     a Gaussian with an axis ratio of 0.2 to 0.6
    jet        a Gaussian core, and a tail along +u that decays and widens

A strong texture may leave a dark patch anywhere, as any random field does. The sizes are chosen
so that the total extent is 30 to 100 uas, as for the rings and their discs. They are not
fitted to any class of observed source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
STREAM = 2
KINDS = ("blobs", "disk", "double", "streak", "jet")
LARGEST_UAS = 110.0


@dataclass(frozen=True)
class Sources:
    """What defines N ringless images up to their texture. Every field has shape (N,).

    A kind reads the fields that it needs. Angles in radians, lengths in uas on the sky.
    """

    kind: NDArray[np.intp]  # index into KINDS
    position_angle: Array  # of the long axis, east of north
    extent_uas: Array  # FWHM, diameter, or length from end to end along the axis
    axis_ratio: Array  # in [0, 1]: 0 is the flattest of its kind, 1 the roundest
    limb_darkening: Array  # disk
    separation: Array  # double: distance of the two, as a share of the extent
    brightness_ratio: Array  # second over first: fluxes of a double; peaks of tail and core
    first_width: Array  # double and jet: in [0, 1], from the narrowest core to the widest
    second_width: Array  # double: the same for the second; jet: how fast the tail widens
    texture: Array  # in [0, 1], from the smoothest of its kind to the roughest
    texture_length_uas: Array
    halo_fraction: Array
    halo_fwhm_uas: Array
    halo_ratio: Array
    halo_offset_uas: Array
    blur_fwhm_uas: Array


def control_images(
    count: int,
    seed: int,
    *,
    pixels: int = 64,
    field_of_view_uas: float = 128.0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Draw ringless images, shape (count, pixels, pixels), float32, non-negative, each of sum one.

    count, seed: image i depends on (seed, i) alone, so a longer request begins with a shorter one.
    pixels, field_of_view_uas: the canvas; row 0 is north, column 0 is east.
    workers, progress: threads, and a callback (images done, count).
    Cost at 64 x 64: about 0.7 ms of one core an image.
    """
    canvas = Canvas(pixels, field_of_view_uas)
    if canvas.clear_radius_uas < LARGEST_UAS / 2:
        raise ValueError(
            f"the largest source is {LARGEST_UAS:g} uas across, but a field of view of "
            f"{field_of_view_uas:g} uas is clear over {2 * canvas.clear_radius_uas:.0f} uas only; "
            "widen field_of_view_uas to 120 uas or more."
        )

    def painter(samples: range) -> NDArray[np.float32]:
        generators = keyed_generators(seed, samples, STREAM)
        sources = _draw(generators)
        return render(sources, canvas, texture_field(sources, canvas, generators))

    return paint(painter, count, canvas, workers, progress)


def draw_sources(count: int, seed: int) -> Sources:
    """The parameters behind `control_images(count, seed)`, for truths and checks."""
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one image.")
    return _draw(keyed_generators(seed, range(count), STREAM))


def _draw(generators: list[np.random.Generator]) -> Sources:
    rows = iter(np.stack([generator.random(16) for generator in generators], axis=1))
    return Sources(
        kind=np.minimum((next(rows) * len(KINDS)).astype(np.intp), len(KINDS) - 1),
        position_angle=uniform(rows, 0, 2 * np.pi),
        extent_uas=uniform(rows, 40, LARGEST_UAS),
        axis_ratio=next(rows),
        limb_darkening=next(rows),
        separation=uniform(rows, 0.4, 0.75),
        brightness_ratio=np.exp(uniform(rows, float(np.log(0.1)), 0.0)),
        first_width=next(rows),
        second_width=next(rows),
        texture=next(rows),
        texture_length_uas=uniform(rows, 4, 20),
        halo_fraction=uniform(rows, 0, 0.3),
        halo_fwhm_uas=uniform(rows, 40, 100),
        halo_ratio=uniform(rows, 0.4, 1),
        halo_offset_uas=uniform(rows, -20, 20),
        blur_fwhm_uas=uniform(rows, 2, 8),
    )


def texture_field(
    sources: Sources, canvas: Canvas, generators: list[np.random.Generator]
) -> NDArray[np.float32]:
    """The field G on the fine grid, shape (N, 2n, 2n), mean 0, variance 1.

    Spectrum (1 + l^2 k^2)^-2, with l the texture length and k in radians per uas.
    """
    (length,) = columns(sources.texture_length_uas)
    step = 2 * np.pi / canvas.field_of_view_uas
    k_rows = step * np.fft.fftfreq(canvas.fine, 1 / canvas.fine).astype(np.float32)
    k_columns = step * np.fft.rfftfreq(canvas.fine, 1 / canvas.fine).astype(np.float32)
    k_squared = (k_rows[:, None] ** 2 + k_columns**2).astype(np.float32)
    return unit_field(generators, (1 + length * length * k_squared) ** -2)


def render(sources: Sources, canvas: Canvas, field: Array | None = None) -> NDArray[np.float32]:
    """Paint the images of N sources, shape (N, n, n), float32, each of sum one.

    field: texture G on the fine grid, shape (N, 2n, 2n); None paints smooth sources.
    """
    across, along = canvas.rotated(sources.position_angle)
    light = np.empty_like(along)
    for kind, shape in enumerate((_blobs, _disk, _double, _streak, _jet)):
        these = np.flatnonzero(sources.kind == kind)
        if these.size:
            light[these] = shape(_only(sources, these), along[these], across[these])
    if field is not None:
        rough = np.where(sources.kind == 0, 0.5 + sources.texture, 0.4 * sources.texture)
        light *= np.exp(columns(rough)[0] * field)
    halo = _halo(sources, along, across)
    (fh,) = columns(sources.halo_fraction)
    return canvas.finish(shared(1 - fh, light) + shared(fh, halo), sources.blur_fwhm_uas)


def _blobs(s: Sources, u: Array, v: Array) -> Array:
    extent, ratio = columns(0.8 * s.extent_uas, 0.6 + 0.4 * s.axis_ratio)
    return gaussian(u, v, extent, extent * ratio)


def _disk(s: Sources, u: Array, v: Array) -> Array:
    radius, ratio, limb = columns(s.extent_uas / 2, 0.6 + 0.4 * s.axis_ratio, s.limb_darkening)
    height = 1 - (u / radius) ** 2 - (v / (radius * ratio)) ** 2
    return (height > 0) * (1 - limb * (1 - np.sqrt(np.maximum(height, 0))))


def _double(s: Sources, u: Array, v: Array) -> Array:
    extent, ratio = columns(s.extent_uas, s.brightness_ratio)
    first, second = columns(0.15 + 0.25 * s.first_width, 0.15 + 0.25 * s.second_width)
    flatness, shift = columns(0.6 + 0.4 * s.axis_ratio, 0.5 * s.separation * s.extent_uas)
    near = gaussian(u - shift, v, first * extent, first * extent * flatness)
    far = gaussian(u + shift, v, second * extent, second * extent * flatness)
    return near + ratio * (first / second) ** 2 * far


def _streak(s: Sources, u: Array, v: Array) -> Array:
    extent, ratio = columns(0.8 * s.extent_uas, 0.2 + 0.4 * s.axis_ratio)
    return gaussian(u, v, extent, extent * ratio)


def _jet(s: Sources, u: Array, v: Array) -> Array:
    """The core sits a third of the extent before the centre; the tail decays over that length."""
    length, bright = columns(s.extent_uas / 3, s.brightness_ratio)
    core, opening = columns(8 + 12 * s.first_width, 0.1 + 0.4 * s.second_width)
    u = u + length
    downstream = np.maximum(u, 0)
    width = core * np.float32(0.8) + opening * downstream
    tail = gaussian(np.minimum(u, 0), v, core, width) * np.exp(-downstream / length)
    return gaussian(u, v, core, core) + bright * tail


def _halo(s: Sources, u: Array, v: Array) -> Array:
    fwhm, ratio, offset = columns(s.halo_fwhm_uas, s.halo_ratio, s.halo_offset_uas)
    return gaussian(u - offset, v, fwhm, fwhm * ratio)


def _only(sources: Sources, these: NDArray[np.intp]) -> Sources:
    return Sources(**{name: values[these] for name, values in vars(sources).items()})
