"""Score-ALD by theory: its Langevin step, the law of one level, its guard and its cost."""

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

import enkg
from enkg import random
from enkg.errors import InputError
from enkg.guidance.scoreald import ScoreALD, annealed
from enkg.random import Stream
from tests.enkg.problems import follow, small_problem, values

PROBLEM = small_problem()
NORM = float(torch.linalg.matrix_norm(PROBLEM.matrix, 2))
EYE = torch.eye(6, dtype=torch.float64)


def target(sigma: float, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and precision of N(m, S + sigma^2) N(y; A x, Gamma + gamma^2)."""
    broad = torch.linalg.inv(PROBLEM.covariance + sigma**2 * EYE)
    weight = torch.linalg.inv(PROBLEM.noise + gamma**2 * torch.eye(3, dtype=torch.float64))
    precision = broad + PROBLEM.matrix.T @ weight @ PROBLEM.matrix
    right = broad @ PROBLEM.mean + PROBLEM.matrix.T @ weight @ PROBLEM.y
    return torch.linalg.solve(precision, right), precision


def test_that_a_chain_is_the_langevin_recursion_of_its_levels():
    method = ScoreALD(members=3, levels=4, inner=2, gamma=NORM)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    x = states[0].x
    for i in range(8):
        sigma = method.sigmas[i // 2]
        length = method.step_size * sigma**2
        mean, precision = target(sigma, NORM * sigma)
        noise = random.normal((6,), 0, Stream.LANGEVIN, range(3), i)
        x = x - length * (x - mean) @ precision + sqrt(2 * length) * noise
        torch.testing.assert_close(states[i + 1].x, x, rtol=1e-10, atol=1e-10)
    assert states[-1].sigma == 0


def test_that_one_level_samples_the_product_of_prior_and_likelihood_with_noise():
    """With the steps' own bias, whose law is (H - a H^2 / 2)^-1."""
    sigma = 0.7
    chains = {"members": 400, "levels": 1, "inner": 50, "step_size": 0.5}
    method = ScoreALD(sigma_max=sigma, gamma=NORM, **chains)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    mean, precision = target(sigma, NORM * sigma)
    length = method.step_size * sigma**2
    exact = torch.linalg.inv(precision - 0.5 * length * precision @ precision)
    root = torch.linalg.inv(torch.linalg.cholesky(exact))
    z = (states[-1].x - mean) @ root.T
    assert length * torch.linalg.eigvalsh(precision).max() > 0.6  # the bias is 40 % and more
    assert z.mean(0).norm() < 4 * sqrt(6 / 400)
    found = torch.linalg.eigvalsh(torch.cov(z.T))
    edge = sqrt(6 / 400)
    assert found.min() > (1 - 2 * edge) ** 2
    assert found.max() < (1 + 2 * edge) ** 2


def test_that_the_guard_keeps_steps_that_are_too_long_from_running_away():
    strong = PROBLEM.times(100)
    strong = replace(strong, noise=PROBLEM.noise)
    method = ScoreALD(members=50)
    states, infos = follow(method, strong.gaussian, strong.operator, strong.observation)
    assert states[-1].x.abs().max() < 50
    assert all(info.misfit is not None for info in infos)


@pytest.mark.parametrize("dense", [False, True])
def test_that_annealing_adds_to_the_noise_alone(dense):
    noise: dict[str, Any] = {"std": PROBLEM.noise.diagonal().sqrt()}
    if dense:
        noise = {"covariance": PROBLEM.noise}
    mask = torch.tensor([True, False, True])
    found = annealed(enkg.Observation(PROBLEM.y, mask=mask, **noise), 0.6)
    r = PROBLEM.y - torch.zeros(3).double()
    weights = 1 / (PROBLEM.noise.diagonal() + 0.36)
    expected = torch.where(mask, -weights * r, 0.0)
    torch.testing.assert_close(found.gradient(torch.zeros(1, 3))[0], expected)


def run(members: int, simulator=None):
    return enkg.run(
        enkg.Experiment(
            prior=PROBLEM.gaussian,
            simulator=simulator or PROBLEM.simulator,
            observation=enkg.Observation(PROBLEM.y, std=PROBLEM.noise.diagonal().sqrt()),
            guidance=ScoreALD(members=members, levels=5, inner=3),
            double=True,
        )
    )


def test_that_calls_and_products_follow_the_formulas():
    tree = run(4)
    for name in ("calls", "vjps", "denoiser_calls"):
        assert int(values(tree, "trace", name)[-1]) == 5 * 3 * 4
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 0


def test_that_four_chains_are_the_first_four_of_eight_to_the_bit():
    few, many = (values(run(n), "posterior", "x") for n in (4, 8))
    np.testing.assert_array_equal(few, many[:4])


def test_that_a_failed_chain_leaves_the_others_alone():
    plain = PROBLEM.simulate

    def fails(x):
        y = plain(x)
        y[2:3] = np.nan
        return y

    def vjp(x, v):
        return (v[:, None, :] * PROBLEM.matrix.numpy().T).sum(axis=-1)

    broken, sound = (
        values(run(4, enkg.Function(f, vjp=vjp)), "posterior", "x") for f in (fails, plain)
    )
    others = [0, 1, 3]
    np.testing.assert_array_equal(broken[others], sound[others])
    assert np.isfinite(broken).all()


def test_that_it_runs_on_counts_and_asks_for_sensible_steps():
    counts = enkg.Poisson(torch.tensor([5.0, 0.0, 30.0]))
    states, _ = follow(ScoreALD(members=4), PROBLEM.gaussian, PROBLEM.operator, counts)
    assert states[-1].x.isfinite().all()
    for wrong in ({"step_size": 2.5}, {"inner": 0}, {"gamma": -1.0}):
        with pytest.raises(InputError):
            replace(ScoreALD(), **wrong)
