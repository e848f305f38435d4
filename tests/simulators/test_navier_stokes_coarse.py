"""The coarse partner of the Navier-Stokes solver: interpolation, accuracy, failures."""

import numpy as np
import pytest

from simulators.navier_stokes import Coarse, NavierStokes2D, resampled


def wave(size: int, k: int, n: int, phase: float = 0.3) -> np.ndarray:
    """cos(k x + n y + phase), (1, size, size)."""
    place = np.arange(size) * 2 * np.pi / size
    return np.cos(k * place[:, None] + n * place[None] + phase)[None]


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 5), (7, -7), (-2, 0), (0, 7)])
@pytest.mark.parametrize("size", [16, 24, 64])
def test_that_what_both_grids_resolve_is_interpolated_exactly(k, n, size):
    np.testing.assert_allclose(resampled(wave(16, k, n), size), wave(size, k, n), atol=2e-6)
    np.testing.assert_allclose(resampled(wave(size, k, n), 16), wave(16, k, n), atol=2e-6)


@pytest.mark.parametrize(("k", "n"), [(8, 0), (0, -8), (12, 3), (3, 12)])
def test_that_what_the_small_grid_does_not_resolve_is_dropped(k, n):
    np.testing.assert_allclose(resampled(wave(32, k, n), 16), np.zeros((1, 16, 16)), atol=1e-6)


def test_that_the_same_size_is_left_alone():
    field = wave(16, 8, 8).astype(np.float32)
    np.testing.assert_array_equal(resampled(field, 16), field)


def test_that_a_smooth_flow_is_that_of_the_finer_solver():
    # A coarse solver that did nothing, or shifted the field, would miss by a fifth and more.
    field = (wave(32, 1, 2) + wave(32, 2, -1, 1.0) + 0.5 * wave(32, 3, 1, 2.0)).astype(np.float32)
    fine = NavierStokes2D(size=32, forcing=1)(field)
    coarse = Coarse(NavierStokes2D(size=16, forcing=1))(field)
    assert coarse.shape == fine.shape
    assert coarse.dtype == np.float32
    assert np.linalg.norm(fine - field) > 0.2 * np.linalg.norm(fine)
    assert np.linalg.norm(coarse - fine) < 0.1 * np.linalg.norm(fine)


def test_that_a_failed_member_harms_no_other():
    field = wave(32, 1, 2).astype(np.float32)
    batch = np.concatenate([field, np.full_like(field, np.nan), field])
    answer = Coarse(NavierStokes2D(size=16))(batch)
    assert np.isnan(answer[1]).all()
    np.testing.assert_array_equal(answer[0], answer[2])
    assert np.isfinite(answer[0]).all()
