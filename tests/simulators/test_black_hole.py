"""The interferometer: closed forms first, then what every simulator must obey."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulators.black_hole import (
    MICROARCSECOND,
    BlackHole,
    closure_phases,
    closure_phasors,
    coverage,
    log_closure_amplitudes,
    minimal_closures,
    pixel_centres,
)
from simulators.black_hole.operator import WEAK

FIVE = ("AA", "LM", "AZ", "PV", "SM")
PIXELS, FIELD = 16, 100.0
ALL = ("visibility", "amplitude", "closure_phase", "log_closure_amplitude", "total_flux")


@pytest.fixture(scope="module")
def track():
    return coverage(FIVE, hours=np.arange(1.0, 9.0))


@pytest.fixture(scope="module")
def sets(track):
    return minimal_closures(track.time, track.station1, track.station2)


@pytest.fixture(scope="module")
def simulator(track, sets):
    return BlackHole(track.u, track.v, *sets, pixels=PIXELS, field_of_view=FIELD)


@pytest.fixture
def images():
    return np.random.default_rng(0).random((7, PIXELS, PIXELS))


def every_product(simulator, **changes):
    """The same interferometer with all products, in float64."""
    settings = {"pixels": simulator.pixels, "products": ALL, "dtype": "float64", **changes}
    return BlackHole(
        simulator.u,
        simulator.v,
        simulator.triangles,
        simulator.quadrangles,
        field_of_view=FIELD,
        **settings,
    )


# -- theory --------------------------------------------------------------------------------------


def test_that_a_point_source_in_the_middle_has_no_phase(track, sets):
    simulator = BlackHole(track.u, track.v, *sets, pixels=15, field_of_view=FIELD, dtype="float64")
    image = np.zeros((1, 15, 15))
    image[0, 7, 7] = 2.5
    side = FIELD / 15 * MICROARCSECOND
    expected = 2.5 * (np.sinc(track.u * side) * np.sinc(track.v * side)) ** 2
    np.testing.assert_allclose(simulator.visibilities(image)[0], expected, rtol=0, atol=1e-14)
    y = simulator(image)[0]
    phases = simulator.slices["closure_phase"]
    np.testing.assert_allclose(y[phases][: len(sets[0])], 1, atol=1e-12)
    np.testing.assert_allclose(y[phases][len(sets[0]) :], 0, atol=1e-12)


def test_that_a_source_to_the_east_or_north_turns_the_phase_the_way_of_its_offset(track, sets):
    simulator = BlackHole(track.u, track.v, *sets, pixels=15, field_of_view=FIELD, dtype="float64")
    pixel = FIELD / 15 * MICROARCSECOND
    for row, column, east, north in ((7, 4, 3, 0), (2, 7, 0, 5), (9, 10, -3, -2)):
        image = np.zeros((1, 15, 15))
        image[0, row, column] = 1.0
        visibility = simulator.visibilities(image)[0]
        expected = np.exp(2j * np.pi * pixel * (track.u * east + track.v * north))
        np.testing.assert_allclose(visibility / np.abs(visibility), expected, atol=1e-12)


def test_that_a_gaussian_source_has_a_gaussian_visibility(track, sets):
    pixels, width = 64, 9.0  # microarcseconds, the standard deviation
    simulator = BlackHole(
        track.u, track.v, *sets, pixels=pixels, field_of_view=128.0, dtype="float64"
    )
    centre = pixel_centres(pixels, 128.0)
    image = np.exp(-(centre[:, None] ** 2 + centre[None, :] ** 2) / (2 * width**2))
    image /= image.sum()
    length = np.hypot(track.u, track.v) * width * MICROARCSECOND
    side = 2.0 * MICROARCSECOND
    pulse = (np.sinc(track.u * side) * np.sinc(track.v * side)) ** 2
    expected = pulse * np.exp(-2 * np.pi**2 * length**2)
    np.testing.assert_allclose(simulator.visibilities(image[None])[0], expected, atol=1e-9)


def test_that_station_gains_cancel_in_both_closures(track, sets):
    rng = np.random.default_rng(1)
    visibility = rng.standard_normal(len(track.u)) + 1j * rng.standard_normal(len(track.u))
    _, scan = np.unique(track.time, return_inverse=True)
    gain = np.exp(rng.standard_normal((8, 5)) + 2j * np.pi * rng.random((8, 5)))
    seen = gain[scan, track.station1] * np.conj(gain[scan, track.station2]) * visibility
    np.testing.assert_allclose(
        closure_phasors(seen, sets[0]), closure_phasors(visibility, sets[0]), atol=1e-12
    )
    np.testing.assert_allclose(
        log_closure_amplitudes(seen, sets[1]), log_closure_amplitudes(visibility, sets[1])
    )


def test_that_closures_do_not_see_where_the_source_is_nor_how_bright(simulator):
    still = every_product(simulator, products=("closure_phase", "log_closure_amplitude"))
    rng = np.random.default_rng(2)
    image = np.zeros((3, PIXELS, PIXELS))
    image[0, 3:10, 4:11] = rng.random((7, 7))
    image[1] = np.roll(image[0], (4, -3), axis=(0, 1))
    image[2] = 1e-20 * image[0]
    y = still(image)
    np.testing.assert_allclose(y[1], y[0], atol=1e-10)
    np.testing.assert_allclose(y[2], y[0], atol=1e-12)


def test_that_a_whole_turn_leaves_the_phasors_unchanged(track, sets):
    rng = np.random.default_rng(3)
    visibility = np.exp(1j * rng.uniform(-np.pi, np.pi, len(track.u)))
    turned = np.exp(1j * (np.angle(visibility) + 2 * np.pi * rng.integers(-3, 4, len(track.u))))
    np.testing.assert_allclose(
        closure_phasors(turned, sets[0]), closure_phasors(visibility, sets[0]), atol=1e-13
    )


def test_that_closures_are_what_their_definition_says():
    visibility = np.array([2 * np.exp(0.3j), 3 * np.exp(0.5j), 5 * np.exp(-1.1j), 7 + 0j])
    assert closure_phases(visibility, np.array([[0, 1, 2]]))[0] == pytest.approx(0.3 + 0.5 + 1.1)
    assert log_closure_amplitudes(visibility, np.array([[0, 1, 2, 3]]))[0] == pytest.approx(
        np.log(2 * 3 / (5 * 7))
    )


@pytest.mark.parametrize("stations", [3, 4, 5, 6, 7])
def test_that_minimal_sets_of_a_full_array_have_the_textbook_number_of_closures(stations):
    one, two = np.triu_indices(stations, k=1)
    triangles, quadrangles = minimal_closures(np.zeros(len(one)), one, two)
    assert len(triangles) == (stations - 1) * (stations - 2) // 2
    assert len(quadrangles) == stations * (stations - 3) // 2
    for number, columns, signs in ((triangles, 3, (1, 1, -1)), (quadrangles, 4, (1, 1, -1, -1))):
        design = np.zeros((len(number), len(one)))
        for k in range(columns):
            design[np.arange(len(number)), number[:, k]] += signs[k]
        if len(number):
            assert np.linalg.matrix_rank(design) == len(number)


def test_that_missing_baselines_lose_no_closure_that_could_be_formed():
    # Without the baseline 0-1 the triangles with station 0 are not enough.
    one, two = (a[1:] for a in np.triu_indices(5, k=1))
    triangles, _ = minimal_closures(np.zeros(len(one)), one, two)
    assert len(triangles) == len(one) - 5 + 1  # independent loops of a connected graph
    assert sum(one[row[0]] == 0 for row in triangles) < len(triangles)


def test_that_the_gradient_is_that_of_central_differences(simulator, images):
    exact = every_product(simulator)
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((2, *exact.y_shape))
    direction = rng.standard_normal((2, PIXELS, PIXELS))
    x, step = images[:2], 1e-6
    slope = (weight * (exact(x + step * direction) - exact(x - step * direction))).sum(1) / step / 2
    gradient = exact.vjp(x, weight)
    np.testing.assert_allclose((gradient * direction).sum((1, 2)), slope, rtol=1e-5)
    single = every_product(simulator, dtype="float32").vjp(x, weight)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(single, gradient, atol=1e-4 * scale)


def test_that_a_members_gradient_is_the_same_to_the_last_bit_alone_and_at_any_place(simulator):
    own = every_product(simulator, dtype="float32")
    rng = np.random.default_rng(7)
    x, v = rng.random((40, PIXELS, PIXELS)), rng.standard_normal((40, *own.y_shape))
    gradient = own.vjp(x, v)
    order = rng.permutation(len(x))
    np.testing.assert_array_equal(own.vjp(x[order], v[order]), gradient[order])
    np.testing.assert_array_equal(own.vjp(x[:1], v[:1]), gradient[:1])
    v[3, 5] = np.nan
    spoiled = own.vjp(x, v)
    assert np.isnan(spoiled[3]).all()
    np.testing.assert_array_equal(np.delete(spoiled, 3, 0), np.delete(gradient, 3, 0))
    assert own.vjp(x[:0], v[:0]).shape == (0, PIXELS, PIXELS)
    with pytest.raises(ValueError, match="v has shape"):
        own.vjp(x, v[:, :-1])


def test_that_the_geometry_of_the_earth_turns_once_a_sidereal_day():
    day = 24 / 1.00273790935
    first, again = (coverage(FIVE, hours=[4.0 + k * day], mjd=57854) for k in (0, 1))
    np.testing.assert_allclose(again.u, first.u, rtol=1e-6)
    np.testing.assert_allclose(again.v, first.v, rtol=1e-6)


# -- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_that_a_member_is_the_same_to_the_last_bit_alone_in_any_chunk_and_at_any_place(
    simulator, dtype
):
    own = every_product(simulator, dtype=dtype)
    x = np.random.default_rng(5).random((101, PIXELS, PIXELS))
    y = own(x)
    order = np.random.default_rng(6).permutation(len(x))
    np.testing.assert_array_equal(own(x[order]), y[order])
    for width in (1, 7, 32, 64):
        parts = [own(x[start : start + width]) for start in range(0, len(x), width)]
        np.testing.assert_array_equal(np.concatenate(parts), y)


def test_that_float32_is_as_good_as_the_data_need(simulator, images):
    exact = every_product(simulator, products=simulator.products)
    np.testing.assert_allclose(simulator(images), exact(images), atol=1e-4)


def test_that_a_member_with_weak_visibilities_is_as_good_as_the_others(track, sets):
    simulator, exact = (
        BlackHole(track.u, track.v, *sets, pixels=32, field_of_view=200.0, dtype=dtype)
        for dtype in ("float32", "float64")
    )
    centre = pixel_centres(32, 200.0)
    smooth = np.exp(-(centre[:, None] ** 2 + centre[None, :] ** 2) / (2 * 18.0**2))[None]
    smooth[0, 3, 4] += 1e-4
    weakest = np.abs(exact.visibilities(smooth)).min() / smooth.sum()
    assert weakest < WEAK
    np.testing.assert_allclose(simulator(smooth), exact(smooth), rtol=0, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-35, 1e-20, 1e20, 1e35])
def test_that_no_unit_of_brightness_is_too_small_or_too_large(simulator, images, unit):
    np.testing.assert_allclose(simulator(images * unit), simulator(images), atol=1e-5)


def test_that_products_fill_y_in_the_order_asked_for(simulator, images):
    both = every_product(simulator, products=("log_closure_amplitude", "total_flux", "amplitude"))
    y, visibility = both(images), both.visibilities(images)
    assert y.shape == (7, *both.y_shape)
    np.testing.assert_allclose(y[:, both.slices["amplitude"]], np.abs(visibility))
    np.testing.assert_allclose(y[:, both.slices["total_flux"]][:, 0], images.sum((1, 2)))
    np.testing.assert_allclose(
        y[:, both.slices["log_closure_amplitude"]],
        log_closure_amplitudes(visibility, both.quadrangles),
    )


def test_that_integer_and_float32_images_are_taken(simulator, images):
    whole = (images * 100).astype(np.int32)
    np.testing.assert_array_equal(simulator(whole), simulator(whole.astype(np.float64)))
    np.testing.assert_array_equal(simulator(whole), simulator(whole.astype(np.float32)))


def test_that_no_members_give_no_answers(simulator):
    assert simulator(np.zeros((0, PIXELS, PIXELS))).shape == (0, *simulator.y_shape)


def test_that_a_simulator_survives_pickle_and_a_file(simulator, images, tmp_path):
    y = simulator(images)
    copy = pickle.loads(pickle.dumps(simulator))
    assert len(pickle.dumps(simulator)) < 100_000  # the matrix stays behind
    np.testing.assert_array_equal(copy(images), y)
    simulator.save(tmp_path / "geometry.npz")
    again = BlackHole.load(tmp_path / "geometry.npz")
    assert again.products == simulator.products
    assert again.dtype == "float32"
    np.testing.assert_array_equal(again(images), y)
    assert [p.name for p in tmp_path.iterdir()] == ["geometry.npz"]


def test_that_importing_the_simulator_imports_no_heavy_package():
    code = (
        "import sys, simulators.black_hole; "
        "heavy = {'torch', 'ehtim', 'astropy', 'scipy', 'matplotlib', 'enkg'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
