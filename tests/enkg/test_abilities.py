"""Gradient, adjoint, pseudo-inverse and SVD of simulators, found and derived."""

import numpy as np
import pytest

import enkg
from enkg import abilities
from tests.enkg.problems import Decomposition, small_problem

MATRIX = small_problem().matrix.numpy()


class OnlySVD:
    svd = Decomposition(MATRIX)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ MATRIX.T


def test_that_an_svd_brings_adjoint_pseudo_inverse_and_gradient():
    found = abilities.of(OnlySVD())
    assert found.names() == ("vjp", "adjoint", "pinv", "svd")
    v, x = np.eye(3), np.ones((3, 6))
    assert found.adjoint is not None
    assert found.pinv is not None
    assert found.vjp is not None
    np.testing.assert_allclose(found.adjoint(v), MATRIX, atol=1e-12)
    np.testing.assert_allclose(found.pinv(v), np.linalg.pinv(MATRIX).T, atol=1e-12)
    np.testing.assert_allclose(found.vjp(x, v), MATRIX, atol=1e-12)
    x[1, 2] = np.nan
    assert np.isnan(found.vjp(x, v)[1]).all()
    assert np.isfinite(found.vjp(x, v)[[0, 2]]).all()


def test_that_abilities_are_found_through_adapters():
    function = enkg.Function(OnlySVD(), chunk=4)
    assert "svd" in abilities.of(function).names()
    assert "svd" in abilities.of(enkg.Cached(function, "unused")).names()
    given = enkg.Function(lambda x: x, vjp=lambda x, v: v)
    assert abilities.of(given).names() == ("vjp",)
    assert abilities.of(lambda x: x).names() == ()


def test_that_a_missing_ability_is_named_with_what_is_there():
    function = enkg.Function(lambda x: x, vjp=lambda x, v: v)
    with pytest.raises(enkg.MissingCapability, match=r"DDRM needs .*svd; .* has vjp; enkg"):
        abilities.require(function, ("vjp", "svd"), "DDRM")
    abilities.require(function, ("vjp",), "DPS")
