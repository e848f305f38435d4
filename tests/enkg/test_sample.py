"""Samplers by refinement, against the closed flow and against the prior's moments."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import enkg
from enkg.sample import ancestral, euler, heun, start
from enkg.schedule import geometric, karras
from tests.enkg.problems import DOUBLE, SINGLE, normal, small_problem, whitened

PROBLEM = small_problem()
PRIOR = PROBLEM.gaussian


class Denoiser:
    """A Gaussian without its other abilities: all that a trained network would offer."""

    shape = (6,)

    def denoise(self, x, sigma):
        return PRIOR.denoise(x, sigma)


class Nothing:
    """The prior that knows the answer: zero."""

    shape = (5,)

    def denoise(self, x, sigma):
        return torch.zeros_like(x)


def gain_of_refinement(solver) -> float:
    """Error on a grid over the error on a grid twice as fine."""
    x = PROBLEM.mean + 3 * normal(20, 6, seed=4)
    exact = PRIOR.flow(x, 3.0, 0.3)
    coarse, fine = (
        (solver(PRIOR, x, geometric(steps + 1, 3.0, 0.3).tolist()) - exact).norm()
        for steps in (40, 80)
    )
    assert coarse > 1e-9
    return float(coarse / fine)


def test_that_euler_is_of_first_order():
    assert gain_of_refinement(euler) == pytest.approx(2, rel=0.1)


def test_that_heun_is_of_second_order():
    assert gain_of_refinement(heun) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("solver", [euler, heun])
def test_that_the_step_to_zero_gives_the_denoised_state(solver):
    x = normal(5, 6)
    torch.testing.assert_close(solver(PRIOR, x, [0.7, 0.0]), PRIOR.denoise(x, 0.7))


def test_that_the_ancestral_sampler_without_noise_is_euler():
    x, sigmas = normal(5, 6), [*karras(10, 5.0, 0.1).tolist(), 0.0]
    still = ancestral(PRIOR, x, sigmas, 0, range(5), eta=0.0)
    torch.testing.assert_close(still, euler(PRIOR, x, sigmas))


@pytest.mark.parametrize("eta", [1.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_that_a_fine_ancestral_sampler_gives_the_prior(eta):
    # 1,500 members: e about .06 and eigenvalues .88 to 1.13; 120 levels cost about 2 %.
    sigmas, count = [*karras(120, 5.0, 0.02).tolist(), 0.0], 1500
    x = PRIOR.draw(1, range(count), 0) + 5 * normal(count, 6, seed=7)
    error, eigenvalues = whitened(
        ancestral(PRIOR, x, sigmas, 0, range(count), eta), PROBLEM.mean, PROBLEM.covariance
    )
    assert error < 0.2
    assert eigenvalues.min() > 0.8
    assert eigenvalues.max() < 1.2


def test_that_one_ancestral_step_adds_what_is_promised():
    # With D = 0 a step is s_dn / sigma x + s_up z, of variance s_dn^2 + s_up^2 = to^2.
    count, sigma, to = 20_000, 2.0, 1.5
    x = sigma * normal(count, 5, seed=8)
    out = ancestral(Nothing(), x, [sigma, to], 0, range(count))
    # 100,000 numbers: four standard errors of a variance are 1.8 %.
    assert float(out.var()) == pytest.approx(to**2, rel=0.018)
    up = to * (1 - (to / sigma) ** 2) ** 0.5
    kept = (to**2 - up**2) ** 0.5 / sigma
    assert float((out - kept * x).var()) == pytest.approx(up**2, rel=0.018)


def test_that_the_first_state_and_the_sampler_share_no_noise():
    noisy = start(Nothing(), 1.0, seed=3, members=range(4), like=DOUBLE, sigma_max=1.0)
    step = ancestral(Nothing(), torch.zeros_like(noisy), [1.0, 0.5], 3, range(4))
    together = torch.corrcoef(torch.stack([noisy.flatten(), step.flatten()]))
    assert together[0, 1].abs() < 0.9


@pytest.mark.parametrize("sigma", [0.0, 0.5, 20.0])
def test_that_a_drawable_prior_starts_exactly(sigma):
    x = start(PRIOR, sigma, 0, range(4000), DOUBLE)
    covariance = PROBLEM.covariance + sigma**2 * torch.eye(6)
    error, eigenvalues = whitened(x, PROBLEM.mean, covariance)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_that_a_bare_denoiser_starts_at_its_own_law(sigma):
    # Pure noise of 80 stands for the prior's std of 1.4 at most: its error is 1.4 / 80.
    x = start(Denoiser(), sigma, 0, range(4000), DOUBLE, flow=enkg.Flow(levels=100))
    covariance = PROBLEM.covariance + sigma**2 * torch.eye(6)
    error, eigenvalues = whitened(x, PROBLEM.mean, covariance)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


@pytest.mark.parametrize("like", [SINGLE, DOUBLE], ids=["single", "double"])
def test_that_a_start_has_the_dtype_asked_for(like):
    for prior in (PRIOR, Denoiser()):
        assert start(prior, 1.0, 0, range(3), like).dtype == like.dtype


def test_that_a_start_depends_on_member_and_seed_alone():
    for prior in (PRIOR, Denoiser()):
        x = start(prior, 1.0, 0, range(8), DOUBLE)
        some = start(prior, 1.0, 0, [6, 1], DOUBLE)
        torch.testing.assert_close(some, x[[6, 1]], rtol=1e-12, atol=1e-12)
        assert (start(prior, 1.0, 1, range(8), DOUBLE) != x).all()


# --- Flow -----------------------------------------------------------------------------------


def test_that_a_flow_takes_the_closed_form_where_there_is_one():
    x = normal(5, 6)
    assert torch.equal(enkg.Flow(levels=1)(PRIOR, x, 2.0, 0.0), PRIOR.flow(x, 2.0, 0.0))


@pytest.mark.parametrize("to", [0.0, 0.3])
def test_that_a_flow_without_closed_form_comes_close(to):
    x = PROBLEM.mean + 2 * normal(20, 6)
    near = enkg.Flow(levels=40)(Denoiser(), x, 2.0, to)
    torch.testing.assert_close(near, PRIOR.flow(x, 2.0, to), rtol=0, atol=0.02)
    rough = enkg.Flow(levels=40, solver=euler)(Denoiser(), x, 2.0, to)
    assert (rough - near).abs().max() > 0.02


def test_that_a_flow_of_no_length_moves_nothing():
    x = normal(5, 6)
    for prior in (PRIOR, Denoiser()):
        assert torch.equal(enkg.Flow()(prior, x, 0.5, 0.5), x)


@pytest.mark.parametrize(("sigma", "to"), [(80.0, 0.0), (5.0, 4.0), (0.5, 0.05), (0.001, 0.0)])
def test_that_the_grid_goes_down_from_end_to_end(sigma, to):
    grid = enkg.Flow().grid(sigma, to)
    assert grid[0] == sigma
    assert grid[-1] == to
    assert all(after < before for before, after in pairwise(grid))


def test_that_the_grid_holds_its_share_of_the_levels_and_no_fewer_than_asked():
    flow = enkg.Flow(levels=40)
    assert len(flow.grid(80.0, 0.0)) == 42  # 40 steps, and one to zero
    assert len(flow.grid(5.0, 4.99)) == 2
    assert len(replace(flow, fewest=8).grid(5.0, 4.99)) == 9


def test_that_a_flow_upwards_is_refused():
    with pytest.raises(enkg.InputError, match="goes down"):
        enkg.Flow().grid(1.0, 2.0)
