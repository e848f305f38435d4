"""The gradient of the vorticity simulator: closed form, central differences, and its promises."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("jax_cfd", reason="needs the extra enkg[fluids]")

from simulators.navier_stokes import Coarse, NavierStokes2D, Subsampled
from simulators.navier_stokes.adjoint import adjoint_program

SIZE = 32
FLOW = NavierStokes2D(size=SIZE, chunk=4)
TINY = NavierStokes2D(size=8, forcing=2, reynolds=20.0, duration=0.5, ladder=(8,))


def smooth(members: int, std: float = 1.6, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Smooth random fields of mean 0, shape (members, size, size), float32."""
    k1, k2 = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None, :]
    white = np.random.default_rng(seed).standard_normal((members, size, size))
    amplitude = np.where(k1**2 + k2**2 == 0, 0, (k1**2 + k2**2 + 9) ** -2.0)
    w = np.fft.irfft2(amplitude * np.fft.rfft2(white))
    return (std * w / w.std()).astype(np.float32)


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product of each pair of rows, in float64."""
    return (a.astype(np.float64) * b).reshape(len(a), -1).sum(axis=1)


def disagreement(simulator, x: np.ndarray, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Central difference along d of <v, G(x)> less <vjp, d>, relative; best of three steps.

    Rounding falls with the step and truncation rises, so some step in between shows the truth.
    """
    slope = dots(simulator.vjp(x, v), d)
    found = []
    for step in (0.03, 0.01, 0.003):
        y = simulator(x + step * d).astype(np.float64) - simulator(x - step * d)
        found.append(np.abs(dots(v, y) / (2 * step) - slope))
    return np.min(found, axis=0) / np.abs(slope).max()


# Theory


def test_that_without_advection_the_gradient_decays_each_wave_at_the_viscous_rate():
    # G is the heat equation at x = 0: its transpose multiplies each wave by exp(-k^2 t / Re).
    flow = replace(FLOW, amplitude=0.0, reynolds=50.0)
    v = smooth(2, seed=1)
    k1, k2 = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
    expected = np.fft.irfft2(np.exp(-(k1**2 + k2**2) / 50) * np.fft.rfft2(v))
    np.testing.assert_allclose(flow.vjp(np.zeros_like(v), v), expected, atol=1e-4)


def test_that_without_advection_the_flow_is_its_own_transpose():
    flow = replace(FLOW, amplitude=0.0, reynolds=50.0)
    v = smooth(2, seed=1)
    tiny = np.float32(2.0**-20)
    np.testing.assert_allclose(flow.vjp(np.zeros_like(v), v), flow(tiny * v) / tiny, atol=2e-5)


CASES = {
    "a forced flow": (FLOW, 1.6),
    "a fast flow": (FLOW, 6.0),
    "two legs and a half": (replace(FLOW, duration=2.5), 1.0),
    "a coarse partner": (Coarse(TINY), 1.6),
}


@pytest.mark.parametrize("case", CASES)
def test_that_the_gradient_is_that_of_central_differences(case):
    flow, std = CASES[case]
    x, v, d = smooth(3, std), smooth(3, seed=1), smooth(3, seed=2)
    assert disagreement(flow, x, v, d).max() < 2e-3


def test_that_a_leg_repeated_at_a_quarter_of_the_step_is_differentiated_at_that_step():
    x, v = smooth(4, std=20.0), smooth(4, seed=1)
    reckless = replace(FLOW, courant=3.2)
    run = reckless.run(x)
    saved = run.reruns == 1
    assert saved.any()
    steps = int(run.steps[saved][0] * 4 / 5)
    same = run.steps * 4 // 5 == steps
    expected = replace(FLOW, courant=1e9, ladder=(steps,)).vjp(x, v)
    np.testing.assert_array_equal(reckless.vjp(x, v)[saved & same], expected[saved & same])


def test_that_the_whole_jacobian_of_a_small_grid_is_transposed():
    x = smooth(1, std=3.0, size=8)
    units = np.eye(64, dtype=np.float32).reshape(64, 8, 8)
    step = np.float32(1 / 64)
    columns = (TINY(x + step * units) - TINY(x - step * units)) / (2 * step)  # row j: d G / d x_j
    jacobian = columns.reshape(64, 64).T
    rows = TINY.vjp(np.repeat(x, 64, axis=0), units).reshape(64, 64)  # row i: grad G_i
    np.testing.assert_allclose(rows, jacobian, atol=1e-3 * np.abs(jacobian).max())
    assert np.abs(jacobian - jacobian.T).max() > 0.02 * np.abs(jacobian).max()  # it can fail


def test_that_the_number_of_steps_between_checkpoints_changes_nothing_above_rounding():
    x, v = smooth(4), smooth(4, seed=1)
    n, dt = np.array([48, 32, 7, 0]), np.array([1 / 48, 1 / 32, 1 / 7, 1.0])
    usual = adjoint_program(SIZE, 200.0, 4, 1.0)(x, n, dt, v)
    rare = adjoint_program(SIZE, 200.0, 4, 1.0, block=24)(x, n, dt, v)
    np.testing.assert_allclose(usual, rare, atol=1e-5 * np.abs(rare).max())
    np.testing.assert_allclose(usual[3], v[3], atol=1e-6 * np.abs(v).max())  # no step: identity


def test_that_the_gradient_is_linear_in_the_cotangent():
    x, v, w = smooth(2), smooth(2, seed=1), smooth(2, seed=2)
    both = FLOW.vjp(x, v - 3 * w)
    np.testing.assert_allclose(both, FLOW.vjp(x, v) - 3 * FLOW.vjp(x, w), atol=1e-4)


# A member's gradient depends on that member alone


def test_that_a_members_gradient_is_bit_equal_alone_permuted_and_split():
    x = np.concatenate([smooth(4, seed=1), smooth(2, std=6.0, seed=2), smooth(1, std=12.0)])
    v = smooth(7, seed=3)
    assert len(set(FLOW.run(x).steps)) > 2
    gradient = FLOW.vjp(x, v)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_array_equal(FLOW.vjp(x[order], v[order]), gradient[order])
    np.testing.assert_array_equal(FLOW.vjp(x[:5], v[:5]), gradient[:5])
    for i in range(7):
        np.testing.assert_array_equal(FLOW.vjp(x[i : i + 1], v[i : i + 1])[0], gradient[i])


def test_that_a_failed_member_is_a_row_of_nan_and_harms_nobody():
    x, v = smooth(6), smooth(6, seed=1)
    gradient = FLOW.vjp(x, v)
    x[1, 0, 0], v[2, 3, 4], v[4] = np.nan, np.inf, np.nan
    x[5] *= 1e4  # too fast for the ladder
    found = FLOW.vjp(x, v)
    np.testing.assert_array_equal(found[[0, 3]], gradient[[0, 3]])
    assert np.isnan(found[[1, 2, 4, 5]]).all()


def test_that_a_flow_that_fails_in_a_later_leg_has_no_gradient():
    x, v = smooth(3), smooth(3, seed=1)
    x[1] *= 1e3 / 1.6
    long = replace(FLOW, duration=2.0, courant=100.0)
    assert list(long.run(x).failed) == [False, True, False]
    found = np.isnan(long.vjp(x, v))
    np.testing.assert_array_equal(found.all(axis=(1, 2)), [False, True, False])
    np.testing.assert_array_equal(found.any(axis=(1, 2)), [False, True, False])


@pytest.mark.slow
def test_that_a_user_in_64_bits_gets_the_same_bits():
    import jax

    x, v = smooth(2), smooth(2, seed=1)
    gradient = FLOW.vjp(x, v)
    adjoint_program.cache_clear()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(FLOW.vjp(x, v), gradient)


def test_that_no_members_have_no_gradient_and_the_input_is_left_alone():
    assert FLOW.vjp(np.zeros((0, SIZE, SIZE)), np.zeros((0, SIZE, SIZE))).shape == (0, SIZE, SIZE)
    x, v = smooth(2).astype(np.float64), smooth(2, seed=1)
    v[1] = np.nan
    before = x.copy(), v.copy()
    x.setflags(write=False)
    v.setflags(write=False)
    gradient = FLOW.vjp(x, v)
    assert gradient.dtype == np.float32
    assert gradient.flags.writeable
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(v, before[1])


def test_that_a_cotangent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"v of shape \(2, 16, 16\).*expected \(B, 32, 32\)"):
        FLOW.vjp(smooth(2), np.zeros((2, 16, 16)))
    with pytest.raises(ValueError, match=r"expected \(2, 32, 32\), a row for each"):
        FLOW.vjp(smooth(2), smooth(3))
    with pytest.raises(ValueError, match=r"expected \(2, 8, 8\)"):
        Subsampled(FLOW, every=4).vjp(smooth(2), smooth(2))


# Observation


def test_that_the_gradient_of_every_qth_point_is_that_of_a_field_with_zeros_between():
    x, v = smooth(3), smooth(3, seed=1)
    seen = Subsampled(FLOW, every=4)
    spread = np.zeros_like(v)
    spread[:, ::4, ::4] = v[:, ::4, ::4]
    np.testing.assert_array_equal(seen.vjp(x, v[:, ::4, ::4]), FLOW.vjp(x, spread))
    x[1] = np.nan
    dead = np.isnan(seen.vjp(x, v[:, ::4, ::4])).all(axis=(1, 2))
    np.testing.assert_array_equal(dead, [False, True, False])


def test_that_an_instrument_has_a_gradient_only_if_its_simulator_has_one():
    assert hasattr(Subsampled(FLOW, every=2), "vjp")
    assert not hasattr(Subsampled(lambda x: x, every=2), "vjp")
