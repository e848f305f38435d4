"""Imaging operators of any size: transposes, decompositions, gradients, and rows by themselves."""

import pickle
from typing import Any

import numpy as np
import pytest

from enkg import abilities
from enkg.execute.identity import identity_of
from simulators import images

SHAPE = (12, 20)  # more than are summed term by term, not square
KERNEL = images.motion_kernel(5, 0.8, seed=3)


def some(*shape, seed=0, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def everything(shape=SHAPE) -> dict[str, Any]:
    made: dict[str, Any] = {name: images.operator(name, shape) for name in images.TASKS}
    made["zero-motion"] = images.motion_blur(shape, 5, edges="zero")
    made["dense-motion"] = images.Dense(shape, operator=made["zero-motion"])
    made["wide-motion"] = images.Convolution(shape, kernel=images.motion_kernel(31))
    made["cut-blur"] = images.gaussian_blur(shape, 1.5, "renormalised", 4)
    made["zero-blur"] = images.gaussian_blur(shape, 1.5, "zero")
    made["counts"] = images.Intensity(shape, operator=made["blur"], peak=20.0)
    return made


OPERATORS = everything()
LINEAR = [n for n, o in OPERATORS.items() if isinstance(o, images.Linear)]
DECOMPOSED = [n for n, o in OPERATORS.items() if isinstance(o, images.Decomposed)]
SMOOTH = [n for n, o in OPERATORS.items() if hasattr(o, "vjp")]
STEPS = ("quantise", "jpeg")


def matrix(operator):
    d = int(np.prod(operator.shape))
    return operator(np.eye(d).reshape(d, *operator.shape)).reshape(d, -1).T


# --- linear operators -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
def test_that_the_adjoint_moves_over(name):
    operator = OPERATORS[name]
    x, v = some(4, *SHAPE), some(4, *operator.data_shape, seed=1)
    left = (operator(x) * v).reshape(4, -1).sum(axis=1)
    right = (x * operator.adjoint(v)).reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-13 * x.size)


@pytest.mark.parametrize("name", LINEAR)
def test_that_linear_operators_are_linear_and_their_transpose_is_that_of_the_matrix(name):
    operator = OPERATORS[name]
    a, v = matrix(operator), some(2, *operator.data_shape, seed=1)
    x = some(3, *SHAPE)
    np.testing.assert_allclose(operator(x).reshape(3, -1), x.reshape(3, -1) @ a.T, atol=1e-13)
    np.testing.assert_allclose(operator.adjoint(v).reshape(2, -1), v.reshape(2, -1) @ a, atol=1e-13)


@pytest.mark.parametrize("name", DECOMPOSED)
def test_that_singular_vectors_are_orthonormal_and_give_the_operator_back(name):
    operator = OPERATORS[name]
    svd, a = operator.svd, matrix(operator)
    k, eye = len(svd.s), np.eye(len(svd.s))
    assert (svd.s > 0).all()
    u, v = svd.u(eye).reshape(k, -1).T, svd.v(eye).reshape(k, -1).T
    np.testing.assert_allclose(u.T @ u, eye, atol=1e-12)
    np.testing.assert_allclose(v.T @ v, eye, atol=1e-12)
    np.testing.assert_allclose((u * svd.s) @ v.T, a, atol=1e-12)
    y, x = some(3, *operator.data_shape), some(3, *SHAPE)
    np.testing.assert_allclose(svd.ut(y), y.reshape(3, -1) @ u, atol=1e-12)
    np.testing.assert_allclose(svd.vt(x), x.reshape(3, -1) @ v, atol=1e-12)
    expected = np.linalg.svd(a, compute_uv=False)
    np.testing.assert_allclose(np.sort(svd.s)[::-1], expected[:k], atol=1e-12)
    assert (expected[k:] < 1e-12).all()


@pytest.mark.parametrize("name", DECOMPOSED)
def test_that_the_pseudo_inverse_has_the_axioms_of_moore_and_penrose(name):
    operator = OPERATORS[name]
    a = matrix(operator)
    m = len(a)
    plus = operator.pinv(np.eye(m).reshape(m, *operator.data_shape)).reshape(m, -1).T
    if operator.cut:  # then those of the operator without its small singular values
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        a = (u * np.where(s >= operator.cut * s[0], s, 0)) @ vt
    worst = float(np.linalg.norm(plus, 2))  # rounding grows by as much
    np.testing.assert_allclose(a @ plus @ a, a, atol=1e-13 * worst)
    np.testing.assert_allclose(plus @ a @ plus, plus, atol=1e-12 * worst**2)
    np.testing.assert_allclose(a @ plus, (a @ plus).T, atol=1e-12 * worst)
    np.testing.assert_allclose(plus @ a, (plus @ a).T, atol=1e-12 * worst)


def test_that_a_framework_finds_the_abilities():
    for name, operator in OPERATORS.items():
        found = abilities.of(operator)
        assert (found.svd is not None) == (name in DECOMPOSED)
        assert (found.adjoint is not None) == (name in LINEAR)
        assert (found.vjp is None) == (name in STEPS)
    assert abilities.of(OPERATORS["motion"]).pinv is None


# --- what each operator is ------------------------------------------------------------------


def test_that_blurs_keep_constants_but_where_zeros_lie_beyond_the_edge():
    flat = np.full((1, *SHAPE), 0.7)
    for name in ("blur", "cut-blur", "circular", "motion", "wide-motion", "circular-motion"):
        np.testing.assert_allclose(OPERATORS[name](flat), 0.7, rtol=1e-12)
    np.testing.assert_allclose(OPERATORS["nonlinear"](flat), 0.7, rtol=1e-12)
    assert OPERATORS["zero-blur"](flat)[0, 0, 0] < 0.3
    np.testing.assert_allclose(OPERATORS["bicubic4"](flat), 0.7, rtol=1e-12)


def test_that_blurs_are_those_of_scipy():
    from scipy import ndimage

    x = some(2, *SHAPE)
    for blur, kernel, mode in (
        (
            images.gaussian_blur(SHAPE, 1.3, "reflect", 5),
            images.Convolution(SHAPE, kernel=KERNEL),
            "mirror",
        ),
        (
            images.gaussian_blur(SHAPE, 1.3, "zero", 5),
            images.Convolution(SHAPE, kernel=KERNEL, edges="zero"),
            "constant",
        ),
    ):
        expected = ndimage.gaussian_filter(x, 1.3, mode=mode, radius=5, axes=(1, 2))
        np.testing.assert_allclose(blur(x), expected, atol=1e-13)
        expected = [ndimage.convolve(row, KERNEL, mode=mode) for row in x]
        np.testing.assert_allclose(kernel(x), expected, atol=1e-13)
    expected = [ndimage.convolve(row, KERNEL, mode="wrap") for row in x]
    np.testing.assert_allclose(images.Circular(SHAPE, kernel=KERNEL)(x), expected, atol=1e-13)
    expected = ndimage.gaussian_filter(x, 1.3, mode="wrap", radius=13, axes=(1, 2))
    np.testing.assert_allclose(images.circular_gaussian(SHAPE, 1.3)(x), expected, atol=1e-13)


@pytest.mark.parametrize("factor", [2, 4])
def test_that_bicubic_is_the_antialiased_one_of_torch(factor):
    import torch

    x = some(2, 16, 24)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x)[:, None], scale_factor=1 / factor, mode="bicubic", antialias=True
    )
    found = images.bicubic((16, 24), factor)(x)
    np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=1e-12)


def test_that_inpainting_keeps_what_it_says():
    assert images.box_inpainting((10, 8)).data_shape == (80 - 5 * 4,)
    assert images.box_inpainting((10, 8), (2, 3), (0, 0)).places[0] == 3
    mask = images.random_inpainting((10, 8), 0.7, seed=1)
    assert mask.data_shape == (24,)
    assert (mask.places == images.random_inpainting((10, 8), 0.7, seed=1).places).all()
    assert (mask.places != images.random_inpainting((10, 8), 0.7, seed=2).places).any()


def test_that_motion_kernels_are_paths_of_their_seed():
    kernel = images.motion_kernel(31, 0.5, seed=1)
    assert kernel.sum() == pytest.approx(1)
    assert (kernel >= 0).all()
    assert (kernel > 0).mean() < 0.3
    assert np.array_equal(kernel, images.motion_kernel(31, 0.5, seed=1))
    assert not np.array_equal(kernel, images.motion_kernel(31, 0.5, seed=2))
    # Without drift the path is a straight line: its covariance has one positive eigenvalue.
    straight = images.motion_kernel(31, 0.0, seed=1)
    place = np.argwhere(straight > 0)
    weight = straight[straight > 0]
    spread = np.cov(place.T, aweights=weight)
    small, large = np.linalg.eigvalsh(spread)
    assert small < 0.3  # of a point, from spreading over neighbours
    assert large > 20
    stored = images.motion_blur(SHAPE, 5).kernel
    with pytest.raises(ValueError, match="read-only"):
        stored[0, 0] = 1


def test_that_phase_is_the_magnitude_of_the_padded_transform_and_blind_to_half_turns():
    operator, x = images.Phase((12, 20), 1.5), some(3, 12, 20)
    padded = np.pad((x + 1) / 2, ((0, 0), (3, 3), (5, 5)))
    expected = np.abs(np.fft.fft2(padded, norm="ortho"))
    np.testing.assert_allclose(operator(x), expected, atol=1e-13)
    np.testing.assert_allclose(operator(x[:, ::-1, ::-1]), operator(x), atol=1e-13)
    small = images.Phase((8, 6), 1.5)
    x = some(3, 8, 6)
    summed = small(x)
    expected = np.abs(np.fft.fft2((x + 1) / 2, s=(12, 9), norm="ortho"))
    np.testing.assert_allclose(summed, expected, atol=1e-13)


def test_that_a_nonlinear_blur_of_little_contrast_is_the_blur_and_of_much_the_maximum():
    blur, x = images.gaussian_blur(SHAPE, 1.0, "reflect", 1), some(2, *SHAPE)
    weak = images.NonlinearBlur(SHAPE, blur=blur, contrast=1e-6)
    np.testing.assert_allclose(weak(x), blur(x), atol=1e-5)
    strong = images.NonlinearBlur(SHAPE, blur=blur, contrast=300.0)(x)
    from scipy import ndimage

    largest = ndimage.maximum_filter(x, (1, 3, 3), mode="mirror")
    np.testing.assert_allclose(strong, largest, atol=0.02)  # log of the smallest weight / 300
    assert (OPERATORS["nonlinear"](x) >= OPERATORS["nonlinear"].blur(x) - 1e-12).all()  # Jensen


def test_that_quantising_is_to_the_nearest_level_and_twice_is_once():
    operator, x = images.Quantise(SHAPE, 5), some(3, *SHAPE, low=-1.3, high=1.3)
    y = operator(x)
    assert set(np.unique(y)) == {-1, -0.5, 0, 0.5, 1}
    inside = np.abs(x) <= 1
    assert (np.abs(y - x)[inside] <= 0.25).all()
    np.testing.assert_array_equal(operator(y), y)


def test_that_counts_grow_with_light_and_are_never_zero():
    operator = images.Intensity(SHAPE, operator=images.Identity(SHAPE), peak=20.0, least=1e-2)
    for value, expected in ((1.0, 20.0), (0.0, 10.0), (-1.0, 0.2), (-3.0, 0.2)):
        assert operator(np.full((1, *SHAPE), value))[0, 0, 0] == pytest.approx(expected)
    x = some(2, *SHAPE, low=-0.9)
    np.testing.assert_allclose(operator.pinv(operator(x)), x, atol=1e-12)


def test_that_jpeg_of_a_jpeg_changes_little_and_good_quality_keeps_the_image():
    from scipy import ndimage

    x = ndimage.gaussian_filter(some(3, 40, 24, seed=2), (0, 2, 2)) * 4
    x = np.clip(x, -1, 1)
    coarse, fine = images.JPEG((40, 24), 10), images.JPEG((40, 24), 95)
    once = coarse(x)
    first, second = np.abs(once - x).mean(), np.abs(coarse(once) - once).mean()
    assert second < 0.2 * first
    assert np.abs(fine(x) - x).mean() < 0.2 * first
    assert np.abs(fine(x) - x).max() < 0.1
    # A step function: a change below a grey level changes nothing at all.
    levels = np.rint((x + 1) / 2 * 255) / 255 * 2 - 1
    moved = levels + some(*x.shape, seed=3) * 1e-3
    np.testing.assert_array_equal(coarse(moved), coarse(levels))
    x[1, 3, 4] = np.nan
    assert np.isnan(coarse(x)[1]).all()
    assert np.isfinite(coarse(x)[[0, 2]]).all()


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_that_gradients_are_those_of_central_differences(name):
    # Away from the kinks; the error of a difference is h^2 and rounding / h.
    operator, h = OPERATORS[name], 1e-5
    x = some(3, *SHAPE, low=-0.95, high=0.95)
    if name == "hdr":
        x = np.where(np.abs(np.abs(x) - 0.5) < 1e-3, 0.4, x)
    v, direction = some(3, *operator.data_shape, seed=1), some(3, *SHAPE, seed=2)
    slope = (operator(x + h * direction) - operator(x - h * direction)) / (2 * h)
    expected = (slope * v).reshape(3, -1).sum(axis=1)
    found = (operator.vjp(x, v) * direction).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_that_a_gradient_of_clipped_points_is_zero_and_of_a_dark_magnitude_finite():
    x, v = some(2, *SHAPE, low=-3, high=3), np.ones((2, *SHAPE))
    gradient = OPERATORS["hdr"].vjp(x, v)
    np.testing.assert_array_equal(gradient, np.where(np.abs(x) <= 0.5, 2, 0))
    dark = np.full((1, *SHAPE), -1.0)
    operator = OPERATORS["phase"]
    assert (operator.vjp(dark, np.ones((1, *operator.data_shape))) == 0).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_that_the_gradient_of_a_broken_image_is_broken_and_of_others_not(name):
    operator, x = OPERATORS[name], some(3, *SHAPE)
    v = some(3, *operator.data_shape, seed=1)
    whole = operator.vjp(x, v)
    x[1, 2, 3] = np.nan
    found = operator.vjp(x, v)
    assert np.isnan(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], whole[[0, 2]])


# --- frozen, and row by row -----------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_that_a_row_of_every_ability_depends_on_itself_alone(name, kind):
    operator = OPERATORS[name]
    x = some(5, *SHAPE, low=-1.2, high=1.2).astype(kind)
    y = some(5, *operator.data_shape, seed=1).astype(kind)
    calls: dict[str, Any] = {"call": (operator, [x])}
    if name in LINEAR:
        calls["adjoint"] = (operator.adjoint, [y])
    if hasattr(operator, "pinv"):
        calls["pinv"] = (operator.pinv, [y])
    if name in SMOOTH:
        calls["vjp"] = (operator.vjp, [x, y])
    if name in DECOMPOSED:
        svd = operator.svd
        z = some(5, len(svd.s), seed=2).astype(kind)
        calls |= {"ut": (svd.ut, [y]), "vt": (svd.vt, [x]), "u": (svd.u, [z]), "v": (svd.v, [z])}
    for ability, (call, given) in calls.items():
        whole = call(*given)
        assert whole.dtype == kind, ability
        np.testing.assert_array_equal(call(*given), whole)
        np.testing.assert_array_equal(call(*[g[::-1] for g in given])[::-1], whole)
        for j in range(5):
            np.testing.assert_array_equal(call(*[g[j : j + 1] for g in given])[0], whole[j])


@pytest.mark.parametrize("name", OPERATORS)
def test_that_operators_are_frozen_and_can_be_sent_to_another_process(name):
    operator, x = everything()[name], some(2, *SHAPE)
    before = identity_of(operator)
    y = operator(x)
    if name in DECOMPOSED:
        _ = operator.svd
    np.testing.assert_array_equal(OPERATORS[name](x), y)
    assert identity_of(operator) == before  # what was computed on the way is no part of it
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(operator))(x), y)
    y[:] = 0
    assert np.abs(operator(x)).max() > 0


# --- mistakes -------------------------------------------------------------------------------


def test_that_wrong_shapes_are_told():
    operator = OPERATORS["bicubic4"]
    with pytest.raises(ValueError, match=r"x has shape \(12, 20\); expected \(B, 12, 20\)"):
        operator(np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"v has shape .* expected \(B, 3, 5\)"):
        operator.adjoint(np.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match=r"y has shape .* expected \(B, 3, 5\)"):
        operator.pinv(np.zeros((1, 5, 3)))
    with pytest.raises(ValueError, match="multiples of 4"):
        images.operator("sr4", (10, 12))


def test_that_settings_that_make_no_operator_are_told():
    for make, words in (
        (lambda: images.operator("sr3", SHAPE), "sr3.*denoise"),
        (lambda: images.box_inpainting(SHAPE, (4, 4), (10, 0)), "does not fit"),
        (lambda: images.random_inpainting(SHAPE, 1.0), "0 points kept"),
        (lambda: images.Inpainting(SHAPE, places=np.array([1, 1])), "different"),
        (lambda: images.Inpainting(SHAPE, places=np.array([240])), "0 to 239"),
        (lambda: images.gaussian_blur(SHAPE, 0.0), "positive"),
        (lambda: images.Convolution(SHAPE, kernel=np.ones((2, 3))), "odd"),
        (lambda: images.motion_kernel(4), "odd"),
        (lambda: images.Dense((64, 64), operator=images.motion_blur((64, 64))), "1024"),
        (lambda: images.Phase(SHAPE, 0.5), "at least 1"),
        (lambda: images.JPEG(SHAPE, 0), "1 to 95"),
        (lambda: images.Quantise(SHAPE, 1), "at least 2"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
