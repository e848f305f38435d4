"""The cosine field: its covariance in closed form."""

import numpy as np
import pytest
import torch

from priors.cosine_field import cosine_field


def covariance(size: int, length: float, **options) -> np.ndarray:
    """Exact, shape (n, n, n, n)."""
    prior = cosine_field(size, length, **options)
    roots = prior.from_white(torch.eye(len(prior.scales), dtype=torch.float64)).flatten(1)
    return (roots.T @ roots).reshape(size, size, size, size).numpy()


def test_that_the_covariance_far_from_the_walls_is_matern():
    size, length = 30, 0.12
    found = covariance(size, length, modes=size)[15, 15]
    found = found / found[15, 15]
    i, j = np.indices((size, size)) - 15
    r = np.sqrt(3) * np.hypot(i, j) / size / length
    np.testing.assert_allclose(found, (1 + r) * np.exp(-r), atol=0.03)


def test_that_std_is_the_root_mean_square_whatever_the_modes():
    for modes in (1, 4, 12):
        found = covariance(12, 0.25, std=1.5, modes=modes)
        assert np.einsum("ijij->ij", found).mean() == pytest.approx(1.5**2)


def test_that_the_field_has_no_slope_at_the_walls_and_knows_no_direction():
    found = covariance(24, 0.3, modes=4)
    np.testing.assert_allclose(found, found[:, ::-1, :, ::-1], atol=1e-12)
    np.testing.assert_allclose(found, found.transpose(1, 0, 3, 2), atol=1e-12)
    at = [found[:, j, :, j] + found[:, j + 1, :, j + 1] - 2 * found[:, j, :, j + 1] for j in (0, 5)]
    assert np.trace(at[0]) < 0.2 * np.trace(at[1])


def test_that_modes_finer_than_the_cells_are_refused():
    with pytest.raises(ValueError, match="9 modes a side; expected 1 to the 8 cells"):
        cosine_field(8, 0.25, modes=9)
