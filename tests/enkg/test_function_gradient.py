"""Gradients through the in-process adapter: chunks, padding, failures of single members."""

import logging

import numpy as np
import pytest

import enkg
from enkg import abilities

MATRIX = np.random.default_rng(0).standard_normal((2, 3))
X = np.random.default_rng(1).standard_normal((10, 3))
V = np.random.default_rng(2).standard_normal((10, 2))
for given in (X, V):
    given.setflags(write=False)
EXPECTED = (V * 2 * (X @ MATRIX.T)) @ MATRIX


def square(x):
    return (x @ MATRIX.T) ** 2


def gradient(x, v):
    return (v * 2 * (x @ MATRIX.T)) @ MATRIX


class Recorder:
    """A simulator with a gradient that remembers the shapes it was called with."""

    def __init__(self):
        self.shapes = []

    def __call__(self, x):
        return square(x)

    def vjp(self, x, v):
        self.shapes.append((x.shape, v.shape))
        return gradient(x, v)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 10, 64])
def test_that_chunks_and_padding_change_no_gradient(chunk, pad):
    by_attribute = enkg.Function(Recorder(), chunk=chunk, pad=pad)
    by_field = enkg.Function(square, chunk=chunk, pad=pad, vjp=gradient)
    for function in (by_attribute, by_field):
        np.testing.assert_allclose(function.pull_back(X, V), EXPECTED, rtol=1e-12)


def test_that_the_chunks_are_those_of_a_call():
    simulator = Recorder()
    enkg.Function(simulator, chunk=4).pull_back(X, V)
    assert simulator.shapes == [((4, 3), (4, 2))] * 3
    simulator.shapes.clear()
    enkg.Function(simulator, chunk=4, pad=False).pull_back(X, V)
    assert simulator.shapes == [((4, 3), (4, 2))] * 2 + [((2, 3), (2, 2))]


def test_that_a_function_of_one_member_is_asked_for_one_gradient():
    shapes = []

    def one(x, v):
        shapes.append((x.shape, v.shape))
        return gradient(x[None], v[None])[0]

    function = enkg.Function(lambda x: square(x[None])[0], batched=False, vjp=one)
    np.testing.assert_allclose(function.pull_back(X, V), EXPECTED, rtol=1e-12)
    assert shapes == [((3,), (2,))] * 10


@pytest.mark.parametrize("batched", [True, False])
def test_that_an_adjoint_of_batches_serves_as_gradient(batched):
    function = enkg.Function(lambda x: x @ MATRIX.T, batched=batched, adjoint=lambda v: v @ MATRIX)
    np.testing.assert_allclose(function.pull_back(X, V), V @ MATRIX, rtol=1e-12)


@pytest.mark.parametrize("chunk", [None, 3, 64])
@pytest.mark.parametrize("fault", ["raising", "exiting", "nan", "infinite in one number"])
def test_that_a_member_without_gradient_is_a_row_of_nan_and_harms_no_other(fault, chunk):
    def faulty(x, v):
        found = gradient(x, v)
        bad = (x[:, 0] == X[4, 0]) | (x[:, 0] == X[9, 0])
        if bad.any():
            if fault == "raising":
                raise ZeroDivisionError("here")
            if fault == "exiting":
                raise SystemExit(3)
            found[bad, 1] = np.nan if fault == "nan" else np.inf
        return found

    found = enkg.Function(square, chunk=chunk, vjp=faulty).pull_back(X, V)
    good = np.delete(np.arange(10), [4, 9])
    np.testing.assert_allclose(found[good], EXPECTED[good], rtol=1e-12)
    assert np.isnan(found[[4, 9]]).all()


def test_that_a_gradient_that_always_raises_is_all_nan_and_said_once(caplog):
    def broken(x, v):
        raise KeyError("nu")

    with caplog.at_level(logging.WARNING, logger="enkg"):
        found = enkg.Function(square, chunk=3, vjp=broken).pull_back(X.astype(np.float32), V)
    assert np.isnan(found).all()
    assert found.dtype == np.float32
    (record,) = caplog.records
    assert "10 members" in record.getMessage()
    assert "KeyError: 'nu'" in record.getMessage()
    assert "test_function_gradient.py" in record.getMessage()


def test_that_what_is_wrong_for_all_members_is_an_error():
    with pytest.raises(enkg.InputError, match=r"returned \(10, 2\); expected the shape of x"):
        enkg.Function(square, vjp=lambda x, v: v).pull_back(X, V)
    with pytest.raises(enkg.InputError, match="10 members and 9 cotangents"):
        enkg.Function(square, vjp=gradient).pull_back(X, V[:9])
    with pytest.raises(enkg.MissingCapability, match=r"needs a simulator with a gradient"):
        enkg.Function(square).pull_back(X, V)
    with pytest.raises(enkg.InputError, match="adjoint is a int"):
        enkg.Function(square, adjoint=3)  # pyright: ignore


def test_that_no_members_have_no_gradient():
    assert enkg.Function(square, vjp=gradient).pull_back(X[:0], V[:0]).shape == (0, 3)


def test_that_the_arrays_given_to_the_simulator_are_its_own():
    def greedy(x, v):
        found = gradient(x, v)
        x[:], v[:] = 0, 0
        return found

    np.testing.assert_allclose(
        enkg.Function(square, vjp=greedy).pull_back(X, V), EXPECTED, rtol=1e-12
    )


def test_that_a_field_comes_before_what_the_simulator_has_itself():
    function = enkg.Function(Recorder(), vjp=lambda x, v: 2 * gradient(x, v))
    np.testing.assert_allclose(function.pull_back(X, V), 2 * EXPECTED, rtol=1e-12)
    assert abilities.of(function).names() == ("vjp",)
    assert abilities.of(enkg.Function(square)).names() == ()
    assert abilities.of(enkg.Function(square, pinv=lambda y: y)).names() == ("pinv",)
