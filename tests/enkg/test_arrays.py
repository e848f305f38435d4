"""Arrays as users give them."""

import numpy as np
import pytest
import torch

from enkg.arrays import rows, tensor

GRID = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (GRID, torch.float64),
        (GRID.astype(np.float32), torch.float32),
        (GRID.astype(">f4"), torch.float32),
        (GRID.astype(np.float16), torch.float64),
        (GRID.astype(np.longdouble), torch.float64),
        (GRID.astype(int), torch.float64),
        (GRID > 2, torch.bool),
        (GRID.tolist(), torch.float64),
        (torch.arange(6).reshape(2, 3), torch.float64),
        (torch.arange(6.0).reshape(2, 3), torch.float32),
    ],
)
def test_that_numbers_keep_their_values_and_become_floats(given, dtype):
    out = tensor(given)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), np.asarray(given))
    assert tensor(given, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("given", [GRID[::-1, ::-2], GRID.T, np.broadcast_to(GRID[0], (2, 3))])
def test_that_views_of_any_kind_are_copied(given):
    out = tensor(given)
    np.testing.assert_array_equal(out.numpy(), given)
    out += 1
    assert GRID[0, 0] == 0


def test_that_a_tensor_is_copied_and_forgets_its_gradient():
    given = torch.zeros(3, requires_grad=True)
    out = tensor(given)
    assert not out.requires_grad
    out += 1
    assert given.sum() == 0


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_that_members_become_rows(shape):
    size = int(np.prod(shape))
    assert rows(torch.zeros(4, *shape)).shape == (4, size)
