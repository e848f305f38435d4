"""Digits in latent space: decoder and encoder, what they lose, and the prior behind them."""

import pickle

import pytest
import torch

import enkg
from enkg.latent import Decoding
from enkg.learned import TrainedAutoencoder
from priors import digits
from priors.digits.latent import (
    LEARNED,
    latent_digits,
    learned_latent,
    principal,
    reconstruction_error,
)
from tests.enkg.problems import normal

pytest.importorskip("sklearn")
from experiments.digits import problem

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


def test_that_the_shipped_autoencoder_loses_what_its_card_says_and_less_than_components():
    pytest.importorskip("diffusers")
    prior = learned_latent()
    assert (prior.shape, prior.decoded_shape) == ((2, 4, 4), (8, 8))
    errors = TrainedAutoencoder(LEARNED).card["errors"]
    sets = {
        "real digits, held out": digits.held_out().images,
        "real digits, centres": digits.centres().images,
        "draws": digits.digits().draw(7, range(1000), 0),  # of no seed that was learnt from
    }
    found = {
        name: float((prior.decode(prior.encode(x)) - x).square().mean().sqrt())  # pyright: ignore
        for name, x in sets.items()
    }
    for name in ("real digits, held out", "real digits, centres"):
        assert found[name] == pytest.approx(errors[name]["error"], rel=1e-3)
    assert found["draws"] == pytest.approx(errors["held_out"]["error"], rel=0.03)
    assert found["real digits, held out"] < 0.9 * reconstruction_error(32)


def test_that_the_shipped_prior_denoises_latents_of_held_out_digits_better_than_a_gaussian():
    pytest.importorskip("diffusers")
    prior = learned_latent()
    z = prior.encode(digits.held_out().images.float())  # pyright: ignore
    noisy = z + normal(*z.shape, seed=1).float()
    gaussian = prior.prior.base.prior()
    errors = [float((p.denoise(noisy, 1.0) - z).square().mean()) for p in (prior, gaussian)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(
    ("space", "shape"),
    [("components", (24,)), ("curved", (24,)), ("autoencoder", (2, 4, 4))],
)
def test_that_the_problems_of_digits_can_be_solved_in_other_spaces(space, shape):
    pytest.importorskip("diffusers")
    given = problem.experiment("sr2", space=space)
    assert given.prior.shape == shape
    assert given.shape == (8, 8)


def test_that_the_learned_space_has_one_bandwidth():
    with pytest.raises(enkg.InputError, match=r"is of bandwidth 0\.2, not 0\.3"):
        problem.experiment("sr2", bandwidth=0.3, space="autoencoder")
