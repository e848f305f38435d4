"""Noise levels against their formulas."""

import pytest
import torch

import enkg
from enkg.schedule import geometric, karras, vp

both = pytest.mark.parametrize("schedule", [karras, geometric])


def test_that_karras_levels_are_equation_five():
    sigmas = karras(10, 80.0, 0.002)
    for i in range(10):
        root = 80 ** (1 / 7) + i / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
        assert float(sigmas[i]) == pytest.approx(root**7, rel=1e-12)


def test_that_rho_one_is_linear_and_geometric_levels_have_one_ratio():
    linear = karras(5, 9.0, 1.0, rho=1.0)
    torch.testing.assert_close(linear, torch.tensor([9.0, 7, 5, 3, 1], dtype=torch.float64))
    ratios = geometric(7, 64.0, 1.0)
    torch.testing.assert_close(ratios, 2.0 ** torch.arange(6, -1, -1, dtype=torch.float64))


@both
def test_that_the_ends_are_exact_and_the_levels_fall(schedule):
    sigmas = schedule(37, 7.3, 0.0123)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (37,)
    assert float(sigmas[0]) == 7.3
    assert float(sigmas[-1]) == 0.0123
    assert (sigmas.diff() < 0).all()


@both
def test_that_one_level_is_the_highest(schedule):
    assert schedule(1, 5.0, 0.1).tolist() == [5.0]


@both
@pytest.mark.parametrize(
    "wrong", [(0, 1.0, 0.1), (5, 0.1, 1.0), (5, 1.0, 0.0), (5, float("inf"), 1.0), (5, 1.0, -1.0)]
)
def test_that_impossible_levels_are_refused(schedule, wrong):
    with pytest.raises(enkg.InputError, match="noise levels"):
        schedule(*wrong)


def test_that_variance_preserving_levels_are_their_formula():
    sigmas = vp(1000)
    assert float(sigmas[0]) == pytest.approx(152.2, abs=0.1)
    assert float(sigmas[-1]) == pytest.approx(0.010, abs=0.001)
    assert bool((sigmas.diff() < 0).all())
    t = 1 - 0.999 * 250 / 999
    expected = (torch.tensor(19.9 * t**2 / 2 + 0.1 * t, dtype=torch.float64).exp() - 1).sqrt()
    assert float(sigmas[250]) == pytest.approx(float(expected), rel=1e-12)
    assert len(vp(1)) == 1
    with pytest.raises(enkg.InputError):
        vp(0)
