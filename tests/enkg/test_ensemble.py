"""Ensemble statistics against NumPy and against the law of the resampled members."""

import numpy as np
import pytest
import torch

from enkg import ensemble
from tests.enkg.problems import normal


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_that_a_member_with_one_bad_number_is_dead(bad):
    y = torch.zeros(4, 2, 3)
    y[2, 1, 0] = bad
    assert ensemble.alive(y).tolist() == [True, True, False, True]


def test_that_a_member_of_one_datum_can_live_and_die():
    assert ensemble.alive(torch.tensor([1.0, float("nan")])).tolist() == [True, False]


def test_that_anomalies_have_zero_mean_and_keep_the_differences():
    x = normal(7, 2, 3) + 5
    dx = ensemble.anomalies(x)
    torch.testing.assert_close(dx.mean(0), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(dx[1:] - dx[:-1], x[1:] - x[:-1])


def test_that_the_cross_covariance_is_that_of_numpy():
    x, y = normal(9, 2, 2), normal(9, 3, seed=1)
    together = np.cov(np.concatenate([x.flatten(1), y], axis=1), rowvar=False)
    np.testing.assert_allclose(ensemble.cross_covariance(x, y), together[:4, 4:], rtol=1e-12)


def test_that_spread_is_the_root_of_the_mean_variance():
    x = normal(9, 2, 2)
    assert ensemble.spread(x) == pytest.approx(np.sqrt(np.var(x.numpy(), axis=0, ddof=1).mean()))
    assert ensemble.spread(x.float()) == pytest.approx(ensemble.spread(x), rel=1e-6)


def test_that_nobody_is_replaced_where_all_live():
    x = normal(5, 3)
    assert torch.equal(ensemble.resample_dead(x, torch.ones(5, dtype=torch.bool), normal(0, 5)), x)


def test_that_survivors_are_unmoved_and_the_dead_drawn_from_their_moments():
    count = 4000
    good = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    x = torch.cat([good, torch.full((1, 2), torch.nan)])
    living = torch.tensor([True, True, True, False])
    noise = normal(count, 1, 3)
    drawn = torch.cat([ensemble.resample_dead(x, living, each)[3:] for each in noise])
    # Four standard errors.
    expected = torch.cov(good.T)
    scale = expected.diagonal().sqrt()
    assert ((drawn.mean(0) - good.mean(0)).abs() < 4 * scale / count**0.5).all()
    error = (torch.cov(drawn.T) - expected).abs()
    assert (error < 4 * (2 / count) ** 0.5 * scale.outer(scale)).all()


def test_that_resampling_keeps_shape_dtype_and_the_survivors():
    x = normal(6, 2, 2).float()
    living = torch.tensor([True, False, True, True, False, True])
    out = ensemble.resample_dead(x, living, normal(2, 4))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.equal(out[living], x[living])
    assert (out[~living] != x[~living]).all()
