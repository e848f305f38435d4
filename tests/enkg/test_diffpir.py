"""DiffPIR by theory: its proximal point by three ways, its bias, chains that fail."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.diffpir import DiffPIR, _descent
from enkg.guidance.restoration import injected
from enkg.guidance.reverse import ancestral_step
from tests.enkg.problems import LinearOperator, kalman, normal, small_problem, values
from tests.enkg.restoring import (
    check_chains,
    check_failure,
    commuting,
    first_state,
    measured,
    noisy,
    result,
    unguided,
)

EYE = torch.eye(6, dtype=torch.float64)
BY_CG = DiffPIR(members=4, prox="cg", iterations=4)
ways = pytest.mark.parametrize("prox", ["svd", "cg", "gradient"])


def exact(problem, clean: Tensor, sigma: float) -> Tensor:
    """Posterior means under the priors N(D, sigma^2 I)."""
    white = sigma**2 * EYE
    return torch.stack(
        [kalman(d, white, problem.matrix, problem.noise, problem.y)[0] for d in clean]
    )


@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
@pytest.mark.parametrize("way", ["svd", "cg", "gradient"])
def test_that_strength_one_is_the_posterior_mean_of_a_white_prior(sigma, way):
    problem = noisy(0.3)
    clean = problem.mean + normal(4, 6, seed=2)
    operator, observation = problem.operator, measured(problem)
    iterations = 4 if way == "cg" else 600  # three data: exact after three of the former
    method = DiffPIR(members=4, prox=way, iterations=iterations)
    state = first_state(method, problem)
    found, _, _ = method.compromise(state, clean, sigma, operator, observation)
    target = exact(problem, clean, sigma)
    assert (target - clean).norm() > 0.01
    close = 1e-3 if way == "gradient" else 1e-9
    torch.testing.assert_close(found, target, rtol=close, atol=close)


def test_that_conjugate_gradients_take_any_gaussian_noise():
    problem = small_problem()  # standard deviations of three sizes
    clean = problem.mean + normal(4, 6, seed=2)
    state = first_state(BY_CG, problem)
    found, _, _ = BY_CG.compromise(state, clean, 0.7, problem.operator, problem.observation)
    torch.testing.assert_close(found, exact(problem, clean, 0.7), rtol=1e-9, atol=1e-9)


def test_that_conjugate_gradients_leave_out_missing_data():
    problem = noisy(0.3)
    y = torch.where(torch.tensor([True, False, True]), problem.y, torch.nan)
    masked = enkg.Observation(y, std=0.3, mask=y.isfinite())
    clean = problem.mean + normal(4, 6, seed=2)
    state = first_state(BY_CG, problem)
    found, _, _ = BY_CG.compromise(state, clean, 0.7, problem.operator, masked)
    keep = [0, 2]
    less = replace(problem, matrix=problem.matrix[keep], y=problem.y[keep])
    less = replace(less, noise=problem.noise[:2, :2])
    torch.testing.assert_close(found, exact(less, clean, 0.7), rtol=1e-9, atol=1e-9)


class Bent(LinearOperator):
    """y = sinh(A x), steep where A x is large."""

    def __init__(self, problem) -> None:
        super().__init__(problem, lambda x: torch.sinh(x @ problem.matrix.T))

    def vjp(self, x0: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v * torch.cosh(x0 @ self.problem.matrix.T))


@pytest.mark.parametrize("sigma", [0.1, 5.0, 100.0])
def test_that_damped_steps_never_raise_the_objective(sigma):
    problem = noisy(0.1)
    bent, observation = Bent(problem), measured(problem)
    clean = problem.mean + normal(4, 6, seed=2)
    state = first_state(DiffPIR(members=4), problem)
    before = torch.full((4,), torch.inf, dtype=torch.float64)
    for iterations in (1, 2, 5, 10, 40):
        v, _ = _descent(state, clean, sigma**-2, iterations, bent, observation)
        here = observation.misfit(bent(v)) + 0.5 * sigma**-2 * (v - clean).square().sum(1)
        assert (here <= before * (1 + 1e-9)).all()
        before = here
    assert (before < 0.5 * observation.misfit(bent(clean))).all()


def test_that_the_noise_is_ancestral_or_published():
    x, guided, z = (normal(3, 6, seed=k) for k in (1, 2, 3))
    levels = (2.0, 1.2)
    plain = injected(x, (guided, guided), levels, z, None)
    torch.testing.assert_close(plain, ancestral_step(x, guided, *levels, z))
    zeta = 1 - (1.2 / 2.0) ** 2
    same = injected(x, (guided, guided), levels, z, sqrt(zeta))
    torch.testing.assert_close(same, plain)
    published = injected(x, (guided, guided), levels, z, sqrt(0.3))
    exact = guided + 1.2 * (sqrt(0.7) * (x - guided) / 2.0 + sqrt(0.3) * z)
    torch.testing.assert_close(published, exact)


def means(problem, method: DiffPIR) -> Tensor:
    """Mean of the chains at the end, coordinate by coordinate, from the recursion of the method."""
    s, m = problem.covariance.diag(), problem.mean
    precision = problem.matrix.square().sum(0) / problem.noise[0, 0]
    pull = (problem.matrix / problem.noise[0, 0]).T @ problem.y
    x = m.clone()
    for sigma, to in pairwise(method.sigmas):
        d = m + s / (s + sigma**2) * (x - m)
        guided = (pull + d / sigma**2) / (precision + 1 / sigma**2)
        x = guided + (to / sigma) ** 2 * (x - guided)
    return x


def test_that_the_mean_is_that_of_the_recursion_and_biased_at_any_number_of_levels():
    """The documented defect: sigma^2 I is taken for the covariance of x_0 given x."""
    problem = commuting(0.5)
    method = DiffPIR(members=400, levels=60, prox="svd")
    x = result(method, problem)
    error = x.std(0) / 20
    assert ((x.mean(0) - means(problem, method)) / error).abs().max() < 4
    exact_mean, exact_covariance = problem.posterior
    factor = torch.linalg.cholesky(exact_covariance)
    for levels in (60, 2000):
        found = means(problem, replace(method, levels=levels))
        whitened = torch.linalg.solve(factor, found - exact_mean).norm()
        assert 0.2 < float(whitened) < 0.5
    assert method.posterior_law is None


@ways
def test_that_chains_are_independent_to_the_last_bit(prox):
    check_chains(DiffPIR(members=4, levels=4, prox=prox, iterations=3), noisy(0.5))


@pytest.mark.parametrize("prox", ["cg", "gradient"])
def test_that_a_failed_chain_goes_on_unguided_and_harms_no_other(prox):
    method = DiffPIR(members=4, levels=4, prox=prox, iterations=3)
    failed = check_failure(method, noisy(0.5))
    assert torch.equal(failed, unguided(method, noisy(0.5), 2))


@pytest.mark.parametrize(
    ("prox", "calls", "vjps"),
    [("svd", 1, 0), ("cg", 5 * 3 * 4 + 1, 5 * 3 * 4), ("gradient", 5 * 3 * 4, 5 * 3 * 4)],
)
def test_that_calls_and_products_follow_the_formulas(prox, calls, vjps):
    problem = noisy(0.5)
    seen = []

    def counting(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return problem.simulate(x)

    tree = enkg.run(
        enkg.Experiment(
            prior=problem.gaussian,
            simulator=replace(problem.simulator, f=counting),
            observation=measured(problem),
            guidance=DiffPIR(members=3, levels=5, prox=prox, iterations=3),
            double=True,
            predict=2,
        )
    )
    assert int(values(tree, "trace", "calls")[-1]) == calls == sum(seen) - 2
    assert int(values(tree, "trace", "vjps")[-1]) == vjps
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 3
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 0


@ways
def test_that_what_is_missing_is_told(prox):
    problem = noisy(0.5)
    bare = enkg.Experiment(
        prior=problem.gaussian,
        simulator=problem.simulate,
        observation=measured(problem),
        guidance=DiffPIR(prox=prox),
    )
    with pytest.raises(MissingCapability, match="DiffPIR needs a"):
        enkg.run(bare)


def test_that_the_closed_form_needs_even_noise():
    problem = noisy(0.5)
    uneven = enkg.Observation(problem.y, std=torch.tensor([0.1, 0.2, 0.3]))
    method = DiffPIR(prox="svd")
    state = first_state(method, problem)
    with pytest.raises(InputError, match="one standard deviation"):
        method.step(state, problem.gaussian, problem.operator, uneven)


@pytest.mark.parametrize(("zeta", "strength"), [(1.0, 8.0), (0.1, 7.0)])
def test_that_published_constants_give_finite_results(zeta, strength):
    method = DiffPIR(members=4, levels=20, noise="diffpir", prox="svd")
    x = result(replace(method, zeta=zeta, strength=strength), noisy(0.05))
    assert x.isfinite().all()


def test_that_conjugate_gradients_refuse_noise_that_is_not_gaussian():
    problem, method = noisy(0.5), DiffPIR(members=2, prox="cg")
    counts = enkg.Poisson(torch.tensor([3.0, 5.0, 2.0]))
    with pytest.raises(InputError, match="Gaussian noise"):
        method.step(first_state(method, problem), problem.gaussian, problem.operator, counts)


@pytest.mark.parametrize(
    "wrong", [{"prox": "x"}, {"noise": "ddrm"}, {"zeta": 2.0}, {"strength": 0.0}, {"iterations": 0}]
)
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        DiffPIR(**wrong)
