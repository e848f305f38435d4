"""Conditional covariance and sensitivity of an ensemble, against their closed forms."""

import pytest
import torch

from enkg.guidance.conditional import (
    Sensitivity,
    Symmetric,
    conditional_covariance,
    gain,
    principal_axes,
    sensitivity,
)
from tests.enkg.problems import normal, small_problem, smooth_problem

PROBLEM = small_problem()


def dense(c: Symmetric) -> torch.Tensor:
    return c(torch.eye(len(c.vectors), dtype=torch.float64))


def noisy_and_denoised(problem, sigma: float, members: int):
    prior = problem.gaussian
    x = prior.draw(0, range(members), 0) + sigma * normal(members, len(problem.mean), seed=1)
    return x, prior.denoise(x, sigma)


def axes_of(problem, draws: int = 4000):
    return principal_axes(problem.gaussian.draw(1, range(draws), 0))


def test_that_the_axes_are_those_of_the_prior():
    axes, covariance = axes_of(PROBLEM, 100_000), PROBLEM.covariance
    found = dense(Symmetric(axes.vectors, axes.variance, axes.rest))
    torch.testing.assert_close(found, covariance, rtol=0, atol=0.03)
    assert axes.largest == pytest.approx(2.0**0.5, rel=0.02)


def test_that_few_draws_leave_the_rest_of_the_variance_to_the_other_directions():
    draws = normal(40, 100, seed=3)
    axes = principal_axes(draws)
    assert axes.vectors.shape == (100, 39)
    gram = axes.vectors.T @ axes.vectors
    torch.testing.assert_close(gram, torch.eye(39, dtype=torch.float64), rtol=0, atol=1e-9)
    total = axes.variance.sum() + axes.rest * 61
    assert float(total) == pytest.approx(float(draws.var(0).sum()), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_that_the_covariance_of_a_gaussian_prior_is_exact(sigma):
    # D is linear in x, so only the ridge of 2 d / J = .006 towards the diagonal is in the way.
    x, denoised = noisy_and_denoised(PROBLEM, sigma, 2000)
    s = PROBLEM.covariance
    exact = s - s @ torch.linalg.solve(s + sigma**2 * torch.eye(6, dtype=torch.float64), s)
    found = dense(conditional_covariance(x, denoised, sigma, axes_of(PROBLEM)))
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3 * float(exact.diagonal().max()))


def test_that_fewer_members_than_unknowns_give_about_the_same():
    problem, sigma = smooth_problem(), 0.5
    x, denoised = noisy_and_denoised(problem, sigma, 40)
    s = problem.covariance
    exact = s - s @ torch.linalg.solve(s + sigma**2 * torch.eye(64, dtype=torch.float64), s)
    found = dense(conditional_covariance(x, denoised, sigma, axes_of(problem)))
    assert float((found - exact).norm() / exact.norm()) < 0.15


def test_that_the_covariance_lies_between_zero_and_the_noise():
    x, denoised = normal(12, 30, seed=1), normal(12, 30, seed=2)  # no denoiser at all
    values = torch.linalg.eigvalsh(
        dense(conditional_covariance(x, denoised, 0.7, principal_axes(normal(90, 30, seed=3))))
    )
    assert float(values[0]) >= 0
    assert float(values[-1]) <= 0.49 + 1e-12


def test_that_powers_of_a_matrix_are_its_powers():
    axes = principal_axes(normal(5, 8, seed=1))
    c = Symmetric(axes.vectors, axes.variance, 0.3)
    v = normal(3, 8, seed=2)
    torch.testing.assert_close(c(c(v, 0.5), 0.5), c(v))
    torch.testing.assert_close(c(c(v, -1.0)), v)
    torch.testing.assert_close(v @ dense(c), c(v))
    torch.testing.assert_close(c.plus(2.0, 0.5)(v), 2 * c(v) + 0.5 * v)


def test_that_a_linear_simulator_is_found_and_has_no_model_error():
    z = PROBLEM.gaussian.draw(2, range(300), 0)
    model = sensitivity(z, PROBLEM.forward(z), axes_of(PROBLEM))
    torch.testing.assert_close(model.matrix, PROBLEM.matrix, rtol=0, atol=2e-3)
    assert float(model.residuals.abs().max()) < 1e-2


def test_that_the_residuals_are_what_the_regression_leaves():
    z = normal(60, 4, seed=1)
    data = (z**2 + z) @ normal(4, 3, seed=2)
    model = sensitivity(z, data, principal_axes(normal(4000, 4, seed=3)))
    left = data - data.mean(0) - (z - z.mean(0)) @ model.matrix.T
    torch.testing.assert_close(model.residuals, left)
    assert float((left.T @ (z - z.mean(0))).abs().max()) < 0.1  # nothing linear is in them


@pytest.mark.parametrize("members", [30, 90])
def test_that_more_unknowns_than_members_change_the_way_but_not_the_answer(members):
    # Ridge regression in either space, against the normal equations.
    z, data = normal(members, 60, seed=1), normal(members, 5, seed=2)
    model = sensitivity(z, data, principal_axes(normal(400, 60, seed=3)))
    x, y = z - z.mean(0), data - data.mean(0)
    penalty = 1e-4 * x.square().sum() / 60
    exact = torch.linalg.solve(x.T @ x + penalty * torch.eye(60, dtype=torch.float64), x.T @ y).T
    torch.testing.assert_close(model.matrix, exact, rtol=1e-6, atol=1e-6)


def test_that_the_gain_is_the_kalman_gain():
    c = Symmetric(torch.linalg.qr(normal(6, 6, seed=1)).Q, torch.rand(6).double() + 0.1, 0.0)
    residuals = normal(50, 3, seed=2)
    k = gain(c, Sensitivity(PROBLEM.matrix, residuals))
    noise = torch.eye(3, dtype=torch.float64) + torch.diag(residuals.square().mean(0))
    s = PROBLEM.matrix @ dense(c) @ PROBLEM.matrix.T + noise
    exact = torch.linalg.solve(s, PROBLEM.matrix @ dense(c)).T
    r = normal(4, 3, seed=3)
    torch.testing.assert_close(k(r), r @ exact.T)
    exact_density = torch.distributions.MultivariateNormal(torch.zeros(3).double(), s).log_prob(r)
    differences = k.log_density(r) - exact_density
    torch.testing.assert_close(differences, differences[:1].expand(4))
