"""The digits prior: against autograd of its log density, its Gaussian, and its split."""

import sys

import numpy as np
import pytest
import torch

import enkg
from enkg.prior import vjp
from priors import digits
from tests.enkg.problems import normal

pytest.importorskip("sklearn")
IMAGES = digits.centres().images


def log_density(x, sigma, bandwidth):
    """log p_sigma(x) up to a constant, by its definition."""
    distance = (x[:, None] - IMAGES).flatten(2).square().sum(dim=2)
    return torch.logsumexp(-distance / (2 * (bandwidth**2 + sigma**2)), dim=1)


@pytest.mark.parametrize("bandwidth", [0.15, 0.2, 0.4])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_that_the_denoiser_is_tweedies_formula(sigma, bandwidth):
    x = (IMAGES[:6] + (bandwidth**2 + sigma**2) ** 0.5 * normal(6, 8, 8)).requires_grad_()
    (score,) = torch.autograd.grad(log_density(x, sigma, bandwidth).sum(), x)
    denoised = digits.digits(bandwidth).denoise(x.detach(), sigma)
    assert float((denoised - x - sigma**2 * score).detach().abs().max()) < 1e-9


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_that_the_denoiser_in_single_precision_is_the_same(sigma):
    prior = digits.digits()
    x = IMAGES[:6] + sigma * normal(6, 8, 8)
    difference = prior.denoise(x.float(), sigma).double() - prior.denoise(x, sigma)
    assert float(difference.abs().max()) < 1e-5


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_that_the_jacobian_is_the_hessian_of_the_log_density(sigma):
    # sigma^2 J_D is the covariance of x_0 given x_sigma: symmetric and not negative.
    prior = digits.digits()
    x = (IMAGES[3] + sigma * normal(8, 8))[None]
    eye = torch.eye(64).double().reshape(64, 8, 8)
    jacobian = vjp(prior, x.expand(64, 8, 8), sigma, eye).flatten(1)
    hessian = torch.func.hessian(lambda z: log_density(z, sigma, 0.2).sum())(x).reshape(64, 64)
    expected = torch.eye(64).double() + sigma**2 * hessian
    assert float((jacobian - expected).abs().max()) < 1e-8
    assert float(torch.linalg.eigvalsh(jacobian).min()) > 0


def test_that_the_gaussian_has_the_moments_of_the_mixture():
    prior, gaussian = digits.digits(0.3), digits.digits_gaussian(0.3)
    assert float((gaussian.mean - prior.mean).abs().max()) < 1e-12
    x = prior.draw(0, range(20_000), 0).flatten(1)
    whitened = gaussian.transform.forward(x.reshape(-1, 8, 8) - gaussian.mean) / gaussian.scales
    # 64 variances of 20,000 draws: standard error .01, a little more for tails.
    assert float((whitened.var(dim=0) - 1).abs().max()) < 0.06
    assert float(whitened.mean(dim=0).abs().max()) < 0.03
    # The moments are equal and the laws are not: the density of the Gaussian is no mixture.
    assert float((gaussian.denoise(IMAGES[:9], 0.5) - prior.denoise(IMAGES[:9], 0.5)).norm()) > 1


def test_that_the_split_is_that_of_its_seed_and_covers_all_images_once():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    kept, rest = digits.centres(), digits.held_out()
    assert (len(kept.images), len(rest.images)) == (1600, 197)
    for part, found in ((order[:1600], kept), (order[1600:], rest)):
        part.sort()
        assert np.array_equal(found.images.flatten(1).numpy(), pixels[part] / 8 - 1)
        assert np.array_equal(found.labels.numpy(), labels[part])


def test_that_images_are_between_minus_one_and_one_and_every_class_is_there():
    both = torch.cat([IMAGES, digits.held_out().images])
    assert (float(both.min()), float(both.max())) == (-1, 1)
    assert digits.centres().labels.bincount().min() > 140


def test_that_class_shares_are_those_of_the_components():
    labels = digits.centres().labels
    shares = digits.class_shares(IMAGES)
    expected = labels.bincount() / len(labels)
    assert float(shares.sum()) == pytest.approx(1)
    assert float((shares - expected).abs().max()) < 0.01
    eights = digits.class_shares(IMAGES[labels == 8])
    assert float(eights[8]) > 0.97


def test_that_without_scikit_learn_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._split.cache_clear()
    try:
        with pytest.raises(enkg.InputError, match=r"\[digits\]"):
            digits.digits()
    finally:
        digits._split.cache_clear()
