"""MMPS by theory: the guided denoiser is the conditional mean, its flow leads to the posterior."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError
from enkg.guidance.guided import evaluated, unwhiten
from enkg.guidance.mmps import MMPS
from tests.enkg.affine import law
from tests.enkg.problems import (
    DOUBLE,
    LinearGaussian,
    LinearOperator,
    follow,
    kalman,
    normal,
    small_problem,
    smooth_problem,
    whitened,
)

PROBLEM = small_problem()
EXACT = {"iterations": 64, "tolerance": 1e-10}
problems = pytest.mark.parametrize("problem", [PROBLEM, smooth_problem()], ids=["small", "smooth"])


def guided(method: MMPS, problem: LinearGaussian, sigma: float, operator=None) -> Tensor:
    """D_y of 4 chains, and their x."""
    prior, observation = problem.gaussian, problem.observation
    state = replace(method, members=4).init(prior, 0, DOUBLE)
    operator = operator or problem.operator
    at = evaluated(state, noisy(problem), sigma, prior, operator, observation)
    return method._guided(at)


def noisy(problem: LinearGaussian) -> Tensor:
    return 2 * normal(4, len(problem.mean), seed=9)


def conditional_mean(problem: LinearGaussian, sigma: float) -> Tensor:
    """E[x_0 | x, y] by two applications of Bayes' rule."""
    eye = torch.eye(len(problem.mean), dtype=torch.float64)
    means = []
    for x in noisy(problem):
        mean, covariance = kalman(problem.mean, problem.covariance, eye, sigma**2 * eye, x)
        means.append(kalman(mean, covariance, problem.matrix, problem.noise, problem.y)[0])
    return torch.stack(means)


@problems
@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_that_the_guided_denoiser_is_the_conditional_mean(problem, sigma):
    found = guided(MMPS(**EXACT), problem, sigma)
    assert torch.allclose(found, conditional_mean(problem, sigma), atol=1e-7)


def test_that_differences_of_a_linear_simulator_give_the_same():
    method = MMPS(**EXACT, products="differences")
    found = guided(method, PROBLEM, 1.0)
    assert torch.allclose(found, guided(MMPS(**EXACT), PROBLEM, 1.0), atol=1e-8)
    assert method.needs == ("vjp",)
    assert MMPS().needs == ("adjoint",)
    assert MMPS(iterations=1).needs == ("vjp",)


def test_that_differences_linearise_a_simulator_at_the_clean_estimate():
    problem = small_problem()
    clean = problem.gaussian.denoise(noisy(problem), 1.0)

    class Bent(LinearOperator):
        """G(x) = A (x + x^3 / 10), whose Jacobian at x is A (1 + 3 x^2 / 10)."""

        def vjp(self, x0: Tensor, v: Tensor) -> Tensor:
            return (1 + 0.3 * x0**2) * self.adjoint(v)

    operator = Bent(problem, lambda x: problem.forward(x + 0.1 * x**3))
    found = guided(MMPS(**EXACT, products="differences"), problem, 1.0, operator)
    for k in range(4):
        matrix = problem.matrix * (1 + 0.3 * clean[k] ** 2)
        eye = torch.eye(6, dtype=torch.float64)
        spread = problem.covariance @ torch.linalg.inv(problem.covariance + eye)
        seen = (
            problem.y - problem.forward((clean + 0.1 * clean**3)[k : k + 1])[0] + matrix @ clean[k]
        )
        exact = kalman(clean[k], spread, matrix, problem.noise, seen)[0]
        assert torch.allclose(found[k], exact, atol=1e-4)


def test_that_one_iteration_is_exact_for_one_datum():
    problem = small_problem()
    problem = replace(
        problem, matrix=problem.matrix[:1], noise=problem.noise[:1, :1], y=problem.y[:1]
    )
    found = guided(MMPS(iterations=1), problem, 1.0)
    assert torch.allclose(found, conditional_mean(problem, 1.0), atol=1e-10)


@problems
def test_that_the_flow_leads_to_the_posterior(problem):
    distance, eigenvalues = law(MMPS(), problem)
    assert distance < 0.15
    assert eigenvalues.min() > 0.95
    assert eigenvalues.max() < 1.05


def test_that_the_distance_to_the_posterior_falls_with_the_highest_level():
    near, far = (law(MMPS(sigma_max=s, levels=20), PROBLEM)[0] for s in (40.0, 160.0))
    assert far < 0.3 * near


def test_that_few_iterations_are_not_the_posterior():
    distance, eigenvalues = law(MMPS(iterations=1), PROBLEM)
    assert distance > 0.15
    assert eigenvalues.min() < 0.5


def test_that_the_ancestral_ensemble_tends_to_the_posterior():
    """A step loses the variance of x_0 given x, so the spread is too small by O(1 / levels)."""
    lost = []
    for levels in (25, 100):
        method = MMPS(members=400, sampler="ancestral", levels=levels, iterations=3)
        states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
        distance, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
        assert distance < 4 * (6 / 400) ** 0.5
        lost.append(1 - float(eigenvalues.mean()))
    assert 0 < lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize(
    ("method", "calls", "products"),
    [
        (MMPS(levels=4, iterations=2, tolerance=0), 7 * 2, 7 * 2),
        (MMPS(levels=4, iterations=1), 7, 7),
        (MMPS(levels=4, iterations=2, tolerance=0, sampler="euler"), 4 * 2, 4 * 2),
        (MMPS(levels=4, iterations=3, tolerance=0, products="differences"), 7 * 5, 7 * 3),
    ],
)
def test_that_the_cost_is_the_one_told(method, calls, products):
    operator = PROBLEM.operator
    follow(method, PROBLEM.gaussian, operator, PROBLEM.observation)
    assert operator.calls == calls * method.members
    assert operator.vjps == products * method.members
    assert method.sweeps == calls


def test_that_a_chain_whose_product_fails_keeps_the_iterate_it_has():
    operator = PROBLEM.operator
    answers = operator.linear

    def fails(v: Tensor) -> Tensor:
        y = answers(v).clone()
        y[1] = torch.nan
        return y

    operator.linear = fails
    found = guided(MMPS(**EXACT), PROBLEM, 1.0, operator)
    whole, once = guided(MMPS(**EXACT), PROBLEM, 1.0), guided(MMPS(iterations=1), PROBLEM, 1.0)
    assert torch.equal(found[[0, 2, 3]], whole[[0, 2, 3]])
    assert torch.equal(found[1], once[1])


def test_that_masked_data_and_dense_noise_are_whitened_back():
    noise = PROBLEM.noise + 0.05
    mask = torch.tensor([True, False, True])
    observation = enkg.Observation(PROBLEM.y, covariance=noise, mask=mask)
    v, w = normal(5, 2, seed=3), normal(5, 3, seed=4)
    left = (unwhiten(observation, v) * w).sum(dim=1)
    assert torch.allclose(left, (v * observation.whiten(w)).sum(dim=1), atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"tolerance": 1.0},
        {"products": "guess"},
        {"sampler": "rk4"},
        {"step_length": 0.0},
    ],
)
def test_that_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        MMPS(**wrong)
