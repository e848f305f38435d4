"""Imaging operators on 8 x 8 points: adjoints, Parseval, clipping, and rows by themselves."""

import numpy as np
import pytest

from simulators import small_images as s

BLUR, HDR = s.OPERATORS["blur"], s.OPERATORS["hdr"]
X = np.random.default_rng(0).uniform(-1.2, 1.2, (7, 8, 8))


def matrix(name):
    answers = s.LINEAR[name](np.eye(64).reshape(64, 8, 8))
    return answers.reshape(64, -1).T


@pytest.mark.parametrize("name", s.LINEAR)
def test_that_linear_operators_are_their_matrix(name):
    expected = X.reshape(7, 64) @ matrix(name).T
    np.testing.assert_allclose(s.LINEAR[name](X).reshape(7, -1), expected, atol=1e-14)


@pytest.mark.parametrize("name", ["box", "random"])
def test_that_inpainting_drops_points_and_its_adjoint_puts_zeros(name):
    a = matrix(name)
    np.testing.assert_array_equal(a @ a.T, np.eye(len(a)))
    image = (a.T @ np.ones(len(a))).reshape(8, 8)
    assert set(np.unique(image)) == {0, 1}
    if name == "box":
        assert image[2:6, 2:6].sum() == 0
        assert image.sum() == 48


@pytest.mark.parametrize(("name", "side"), [("sr2", 2), ("sr4", 4)])
def test_that_block_means_have_the_adjoint_that_spreads_them(name, side):
    # <A x, v> = <x, A^T v> with A^T v = v / side^2 on each block; all singular values 1 / side.
    v = np.random.default_rng(1).standard_normal((7, 8 // side, 8 // side))
    spread = np.kron(v, np.full((1, side, side), side**-2))
    left = (s.LINEAR[name](X) * v).sum(axis=(1, 2))
    np.testing.assert_allclose(left, (X * spread).sum(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(matrix(name))[1], 1 / side, rtol=1e-12)


def test_that_the_blur_keeps_constants_and_is_symmetric_up_to_its_edges():
    np.testing.assert_allclose(BLUR(np.full((1, 8, 8), 0.7)), 0.7, rtol=1e-12)
    point = np.zeros((1, 8, 8))
    point[0, 3, 4] = 1
    blurred = BLUR(point)[0]
    assert blurred.argmax() == 3 * 8 + 4
    assert blurred[3, 5] / blurred[3, 4] == pytest.approx(np.exp(-0.5), rel=2e-2)
    np.testing.assert_allclose(BLUR(X.swapaxes(1, 2)), BLUR(X).swapaxes(1, 2), atol=1e-15)


def test_that_high_dynamic_range_clips_both_ends():
    y = HDR(X)
    assert (np.abs(y) <= 1).all()
    inside = np.abs(X) <= 0.5
    np.testing.assert_array_equal(y[inside], 2 * X[inside])
    np.testing.assert_array_equal(y[~inside], np.sign(X[~inside]))


def test_that_phase_is_the_magnitude_of_the_padded_transform():
    padded = np.pad((X + 1) / 2, ((0, 0), (4, 4), (4, 4)))
    np.testing.assert_allclose(
        s.PHASE(X), np.abs(np.fft.fft2(padded, norm="ortho")), rtol=0, atol=1e-14
    )


def test_that_phase_obeys_parseval():
    energy = ((X + 1) / 2).reshape(7, -1)
    np.testing.assert_allclose(
        np.square(s.PHASE(X)).sum(axis=(1, 2)), np.square(energy).sum(axis=1), rtol=1e-12
    )


def test_that_phase_does_not_see_a_half_turn():
    np.testing.assert_allclose(s.PHASE(X[:, ::-1, ::-1]), s.PHASE(X), atol=1e-14)
    assert np.abs(s.PHASE(X[:, ::-1]) - s.PHASE(X)).max() > 0.1


@pytest.mark.parametrize("name", s.OPERATORS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_that_a_row_depends_on_itself_alone(name, kind):
    x = X.astype(kind)
    operator = s.OPERATORS[name]
    whole = operator(x)
    assert np.isfinite(whole).all()
    for j in range(7):
        np.testing.assert_array_equal(operator(x[j : j + 1])[0], whole[j])
    spoiled = x.copy()
    spoiled[2] = np.nan
    np.testing.assert_array_equal(operator(spoiled)[[0, 1, 3, 4, 5, 6]], whole[[0, 1, 3, 4, 5, 6]])
    np.testing.assert_array_equal(operator(x[::-1])[::-1], whole)
