"""Orthonormal transforms: round trip, Parseval, and what makes a field stationary."""

import pytest
import torch

import enkg
from tests.enkg.problems import normal

SHAPES = [(7,), (8,), (1,), (6, 8), (5, 7), (4, 5), (3, 4, 5)]
TRANSFORMS = [
    *[enkg.RealFourier(shape) for shape in SHAPES],
    *[enkg.Identity(shape) for shape in SHAPES],
    enkg.Eigenbasis(torch.linalg.qr(normal(12, 12)).Q, (3, 4)),
]
every_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=str)


@every_transform
def test_that_there_and_back_is_the_same(transform):
    x = normal(4, *transform.shape)
    z = transform.forward(x)
    assert z.shape == (4, transform.size)
    torch.testing.assert_close(transform.inverse(z), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transform.forward(transform.inverse(z)), z, rtol=1e-12, atol=1e-12)


@every_transform
def test_that_inner_products_are_kept(transform):
    # Parseval, for every pair of members.
    x = normal(4, *transform.shape).flatten(1)
    z = transform.forward(x.reshape(4, *transform.shape))
    torch.testing.assert_close(z @ z.T, x @ x.T, rtol=1e-12, atol=1e-12)


@every_transform
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_that_the_dtype_is_kept(transform, dtype):
    x = normal(2, *transform.shape).to(dtype)
    assert transform.forward(x).dtype == dtype
    assert transform.inverse(transform.forward(x)).dtype == dtype


@pytest.mark.parametrize("shape", [(8,), (7,), (4, 5)])
def test_that_the_fourier_basis_is_cosine_plus_sine(shape):
    transform = enkg.RealFourier(shape)
    axes = [torch.arange(n, dtype=torch.float64) / n for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    index = (1,) if len(shape) == 1 else (1, 2)
    phase = 2 * torch.pi * torch.tensordot(torch.tensor(index).double(), place, dims=1)
    wave = (phase.cos() + phase.sin()) / transform.size**0.5
    z = transform.forward(wave[None]).reshape(shape)
    expected = torch.zeros(shape, dtype=torch.float64)
    expected[index] = 1
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8,), (5, 6)])
def test_that_a_variance_equal_at_opposite_wavenumbers_makes_a_stationary_field(shape):
    # Then T^-1 diag(v) T is circulant: the covariance of two points knows only their distance.
    transform = enkg.RealFourier(shape)
    k = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n).double() for n in shape], indexing="ij")
    variance = 1 / (1 + torch.stack(k).square().sum(0))
    units = torch.eye(transform.size, dtype=torch.float64).reshape(-1, *shape)
    covariance = transform.inverse(variance.flatten() * transform.forward(units))
    axes = tuple(range(len(shape)))
    for j, shift in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist()):
        shifts = tuple(shift) if isinstance(shift, list) else (shift,)
        torch.testing.assert_close(covariance[j], covariance[0].roll(shifts, axes))


def test_that_a_truncated_basis_projects():
    basis = torch.linalg.qr(normal(6, 3)).Q
    transform = enkg.Eigenbasis(basis, (6,))
    x = normal(4, 6, seed=1)
    once = transform.inverse(transform.forward(x))
    torch.testing.assert_close(transform.inverse(transform.forward(once)), once)
    torch.testing.assert_close(once, x @ basis @ basis.T)
    assert transform.size == 3


def test_that_one_number_has_one_coefficient():
    transform = enkg.Identity(())
    x = normal(4)
    assert transform.forward(x).shape == (4, 1)
    assert torch.equal(transform.inverse(transform.forward(x)), x)


@pytest.mark.parametrize(
    ("basis", "words"),
    [
        (torch.eye(5), r"\(6, K\)"),
        (torch.ones(6, 7), "K at most 6"),
        (torch.ones(6), r"\(6, K\)"),
        (2 * torch.eye(6), "not orthonormal"),
        (torch.eye(6) / 0, "not orthonormal"),
    ],
)
def test_that_a_basis_that_is_none_is_refused(basis, words):
    with pytest.raises(enkg.InputError, match=words):
        enkg.Eigenbasis(basis, (6,))
