"""The map between the prior's numbers and the simulator's."""

import numpy as np
import pytest
import torch

import enkg
from tests.enkg.problems import normal

X = normal(5, 2, 3)
SCALE, OFFSET = normal(2, 3, seed=1).abs() + 0.5, normal(2, 3, seed=2)
UNITS = {
    "affine": enkg.Affine(2.0, -3.0),
    "affine, each element": enkg.Affine(SCALE, OFFSET),
    "negative scale": enkg.Affine(-2.0),
    "log": enkg.Log(0.5, 1.0),
    "log, each element": enkg.Log(SCALE, OFFSET),
}


@pytest.mark.parametrize("units", UNITS.values(), ids=list(UNITS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_that_there_and_back_is_the_same(units, dtype):
    x = X.to(dtype)
    there = units.to_simulator(x)
    assert there.dtype == dtype
    assert there.shape == x.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(units.to_prior(there), x, rtol=tolerance, atol=tolerance)


def test_that_the_maps_are_their_formulas():
    torch.testing.assert_close(enkg.Affine(2.0, -3.0).to_simulator(X), 2 * X - 3)
    torch.testing.assert_close(enkg.Affine(SCALE, OFFSET).to_simulator(X), OFFSET + SCALE * X)
    torch.testing.assert_close(enkg.Log(0.5, 1.0).to_simulator(X), (0.5 * X + 1).exp())
    assert torch.equal(enkg.Affine().to_simulator(X), X)


@pytest.mark.parametrize("units", [enkg.Affine, enkg.Log])
def test_that_scale_and_offset_may_be_numpy_arrays(units):
    given = units(SCALE.numpy(), OFFSET.numpy())
    torch.testing.assert_close(given.to_simulator(X), units(SCALE, OFFSET).to_simulator(X))


def test_that_a_wild_member_stays_positive_and_finite():
    wild = torch.tensor([[1e6], [-1e6]])
    physical = enkg.Log().to_simulator(wild)
    assert physical.isfinite().all()
    assert (physical > 0).all()
    bounds = enkg.Log(lowest=-1.0, highest=2.0).to_simulator(wild)
    torch.testing.assert_close(bounds.log(), torch.tensor([[2.0], [-1.0]]))


def test_that_log_units_refuse_what_has_no_logarithm():
    with pytest.raises(enkg.InputError, match="smallest given is -1"):
        enkg.Log().to_prior(torch.tensor([[1.0], [-1.0]]))


@pytest.mark.parametrize("units", [enkg.Affine, enkg.Log])
@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), np.array([1.0, 0.0])])
def test_that_a_scale_without_inverse_is_refused(units, scale):
    with pytest.raises(enkg.InputError, match="nowhere zero"):
        units(scale)


def test_that_an_empty_range_is_refused():
    with pytest.raises(enkg.InputError, match="empty range"):
        enkg.Log(lowest=1.0, highest=1.0)
