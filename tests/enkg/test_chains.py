"""What independent chains share: inner products that know nothing of their neighbours."""

import pytest
import torch

from enkg.guidance.chains import dots
from tests.enkg.problems import normal


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 20_000])
def test_that_an_inner_product_is_the_same_in_any_batch_to_the_bit(size):
    a, b = (normal(9, size, seed=k) for k in (1, 2))
    together = dots(a, b)
    alone = torch.cat([dots(p[None], q[None]) for p, q in zip(a, b, strict=True)])
    assert torch.equal(together, alone)
    assert torch.equal(dots(a[2:5], b[2:5]), together[2:5])
    torch.testing.assert_close(together, (a * b).sum(1), rtol=1e-10, atol=1e-10)


def test_that_an_inner_product_does_not_depend_on_the_layout():
    a, b = normal(5, 8, 12, seed=1), normal(5, 8, 12, seed=2)
    turned = a.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    assert torch.equal(dots(turned, b), dots(a, b))


def test_that_inner_products_are_of_double_precision_and_of_no_chain_too():
    a = torch.full((2, 3), 1 + 2.0**-20)
    assert dots(a, a).dtype == torch.float64
    assert float(dots(a, a)[0]) == 3 * (1 + 2.0**-20) ** 2  # float32 would lose the square
    assert dots(a[:0], a[:0]).shape == (0,)
