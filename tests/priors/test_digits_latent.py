"""Digits in latent space: decoder and encoder, what they lose, and the prior behind them."""

import pickle

import pytest
import torch

import enkg
from enkg.latent import Decoding
from priors import digits
from priors.digits.latent import latent_digits, principal, reconstruction_error
from tests.enkg.problems import normal

pytest.importorskip("sklearn")
both = pytest.mark.parametrize("curved", [False, True])


@both
def test_that_encoding_undoes_decoding(curved):
    coder, z = principal(24, curved), 0.5 * normal(5, 24)
    torch.testing.assert_close(coder.encode(coder.decode(z)), z)


def test_that_the_basis_is_orthonormal_and_holds_the_variance():
    basis, x = principal(24).basis, digits.centres().images.flatten(1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(24).double())
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    kept = (x - x.mean(dim=0)) @ basis
    torch.testing.assert_close(kept.var(dim=0, correction=0), values[:24])


@both
def test_that_more_components_lose_less_and_all_lose_nothing(curved):
    errors = [reconstruction_error(k, curved) for k in (8, 24, 64)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5  # a point at the edge of the curved decoder's inverse is clipped
    assert errors[1] < 0.16


def test_that_the_prior_has_the_abilities_of_a_mixture_and_a_coder():
    prior = latent_digits(curved=True)
    assert isinstance(prior, Decoding)
    assert prior.shape == (24,)
    assert prior.decoded_shape == (8, 8)
    again = pickle.loads(pickle.dumps(prior))
    z = normal(3, 24)
    assert torch.equal(again.decode(z), prior.decode(z))
    assert torch.equal(again.denoise(z, 0.3), prior.denoise(z, 0.3))
    with pytest.raises(enkg.InputError, match="components"):
        principal(65)
