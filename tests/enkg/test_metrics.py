"""Figures of merit against brute force and against what calibration means."""

import numpy as np
import pytest
import torch

from enkg import metrics
from tests.enkg.problems import normal

X, TRUTH = normal(23, 4, 5), normal(4, 5, seed=1)


def test_that_the_relative_error_is_a_ratio_of_norms():
    assert metrics.relative_error(1.1 * TRUTH, TRUTH) == pytest.approx(0.1)
    assert metrics.relative_error(0 * TRUTH, TRUTH) == pytest.approx(1)
    expected = np.linalg.norm(X[0] - TRUTH) / np.linalg.norm(TRUTH)
    assert metrics.relative_error(X[0], TRUTH) == pytest.approx(expected)


def test_that_the_crps_is_the_double_sum():
    first = (X - TRUTH).abs().mean(0)
    pairs = (X[:, None] - X[None]).abs().sum((0, 1)) / (2 * 23 * 22)
    assert metrics.crps(X, TRUTH) == pytest.approx(float((first - pairs).mean()), rel=1e-12)


def test_that_the_fair_crps_does_not_depend_on_the_ensemble_size_on_average():
    # Its expectation for N(0, 1) against 0: E|X| - E|X - X'| / 2 = sqrt(2/pi) - 1/sqrt(pi).
    expected = (2 / np.pi) ** 0.5 - np.pi**-0.5
    for members in (2, 30):
        score = metrics.crps(normal(members, 40_000), torch.zeros(40_000))
        assert score == pytest.approx(expected, abs=0.01)  # standard error .0025 at most


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("members", [2, 7, 40])
def test_that_coverage_is_that_of_the_quantiles(level, members):
    x = X[:members] if members <= len(X) else normal(members, 4, 5)
    shares = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(x, shares, axis=0, method="weibull")
    inside = (low <= TRUTH.numpy()) & (TRUTH.numpy() <= high)
    assert metrics.coverage(x, TRUTH, level) == pytest.approx(inside.mean())


def test_that_a_calibrated_ensemble_covers_at_its_level():
    # 20,000 elements: standard error .2 %. Weibull's positions are unbiased at any size.
    truth = normal(20_000, seed=1)
    for members in (19, 40, 400):
        covered = metrics.coverage(normal(members, 20_000), truth, 0.9)
        assert covered == pytest.approx(0.9, abs=0.01)
    x = normal(400, 20_000)
    assert metrics.coverage(0.5 * x, truth, 0.9) < 0.65
    assert metrics.coverage(3 * x, truth, 0.9) > 0.99


def test_that_spread_over_skill_is_one_when_calibrated_at_any_size():
    # 20,000 elements: standard error below 1 %.
    truth = normal(20_000, seed=1)
    for members in (2, 5, 50):
        assert metrics.spread_skill(normal(members, 20_000), truth) == pytest.approx(1, abs=0.03)
    assert metrics.spread_skill(0.5 * normal(50, 20_000), truth) == pytest.approx(0.5, abs=0.03)


def test_that_the_truth_as_one_of_many_members_changes_little():
    # Best-of-J selection would jump to zero error; a mean over J changes by order 1 / J.
    with_truth = X.clone()
    with_truth[3] = TRUTH
    for metric in (metrics.crps, metrics.coverage, metrics.spread_skill):
        assert metric(with_truth, TRUTH) == pytest.approx(metric(X, TRUTH), rel=4 / len(X))


@pytest.mark.parametrize("metric", [metrics.crps, metrics.coverage, metrics.spread_skill])
def test_that_members_permute(metric):
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    assert metric(X[order], TRUTH) == pytest.approx(metric(X, TRUTH), rel=1e-12)
