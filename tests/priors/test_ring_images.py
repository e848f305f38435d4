"""Ring and control images: closed forms first, then what every image and prior must obey."""

from dataclasses import replace

import numpy as np
import pytest

from priors import control_images as controls
from priors import ring_images as rings
from priors.image_canvas import Canvas, keyed_generators, unit_field

CANVAS = Canvas()
RECIPES = [rings.ring_images, controls.control_images]


def plain_rings(count: int = 1, /, **changes: float) -> rings.Rings:
    """Rings seen face-on at rest, without texture, spin, halo or visible blur."""
    drawn = rings.draw_rings(count, seed=0)
    settings = {
        "cos_inclination": 1.0,
        "position_angle": 0.0,
        "handedness": 1.0,
        "speed": 0.0,
        "texture": 0.0,
        "spin": 0.0,
        "halo_fraction": 0.0,
        "blur_fwhm_uas": 0.01,
        **changes,
    }
    return replace(drawn, **{name: np.full(count, value) for name, value in settings.items()})


def pixel_radii(canvas):
    axis = canvas.axis(canvas.pixels).astype(float)
    return np.hypot(axis[:, None], axis[None, :])


# --- closed forms ---------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "b"), [(2.0, np.sqrt(8)), (6.0, np.sqrt(48))])
def test_that_face_on_light_is_bent_as_beloborodov_says(r, b):
    assert rings.impact_parameter(r) == pytest.approx(b)
    assert rings.emission_radius(np.array(b), np.array(0.0)) == pytest.approx(r)


def test_that_the_bending_obeys_the_cosine_relation_at_every_angle():
    r, c = np.meshgrid(np.linspace(2.1, 40, 50), np.linspace(-0.9, 0.9, 31))
    cos_a = 1 - (1 - c) * (1 - 2 / r)
    b = r * np.sqrt((1 - cos_a**2) / (1 - 2 / r))
    np.testing.assert_allclose(rings.impact_parameter(r, c), b, rtol=1e-12)
    np.testing.assert_allclose(rings.emission_radius(b, c), r, rtol=1e-12)


@pytest.mark.parametrize("thg", [2.0, 3.8, 6.0])
def test_that_the_photon_ring_is_a_circle_of_diameter_two_root_27_thg(thg):
    canvas = Canvas(256)
    ring = plain_rings(thg_uas=thg, ring_fraction=1.0, ring_width=0.15)
    image = rings.render(ring, canvas)[0]
    radii, pixel = pixel_radii(canvas), 0.5
    bins = (radii / pixel).astype(int).ravel()
    profile = np.bincount(bins, image.ravel()) / np.bincount(bins)
    peak = (np.argmax(profile) + 0.5) * pixel
    assert 2 * peak == pytest.approx(2 * np.sqrt(27) * thg, abs=2 * pixel)
    assert ring.diameter_uas[0] == pytest.approx(2 * np.sqrt(27) * thg)
    east, north = canvas.axis(256)[None, :], canvas.axis(256)[:, None]
    assert abs((image * east).sum()) < 1e-3
    assert abs((image * north).sum()) < 1e-3


def test_that_a_face_on_disc_without_texture_is_the_closed_form_profile():
    ring = plain_rings(ring_fraction=0.0, speed=0.4, flow_angle=np.pi / 2)
    image = rings.render(ring, CANVAS)[0]
    axis = CANVAS.axis(CANVAS.fine).astype(float)
    b = np.hypot(axis[:, None], axis[None, :]) / ring.thg_uas[0]
    r = np.sqrt(1 + b * b) - 1
    outside, r = r > rings.HORIZON, np.maximum(r, rings.HORIZON)
    beta = 0.4 * np.minimum(1, (6 / r) ** 0.25)
    g = np.sqrt((1 - 2 / r) * (1 - beta**2))
    p1, p2, alpha = ring.inner_slope[0], ring.outer_slope[0], ring.spectral_index[0]
    x = r / ring.peak_radius[0]
    sin_a = np.sqrt(1 - (2 / r) ** 2)
    light = outside * x**p1 / (1 + x ** (p1 + p2)) * g ** (3 + alpha) / np.maximum(sin_a, 0.15)
    expected = light.reshape(64, 2, 64, 2).sum((1, 3)) * CANVAS.taper()
    np.testing.assert_allclose(image, expected / expected.sum(), atol=2e-6 * expected.max())


def test_that_a_face_on_image_without_texture_is_axisymmetric():
    image = rings.render(plain_rings(4), CANVAS)
    for turned in (np.rot90(image, 1, (1, 2)), image[:, ::-1], image.transpose(0, 2, 1)):
        np.testing.assert_allclose(turned, image, atol=1e-5 * image.max())


def test_that_the_approaching_side_is_brighter_and_the_handedness_mirrors_it():
    tilted = {"cos_inclination": 0.6, "speed": 0.6, "flow_angle": np.pi / 2}
    image = rings.render(plain_rings(**tilted), CANVAS)[0]
    mirrored = rings.render(plain_rings(**tilted, handedness=-1.0), CANVAS)[0]
    # Spin up, anticlockwise as seen from its tip: the gas comes towards us on the left, east.
    assert image[:, :32].sum() > 1.5 * image[:, 32:].sum()
    np.testing.assert_allclose(mirrored, image[:, ::-1], atol=1e-5 * image.max())


def test_that_the_position_angle_turns_the_image_from_north_to_east():
    tilted = {"cos_inclination": 0.6, "speed": 0.6, "spin": 0.9, "halo_fraction": 0.3}
    north = rings.render(plain_rings(**tilted), CANVAS)[0]
    east = rings.render(plain_rings(**tilted, position_angle=np.pi / 2), CANVAS)[0]
    np.testing.assert_allclose(east, np.rot90(north), atol=1e-4 * north.max())


@pytest.mark.parametrize("scatter", [0.15, 0.35])
def test_that_the_mass_scale_is_log_normal_cut_at_three_deviations(scatter):
    thg = rings.draw_rings(20_000, 3, mass_scatter=scatter).thg_uas
    logs = np.log(thg / 3.8)
    density = np.exp(-4.5) / np.sqrt(2 * np.pi)
    cut = np.sqrt(1 - 6 * density / 0.9973002)
    assert logs.mean() == pytest.approx(0, abs=4 * scatter / np.sqrt(20_000))
    assert logs.std() == pytest.approx(scatter * cut, rel=0.02)
    assert np.abs(logs).max() <= 3 * scatter
    assert thg.mean() == pytest.approx(3.8 * np.exp(scatter**2 / 2), rel=0.01)


def test_that_the_blur_keeps_the_light_and_widens_by_its_own_variance():
    light = np.zeros((2, 128, 128), np.float32)
    light[0, 64, 60] = 3.0
    light[1, 40:50, 70:90] = 1.0
    wide, narrow = (CANVAS.blur(light, np.full(2, fwhm)) for fwhm in (8.0, 4.0))
    np.testing.assert_allclose(wide.sum((1, 2)), light.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(CANVAS.blur(light, np.zeros(2)).sum((1, 2)), [3, 200], rtol=1e-5)
    assert min(wide.min(), narrow.min()) >= 0
    axis = CANVAS.axis(64).astype(float)

    def variance(images):
        weights = images.sum(1, dtype=float) / images.sum((1, 2), dtype=float)[:, None]
        return weights @ axis**2 - (weights @ axis) ** 2

    gained = (8.0**2 - 4.0**2) / (8 * np.log(2))
    np.testing.assert_allclose(variance(wide) - variance(narrow), gained, rtol=1e-3)


def test_that_light_crossing_the_border_does_not_come_back_on_the_other_side():
    light = np.zeros((1, 128, 128), np.float32)
    light[0, 64, 0] = 1.0
    blurred = CANVAS.blur(light, np.array([8.0]))[0]
    assert blurred[:, :10].sum() == pytest.approx(blurred.sum(), rel=1e-4)
    assert blurred[:, -10:].sum() < 1e-5


def test_that_random_fields_have_unit_variance_and_the_spectrum_asked_for():
    k1, k2 = np.fft.fftfreq(32, 1 / 32)[:, None], np.fft.rfftfreq(32, 1 / 32)
    power = (1 + 0.1 * (k1**2 + k2**2)) ** -2.0
    fields = unit_field(keyed_generators(0, range(1500), 9), np.broadcast_to(power, (1500, 32, 17)))
    assert fields.mean() == pytest.approx(0, abs=0.02)
    assert fields.var() == pytest.approx(1, rel=0.02)
    measured = np.mean(np.abs(np.fft.rfft2(fields)) ** 2, axis=0)
    ratio = measured / power
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=0.25)
    np.testing.assert_allclose(ratio[:, 0].mean() / ratio[:, 5].mean(), 1, atol=0.05)


def test_that_the_texture_is_longer_along_the_trailing_spiral_than_across():
    drawn = plain_rings(400, texture_along=1.5, texture_across=0.2, spiral_pitch=np.deg2rad(20))
    field = rings.texture_field(drawn, keyed_generators(1, range(400), 9))
    assert field.var() == pytest.approx(1, rel=0.05)
    # 10 cells of phi are 0.49 rad; along the spiral ln r falls by 0.49 tan 20 deg, 5.7 cells.
    trailing = np.mean(field * np.roll(field, (-6, 10), (1, 2)))
    leading = np.mean(field * np.roll(field, (6, 10), (1, 2)))
    assert trailing > leading + 0.1


# --- properties of both recipes -------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_that_images_are_finite_non_negative_and_normalised(recipe):
    images = recipe(120, 5)
    assert images.shape == (120, 64, 64)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() >= 0
    np.testing.assert_allclose(images.sum((1, 2)), 1, rtol=1e-5)
    border = np.maximum(images[:, [0, -1]].max((1, 2)), images[:, :, [0, -1]].max((1, 2)))
    assert (border < 0.1 * images.max((1, 2))).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_that_more_samples_begin_with_the_first_ones_on_any_number_of_threads(recipe):
    few, many = recipe(5, 7, workers=1), recipe(21, 7, workers=3)
    np.testing.assert_array_equal(few, many[:5])


@pytest.mark.parametrize("recipe", RECIPES)
def test_that_the_seed_and_the_sample_number_matter(recipe):
    first, other = recipe(3, 0), recipe(3, 1)
    assert np.abs(first - other).sum((1, 2)).min() > 0.1
    assert np.abs(first[0] - first[1]).sum() > 0.1


@pytest.mark.parametrize("recipe", RECIPES)
def test_that_the_size_of_the_pixels_changes_an_image_little(recipe):
    coarse = recipe(8, 2, pixels=64)
    fine = recipe(8, 2, pixels=128).reshape(8, 64, 2, 64, 2).sum((2, 4))
    if recipe is rings.ring_images:  # its texture does not live on the sky grid
        assert np.abs(coarse - fine).sum((1, 2)).max() < 0.1
    np.testing.assert_allclose(fine.sum((1, 2)), 1, rtol=1e-5)


def test_that_drawn_parameters_are_those_of_the_images():
    field = rings.texture_field(rings.draw_rings(8, 4), _after_the_parameters(8, 4))
    images = rings.render(rings.draw_rings(8, 4), CANVAS, field)
    np.testing.assert_array_equal(images, rings.ring_images(8, 4))


def _after_the_parameters(count, seed):
    generators = keyed_generators(seed, range(count), rings.STREAM)
    for generator in generators:
        generator.random(22)
    return generators


def test_that_most_ring_images_are_darker_at_the_centre_and_lopsided():
    images = rings.ring_images(64, 0)
    centre = images[:, 31:33, 31:33].mean((1, 2)) / images.max((1, 2))
    assert np.median(centre) < 0.2
    halves = images[:, :, :32].sum((1, 2))
    assert np.std(halves) > 0.1


def test_that_smooth_blobs_disks_and_streaks_are_brightest_at_the_centre():
    sources = controls.draw_sources(300, 0)
    plain = replace(sources, halo_fraction=np.zeros(300))
    images = controls.render(plain, CANVAS)
    single = np.isin(sources.kind, [controls.KINDS.index(k) for k in ("blobs", "disk", "streak")])
    assert len(np.unique(sources.kind)) == len(controls.KINDS)
    centre = images[:, 31:33, 31:33].mean((1, 2)) / images.max((1, 2))
    assert centre[single].min() > 0.95


def test_that_rings_and_controls_are_of_similar_extent():
    radii = pixel_radii(CANVAS).ravel()
    order = np.argsort(radii)

    def median_extent(images):
        inside = np.cumsum(images.reshape(len(images), -1)[:, order], axis=1)
        return 2 * np.median(radii[order][(inside < 0.8).sum(1)])

    ring, control = (median_extent(recipe(300, 0)) for recipe in RECIPES)
    assert 30 < control < 100
    assert control == pytest.approx(ring, rel=0.25)


def test_that_progress_reports_every_image():
    seen = []
    rings.ring_images(19, 0, pixels=16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 19), (16, 19), (19, 19)]


# --- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"pixels": 4}, "pixels is 4"),
        ({"field_of_view_uas": -1.0}, "positive width"),
        ({"field_of_view_uas": 60.0}, "widen field_of_view_uas"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_that_impossible_requests_are_refused_in_words(recipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(**{"count": 1, "seed": 0, **arguments})


@pytest.mark.parametrize("mass", [{"mass_scale_uas": 0.0}, {"mass_scatter": -0.1}])
def test_that_a_mass_scale_without_sense_is_refused(mass):
    with pytest.raises(ValueError, match="positive scale"):
        rings.ring_images(1, 0, **mass)
