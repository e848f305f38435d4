"""The table of closures, synthetic observations and chi-squares of M87."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.m87.chi_squares import chi_square_table, chi_squares
from experiments.m87.data import table
from experiments.m87.synthetic import observe, synthetic_data
from tests.experiments.crescent import FIELD, crescent

PIXELS = 32
EVERY = ("visibility", "amplitude", "closure_phase", "log_closure_amplitude")


@pytest.fixture(scope="module")
def truth():
    return crescent(PIXELS)


@pytest.fixture(scope="module")
def synthetic(truth):
    return observe(truth, FIELD, seed=0)


# -- the table -----------------------------------------------------------------------------------


def test_that_the_whitened_residual_is_the_sum_of_the_chi_squares(synthetic):
    images = np.random.default_rng(0).random((5, PIXELS, PIXELS))
    data = synthetic
    simulator = data.simulator(PIXELS, FIELD, dtype="float64")
    residual = (((data.y - simulator(images)) / data.std) ** 2).sum(axis=1)
    chi = chi_squares(images, data, FIELD)
    expected = (
        len(data.triangles) * chi["closure_phase"]
        + len(data.quadrangles) * chi["log_closure_amplitude"]
    )
    np.testing.assert_allclose(residual, expected, rtol=1e-12)


def test_that_the_residual_of_the_linear_products_is_their_chi_square_too(synthetic, truth):
    data = replace(synthetic, products=("visibility",))
    simulator = data.simulator(PIXELS, FIELD, dtype="float64")
    residual = (((data.y - simulator(truth[None])) / data.std) ** 2).sum(axis=1)
    chi = chi_squares(truth[None], data, FIELD)
    np.testing.assert_allclose(residual, 2 * len(data.u) * chi["visibility"])


def test_that_errors_of_closures_follow_from_those_of_their_baselines(synthetic):
    relative = synthetic.sigma / np.abs(synthetic.visibility)
    for closures, std in (
        (synthetic.triangles, synthetic.closure_phase_std),
        (synthetic.quadrangles, synthetic.log_closure_amplitude_std),
    ):
        expected = [np.sqrt(sum(relative[row] ** 2 for row in rows)) for rows in closures]
        np.testing.assert_allclose(std, expected)
    thermal = synthetic.with_systematics(0.0)
    np.testing.assert_allclose(thermal.sigma, synthetic.thermal)
    expected = np.sqrt(synthetic.thermal**2 + (0.02 * np.abs(synthetic.visibility)) ** 2)
    np.testing.assert_allclose(synthetic.sigma, expected)


def test_that_every_datum_has_a_label_a_time_and_a_product(synthetic):
    data = replace(synthetic, products=(*EVERY, "total_flux"), flux=0.6, flux_std=0.05)
    each = data.per_datum()
    simulator = data.simulator(PIXELS, FIELD)
    assert {name: len(column) for name, column in each.items()} == dict.fromkeys(each, len(data.y))
    assert data.y.shape == data.std.shape == simulator.y_shape
    for name, place in simulator.slices.items():
        assert set(each["product"][place]) == {name}
    assert each["label"][simulator.slices["closure_phase"]][0].startswith("cos AA-")
    assert (data.y[-1], data.std[-1]) == (0.6, 0.05)


def test_that_a_total_flux_without_an_error_is_refused(synthetic):
    with pytest.raises(ValueError, match="flux_std"):
        _ = replace(synthetic, products=("total_flux",)).y


def test_that_the_order_and_direction_of_the_rows_do_not_matter(synthetic):
    data, rng = synthetic, np.random.default_rng(1)
    order, turn = rng.permutation(len(data.u)), rng.random(len(data.u)) < 0.5
    names = np.array(data.stations)
    one, two = names[data.station1], names[data.station2]
    sign = np.where(turn, -1, 1)
    visibility = np.where(turn, data.visibility.conj(), data.visibility)
    one, two = np.where(turn, two, one), np.where(turn, one, two)
    columns = (data.time, one, two, sign * data.u, sign * data.v, visibility, data.thermal)
    again = table(*(column[order] for column in columns), systematics=0.02)
    np.testing.assert_array_equal(again.y, data.y)
    np.testing.assert_array_equal(again.std, data.std)
    np.testing.assert_array_equal(again.u, data.u)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"visibility": np.nan}, "NaN or infinity"),
        ({"visibility": 0}, "non-zero"),
        ({"thermal": 0.0}, "non-zero"),
    ],
)
def test_that_unusable_rows_are_refused(row, sentence):
    columns = {
        "time": np.zeros(3),
        "station1": np.array(["AA", "AA", "LM"]),
        "station2": np.array(["LM", "SM", "SM"]),
        "u": np.ones(3),
        "v": np.ones(3),
        "visibility": np.ones(3, dtype=complex),
        "thermal": np.ones(3),
    }
    assert len(table(**columns).triangles) == 1
    for name, value in row.items():
        columns[name] = columns[name].copy()
        columns[name][1] = value
    with pytest.raises(ValueError, match=sentence):
        table(**columns)
    with pytest.raises(ValueError, match="one length"):
        table(**{**columns, "u": np.ones(2)})


# -- synthetic observations ----------------------------------------------------------------------


def test_that_random_station_phases_leave_the_closures_alone(synthetic, truth):
    with_phases = synthetic_data(truth, synthetic, FIELD, seed=7)
    without = synthetic_data(truth, synthetic, FIELD, seed=7, station_phases=False)
    turned = np.angle(with_phases.visibility / without.visibility)
    assert np.abs(turned).max() > 1
    np.testing.assert_allclose(with_phases.y, without.y, atol=1e-12)
    np.testing.assert_allclose(with_phases.std, without.std, rtol=1e-12)


def test_that_gain_amplitudes_leave_noiseless_closures_alone(synthetic, truth):
    quiet = replace(synthetic, thermal=1e-12 * synthetic.thermal, systematics=0.0)
    gains = synthetic_data(truth, quiet, FIELD, seed=7, gain_spread=0.5)
    exact = quiet.simulator(PIXELS, FIELD, dtype="float64")(truth[None])[0]
    assert np.abs(gains.visibility).max() > 1.2 * 0.6
    np.testing.assert_allclose(gains.y, exact, atol=1e-8)


@pytest.mark.parametrize("systematic_errors", [True, False])
def test_that_the_truth_scores_a_chi_square_of_one_when_all_errors_are_drawn(
    synthetic, truth, systematic_errors
):
    data = synthetic if systematic_errors else synthetic.with_systematics(0.0)
    scores = [
        chi_squares(truth[None], synthetic_data(truth, data, FIELD, seed), FIELD)
        for seed in range(60)
    ]
    # Closures that share a baseline are correlated, which widens the scatter but not the mean;
    # the rows with weak visibilities are not quite Gaussian.
    for product in ("closure_phase", "log_closure_amplitude"):
        assert np.mean([chi[product][0] for chi in scores]) == pytest.approx(1, abs=0.15)


def test_that_the_seed_alone_decides_the_errors(synthetic, truth):
    one, same, other = (synthetic_data(truth, synthetic, FIELD, seed=k).y for k in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_that_a_synthetic_table_says_so(synthetic, truth):
    assert "SYNTHETIC, seed 5" in synthetic_data(truth, synthetic, FIELD, seed=5).summary()


# -- chi-squares ---------------------------------------------------------------------------------


def test_that_a_failed_member_has_no_chi_square_and_leaves_the_others_unmoved(synthetic, truth):
    images = np.stack([truth, np.full_like(truth, np.nan), 2 * truth, 0 * truth])
    chi, alone = chi_squares(images, synthetic, FIELD), chi_squares(truth[None], synthetic, FIELD)
    for product in ("closure_phase", "log_closure_amplitude"):
        assert np.isnan(chi[product][[1, 3]]).all()
        np.testing.assert_array_equal(chi[product][0], alone[product][0])
        np.testing.assert_allclose(chi[product][2], alone[product][0], rtol=1e-9)


def test_that_the_table_of_chi_squares_names_counts_and_budgets(synthetic, truth):
    lines = chi_square_table(truth[None], synthetic, FIELD).splitlines()
    assert len(lines) == 1 + 2 * 2 * 2 + 1
    assert f" {len(synthetic.triangles)} " in lines[1]
    assert lines[-1] == "1 members, 0 of them failed"


def test_that_images_without_a_member_axis_are_refused(synthetic, truth):
    with pytest.raises(ValueError, match="members first"):
        chi_squares(truth, synthetic, FIELD)
