"""Exact priors against Tweedie's formula, the density itself and fine integration."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import MissingCapability
from enkg.prior import Drawable, Flowing, vjp
from enkg.sample import heun, score
from enkg.schedule import karras
from tests.enkg.problems import DOUBLE, normal

D = 6
BASIS = torch.linalg.qr(normal(D, D, seed=1)).Q
VARIANCE = torch.linspace(0.1, 2.0, D, dtype=torch.float64)
COVARIANCE = BASIS * VARIANCE @ BASIS.T
MEAN = normal(D, seed=2)
CENTRES = 1.5 * normal(5, D, seed=3)


def gaussian() -> enkg.Gaussian:
    return enkg.Gaussian.from_covariance(MEAN, COVARIANCE)


def mixture() -> enkg.Mixture:
    return enkg.Mixture(CENTRES, 0.3 * VARIANCE, MEAN, enkg.Eigenbasis(BASIS, (D,)))


def log_density(prior: enkg.Prior, x: Tensor, sigma: float) -> Tensor:
    """log p_sigma from dense matrices, up to a constant; shape (J,)."""
    if isinstance(prior, enkg.Gaussian):
        centres, covariance = MEAN[None], COVARIANCE
    else:
        centres, covariance = MEAN + CENTRES @ BASIS.T, BASIS * (0.3 * VARIANCE) @ BASIS.T
    precision = torch.linalg.inv(covariance + sigma**2 * torch.eye(D))
    r = x[:, None] - centres
    return torch.logsumexp(-0.5 * torch.einsum("jid,de,jie->ji", r, precision, r), dim=1)


PRIORS = pytest.mark.parametrize("prior", [gaussian(), mixture()], ids=["gaussian", "mixture"])


@PRIORS
@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 80.0])
def test_that_the_denoiser_is_tweedies_formula_of_the_density(prior, sigma):
    x = (MEAN + (1 + sigma) * normal(30, D, seed=4)).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(prior, x, sigma).sum(), x)
    x = x.detach()
    expected = x + sigma**2 * gradient
    torch.testing.assert_close(prior.denoise(x, sigma), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(prior, x, sigma), gradient, rtol=1e-5, atol=1e-5)


@PRIORS
def test_that_the_denoiser_is_the_regression_of_clean_on_noisy(prior):
    # E[(x_0 - D) f(x)] = 0 for any f; four standard errors over 40,000 draws.
    sigma, count = 0.8, 40_000
    clean = prior.draw(0, range(count), 0)
    noisy = clean + sigma * normal(count, D, seed=5)
    products = (clean - prior.denoise(noisy, sigma)) * noisy.sin()
    assert (products.mean(0).abs() < 4 * products.std(0) / count**0.5).all()


@PRIORS
def test_that_draws_have_the_moments_of_the_prior(prior):
    # 20,000 draws, four standard errors; a mixture's fourth moment is below the Gaussian's 3.
    count = 20_000
    x = prior.draw(3, range(count), 0)
    mean, covariance = MEAN, COVARIANCE
    if isinstance(prior, enkg.Mixture):
        centres = MEAN + CENTRES @ BASIS.T
        mean = centres.mean(0)
        covariance = 0.3 * COVARIANCE + torch.cov(centres.T, correction=0)
    scale = covariance.diagonal().sqrt()
    assert x.dtype == torch.float64
    assert ((x.mean(0) - mean).abs() < 4 * scale / count**0.5).all()
    error = (torch.cov(x.T) - covariance).abs()
    assert (error < 4 * (2 / count) ** 0.5 * scale.outer(scale)).all()


@PRIORS
def test_that_draws_follow_seed_member_and_step(prior):
    x = prior.draw(0, range(8), 0)
    assert torch.equal(prior.draw(0, [5, 2], 0), x[[5, 2]])
    assert (prior.draw(1, range(8), 0) != x).all()
    assert (prior.draw(0, range(8), 1) != x).all()


def test_that_the_closed_flow_is_the_fine_limit_of_heun():
    # 400 steps of order two: the error is of order (1 / 400)^2.
    prior, x = gaussian(), MEAN + 5 * normal(20, D, seed=6)
    integrated = heun(prior, x, karras(401, 5.0, 0.05).tolist())
    torch.testing.assert_close(prior.flow(x, 5.0, 0.05), integrated, rtol=1e-4, atol=1e-4)


def test_that_the_closed_flow_keeps_the_law_and_composes():
    prior, x = gaussian(), normal(20, D, seed=6)
    once = prior.flow(x, 3.0, 0.0)
    torch.testing.assert_close(prior.flow(prior.flow(x, 3.0, 0.4), 0.4, 0.0), once)
    # Linear in x - m with matrix (C / (C + sigma^2))^(1/2): N(m, C + sigma^2) goes to N(m, C).
    gain = BASIS * (VARIANCE / (VARIANCE + 9)).sqrt() @ BASIS.T
    torch.testing.assert_close(once, MEAN + (x - MEAN) @ gain)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_that_a_truncated_basis_flows_where_it_has_no_variance(sigma):
    full = torch.cat([VARIANCE[:3], torch.zeros(3, dtype=torch.float64)])
    whole = enkg.Gaussian(MEAN, full, enkg.Eigenbasis(BASIS, (D,)))
    short = enkg.Gaussian(MEAN, VARIANCE[:3], enkg.Eigenbasis(BASIS[:, :3], (D,)))
    x = normal(20, D, seed=6)
    torch.testing.assert_close(short.denoise(x, sigma), whole.denoise(x, sigma))
    for to in (0.0, 0.05):
        torch.testing.assert_close(short.flow(x, sigma, to), whole.flow(x, sigma, to))


def test_that_a_mixture_with_eta_one_is_the_gaussian():
    prior = gaussian()
    z = prior.variance.sqrt() * normal(7, D, seed=7)
    kernel = enkg.Mixture.shrunken(prior, z, eta=1.0)
    x = normal(20, D, seed=8)
    for sigma in (0.05, 1.0, 50.0):
        torch.testing.assert_close(kernel.denoise(x, sigma), prior.denoise(x, sigma))


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.9])
def test_that_shrinking_keeps_the_first_two_moments(eta):
    # Coefficients with exactly the sample moments of the Gaussian; then equality is exact.
    prior = gaussian()
    z = normal(40, D, seed=9)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / 40)).T * prior.variance.sqrt()
    kernel = enkg.Mixture.shrunken(prior, z, eta)
    torch.testing.assert_close(kernel.centres.mean(0), torch.zeros(D, dtype=torch.float64))
    total = kernel.centres.T @ kernel.centres / 40 + torch.diag(kernel.kernel)
    torch.testing.assert_close(total, torch.diag(prior.variance))


def test_that_from_samples_has_the_moments_of_the_samples():
    samples = normal(50, 2, 3, seed=10)
    prior = enkg.Gaussian.from_samples(samples)
    assert prior.shape == (2, 3)
    torch.testing.assert_close(prior.mean, samples.mean(0))
    assert isinstance(prior.transform, enkg.Eigenbasis)
    basis = prior.transform.basis
    torch.testing.assert_close(basis * prior.variance @ basis.T, torch.cov(samples.flatten(1).T))


def test_that_fewer_components_are_the_principal_ones():
    samples = normal(50, D, seed=10) * torch.linspace(0.1, 3, D)
    prior = enkg.Gaussian.from_samples(samples, components=2)
    expected = torch.linalg.eigvalsh(torch.cov(samples.T)).flip(0)[:2]
    torch.testing.assert_close(prior.variance, expected)
    few = enkg.Gaussian.from_samples(samples[:4])  # three directions at most
    assert few.variance.shape == (3,)


def test_that_a_kernel_density_of_samples_has_their_moments():
    samples = normal(50, 2, 3, seed=10)
    prior = enkg.Mixture.from_samples(samples, bandwidth=0.2)
    # A kernel far narrower than the samples' distance gives back the sample it is asked about.
    near = enkg.Mixture.from_samples(samples, bandwidth=1e-3).denoise(samples + 0.01, 0.02)
    torch.testing.assert_close(near, samples, rtol=0, atol=1e-3)
    # From far away all samples weigh alike: D is the mean.
    far = prior.denoise(torch.zeros(1, 2, 3, dtype=torch.float64), 1e4)
    torch.testing.assert_close(far[0], samples.mean(0), rtol=1e-4, atol=1e-4)


def test_that_component_weights_are_posterior_probabilities():
    prior, sigma = mixture(), 0.7
    z = normal(9, D, seed=11)
    normals = torch.distributions.Normal(CENTRES, (prior.kernel + sigma**2).sqrt())
    logs = normals.log_prob(z[:, None]).sum(-1)
    torch.testing.assert_close(prior.weights(z, sigma), torch.softmax(logs, dim=1))


@PRIORS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_that_dtype_and_shape_are_kept(prior, dtype):
    x = normal(5, D).to(dtype)
    for out in (prior.denoise(x, 0.5), enkg.Flow()(prior, x, 0.5, 0.0)):
        assert out.dtype == dtype
        assert out.shape == x.shape


def test_that_the_optional_abilities_are_recognised():
    assert isinstance(gaussian(), Drawable)
    assert isinstance(gaussian(), Flowing)
    assert isinstance(mixture(), Drawable)
    assert not isinstance(mixture(), Flowing)


def test_that_a_prior_of_one_number_works():
    prior = enkg.Gaussian(torch.tensor(2.0), torch.tensor([0.5]), enkg.Identity(()))
    x = prior.draw(0, range(4), 0)
    assert x.shape == (4,)
    torch.testing.assert_close(prior.denoise(x, 1.0), 2 + (x - 2) / 3)
    torch.testing.assert_close(prior.flow(x, 1.0, 0.0), 2 + (x - 2) / 3**0.5)


@dataclass
class Wrong:
    """A call that must be refused, and words of the message."""

    call: object
    words: str


EYE = torch.eye(3, dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)
LINE = enkg.Identity((3,))
WRONG = {
    "shape": Wrong(lambda: enkg.Gaussian.from_covariance(ZERO, torch.eye(4)), r"\(3, 3\)"),
    "not symmetric": Wrong(
        lambda: enkg.Gaussian.from_covariance(ZERO, EYE + torch.ones(3, 3).triu(1)), "symmetric"
    ),
    "NaN": Wrong(lambda: enkg.Gaussian.from_covariance(ZERO, EYE / 0), "NaN"),
    "negative": Wrong(lambda: enkg.Gaussian.from_covariance(ZERO, -EYE), "negative eigenvalue"),
    "variance": Wrong(lambda: enkg.Gaussian(ZERO, torch.tensor([1.0, -1.0, 1.0]), LINE), "nega"),
    "variances": Wrong(lambda: enkg.Gaussian(ZERO, torch.ones(2), LINE), "3 coefficients"),
    "mean": Wrong(lambda: enkg.Gaussian(torch.zeros(2), torch.ones(3), LINE), "mean has shape"),
    "mean NaN": Wrong(lambda: enkg.Gaussian(ZERO / 0, torch.ones(3), LINE), "NaN"),
    "one sample": Wrong(lambda: enkg.Gaussian.from_samples(ZERO[None]), "N >= 2"),
    "components": Wrong(lambda: enkg.Gaussian.from_samples(EYE, 3), "between 1 and 2"),
    "kernel": Wrong(lambda: enkg.Mixture(EYE, ZERO, ZERO, LINE), "positive"),
    "centres": Wrong(lambda: enkg.Mixture(EYE[:, :2], ZERO + 1, ZERO, LINE), r"\(N, 3\)"),
    "centre NaN": Wrong(lambda: enkg.Mixture(EYE / 0, ZERO + 1, ZERO, LINE), "NaN"),
    "bandwidth": Wrong(lambda: enkg.Mixture.from_samples(EYE, 0.0), "positive width"),
    "eta": Wrong(lambda: enkg.Mixture.shrunken(enkg.Gaussian(ZERO, ZERO, LINE), EYE, 0), "eta"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_that_impossible_priors_are_refused_in_words(wrong):
    with pytest.raises(enkg.InputError, match=wrong.words):
        wrong.call()


def test_that_the_score_points_home():
    assert (score(gaussian(), MEAN[None] + DOUBLE.new_ones(D), 1.0) @ torch.ones(D).double()) < 0


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_that_the_closed_jacobian_is_that_of_autograd(kind):
    gaussian = enkg.Gaussian.from_samples(normal(30, 5, seed=3))
    centres = normal(7, 5, seed=4)
    prior = gaussian if kind == "gaussian" else enkg.Mixture.shrunken(gaussian, centres)

    class Plain:
        shape = prior.shape
        denoise = staticmethod(prior.denoise)

    x, v = normal(4, 5, seed=5), normal(4, 5, seed=6)
    expected = vjp(Plain(), x, 0.6, v)
    torch.testing.assert_close(vjp(prior, x, 0.6, v), expected, rtol=1e-9, atol=1e-9)


def test_that_a_denoiser_without_gradients_is_refused_with_a_sentence():
    class NumPy:
        shape = (5,)

        def denoise(self, x, sigma):
            return torch.from_numpy(x.detach().numpy() / 2)

    with pytest.raises(MissingCapability, match="vjp"):
        vjp(NumPy(), normal(2, 5), 1.0, normal(2, 5))
