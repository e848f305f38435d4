"""The refinement of SLR: members that the simulator has moved.

The laws that it shares with the other methods are in `tests/laws.py`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import SLR, InputError
from enkg.guidance.slr_refine import ROWS, Local, Refined, begun, judged, proposed, remember
from enkg.guidance.slr_regression import Evaluations, fitted
from tests.enkg.problems import follow, normal, small_problem

PROBLEM = small_problem()
METHOD = SLR(members=40, steps=10, draws=80, refine=6)
K, M = 5, 7
U = torch.linspace(1, 0.4, K).double()
SLOPE = 2 * normal(K, M, seed=1)


def bent(x: Tensor) -> Tensor:
    """A parabola across the first unknown: the posterior is a curved sheet."""
    first = x[:, 0]
    return torch.stack([x[:, 1] + first.square(), 0.3 * first, x[:, 2]], dim=1)


def evaluations(function, count: int, step: int = 0, seed: int = 0) -> Evaluations:
    """Innovations for y = 0."""
    z = normal(count, K, seed=seed)
    return Evaluations(z, -function(z), torch.full((count,), step))


def members(z: Tensor, function, prior: Tensor | None = None) -> Refined:
    """Members at z that have been judged."""
    prior = normal(len(z), K, seed=7) if prior is None else prior
    noise = normal(len(z), M, seed=8)
    unknown = torch.full((len(z),), torch.inf).double()
    fresh = Refined(0, prior, noise, z, 9 + 0 * noise, unknown, torch.ones_like(unknown))
    return judged(fresh, z, -function(z), torch.ones(len(z), dtype=torch.bool))


def minimisers(prior: Tensor, noise: Tensor) -> Tensor:
    """Of |z - a|^2 + |e - z SLOPE|^2."""
    inverse = torch.linalg.inv(torch.eye(K).double() + SLOPE @ SLOPE.T)
    return (prior + noise @ SLOPE.T) @ inverse


# --- algebra --------------------------------------------------------------------------------


def test_that_the_first_members_are_the_minimisers_of_the_linear_model():
    new = evaluations(lambda z: z @ SLOPE, 60)
    mean = 0.2 * normal(K, seed=3)
    fit = fitted(new, new, mean, U, 0)
    prior, noise = normal(30, K, seed=4), normal(30, M, seed=5)
    first = begun(fit, mean, prior, noise, 1)
    torch.testing.assert_close(first.z, minimisers(prior, noise), rtol=0, atol=1e-3)
    torch.testing.assert_close(first.r, -first.z @ SLOPE, rtol=0, atol=1e-2)


def test_that_one_proposal_is_enough_where_the_simulator_is_linear():
    line = lambda z: z @ SLOPE  # noqa: E731
    at = members(3 * normal(30, K, seed=6), line)
    found = proposed(at, evaluations(line, 60), U, 0)
    torch.testing.assert_close(found, minimisers(at.prior, at.noise), rtol=0, atol=1e-3)


def test_that_each_member_has_the_slope_of_its_own_place():
    bend = normal(K, M, seed=9)
    curved = lambda z: z @ SLOPE + 0.5 * z.square() @ bend  # noqa: E731
    model = Local.fitted(evaluations(curved, 400), torch.zeros(K).double(), U, 0)
    for place in normal(4, K, seed=10):
        exact = (SLOPE + place[:, None] * bend) @ model.seeing
        found = model.slope(place)
        assert (found - exact).norm() < 0.02 * exact.norm()
    straight = replace(model, q=0.0).slope(place)  # the bend is what makes them differ
    assert (straight - exact).norm() > 0.1 * exact.norm()


def test_that_what_the_model_misses_counts_as_noise():
    rough = lambda z: z @ SLOPE + torch.sin(40 * z[:, :1])  # noqa: E731
    plain = Local.fitted(evaluations(lambda z: z @ SLOPE, 200), torch.zeros(K).double(), U, 0)
    noisy = Local.fitted(evaluations(rough, 200), torch.zeros(K).double(), U, 0)
    assert float(noisy.seeing.square().sum()) < 0.9 * float(plain.seeing.square().sum())


def test_that_only_what_lowers_the_misfit_is_taken():
    line = lambda z: z @ SLOPE  # noqa: E731
    at = members(normal(3, K, seed=6), line)
    good = minimisers(at.prior, at.noise)
    tried = torch.stack([good[0], at.z[1] + 50, good[2]])
    living = torch.tensor([True, True, False])
    after = judged(at, tried, -line(tried), living)
    assert torch.equal(after.z, torch.stack([good[0], at.z[1], at.z[2]]))
    torch.testing.assert_close(after.length, torch.tensor([1.0, 1 / 3, 1 / 3]).double())
    exact = 0.5 * ((good[0] - at.prior[0]).square().sum())
    exact = exact + 0.5 * (at.noise[0] - good[0] @ SLOPE).square().sum()
    assert float(after.value[0]) == pytest.approx(float(exact))
    assert after.value[1] == at.value[1]


def test_that_the_memory_is_bounded_and_keeps_the_newest():
    line = lambda z: z @ SLOPE  # noqa: E731
    memory = evaluations(line, 50, step=0)
    for step in range(1, 30):
        memory = remember(memory, evaluations(line, 150, step, seed=step), step)
        assert len(memory.z) <= ROWS
        assert int((memory.step == step).sum()) == 150
    assert int(memory.step.min()) == 29 - 13  # 13 batches of 150 fit, and a part of one
    memory = remember(memory, evaluations(line, 3 * ROWS, 30), 30)
    assert len(memory.z) == ROWS
    assert int((memory.step == 30).sum()) == ROWS // 2


# --- runs -----------------------------------------------------------------------------------


def test_that_a_linear_simulator_is_asked_once_more_and_no_more():
    states, infos = follow(METHOD, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    assert len(infos) == METHOD.steps + 1
    assert states[-1].remarks == ()
    assert infos[-1].progress == 1


def bent_run(method: SLR, fails=None) -> tuple[Tensor, list]:
    prior = enkg.Gaussian(torch.zeros(3).double(), torch.ones(3).double(), enkg.Identity((3,)))
    observation = enkg.Observation(torch.tensor([1.0, 0.0, 0.5]).double(), std=0.05)

    def forward(x: Tensor) -> Tensor:
        y = bent(x)
        y[:, 1] = 0.05 * x[:, 0]  # says next to nothing of the first unknown
        return y if fails is None else fails(y)

    states, infos = follow(method, prior, forward, observation)
    x = states[-1].x
    return x, [float((forward(x) - observation.y).div(0.05).square().mean()), infos, states]


def test_that_members_end_on_the_curved_sheet_that_a_gaussian_leaves():
    _, (before, *_) = bent_run(replace(METHOD, refine=0))
    moved, (after, infos, _) = bent_run(METHOD)
    assert before > 10  # x_1 is 1 - x_0^2 on the sheet
    assert after < 2
    off = moved[:, 1] - (1 - moved[:, 0].square())
    assert float(off.square().mean().sqrt()) < 0.15
    assert float(moved[:, 0].std()) > 0.3
    assert len(infos) <= METHOD.steps + METHOD.refine


def test_that_members_that_always_fail_stay_where_the_linear_model_put_them():
    def fails(y: Tensor) -> Tensor:
        if len(y) == METHOD.draws:
            y[3] = torch.nan
        return y

    x, (_, _, states) = bent_run(METHOD, fails)
    assert x.isfinite().all()
    refined = states[-1].refined
    assert bool(refined.value[3].isinf())
    assert int(refined.value.isinf().sum()) == 1


def test_that_calls_are_as_announced():
    seen = []

    def simulator(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return np.stack([x[:, 1] + x[:, 0] ** 2, x[:, 2]], axis=1)

    method = SLR(members=20, steps=5, draws=30, refine=4)
    tree = enkg.run(
        enkg.Experiment(
            prior=enkg.Gaussian(torch.zeros(3), torch.ones(3), enkg.Identity((3,))),
            simulator=simulator,
            observation=enkg.Observation(np.array([1.0, 0.5]), std=0.05),
            guidance=method,
            predict=7,
        )
    )
    calls = json.loads(tree.attrs["summary"])["calls"]
    assert calls == sum(seen)
    assert calls <= method.calls_for(PROBLEM.gaussian) + 7 == 5 * 20 + 4 * 30 + 7
    assert seen[:5] == [20] * 5
    assert set(seen[5:-1]) == {30}


@pytest.mark.parametrize("wrong", [{"refine": 1}, {"refine": -1}, {"refine": 3, "pairs": 4}])
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=f"refine is {wrong['refine']} with"):
        SLR(**wrong)
