"""Figures of merit against a reference: energy distance, errors in standard deviations, ranks."""

import math

import numpy as np
import pytest
import torch

import enkg
from enkg import metrics
from tests.enkg.problems import normal


def test_that_the_energy_distance_is_the_double_sum():
    a, b = normal(7, 3, 2), normal(5, 3, 2, seed=1)

    def gap(x, y):
        return (x[:, None] - y).flatten(2).norm(dim=2).sum()

    expected = gap(a, b) / 35 - gap(a, a) / 84 - gap(b, b) / 40
    assert metrics.energy_distance(a, b) == pytest.approx(float(expected), rel=1e-12)
    assert metrics.energy_distance(b, a) == pytest.approx(float(expected), rel=1e-12)


def test_that_the_energy_distance_of_one_law_is_zero_on_average():
    # The biased form would give E|X - X'| / 10, here .3.
    values = [
        metrics.energy_distance(normal(10, 5, seed=2 * k), normal(10, 5, seed=2 * k + 1))
        for k in range(300)
    ]
    error = np.std(values) / math.sqrt(300)
    assert abs(np.mean(values)) < 4 * error
    assert error < 0.02


def test_that_the_energy_distance_of_shifted_normals_is_its_closed_form():
    # In one dimension E|N(m, 2)| = 2 phi(m / sqrt 2) sqrt 2 + m (2 Phi(m / sqrt 2) - 1).
    m = 1.5
    z = m / math.sqrt(2)
    density = math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    across = math.sqrt(2) * 2 * density + m * math.erf(z / math.sqrt(2))
    expected = across - 2 / math.sqrt(math.pi)
    found = metrics.energy_distance(normal(3000, 1), m + normal(3000, 1, seed=1))
    assert found == pytest.approx(expected, rel=0.06)


def test_that_the_energy_distance_scales_with_the_elements_and_sees_the_spread():
    a, b = normal(200, 6), normal(200, 6, seed=1)
    whole = metrics.energy_distance(a, 2 * b)
    assert metrics.energy_distance(10 * a, 20 * b) == pytest.approx(10 * whole, rel=1e-9)
    assert whole > 0.15  # the means agree


def test_that_samples_of_another_shape_are_refused():
    for a, b in ((normal(4, 2), normal(4, 3)), (normal(1, 2), normal(4, 2))):
        with pytest.raises(enkg.InputError, match="at least two"):
            metrics.energy_distance(a, b)


def test_that_exact_draws_err_by_one_over_the_root_of_their_number():
    # Of 4,000 elements, so to 1 %.
    zero, one = torch.zeros(4000), torch.ones(4000)
    for members in (4, 100):
        found = metrics.standard_errors(normal(members, 4000), zero, one)
        assert found == pytest.approx(members**-0.5, rel=0.05)
    std = torch.linspace(0.1, 3, 4000)
    shifted = 5 + std * (2 + normal(50, 4000))
    assert metrics.standard_errors(shifted, zero + 5, std) == pytest.approx(2, rel=0.02)


def test_that_the_ratio_of_spreads_is_that_of_each_element():
    std = torch.tensor([1.0, 10.0])
    x = normal(20_000, 2) * torch.tensor([2.0, 5.0])
    assert metrics.std_ratio(x, std) == pytest.approx((2 + 0.5) / 2, rel=0.02)


def test_that_ranks_of_calibrated_ensembles_are_flat_and_of_narrow_ones_are_not():
    ensembles, truths = normal(400, 4, 50), normal(400, 50, seed=1)
    counts = metrics.rank_histogram(ensembles, truths)
    assert counts.shape == (5,)
    assert int(counts.sum()) == 20_000
    assert float((counts / 4000 - 1).abs().max()) < 0.08  # standard error .014
    narrow = metrics.rank_histogram(0.3 * ensembles, truths)
    assert int(narrow[0] + narrow[-1]) > 0.7 * 20_000
    high = metrics.rank_histogram(ensembles, truths + 9)
    assert high.tolist() == [0, 0, 0, 0, 20_000]
