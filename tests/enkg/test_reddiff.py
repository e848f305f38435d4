"""RED-diff by theory: its stationary point, Adam by hand, and that it is no sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.reddiff import REDdiff, REDState
from enkg.guidance.restoration import drawn
from tests.enkg.problems import LinearOperator, follow, values
from tests.enkg.restoring import check_chains, check_failure, first_state, measured, noisy, result

EYE = torch.eye(6, dtype=torch.float64)
WEIGHTS = {"score": lambda s: 1 / s, "constant": lambda s: 1.0}
WEIGHTS |= {"sqrt": lambda s: s**0.5, "linear": lambda s: s}


def stationary(problem, sigma: float, regulariser: float, data: float = 1.0) -> Tensor:
    """mu with data A^T Gamma^-1 (A mu - y) + regulariser sigma (S + sigma^2)^-1 (mu - m) = 0."""
    weighed = data * problem.matrix.T @ torch.linalg.inv(problem.noise)
    pull = regulariser * sigma * torch.linalg.inv(problem.covariance + sigma**2 * EYE)
    return torch.linalg.solve(
        weighed @ problem.matrix + pull, weighed @ problem.y + pull @ problem.mean
    )


@pytest.mark.parametrize("weighting", list(WEIGHTS))
def test_that_the_stationary_point_solves_the_linear_system(weighting):
    problem, sigma = noisy(0.5), 0.6
    method = REDdiff(
        members=2,
        levels=400,
        sigma_max=sigma,
        sigma_min=sigma,
        weighting=weighting,
        strength=1.3,
        weight=0.8,
    )
    exact = stationary(problem, sigma, 1.3 * WEIGHTS[weighting](sigma), 0.8)
    torch.testing.assert_close(result(method, problem), exact.expand(2, -1), rtol=0, atol=1e-4)
    assert (exact - problem.posterior[0]).norm() > 0.01  # it is not the posterior's mean


def test_that_the_squared_loss_leaves_out_the_noise():
    problem, sigma = noisy(0.5), 0.6
    method = REDdiff(members=2, levels=400, sigma_max=sigma, sigma_min=sigma, loss="squared")
    exact = stationary(problem, sigma, 1 / sigma, 0.25)
    torch.testing.assert_close(result(method, problem), exact.expand(2, -1), rtol=0, atol=1e-4)


def test_that_falling_levels_lead_to_the_posterior_mean_and_to_no_spread():
    """Documented: the members are point estimates. For a Gaussian prior they are all the same."""
    problem = noisy(0.5)
    x = result(REDdiff(members=6, levels=200), problem)
    assert (x - problem.posterior[0]).abs().max() < 5e-3
    assert x.std(0).max() < 1e-9
    assert REDdiff().posterior_law is None
    assert "no uncertainty" in first_state(REDdiff(), problem).remarks[0]


def test_that_the_mean_of_the_regulariser_is_the_smoothed_score():
    problem, sigma = noisy(0.5), 0.8
    method = REDdiff(members=4000, antithetic=False)
    state = first_state(method, problem)
    mu = (problem.mean + 1.0).expand(4000, -1)
    pull = method._pull(mu, problem.gaussian, sigma, drawn(state, problem.gaussian))
    inverse = torch.linalg.inv(problem.covariance + sigma**2 * EYE)
    exact = sigma * inverse @ (mu[0] - problem.mean)
    error = pull.std(0) / 4000**0.5
    assert ((pull.mean(0) - exact) / error).abs().max() < 4
    both = replace(method, antithetic=True)._pull(
        mu, problem.gaussian, sigma, drawn(state, problem.gaussian)
    )
    torch.testing.assert_close(both, exact.expand(4000, -1))


@pytest.mark.parametrize("antithetic", [False, True])
def test_that_the_steps_are_those_of_adam(antithetic):
    problem = noisy(0.5)
    method = REDdiff(members=3, levels=4, decay="none", antithetic=antithetic)
    operator, observation = problem.operator, measured(problem)
    states, _ = follow(method, problem.gaussian, operator, observation)
    mu = torch.nn.Parameter((torch.linalg.pinv(problem.matrix) @ problem.y).expand(3, -1).clone())
    adam = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99))
    for before, after, sigma in zip(states[:-1], states[1:], method.sigmas, strict=False):
        residual = mu.detach() @ problem.matrix.T - problem.y
        n = drawn(before, problem.gaussian)
        pull = method._pull(mu.detach(), problem.gaussian, sigma, n) / sigma
        mu.grad = residual @ problem.matrix / 0.25 + pull
        adam.step()
        torch.testing.assert_close(after.x, mu.detach(), rtol=1e-9, atol=1e-9)


def test_that_the_start_is_the_pseudo_inverse_where_there_is_one():
    problem = noisy(0.5)

    class Bare(LinearOperator):
        def pinv(self, y: Tensor) -> Tensor:
            raise MissingCapability("REDdiff", "a simulator with a pseudo-inverse")

    state, observation = first_state(REDdiff(members=2), problem), measured(problem)
    inverse = torch.linalg.pinv(problem.matrix) @ problem.y
    auto, given = REDdiff(members=2), REDdiff(members=2, start="pinv")
    begun = auto._begun(state, problem.operator, observation)
    torch.testing.assert_close(begun, inverse.expand(2, -1))
    assert torch.equal(auto._begun(state, Bare(problem), observation), state.x)
    mean = replace(auto, start="mean")
    assert torch.equal(mean._begun(state, problem.operator, observation), state.x)
    with pytest.raises(MissingCapability):
        given._begun(state, Bare(problem), observation)
    assert given.needs == ("vjp", "pinv")


@pytest.mark.parametrize("antithetic", [False, True])
def test_that_chains_are_independent_to_the_last_bit(antithetic):
    check_chains(REDdiff(members=4, levels=6, antithetic=antithetic), noisy(0.5))


def test_that_a_failed_chain_goes_on_by_the_prior_alone_and_harms_no_other():
    problem = noisy(0.5)
    failed = check_failure(REDdiff(members=4, levels=300, antithetic=True), problem)
    assert (failed - problem.mean).abs().max() < 0.05


def test_that_a_run_goes_on_from_any_state():
    problem, method = noisy(0.5), REDdiff(members=3, levels=5)
    operator, observation = problem.operator, measured(problem)
    states, _ = follow(method, problem.gaussian, operator, observation)
    for state in states[:-1]:
        assert isinstance(state, REDState)
        rest, _ = follow(
            method, problem.gaussian, operator, observation, change=lambda _, s=state: s
        )
        assert torch.equal(rest[-1].x, states[-1].x)
    assert states[-1].sigma == 0


@pytest.mark.parametrize(("antithetic", "denoised"), [(False, 1), (True, 2)])
def test_that_calls_and_products_follow_the_formulas(antithetic, denoised):
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
            guidance=REDdiff(members=3, levels=5, antithetic=antithetic),
            double=True,
            predict=2,
        )
    )
    assert int(values(tree, "trace", "calls")[-1]) == 5 * 3 == sum(seen) - 2
    assert int(values(tree, "trace", "vjps")[-1]) == 5 * 3
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 3 * denoised + 3
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 0


def test_that_what_is_missing_is_told():
    problem = noisy(0.5)
    bare = enkg.Experiment(
        prior=problem.gaussian,
        simulator=problem.simulate,
        observation=measured(problem),
        guidance=REDdiff(),
    )
    with pytest.raises(MissingCapability, match="gradient"):
        enkg.run(bare)
    uneven = enkg.Observation(problem.y, std=torch.tensor([0.1, 0.2, 0.3]))
    method = REDdiff(members=2, loss="squared")
    with pytest.raises(InputError, match="one standard deviation"):
        method.step(first_state(method, problem), problem.gaussian, problem.operator, uneven)


@pytest.mark.parametrize(
    "wrong",
    [{"weighting": "x"}, {"loss": "x"}, {"rate": 0.0}, {"strength": -1.0}, {"start": "here"}],
)
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        REDdiff(**wrong)
