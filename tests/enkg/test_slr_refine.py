"""The refinement of SLR: members that the simulator has moved.

The laws that it shares with the other methods are in `tests/laws.py`.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import SLR, InputError
from enkg.guidance import Info
from enkg.guidance.slr_refine import ROWS, Local, Refined, begun, judged, proposed, remember
from enkg.guidance.slr_regression import Evaluations, fitted
from tests.enkg.problems import follow, normal, small_problem, values
from tests.enkg.threads_comm import spread
from tests.laws import rows

PROBLEM = small_problem()
METHOD = SLR(members=40, steps=10, draws=80, refine=6)
K, M = 5, 7
U = torch.linspace(1, 0.4, K).double()
SLOPE = 2 * normal(K, M, seed=1)


def line(z: Tensor) -> Tensor:
    return z @ SLOPE


def bent(x: Tensor) -> Tensor:
    """A parabola across the first unknown: the posterior is a curved sheet."""
    first = x[:, 0]
    return torch.stack([x[:, 1] + first.square(), 0.05 * first, x[:, 2]], dim=1)


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
    new = evaluations(line, 60)
    mean = 0.2 * normal(K, seed=3)
    fit = fitted(new, new, mean, U, 0)
    prior, noise = normal(30, K, seed=4), normal(30, M, seed=5)
    first = begun(fit, mean, prior, noise, 1)
    torch.testing.assert_close(first.z, minimisers(prior, noise), rtol=0, atol=1e-3)
    torch.testing.assert_close(first.r, -first.z @ SLOPE, rtol=0, atol=1e-2)


def test_that_one_proposal_is_enough_where_the_simulator_is_linear():
    at = members(3 * normal(30, K, seed=6), line)
    found = proposed(at, evaluations(line, 60), U, 0)
    torch.testing.assert_close(found, minimisers(at.prior, at.noise), rtol=0, atol=1e-3)


def test_that_each_member_has_the_slope_of_its_own_place():
    bend = normal(K, M, seed=9)

    def curved(z: Tensor) -> Tensor:
        return z @ SLOPE + 0.5 * z.square() @ bend

    model = Local.fitted(evaluations(curved, 400), torch.zeros(K).double(), U, 0)
    for place in normal(4, K, seed=10):
        exact = (SLOPE + place[:, None] * bend) @ model.seeing
        found = model.slope(place)
        assert (found - exact).norm() < 0.02 * exact.norm()
    straight = replace(model, q=0.0).slope(place)  # the bend is what makes them differ
    assert (straight - exact).norm() > 0.1 * exact.norm()


def test_that_what_the_model_misses_counts_as_noise():
    def rough(z: Tensor) -> Tensor:
        return z @ SLOPE + torch.sin(40 * z[:, :1])

    plain = Local.fitted(evaluations(line, 200), torch.zeros(K).double(), U, 0)
    noisy = Local.fitted(evaluations(rough, 200), torch.zeros(K).double(), U, 0)
    assert float(noisy.seeing.square().sum()) < 0.9 * float(plain.seeing.square().sum())


def test_that_only_what_lowers_the_misfit_is_taken():
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


def test_that_a_weak_direction_counts_beside_a_strong_one():
    steep = SLOPE.clone()
    steep[:, 0] *= 1e6
    steep[:, 1] *= 10
    model = Local.fitted(evaluations(lambda z: z @ steep, 60), torch.zeros(K).double(), U, 0)
    assert model.seeing.shape[1] == K


def test_that_one_that_got_better_does_not_end_what_others_overshot():
    at = members(normal(20, K, seed=6), line)
    tried = at.z + 40  # too far for all
    tried[0] = minimisers(at.prior, at.noise)[0] * 1e-3 + at.z[0] * (1 - 1e-3)
    after = judged(at, tried, -line(tried), torch.ones(20, dtype=torch.bool))
    assert after.value[0] < at.value[0]
    assert not after.settled


def test_that_the_memory_is_bounded_and_keeps_the_newest():
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


PRIOR = enkg.Gaussian(torch.zeros(3).double(), torch.ones(3).double(), enkg.Identity((3,)))
BENT = enkg.Observation(torch.tensor([1.0, 0.0, 0.5]).double(), std=0.05)
PRECISE = enkg.Observation(torch.tensor([1.0, 0.0, 0.5]).double(), std=0.01)


def bent_run(method: SLR, forward=bent, observation=BENT) -> tuple[float, list[Any], list[Info]]:
    """Misfit per datum of the members, states, infos."""
    states, infos = follow(method, PRIOR, forward, observation)
    return observation.misfit_per_datum(bent(states[-1].x)), states, infos


def test_that_members_end_on_the_curved_sheet_that_a_gaussian_leaves():
    before, _, _ = bent_run(replace(METHOD, refine=0))
    after, states, infos = bent_run(METHOD)
    assert before > 10  # x_1 is 1 - x_0^2 on the sheet
    assert after < 2
    x = states[-1].x
    off = x[:, 1] - (1 - x[:, 0].square())
    assert float(off.square().mean().sqrt()) < 0.15
    assert float(x[:, 0].std()) > 0.3
    assert METHOD.steps + 3 < len(infos) <= METHOD.steps + METHOD.refine


def test_that_the_members_decide_whether_a_refined_run_has_converged():
    # SLR itself does not come to the whole likelihood here; its members do.
    method = replace(METHOD, steps=1, refine=14)
    (said,) = bent_run(replace(method, refine=0), observation=PRECISE)[1][-1].remarks
    assert "steps of SLR used 0." in said
    _, states, infos = bent_run(method, observation=PRECISE)
    assert states[-1].beta == 1
    assert not any("of the likelihood" in remark for remark in states[-1].remarks)
    assert sum(info.power for info in infos) == pytest.approx(1)


def test_that_members_that_do_not_reach_the_data_are_remarked():
    (said,) = bent_run(replace(METHOD, refine=2), observation=PRECISE)[1][-1].remarks
    assert said.startswith("not converged: after 10 steps of SLR and 2 rounds of refinement")


def test_that_members_that_always_fail_stay_where_the_linear_model_put_them():
    def fails(x: Tensor) -> Tensor:
        y = bent(x)
        if len(y) == METHOD.draws:
            y[3] = torch.nan
        return y

    _, states, infos = bent_run(METHOD, fails)
    assert len(infos) > METHOD.steps + 3
    last, first = states[-1], states[METHOD.steps]
    assert last.x.isfinite().all()
    assert torch.equal(last.x[3], first.x[3])
    assert not torch.equal(last.x[4], first.x[4])
    assert last.refined.value.isinf().nonzero().tolist() == [[3]]
    assert last.remarks[-1].startswith("1 of 80 members failed in every round")


def test_that_a_dead_member_moves_the_others_only_through_the_statistics():
    method = replace(METHOD, draws=30)

    def fails(x: Tensor) -> Tensor:
        y = bent(x)
        y[5] = torch.nan
        return y

    _, states, _ = bent_run(method)
    others, fewer = [j for j in range(30) if j != 5], replace(method, draws=29)
    rounds = [s for s in states[:-1] if s.refined is not None]
    assert len(rounds) > 2
    for state in rounds:
        with_dead: Any = method.step(state, PRIOR, fails, BENT)[0]
        assert torch.equal(with_dead.refined.z[5], state.refined.z[5])
        left_out: Any = fewer.step(rows(state, others), PRIOR, bent, BENT)[0]
        # A round's regression is centred on all that have ever answered, the dead one too.
        close = 1e-8 if state is rounds[0] else 0.1
        torch.testing.assert_close(with_dead.z[others], left_out.z, rtol=close, atol=close)


def test_that_members_permute():
    method = replace(METHOD, draws=30)
    _, states, _ = bent_run(method)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3)).tolist()
    for state in [s for s in states[:-1] if s.refined is not None]:
        plain: Any = method.step(state, PRIOR, bent, BENT)[0]
        shuffled: Any = method.step(rows(state, order), PRIOR, bent, BENT)[0]
        torch.testing.assert_close(shuffled.z, plain.z[order], rtol=1e-6, atol=1e-6)


def simulated(x: np.ndarray) -> np.ndarray:
    """Some fail, in every round."""
    y = bent(torch.from_numpy(x)).numpy()
    y[1000 * np.abs(x[:, 0]) % 9 < 1] = np.nan
    return y


def refined(chunk: int, comm: enkg.comm.Comm = enkg.comm.ALONE) -> np.ndarray:
    experiment = enkg.Experiment(
        PRIOR, enkg.Function(simulated, chunk=chunk), BENT, replace(METHOD, draws=33), double=True
    )
    tree = enkg.run(experiment, comm=comm)
    assert tree["trace"].sizes["step"] > METHOD.steps + 3
    return values(tree, "posterior", "x")


def test_that_ranks_and_chunks_agree_to_the_last_bit():
    whole = refined(7)
    np.testing.assert_array_equal(refined(40), whole)
    for size in (2, 5):
        for found in spread(size, lambda comm: refined(7, comm)):
            np.testing.assert_array_equal(found, whole)


def test_that_more_ranks_than_final_members_are_refused():
    experiment = enkg.Experiment(PRIOR, simulated, BENT, replace(METHOD, draws=2))
    with pytest.raises(InputError, match="there are 3 ranks and 2 members"):
        spread(3, lambda comm: enkg.run(experiment, comm=comm))


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
