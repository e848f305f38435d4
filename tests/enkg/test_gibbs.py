"""Split Gibbs against its own law: the posterior for the noise Gamma + rho^2 A A^T."""

from dataclasses import replace

import pytest

import enkg
from enkg.guidance import SplitGibbs
from tests.enkg.problems import follow, kalman, small_problem, values, whitened

PROBLEM = small_problem()


def own_law(rho: float):
    matrix = PROBLEM.matrix
    noise = PROBLEM.noise + rho**2 * matrix @ matrix.T
    return kalman(PROBLEM.mean, PROBLEM.covariance, matrix, noise, PROBLEM.y)


def run(rho: float, turns: int, start: float | None = None):
    method = SplitGibbs(
        members=1500, turns=turns, rho_start=start or rho, rho_end=rho, reverse_steps=2
    )
    forward, observation = PROBLEM.forward, PROBLEM.observation
    states, _ = follow(method, PROBLEM.one_component, forward, observation)
    return states[-1].x


def test_that_a_fixed_rho_gives_its_own_law_and_not_the_posterior():
    x = run(0.7, 12)
    error, eigenvalues = whitened(x, *own_law(0.7))
    assert error < 0.25
    assert eigenvalues.min() > 0.8
    assert eigenvalues.max() < 1.25
    _, eigenvalues = whitened(x, *PROBLEM.posterior)
    assert eigenvalues.max() > 1.8


def test_that_a_small_rho_at_the_end_gives_the_posterior():
    error, eigenvalues = whitened(run(0.1, 20, start=1.5), *PROBLEM.posterior)
    assert error < 0.3
    assert eigenvalues.min() > 0.75
    assert eigenvalues.max() < 2.1  # rho = .1 adds up to twice the variance here


def test_that_it_claims_no_posterior_law():
    assert SplitGibbs.posterior_law is None
    assert replace(SplitGibbs(), turns=7).sweeps == 7


def test_that_the_prior_samples_of_a_run_hold_no_rho():
    method = SplitGibbs(members=400, turns=1, rho_start=3.0, rho_end=3.0, reverse_steps=1)
    experiment = enkg.Experiment(
        PROBLEM.gaussian, PROBLEM.simulate, PROBLEM.observation, method, double=True
    )
    tree = enkg.run(experiment)
    samples = values(tree, "prior_samples", "x")
    exact = PROBLEM.covariance.diagonal().mean().item()
    assert samples.var(axis=0, ddof=1).mean() == pytest.approx(exact, rel=0.1)  # with rho: + 9


@pytest.mark.parametrize(
    "fields", [{"turns": 0}, {"rho_start": -1.0}, {"rho_end": 0.0}, {"reverse_steps": 0}]
)
def test_that_impossible_turns_are_refused(fields):
    with pytest.raises(enkg.InputError):
        SplitGibbs(**fields)
