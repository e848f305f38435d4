"""MCG by theory: a DPS step and the projection, the data it fits, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import enkg
from enkg import random
from enkg.errors import InputError
from enkg.guidance.dps import DPS
from enkg.guidance.mcg import MCG
from enkg.random import Stream
from tests.enkg.problems import LinearOperator, follow, small_problem, values

PROBLEM = small_problem()
forms = pytest.mark.parametrize("form", ["damped", "plain", "norm"])


@forms
def test_that_a_step_is_one_of_dps_and_a_projection(form):
    method = MCG(members=3, levels=4, form=form, sigma_max=1.0)
    dps = DPS(members=3, levels=4, form=form, sigma_max=1.0)
    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    states, _ = follow(method, prior, PROBLEM.operator, observation)
    inverse = torch.linalg.pinv(PROBLEM.matrix)
    projector = inverse @ PROBLEM.matrix
    eye = torch.eye(6, dtype=torch.float64)
    for i in range(4):
        guided, _ = dps.step(states[i], prior, PROBLEM.operator, observation)
        noise = random.normal((6,), 0, Stream.RENOISE, range(3), i)
        x = guided.x @ (eye - projector).T + inverse @ PROBLEM.y
        x = x + method.sigmas[i + 1] * noise @ projector.T
        torch.testing.assert_close(states[i + 1].x, x, rtol=1e-10, atol=1e-10)


def test_that_the_result_fits_the_data_to_rounding():
    states, _ = follow(MCG(members=4), PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    residual = states[-1].x @ PROBLEM.matrix.T - PROBLEM.y
    assert residual.abs().max() < 1e-10
    assert states[-1].x.std(0).min() > 0.01  # what the data do not see is still spread
    assert MCG().posterior_law is None


def test_that_units_with_an_offset_leave_the_fit_exact():
    tree = run(4, units=enkg.Affine(scale=2.0, offset=0.7))
    fit = values(tree, "posterior", "x") @ PROBLEM.matrix.numpy().T - PROBLEM.y.numpy()
    assert np.abs(fit).max() < 1e-10


def run(members: int, simulator=None, **changes):
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": simulator or PROBLEM.simulator,
        "observation": PROBLEM.observation,
        "guidance": MCG(members=members, levels=5),
        "double": True,
    }
    return enkg.run(enkg.Experiment(**{**fields, **changes}))


def test_that_calls_and_products_follow_the_formulas():
    tree = run(4)
    assert int(values(tree, "trace", "calls")[-1]) == 2 * 5 * 4
    assert int(values(tree, "trace", "vjps")[-1]) == 5 * 4
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 4
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 5 * 4 + 1


def test_that_the_data_are_inverted_once_a_level_and_the_chains_each():
    operator, inverted = PROBLEM.operator, []
    inverse = operator.pinv

    def counted(y):
        inverted.append(len(y))
        return inverse(y)

    operator.pinv = counted
    follow(MCG(members=4, levels=5), PROBLEM.gaussian, operator, PROBLEM.observation)
    assert sum(inverted) == 5 * (4 + 1)


def test_that_four_chains_are_the_first_four_of_eight_to_the_bit():
    few, many = (values(run(n), "posterior", "x") for n in (4, 8))
    np.testing.assert_array_equal(few, many[:4])


@pytest.mark.parametrize("call", [0, 1])
def test_that_a_chain_that_fails_in_either_call_leaves_the_others_alone(call):
    inside, calls = PROBLEM.operator.forward, []

    def fails(x):
        y = inside(x).clone()
        if len(calls) % 2 == call:
            y[2] = torch.nan
        calls.append(0)
        return y

    method = MCG(members=4, levels=5)
    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    sound, _ = follow(method, prior, PROBLEM.operator, observation)
    broken, _ = follow(method, prior, LinearOperator(PROBLEM, fails), observation)
    others = [0, 1, 3]
    assert torch.equal(broken[-1].x[others], sound[-1].x[others])
    assert broken[-1].x.isfinite().all()
    assert not torch.equal(broken[-1].x[2], sound[-1].x[2])


def test_that_missing_data_are_refused():
    masked = enkg.Observation(PROBLEM.y, std=1.0, mask=[True, False, True])
    with pytest.raises(InputError, match="masked"):
        run(4, observation=masked)
    assert replace(MCG(), form="norm").needs == ("vjp", "pinv")
