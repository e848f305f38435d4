"""The polish: what it repairs, what it keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch

import enkg
from enkg import EnKG
from enkg.guidance.base import State
from enkg.guidance.conditional import principal_axes
from enkg.guidance.polish import AnnealedState, Polish, annealed, begun, survivors
from tests.enkg.problems import follow, normal, small_problem, whitened

PROBLEM = small_problem()
AXES = principal_axes(PROBLEM.gaussian.draw(0, range(4000), 0))


def polished(x0: torch.Tensor, polish: Polish, forward=PROBLEM.forward) -> torch.Tensor:
    prior = PROBLEM.gaussian
    state = AnnealedState(x0, tuple(range(len(x0))), 0, axes=AXES)
    sigmas = polish.sigmas(prior, AXES)
    x, sigma = begun(state, sigmas, x0)
    state = replace(state, x=x, sigma=sigma, finished=sigma == 0)
    while not state.finished:
        state, _ = annealed(state, sigmas, prior, forward, PROBLEM.observation)
    return state.x


def posterior_draws(count: int) -> torch.Tensor:
    mean, covariance = PROBLEM.posterior
    return mean + normal(count, 6, seed=5) @ torch.linalg.cholesky(covariance).T


def test_that_the_posterior_stays_what_it_is():
    error, values = whitened(polished(posterior_draws(4000), Polish(5)), *PROBLEM.posterior)
    assert error < 0.12
    assert values.min() > 0.88
    assert values.max() < 1.12


def test_that_many_copies_of_few_members_become_the_posterior():
    few = posterior_draws(4000)[:200].repeat(10, 1)
    _, before = whitened(few, *PROBLEM.posterior)
    x = polished(few, Polish(5, sigma_start=3.0))
    assert len(x.unique(dim=0)) == 2000
    error, values = whitened(x, *PROBLEM.posterior)
    assert error < 0.2
    assert values.min() > 0.8
    assert values.max() < 1.2
    assert before.min() < 0.8  # what it started from was not


def test_that_members_without_an_answer_get_draws_of_their_own():
    def half(x: torch.Tensor) -> torch.Tensor:
        y = PROBLEM.forward(x)
        y[::2] = torch.nan
        return y

    x = polished(posterior_draws(2000), Polish(5), half)
    assert len(x.unique(dim=0)) == 2000
    error, values = whitened(x[::2], *PROBLEM.posterior)
    assert error < 0.3
    assert values.min() > 0.7
    assert values.max() < 1.3


def test_that_survivors_follow_from_identities_not_places():
    living = torch.tensor([True, False, True, True, False, True])
    everyone = (3, 1, 0, 5, 4, 2)
    state = State(torch.zeros(6, 1), everyone, 0)
    order = [4, 2, 0, 5, 1, 3]
    first = survivors(state, everyone, living)
    second = survivors(state, tuple(everyone[k] for k in order), living[order])
    chosen = {everyone[k]: everyone[int(first[k])] for k in range(6)}
    shuffled = {everyone[order[k]]: everyone[order[int(second[k])]] for k in range(6)}
    assert chosen == shuffled
    assert chosen[1] in (0, 2, 3, 5)
    assert chosen[3] == 3


def test_that_gaussian_priors_are_not_polished_unless_asked():
    automatic = Polish(levels=None)
    assert automatic.count(PROBLEM.gaussian) == 0
    assert automatic.count(PROBLEM.one_component) == 5
    assert Polish(3).count(PROBLEM.gaussian) == 3
    forward, observation = PROBLEM.forward, PROBLEM.observation
    method = EnKG(members=32, updates=2)
    for prior, steps in ((PROBLEM.gaussian, 2), (PROBLEM.one_component, 7)):
        states, infos = follow(method, prior, forward, observation)
        assert len(infos) == steps
        assert [info.beta for info in infos[1:]] == [1.0] * (steps - 1)
        assert states[-1].sigma == 0
    assert method.sweeps == 7


def test_that_a_polish_narrows_a_wrong_start():
    wide = PROBLEM.posterior[0] + 3 * (posterior_draws(600) - PROBLEM.posterior[0])
    _, values = whitened(polished(wide, Polish(8, sigma_start=3.0)), *PROBLEM.posterior)
    assert values.max() < 1.6


@pytest.mark.parametrize(
    "fields", [{"levels": -1}, {"sigma_start": 0.0}, {"sigma_end": -1.0}, {"sigma_start": -2.0}]
)
def test_that_levels_that_are_none_are_refused(fields):
    with pytest.raises(enkg.InputError):
        Polish(**fields)
