"""SLR: what a run that has not converged says, its extra steps, and the algebra.

The laws that it shares with the other methods are in `tests/laws.py`; those with a low-fidelity
simulator in `test_slr_low.py`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import SLR, InputError
from enkg.diagnose import NOT_CONVERGED
from enkg.guidance.slr_regression import (
    PENALTIES,
    Evaluations,
    Law,
    coordinates,
    fitted,
    informed,
    posterior,
)
from tests.enkg.problems import follow, normal, small_problem, smooth_problem

PROBLEM = small_problem()
METHOD = SLR(members=24, steps=6, draws=64)


def stiff(x: Tensor) -> Tensor:
    """Far from any straight line, and far from the data."""
    return 40 + 30 * torch.sin(40 * x[:, :3])


def run(forward, method=METHOD, observation=PROBLEM.observation):
    return follow(method, PROBLEM.gaussian, forward, observation)


# --- convergence ----------------------------------------------------------------------------


def test_that_a_run_that_converged_makes_no_remark():
    states, _ = run(PROBLEM.forward)
    assert states[-1].beta == 1
    assert states[-1].remarks == ()


def test_that_a_run_that_stopped_below_the_whole_likelihood_says_so():
    states, _ = run(stiff)
    assert states[-1].beta < 1
    (remark,) = states[-1].remarks
    assert remark.startswith("not converged: 6 steps of SLR used 0.00")
    assert all(state.remarks == () for state in states[:-1])


def test_that_a_mean_that_does_not_reach_the_data_is_remarked():
    # 200 data of noise 1 that nothing explains: misfit 2 > 1 + 3 sqrt(2 / 200), yet below 3.
    y = 2**0.5 * torch.ones(200, dtype=torch.float64)
    blind = lambda x: 1e-9 * x[:, :1].expand(-1, 200)  # noqa: E731
    states, _ = run(blind, observation=enkg.Observation(y, std=1.0))
    assert states[-1].beta == 1
    (remark,) = states[-1].remarks
    assert "misfit per datum of the mean is 2.00, above 1.30" in remark


def test_that_extra_steps_are_taken_only_where_they_are_needed():
    method = replace(METHOD, extra=3)
    assert method.sweeps == 9
    assert len(run(PROBLEM.forward, method)[1]) == 6
    states, infos = run(stiff, method)
    assert len(infos) == 9
    assert states[-1].remarks[0].startswith("not converged: 9 steps")


def test_that_extra_steps_change_nothing_of_a_run_without_need():
    plain, more = run(PROBLEM.forward)[0][-1], run(PROBLEM.forward, replace(METHOD, extra=9))[0][-1]
    assert torch.equal(plain.x, more.x)


def test_that_the_remark_reaches_the_summary_and_the_run_is_not_trusted():
    tree = enkg.run(
        enkg.Experiment(
            prior=PROBLEM.gaussian,
            simulator=lambda x: stiff(torch.from_numpy(x)).numpy(),
            observation=PROBLEM.observation,
            guidance=METHOD,
        )
    )
    summary = json.loads(tree.attrs["summary"])
    assert not summary["trusted"]
    assert summary["remarks"][0].startswith(NOT_CONVERGED)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"extra": -1}, "-1 extra"),
        ({"pairs": 1}, "1 pairs of 64"),
        ({"pairs": 65}, "give 0, or 2 to 64"),
        ({"pairs": 8, "paired_steps": 0}, "paired_steps is 0"),
    ],
)
def test_that_wrong_options_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        SLR(**wrong)


# --- algebra --------------------------------------------------------------------------------


def evaluations(count: int, unknowns: int, slope: Tensor, seed: int = 0, step: int = 0):
    z = normal(count, unknowns, seed=seed)
    return Evaluations(z, 0.7 - z @ slope, torch.full((count,), step))


def test_that_the_regression_finds_a_linear_model_and_no_error_of_it():
    slope = normal(5, 3, seed=1)
    new = evaluations(40, 5, slope)
    fit = fitted(new, new, torch.zeros(5, dtype=torch.float64), torch.ones(5).double(), 0)
    torch.testing.assert_close(fit.slope, slope, rtol=0, atol=1e-4)
    torch.testing.assert_close(fit.gap, torch.full((3,), 0.7).double(), rtol=0, atol=1e-4)
    assert fit.root.abs().max() < 1e-4


def test_that_leave_one_out_residuals_are_those_of_fits_without_the_row():
    u, mean = torch.linspace(1, 0.3, 5).double(), 0.1 * normal(5, seed=4)
    new = evaluations(12, 5, normal(5, 3, seed=1))
    new = replace(new, r=new.r + 0.3 * normal(12, 3, seed=2))
    fit = fitted(new, new, mean, u, 0, isotropic=0.0)

    def without(j: int, penalty: float) -> Tensor:
        keep = torch.arange(12) != j
        x, y = (new.z - mean) * u, -new.r
        x, y = x[keep], y[keep]
        centre_x, centre_y = x.mean(0), y.mean(0)
        a = torch.linalg.solve(
            (x - centre_x).T @ (x - centre_x) + penalty * torch.eye(5).double(),
            (x - centre_x).T @ (y - centre_y),
        )
        return -new.r[j] - centre_y - ((new.z[j] - mean) * u - centre_x) @ a

    errors = []
    for penalty in PENALTIES:
        rows = torch.stack([without(j, penalty) for j in range(12)])
        errors.append(float((rows / 12**0.5 - fit.root).abs().max()))
    assert min(errors) < 1e-10


def test_that_the_posterior_of_an_exact_fit_is_kalmans():
    problem = smooth_problem()
    prior, observation = problem.gaussian, problem.observation
    order, u = informed(prior, 1.0)
    start = Law.prior(len(order))
    mean, z = start.mean, coordinates(prior, order, start, (0, tuple(range(200)), 0))
    white = torch.zeros_like(z)
    white[:, order] = z
    x = prior.from_white(white)
    new = Evaluations(z, observation.residual(problem.forward(x)), torch.zeros(200))
    fit = fitted(new, new, mean, u, 0)
    centre = posterior(fit, mean, 1.0).mean
    white = torch.zeros(1, len(order)).double()
    white[0, order] = centre
    exact, _ = problem.posterior
    assert (prior.from_white(white)[0] - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("count", [8, 60])
def test_that_the_law_is_that_of_dense_algebra(count):
    # 8 evaluations see 7 of 20 directions; 60 see them all.
    u, mean = torch.linspace(1, 0.2, 20).double(), 0.1 * normal(20, seed=4)
    new = evaluations(count, 20, normal(20, 6, seed=1))
    new = replace(new, r=new.r + 0.3 * normal(count, 6, seed=2))
    fit, beta = fitted(new, new, mean, u, 0), 0.4
    error = torch.eye(6).double() * (1 / beta + fit.floor) + fit.root.T @ fit.root
    weighted = torch.linalg.solve(error, fit.slope.T).T
    covariance = torch.linalg.inv(torch.eye(20).double() + weighted @ fit.slope.T)
    law = posterior(fit, mean, beta)
    centre = covariance @ weighted @ (fit.gap + mean @ fit.slope)
    torch.testing.assert_close(law.mean, centre, rtol=1e-9, atol=1e-9)
    root = law.draws(torch.eye(20).double()) - law.mean
    torch.testing.assert_close(root @ root.T, covariance, rtol=1e-9, atol=1e-9)


def test_that_the_error_of_the_model_keeps_the_spread_up():
    forward = lambda x: PROBLEM.forward(x) + torch.sin(9 * x[:, :3])  # noqa: E731
    rough = run(forward, replace(METHOD, draws=2000))[0][-1].x
    plain = run(PROBLEM.forward, replace(METHOD, draws=2000))[0][-1].x
    assert rough.var(0).sum() > 1.05 * plain.var(0).sum()
    assert np.isfinite(rough.numpy()).all()
