"""Calibration statistics: exact ensembles pass, wrong ones are named, and counts follow by hand."""

from dataclasses import replace
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare, kstest

from enkg import calibration as c
from tests.enkg.problems import normal, small_problem

PROBLEM = small_problem()
SUMMARY = {"misfit_per_datum": 1.0, "trusted": True, "calls": 10, "failed": 1}
PRIOR = PROBLEM.gaussian.draw(99, range(200), 0)
DIRECTIONS = c.components(PRIOR)


def exchangeable(number: int, members: int = 40, width: float = 1.0, shift: float = 0.0):
    """A truth and an ensemble around a centre of its own, from one law where width is 1."""
    centre = 5 * normal(6, seed=1000 + number)
    draws = centre + normal(members + 1, 6, seed=number)
    return centre + shift + width * (draws[1:] - centre), draws[0]


def scores(truths: int, **kind) -> list[c.Score]:
    out = []
    for number in range(truths):
        x, truth = exchangeable(number, **kind)
        out.append(c.score(x, PRIOR, truth, DIRECTIONS, (0, number), SUMMARY))
    return out


@pytest.fixture(scope="module")
def exact() -> dict:
    return c.calibration(scores(300), 6)


def test_that_an_exchangeable_ensemble_is_calibrated(exact):
    assert exact["calibrated"], exact["reason"]
    for level, found in exact["coverage"].items():
        assert abs(found["mean"] - float(level)) < 4 * found["standard_error"]
    # Independent elements: the binomial error of 300 truths of 6 elements.
    error = sqrt(0.9 * 0.1 / (300 * 6))
    assert exact["coverage"]["0.9"]["standard_error"] == pytest.approx(error, rel=0.2)
    ratio = exact["spread_skill"]
    assert abs(ratio["mean"] - 1) < 4 * ratio["standard_error"]
    # log of a ratio of variances: the error has 1,800 squares of variance 2, halved by the root.
    assert ratio["standard_error"] == pytest.approx(sqrt(2 / 1800) / 2, rel=0.2)
    assert exact["crps"]["mean"] == pytest.approx(1 / sqrt(np.pi), rel=0.05)  # E|z| - E|z - z'|/2
    assert exact["p"] > 0.003
    assert (exact["calls"], exact["failed"], exact["trusted"]) == (3000, 300, 300)
    assert sum(exact["rank_histogram"]) == 1800
    assert chisquare(exact["rank_histogram"]).pvalue > 1e-3  # independent elements here


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"width": 0.5}, "too narrow"),
        ({"width": 2.0}, "too wide"),
        ({"shift": 0.8}, "ranks are not uniform"),
        ({"width": 1e-3}, "too narrow"),
        ({"width": 0.0}, "too narrow"),
    ],
)
def test_that_a_wrong_ensemble_is_named(kind, words):
    found = c.calibration(scores(60, **kind), 6)
    assert not found["calibrated"]
    assert words in found["reason"]


def test_that_few_truths_show_gross_faults_and_say_so():
    assert "6 truths show gross faults only" in c.calibration(scores(6), 6)["reason"]
    assert not c.calibration(scores(6, width=1e-3), 6)["calibrated"]
    assert c.calibration(scores(2), 6)["truths"] == 2


def test_that_a_right_ensemble_is_rarely_called_wrong():
    wrong = 0
    for trial in range(40):
        found = [
            c.score(*parts, DIRECTIONS, (trial, n), SUMMARY)
            for n in range(12)
            for x, truth in [exchangeable(100 * (trial + 1) + n)]
            for parts in [(x, PRIOR, truth)]
        ]
        wrong += not c.calibration(found, 6)["calibrated"]
    assert wrong <= 2


def test_that_correlated_elements_are_one_observation():
    # Six copies of one element: the error over truths is that of one, not of six.
    copies = []
    for number in range(200):
        x, truth = exchangeable(number)
        x, truth = x[:, :1].expand(-1, 6), truth[:1].expand(6)
        copies.append(c.score(x, PRIOR, truth, DIRECTIONS, (0, number), SUMMARY))
    found = c.calibration(copies, 6)
    assert found["calibrated"], found["reason"]
    error = found["coverage"]["0.9"]["standard_error"]
    assert error == pytest.approx(sqrt(0.9 * 0.1 / 200), rel=0.25)


def test_that_the_ranks_of_a_score_are_counted_as_defined():
    x = torch.arange(9.0).reshape(9, 1).expand(-1, 3)
    truth = torch.tensor([-1.0, 4.5, 99.0])
    found = c.score(x, x, truth, torch.empty(0, 3), (0, 0), SUMMARY)
    assert np.flatnonzero(found.histogram).tolist() == [0, 5, 9]  # 0, 5 and 9 members lie below
    assert set(found.ranks) == {"mean", "an element"}
    assert found.square_error == pytest.approx((25 + 0.25 + 95**2) / 3)
    assert found.variance == pytest.approx(10 / 9 * 7.5)
    assert found.coverage == {"0.5": 1 / 3, "0.68": 1 / 3}  # nine members have no 90 %
    assert found.crps == found.prior_crps


def test_that_ties_are_broken_by_chance_and_always_alike():
    same = torch.ones(9, 4000)
    found = c.score(same, same, torch.ones(4000), torch.empty(0, 4000), (3, 1), SUMMARY)
    assert chisquare(found.histogram).pvalue > 1e-3
    again = c.score(same, same, torch.ones(4000), torch.empty(0, 4000), (3, 1), SUMMARY)
    assert again == found
    assert replace(found, crps=1.0) != found


def test_that_an_unknown_of_one_number_is_ranked_once():
    x, truth = exchangeable(0)
    found = c.score(x[:, :1], PRIOR[:, :1], truth[:1], torch.ones(1, 1), (0, 0), SUMMARY)
    assert list(found.ranks) == ["an element"]
    assert len(found.by_spread) == 1


def test_that_the_directions_are_the_priors_largest():
    spectrum = torch.tensor([9.0, 0, 4, 1, 0.25, 0.01], dtype=torch.float64).sqrt()
    found = c.components(normal(3000, 6) * spectrum)
    assert found.shape == (3, 6)
    torch.testing.assert_close(found.abs(), torch.eye(6).double()[[0, 2, 3]], atol=0.1, rtol=0)
    assert len(c.components(normal(50, 2) @ torch.ones(2, 6, dtype=torch.float64))) == 1


def test_that_groups_of_elements_are_ordered_by_their_spread():
    scale = torch.tensor([3.0, 1, 2, 5, 4, 6])
    x, truth = exchangeable(0)
    found = c.score(scale * x, PRIOR, scale * truth, DIRECTIONS, (0, 0), SUMMARY)
    spreads = [variance for variance, _ in found.by_spread]
    assert spreads == sorted(spreads)
    assert np.mean(spreads) == pytest.approx(found.variance)


@pytest.mark.parametrize("count", [2, 6, 17, 50, 400])
def test_that_p_values_of_uniform_ranks_are_uniform(count):
    chance = np.random.default_rng(count)
    p = [c.uniformity(chance.random(count).tolist())[1] for _ in range(150)]
    # Discrete: no p-value may be too small too often.
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 150)
    if count == 400:
        assert kstest(p, "uniform").pvalue > 1e-3
        counts, mine = c.uniformity(chance.random(count).tolist())
        assert sum(counts) == count
        assert mine == pytest.approx(chisquare(counts).pvalue, abs=0.02)


def test_that_the_band_is_binomial():
    low, high = c.band(100, 10)
    assert (low, high) == binom.interval(0.95, 100, 0.1)


def test_that_nothing_but_the_summary_is_read_of_a_run():
    x, truth = exchangeable(0)
    other = SimpleNamespace(**SUMMARY, seconds=3)
    assert c.score(x, PRIOR, truth, DIRECTIONS, (0, 0), vars(other)) == scores(1)[0]
