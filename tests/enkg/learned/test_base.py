"""The Gaussian around which a network learns: closed forms, and the Gaussian priors of enkg."""

import pytest
import torch

import enkg
from enkg.learned.base import Base, fitted
from tests.enkg.learned.fields import drawn, stationary
from tests.enkg.problems import normal

LEVELS = (0.01, 0.3, 1.0, 7.0, 80.0)


def each(sigma: float, count: int = 5) -> torch.Tensor:
    return torch.full((count,), sigma, dtype=torch.float64)


def bases() -> dict[str, Base]:
    x = drawn(60) + 0.3
    return {
        "white": fitted("white", x),
        "spectrum": fitted("spectrum", x),
        "few components": fitted("components", x, components=7),
        "all components": fitted("components", drawn(200), components=256),
        "fewer samples than numbers": fitted("components", x[:12]),
    }


@pytest.mark.parametrize("sigma", LEVELS)
def test_that_the_white_base_is_the_published_preconditioning(sigma):
    base, x = fitted("white", drawn(3)), normal(5, 8, 8)
    skip, out = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1) ** 0.5  # sigma_data = 1
    torch.testing.assert_close(base.denoise(x, each(sigma)), skip * x)
    torch.testing.assert_close(base.error(each(sigma)), each(out))


@pytest.mark.parametrize("sigma", LEVELS)
def test_that_components_are_those_of_the_gaussian_fitted_to_the_samples(sigma):
    x, noisy = drawn(200).double(), normal(5, 8, 8)
    exact = enkg.Gaussian.from_samples(x)
    found = fitted("components", x).denoise(noisy, each(sigma))
    torch.testing.assert_close(found, exact.denoise(noisy, sigma), atol=3e-6, rtol=1e-5)


def test_that_components_which_are_left_out_share_their_variance():
    x = drawn(300).double()
    base = fitted("components", x, components=10)
    assert base.basis is not None
    assert base.variance.shape == (10,)
    assert base.basis.shape == (64, 10)
    variances = torch.linalg.eigvalsh(x.reshape(300, 64).T.cov()).flip(0)
    torch.testing.assert_close(base.variance.double(), variances[:10], rtol=1e-5, atol=0)
    assert float(base.rest) == pytest.approx(float(variances[10:].mean()), rel=1e-5)


@pytest.mark.parametrize("count", [20, 60])
def test_that_few_samples_do_not_pretend_to_know_all_directions(count):
    base, other = fitted("components", drawn(count)), drawn(500)[100:]
    assert base.variance.shape == ((count - 1) // 2,)
    level = torch.full((400,), 0.05)  # so low that the error is nearly the noise itself
    noisy = other + 0.05 * normal(400, 8, 8).float()
    error = float((base.denoise(noisy, level) - other).square().mean().sqrt())
    assert error < 1.5 * float(base.error(level[:1]))


@pytest.mark.parametrize("sigma", LEVELS)
def test_that_the_spectrum_is_the_gaussian_of_a_stationary_field(sigma):
    x, noisy = drawn(60).double(), normal(5, 8, 8)
    base = fitted("spectrum", x)
    exact = enkg.Gaussian(base.mean, base.variance.reshape(-1), enkg.RealFourier((8, 8)))
    found = base.denoise(noisy, each(sigma))
    torch.testing.assert_close(found, exact.denoise(noisy, sigma), atol=1e-6, rtol=1e-5)


def test_that_the_spectrum_is_found_from_samples():
    base = fitted("spectrum", drawn(4000))
    truth = stationary().variance.reshape(8, 8).float()
    # The power of a wavenumber is a mean of 4000 squares, or of 2000 complex ones: 2.2 %.
    torch.testing.assert_close(base.variance, truth, rtol=0.1, atol=0)
    assert float(base.mean.abs().max()) < 4.5 / 4000**0.5


def test_that_channels_have_a_spectrum_each():
    x = torch.stack([drawn(500), 3 * drawn(1000)[500:]], dim=1)
    base = fitted("spectrum", x)
    assert base.mean.shape == base.variance.shape == (2, 8, 8)
    alone = fitted("spectrum", x[:, 1])
    noisy = normal(5, 2, 8, 8)
    torch.testing.assert_close(
        base.denoise(noisy, each(0.7))[:, 1], alone.denoise(noisy[:, 1], each(0.7))
    )


@pytest.mark.parametrize("name", bases())
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_that_the_error_is_that_of_its_own_samples(name, sigma):
    base, count = bases()[name], 20_000
    x = base.mean.double() + _of_the_law(base, count)
    noisy = x + sigma * normal(*x.shape, seed=3)
    error = base.denoise(noisy, each(sigma, count)) - x
    assert float(error.square().mean().sqrt()) == pytest.approx(
        float(base.error(each(sigma, 1))), rel=0.01
    )


def _of_the_law(base: Base, count: int) -> torch.Tensor:
    shape = tuple(base.mean.shape)
    z = normal(count, *shape, seed=2)
    if base.basis is None:
        return torch.fft.ifft2(base.variance.double().sqrt() * torch.fft.fft2(z)).real
    z, basis = z.reshape(count, -1), base.basis.double()
    inside = z @ basis
    x = base.rest**0.5 * (z - inside @ basis.T) + base.variance.double().sqrt() * inside @ basis.T
    return x.reshape(count, *shape)


@pytest.mark.parametrize("name", bases())
@pytest.mark.parametrize("sigma", [0.02, 1.0, 40.0])
def test_that_what_is_taken_and_what_is_kept_make_up_the_whole(name, sigma):
    base, level = bases()[name], torch.tensor([sigma])
    error, taken, kept = (float(f(level)) for f in (base.error, base.taken, base.kept))
    assert error**2 + taken**2 == pytest.approx(sigma**2, rel=1e-4)
    inside = float(base.variance.sum())
    d, count = base.mean.numel(), base.variance.numel()
    power = (inside + (d - count) * float(base.rest)) / d
    assert error**2 + kept**2 == pytest.approx(power, rel=1e-4)


@pytest.mark.parametrize("name", bases())
def test_that_rows_have_noise_levels_of_their_own(name):
    base, x, sigma = bases()[name], normal(5, 8, 8), torch.tensor(LEVELS, dtype=torch.float64)
    found = base.denoise(x, sigma)
    for k, level in enumerate(LEVELS):
        torch.testing.assert_close(found[k : k + 1], base.denoise(x[k : k + 1], each(level, 1)))
        torch.testing.assert_close(base.error(sigma)[k : k + 1], base.error(each(level, 1)))


@pytest.mark.parametrize("name", bases())
def test_that_a_base_comes_back_from_its_arrays(name):
    base, x = bases()[name], normal(5, 8, 8)
    again = Base.of(base.arrays())
    # The variance outside the basis is kept as float32, as all of it.
    torch.testing.assert_close(
        again.denoise(x, each(0.5)), base.denoise(x, each(0.5)), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(again.error(each(0.5)), base.error(each(0.5)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", bases())
def test_that_the_linear_denoiser_is_a_prior(name):
    base = bases()[name]
    prior, x = base.prior(), normal(5, 8, 8)
    assert isinstance(prior, enkg.Prior)
    assert prior.shape == (8, 8)
    assert torch.equal(prior.denoise(x, 0.5), base.denoise(x, each(0.5)))


def test_that_the_base_is_the_best_among_gaussians_at_its_own_samples():
    x, sigma = drawn(2000).double(), 0.8
    train, other = x[:1500], x[1500:]
    noisy = other + sigma * normal(*other.shape)
    errors = {
        kind: float((fitted(kind, train).denoise(noisy, each(sigma, 500)) - other).square().mean())
        for kind in ("white", "components", "spectrum")
    }
    assert errors["spectrum"] < errors["components"] < errors["white"]


def test_that_kinds_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(enkg.InputError, match=r"base is 'pink'; expected 'white', 'spectrum' or"):
        fitted("pink", drawn(3))  # type: ignore[arg-type]
    with pytest.raises(enkg.InputError, match=r"'spectrum' wants members \(.., H, W\), not \(5,\)"):
        fitted("spectrum", torch.ones(3, 5))
