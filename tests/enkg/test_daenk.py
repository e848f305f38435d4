"""DAEnK: exact where it should be; the total covariance in its gain would collapse."""

import pytest
import torch

import enkg
from enkg.guidance import DAEnK
from enkg.guidance.conditional import Sensitivity, Symmetric, gain
from tests.enkg.problems import DOUBLE, follow, small_problem, whitened

PROBLEM = small_problem()


@pytest.mark.parametrize("levels", [3, 10])
def test_that_any_number_of_levels_gives_the_posterior(levels):
    method = DAEnK(members=1500, levels=levels)
    forward, observation = PROBLEM.forward, PROBLEM.observation
    states, infos = follow(method, PROBLEM.one_component, forward, observation)
    error, values = whitened(states[-1].x, *PROBLEM.posterior)
    assert len(infos) == method.sweeps == levels
    assert error < 0.25
    assert values.min() > 0.8
    assert values.max() < 1.25


def test_that_the_covariance_of_all_members_would_count_the_data_at_each_level():
    # The update of 3.5 with the wrong covariance, to show what the right one is for.
    prior, mean = PROBLEM.gaussian, PROBLEM.mean
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = prior.draw(0, range(2000), 0) + 3 * noise(2000, 6)
    model = Sensitivity(PROBLEM.matrix, torch.zeros(1, 3, dtype=torch.float64))
    root = torch.linalg.cholesky(PROBLEM.noise)
    whiten = torch.linalg.inv(root)
    model = Sensitivity(whiten @ PROBLEM.matrix, model.residuals)
    z = x
    for sigma in (3.0, 1.5, 0.8, 0.4, 0.2, 0.1):
        z = prior.denoise(x, sigma)
        values, vectors = torch.linalg.eigh(torch.cov(z.T))
        k = gain(Symmetric(vectors, values, 0.0), model)
        z = z + k((PROBLEM.y - PROBLEM.forward(z)) @ whiten.T + noise(2000, 3))
        x = z + 0.5 * sigma * noise(2000, 6)
    _, eigenvalues = whitened(z, mean, PROBLEM.posterior[1])
    assert eigenvalues.min() < 0.4


def test_that_levels_follow_from_the_prior_and_can_be_given():
    state = DAEnK(members=64, levels=4).init(PROBLEM.gaussian, 0, DOUBLE)
    assert state.axes is not None
    assert state.sigma == pytest.approx(1.8 * 2**0.5, rel=0.1)  # the largest eigenvalue is 2
    given = DAEnK(members=64, levels=4, sigma_start=7.0, sigma_end=0.5)
    assert given.sigmas(state.axes)[0] == 7.0
    assert given.sigmas(state.axes)[3:] == [0.5, 0.0]


@pytest.mark.parametrize("fields", [{"levels": 0}, {"sigma_start": -1.0}, {"sigma_end": 0.0}])
def test_that_impossible_levels_are_refused(fields):
    with pytest.raises(enkg.InputError):
        DAEnK(**fields)
