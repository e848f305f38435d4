"""The vorticity simulator against closed forms, an independent solver, and its own promises."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("jax_cfd", reason="needs the extra enkg[fluids]")

from simulators.navier_stokes import NavierStokes2D, Subsampled, burned_in, peak_speed, subsample
from simulators.navier_stokes.program import vorticity_program

SIZE = 32
FLOW = NavierStokes2D(size=SIZE, chunk=4)
X, Y = np.meshgrid(*[np.arange(SIZE) * 2 * np.pi / SIZE] * 2, indexing="ij")
K1 = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None]
K2 = np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
SQUARED = K1**2 + K2**2
INVERSE = 1 / np.where(SQUARED == 0, 1, SQUARED)


def random_fields(members: int, std: float = 1.6, seed: int = 0) -> np.ndarray:
    """Smooth random vorticity of mean 0, shape (members, 32, 32), float32."""
    white = np.random.default_rng(seed).standard_normal((members, SIZE, SIZE))
    amplitude = np.where(SQUARED == 0, 0, (SQUARED + 9) ** -2.0)
    w = np.fft.irfft2(amplitude * np.fft.rfft2(white))
    return (std * w / w.std()).astype(np.float32)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance of a from b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def energy(w: np.ndarray) -> float:
    """Mean of (u^2 + v^2) / 2 = mean of w psi / 2."""
    return float(np.mean(w * np.fft.irfft2(INVERSE * np.fft.rfft2(w))) / 2)


def enstrophy(w: np.ndarray) -> float:
    """Mean of w^2 / 2."""
    return float(np.mean(w.astype(np.float64) ** 2) / 2)


def palinstrophy(w: np.ndarray) -> float:
    """Mean of |grad w|^2 / 2."""
    return float(np.mean(w * np.fft.irfft2(SQUARED * np.fft.rfft2(w))) / 2)


def reference_solution(w: np.ndarray, reynolds: float, forcing: int, amplitude: float):
    """One field after one time unit by 400 explicit classical Runge-Kutta steps in float64.

    Own code but for the mask, which is cut where jax-cfd cuts it: k1 from -11 to 9 at size 32.
    """
    mask = 1.0 * (K1 >= -11) * (K1 <= 9) * (K2 <= 10)
    stirring = np.fft.rfft2(-amplitude * forcing * np.cos(forcing * Y))

    def rate(h: np.ndarray) -> np.ndarray:
        u, v = np.fft.irfft2(1j * K2 * INVERSE * h), np.fft.irfft2(-1j * K1 * INVERSE * h)
        carried = u * np.fft.irfft2(1j * K1 * h) + v * np.fft.irfft2(1j * K2 * h)
        return -mask * np.fft.rfft2(carried) - SQUARED / reynolds * h + stirring

    h, dt = np.fft.rfft2(w.astype(np.float64)), 1 / 400
    for _ in range(400):
        a = rate(h)
        b = rate(h + dt / 2 * a)
        c = rate(h + dt / 2 * b)
        h = h + dt / 6 * (a + 2 * b + 2 * c + rate(h + dt * c))
    return np.fft.irfft2(h)


# Theory


def test_that_a_single_wave_decays_at_the_viscous_rate():
    flow = replace(FLOW, reynolds=50.0, amplitude=0.0)
    wave = np.cos(3 * X + 2 * Y)
    expected = wave * np.exp(-13 / 50)
    np.testing.assert_allclose(flow(wave[None])[0], expected, atol=1e-5)


def test_that_waves_of_one_length_do_not_feel_each_other():
    # |k|^2 = 25 for all three, so u . grad w = 0 although each product alone is not zero.
    flow = replace(FLOW, reynolds=50.0, amplitude=0.0, duration=0.5)
    w = np.cos(3 * X + 4 * Y) + 0.7 * np.sin(5 * X) - 0.4 * np.cos(4 * X - 3 * Y)
    np.testing.assert_allclose(flow(w[None])[0], w * np.exp(-25 * 0.5 / 50), atol=1e-5)


def test_that_still_water_is_set_in_motion_as_the_laminar_solution_says():
    # w = -(a Re / k) (1 - exp(-k^2 t / Re)) cos(k y): also the sign and size of the forcing.
    flow = NavierStokes2D(size=SIZE, reynolds=50.0, forcing=3, amplitude=0.5)
    expected = -(0.5 * 50 / 3) * (1 - np.exp(-9 / 50)) * np.cos(3 * Y)
    np.testing.assert_allclose(flow(np.zeros((1, SIZE, SIZE)))[0], expected, atol=1e-5)


def test_that_the_laminar_kolmogorov_flow_is_steady():
    flow = replace(FLOW, reynolds=20.0)
    steady = -(20 / 4) * np.cos(4 * Y)
    np.testing.assert_allclose(flow(steady[None])[0], steady, atol=5e-5)


@pytest.mark.parametrize(("forcing", "amplitude"), [(4, 1.0), (2, 0.0)])
def test_that_an_independent_solver_gives_the_same_flow(forcing, amplitude):
    x = random_fields(1, seed=3)
    flow = replace(FLOW, reynolds=100.0, forcing=forcing, amplitude=amplitude)
    expected = reference_solution(x[0], 100.0, forcing, amplitude)
    assert difference(flow(x)[0], expected) < 5e-4
    assert difference(replace(flow, ladder=(128,))(x)[0], expected) < 3e-5
    assert difference(x[0], expected) > 0.1  # the flow has moved: the line above can fail


def test_that_the_answer_is_that_of_jax_cfd_itself():
    import jax
    import jax.numpy as jnp
    from jax_cfd.base import forcings, grids
    from jax_cfd.spectral import equations, time_stepping

    x = random_fields(1)
    equation = equations.NavierStokes2D(
        1 / 200,
        grids.Grid((SIZE, SIZE), domain=((0, 2 * np.pi),) * 2),
        smooth=True,
        forcing_fn=lambda grid: forcings.kolmogorov_forcing(grid, k=4, offsets=((0, 0), (0, 0))),
    )
    step = jax.jit(time_stepping.crank_nicolson_rk4(equation, 1 / 32))
    w_hat = jnp.fft.rfftn(x[0])
    for _ in range(32):
        w_hat = step(w_hat)
    assert FLOW.run(x).steps[0] == 32
    assert difference(FLOW(x)[0], np.asarray(jnp.fft.irfftn(w_hat))) < 1e-5


def test_that_the_mean_vorticity_stays_zero():
    y = FLOW(random_fields(3))
    assert np.abs(y.mean(axis=(1, 2))).max() < 1e-6 * y.std()


def test_that_energy_and_enstrophy_are_lost_to_viscosity_alone():
    # dE/dt = -2 nu Z and dZ/dt = -2 nu P without forcing; the integrals by Boole's rule.
    flow = replace(FLOW, amplitude=0.0, reynolds=100.0)
    x = random_fields(1, seed=5)
    path = [x[0]] + [replace(flow, duration=t)(x)[0] for t in (0.25, 0.5, 0.75, 1.0)]
    weights = np.array([7, 32, 12, 32, 7]) / 90
    for quantity, dissipation in ((energy, enstrophy), (enstrophy, palinstrophy)):
        lost = quantity(path[0]) - quantity(path[-1])
        expected = 2 / 100 * weights @ [dissipation(w) for w in path]
        assert lost > 1e-2 * quantity(path[0])
        assert abs(lost - expected) < 5e-3 * lost


def test_that_a_shift_of_the_field_along_x_shifts_the_answer():
    x = random_fields(1)
    assert difference(FLOW(np.roll(x, 5, axis=1)), np.roll(FLOW(x), 5, axis=1)) < 1e-5


def test_that_a_step_four_times_smaller_changes_nothing_above_the_float32_floor():
    x = random_fields(4)
    fine = replace(FLOW, ladder=(64,))
    finer = replace(FLOW, ladder=(256,))
    assert difference(fine(x), finer(x)) < 1e-4
    assert difference(FLOW(x), finer(x)) < 1e-3


def test_that_halving_a_coarse_step_divides_the_error_by_four_or_more():
    # Crank-Nicolson is of order 2, the Runge-Kutta part of order 4.
    x = random_fields(2, std=1.0)
    truth = replace(FLOW, ladder=(256,))(x)
    coarse, half = (difference(replace(FLOW, ladder=(n,), courant=5.0)(x), truth) for n in (5, 10))
    assert 1e-4 < half < coarse / 3.5


# The step is each member's own


def test_that_the_peak_speed_is_that_of_a_known_flow():
    shear = -3.0 * 4 * np.cos(4 * Y)  # u = 3 sin(4 y)
    vortices = 2 * 25 * np.sin(3 * X) * np.cos(4 * Y)  # psi = 2 sin(3 x) cos(4 y)
    speed = np.hypot(8 * np.sin(3 * X) * np.sin(4 * Y), 6 * np.cos(3 * X) * np.cos(4 * Y)).max()
    np.testing.assert_allclose(peak_speed(np.stack([shear, vortices])), [3.0, speed], rtol=1e-12)


@pytest.mark.parametrize(("speed", "steps"), [(0.5, 32), (3.7, 32), (3.8, 48), (60.0, 512)])
def test_that_a_member_takes_the_first_rung_that_keeps_its_courant_number(speed, steps):
    shear = (-speed * 4 * np.cos(4 * Y))[None]
    assert FLOW.steps(shear, 1.0) == [steps]
    if steps > 32:
        assert 0.3 < speed * SIZE / (2 * np.pi * steps) <= 0.6


def test_that_a_long_run_is_the_short_runs_one_after_another():
    x = random_fields(3, std=0.2)
    np.testing.assert_array_equal(burned_in(FLOW, x, duration=3.0), FLOW(FLOW(FLOW(x))))


# A member's answer depends on that member alone


def test_that_a_member_is_bit_equal_alone_with_partners_permuted_and_split():
    slow, fast = random_fields(4, seed=1), random_fields(3, std=6.0, seed=2)
    x = np.concatenate([slow, fast, random_fields(2, std=12.0, seed=4)])  # 9: not a multiple of 4
    assert len(set(FLOW.run(x).steps)) > 2
    y = FLOW(x)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(FLOW(x[order]), y[order])
    np.testing.assert_array_equal(np.concatenate([FLOW(x[:2]), FLOW(x[2:7]), FLOW(x[7:])]), y)
    for i, member in enumerate(x):
        np.testing.assert_array_equal(FLOW(member[None])[0], y[i])


def test_that_the_members_of_the_last_chunk_are_computed_too():
    x = random_fields(10)
    y = FLOW(x)
    assert np.isfinite(y).all()
    assert difference(y[8:], replace(FLOW, chunk=5)(x[8:])) < 1e-5
    assert np.abs(y).max(axis=(1, 2)).min() > 1


def test_that_a_fast_member_costs_the_slow_ones_no_steps():
    slow, fast = random_fields(3), random_fields(1, std=30.0)
    run = FLOW.run(np.concatenate([slow, fast]))
    assert list(run.steps[:3]) == [32, 32, 32]
    assert run.steps[3] > 128


def test_that_a_nan_neighbour_harms_nobody():
    x = random_fields(6)
    spoiled = x.copy()
    spoiled[1, 3, 4] = np.nan
    spoiled[4] = np.inf
    run = FLOW.run(spoiled)
    good = [0, 2, 3, 5]
    np.testing.assert_array_equal(run.y[good], FLOW(x)[good])
    assert np.isnan(run.y[[1, 4]]).all()
    assert list(run.failed) == [False, True, False, False, True, False]
    assert list(run.steps[[1, 4]]) == [0, 0]


def test_that_a_user_in_64_bits_gets_the_same_bits():
    import jax

    x = random_fields(2)
    y = FLOW(x)
    vorticity_program.cache_clear()  # compile anew under the user's setting
    with jax.enable_x64(True):
        z = FLOW(x)
        assert jax.numpy.zeros(1).dtype == np.float64
    np.testing.assert_array_equal(z, y)


def test_that_no_members_give_no_answers_and_the_input_is_left_alone():
    assert FLOW(np.zeros((0, SIZE, SIZE))).shape == (0, SIZE, SIZE)
    x = random_fields(2).astype(np.float64)
    x[1, 0, 0] = np.nan
    before = x.copy()
    x.setflags(write=False)
    y = FLOW(x)
    assert y.dtype == np.float32
    assert y.flags.writeable
    np.testing.assert_array_equal(x, before)


def test_that_a_copy_in_another_process_would_be_the_same_simulator():
    assert pickle.loads(pickle.dumps(FLOW)) == FLOW


# Faults


@pytest.mark.parametrize(
    "shape", [(SIZE, SIZE), (2, SIZE, SIZE + 2), (2, 1, SIZE, SIZE), (4, 16, 16)]
)
def test_that_a_wrong_shape_is_refused_with_the_shape_expected(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 32, 32\)"):
        FLOW(np.zeros(shape))


def test_that_complex_fields_are_refused():
    with pytest.raises(ValueError, match=r"complex128.*expected real numbers"):
        FLOW(np.zeros((1, SIZE, SIZE), dtype=complex))


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 33), ("size", 4), ("reynolds", 0.0), ("duration", -1.0), ("courant", float("nan")),
     ("amplitude", -1.0), ("forcing", 0), ("forcing", 11), ("chunk", 0), ("ladder", ()),
     ("ladder", (64, 32))],
)  # fmt: skip
def test_that_an_impossible_setting_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"(?s){field}.* is .*give"):
        replace(FLOW, **{field: value})


def test_that_a_field_that_blows_up_is_saved_at_a_quarter_of_the_step():
    x = random_fields(4, std=20.0)
    reckless = replace(FLOW, courant=3.2)
    run = reckless.run(x)
    assert run.reruns.sum() >= 1
    assert not run.failed.any()
    first = reckless.steps(x, 1.0)
    np.testing.assert_array_equal(run.steps, first * np.where(run.reruns == 1, 5, 1))
    saved = run.reruns == 1
    careful = replace(FLOW, ladder=(2048,))(x)
    assert difference(run.y[saved], careful[saved]) < 0.05


def test_that_a_field_that_blows_up_twice_is_a_row_of_nan_and_spoils_no_other():
    x = np.concatenate([random_fields(2), random_fields(1, std=60.0), random_fields(2, seed=8)])
    hopeless = replace(FLOW, courant=20.0)
    run = hopeless.run(x)
    good = [0, 1, 3, 4]
    assert list(run.reruns) == [0, 0, 1, 0, 0]
    assert list(run.failed) == [False, False, True, False, False]
    assert np.isnan(run.y[2]).all()
    np.testing.assert_array_equal(run.y[good], hopeless(x[good]))


def test_that_a_finite_answer_with_more_vorticity_than_the_forcing_gives_is_a_failure():
    # White noise beyond the 2/3 mask is aliased: rms vorticity doubles at any time step.
    x = 50 * np.random.default_rng(0).standard_normal((1, SIZE, SIZE))
    run = replace(FLOW, amplitude=0.0).run(x)
    assert run.reruns[0] == 1
    assert run.failed[0]


def test_that_a_field_too_fast_for_the_ladder_fails_at_no_cost():
    x = np.concatenate([random_fields(1), random_fields(1, std=1e4), 1e30 * random_fields(1)])
    run = FLOW.run(x)
    assert list(run.steps) == [32, 0, 0]
    assert list(run.failed) == [False, True, True]


def test_that_missing_packages_are_named_with_the_extra_that_brings_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_cfd.base", None)
    with pytest.raises(ImportError, match=r"enkg\[fluids\]"):
        vorticity_program.__wrapped__(SIZE, 200.0, 4, 1.0)


# Observation


def test_that_subsampling_keeps_every_qth_point_and_the_failed_rows():
    x = random_fields(3)
    x[1] = np.nan
    y = Subsampled(FLOW, every=4)(x)
    assert y.shape == (3, 8, 8)
    np.testing.assert_array_equal(y, FLOW(x)[:, ::4, ::4])
    np.testing.assert_array_equal(Subsampled(FLOW, every=1)(x), FLOW(x))


def test_that_a_spacing_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(ValueError, match="every=3 does not divide"):
        subsample(np.zeros((1, SIZE, SIZE)), 3)
    with pytest.raises(ValueError, match="every is 0"):
        Subsampled(FLOW, every=0)
