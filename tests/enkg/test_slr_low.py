"""SLR with a low-fidelity simulator, and how a run handles one: laws, counts, kills, ranks."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import SLR, InputError, Low
from enkg.errors import EnsembleFailure, MissingCapability
from tests.enkg.problems import (
    LinearGaussian,
    follow,
    small_problem,
    smooth_problem,
    values,
    whitened,
)
from tests.enkg.threads_comm import spread

PROBLEM = small_problem()
METHOD = SLR(members=20, steps=5, pairs=12, draws=48)


class Both:
    """A simulator as a method sees it, with its partner."""

    def __init__(self, high: Callable[[Tensor], Tensor], low: Callable[[Tensor], Tensor]) -> None:
        self.high, self.low = high, low

    def __call__(self, x: Tensor) -> Tensor:
        return self.high(x)


def cheap(x: Tensor, problem: LinearGaussian = PROBLEM) -> Tensor:
    """Seven tenths of the answer, a drift and an offset."""
    return 0.7 * problem.forward(x) + 0.2 * x[:, -1:] + 0.5


def last(method: SLR = METHOD, problem: LinearGaussian = PROBLEM, low=cheap, seed: int = 0):
    forward = Both(problem.forward, lambda x: low(x, problem))
    return follow(method, problem.gaussian, forward, problem.observation, seed)[0][-1]


class Counting:
    """A simulator for NumPy that counts its members, and is stopped after some."""

    def __init__(self, f: Callable[[np.ndarray], np.ndarray], stop: float = np.inf) -> None:
        self.f, self.stop, self.seen = f, stop, Counter()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if sum(self.seen.values()) >= self.stop:
            raise KeyboardInterrupt
        self.seen.update(row.tobytes() for row in x)
        return self.f(x)


def numpy_cheap(x: np.ndarray) -> np.ndarray:
    return 0.7 * PROBLEM.simulate(x) + 0.2 * x[:, -1:] + 0.5


def experiment(high: Any = PROBLEM.simulate, low: Any = numpy_cheap, **changes: Any):
    chunked = {"chunk": 4, "pad": False}
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": enkg.Function(high, **chunked),
        "low": Low(enkg.Function(low, **chunked), cost=1 / 8),
        "observation": PROBLEM.observation,
        "guidance": METHOD,
        "double": True,
        "predict": 10,
    }
    return enkg.Experiment(**{**fields, **changes})


def summary(tree) -> dict[str, Any]:
    return json.loads(tree.attrs["summary"])


# --- laws -----------------------------------------------------------------------------------


def test_that_the_posterior_is_exact_whatever_the_partner_says():
    error, eigenvalues = whitened(last(replace(METHOD, draws=4000)).x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


def test_that_mean_and_variance_are_exact_with_fewer_calls_than_unknowns():
    # 64 unknowns, 40 calls of the simulator: what they show of the difference is enough.
    problem = smooth_problem()
    mean, covariance = problem.posterior
    near = lambda x, problem: problem.forward(x) + 0.1  # noqa: E731
    x = last(SLR(members=32, steps=6, pairs=20, draws=2048), problem, near).x
    assert (x.mean(0) - mean).norm() < 0.05 * mean.norm()
    assert float(x.var(0).sum() / covariance.trace()) == pytest.approx(1, abs=0.05)


def test_that_what_the_pairs_do_not_explain_widens_the_posterior():
    rough = lambda x, problem: problem.forward(x) + torch.sin(30 * x[:, :3])  # noqa: E731
    method = replace(METHOD, draws=1000)
    assert last(method, low=rough).x.var(0).sum() > 1.1 * last(method).x.var(0).sum()


def test_that_a_partner_that_is_the_simulator_changes_little():
    alone = replace(METHOD, pairs=0, draws=2000)
    same = last(replace(METHOD, draws=2000), low=lambda x, problem: problem.forward(x))
    torch.testing.assert_close(same.x, last(alone).x, rtol=0, atol=0.02)


def test_that_the_units_of_the_data_do_not_matter():
    low = lambda x, problem: cheap(x, problem) * 1.0  # noqa: E731
    scaled = lambda x, problem: 7 * cheap(x, PROBLEM)  # noqa: E731
    plain, other = last(low=low), last(problem=PROBLEM.times(7), low=scaled)
    torch.testing.assert_close(other.x, plain.x, rtol=1e-6, atol=1e-6)


def test_that_failed_members_of_either_simulator_are_left_out():
    def without(rows: list[int], f) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = f(x)
            y[rows] = torch.nan
            return y

        return forward

    forward = Both(without([1, 3], PROBLEM.forward), without([0, 3, 15], cheap))
    method = replace(METHOD, draws=4000)
    states, _ = follow(method, PROBLEM.gaussian, forward, PROBLEM.observation)
    assert states[-1].paired is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert len(states[-1].paired.z) == 2 * (12 - 3)  # pyright: ignore[reportAttributeAccessIssue]
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.85


def test_that_pairs_that_never_meet_are_an_error():
    def first_six_fail(x: Tensor) -> Tensor:
        y = cheap(x)
        y[:6] = torch.nan
        return y

    def others_fail(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[6:] = torch.nan
        return y

    with pytest.raises(EnsembleFailure, match="of 12 pairs, 0 were answered by both"):
        follow(METHOD, PROBLEM.gaussian, Both(others_fail, first_six_fail), PROBLEM.observation)


# --- the run --------------------------------------------------------------------------------


def test_that_calls_of_both_are_counted_exactly():
    high, low = Counting(PROBLEM.simulate), Counting(numpy_cheap)
    tree = enkg.run(experiment(high, low))
    found = summary(tree)
    assert found["calls"] == high.seen.total() == 2 * 12 + 10
    assert found["low_calls"] == low.seen.total() == 5 * 20
    assert found["call_equivalents"] == 34 + 100 / 8
    trace = tree["trace"].to_dataset()
    assert trace["low_calls"].values.tolist() == [20, 40, 60, 80, 100]
    assert trace["calls"].values.tolist() == [0, 0, 0, 12, 24]


@pytest.mark.parametrize(
    ("stop_high", "stop_low"),
    [
        (np.inf, 30),
        (16, np.inf),
        pytest.param(np.inf, 90, marks=pytest.mark.slow),
        pytest.param(28, np.inf, marks=pytest.mark.slow),
    ],
)
def test_that_a_killed_run_goes_on_to_the_last_bit(tmp_path: Path, stop_high, stop_low):
    whole = enkg.run(experiment(), tmp_path / "whole")
    first = Counting(PROBLEM.simulate, stop_high), Counting(numpy_cheap, stop_low)
    with pytest.raises(KeyboardInterrupt):
        enkg.run(experiment(*first), tmp_path / "killed")
    then = Counting(PROBLEM.simulate), Counting(numpy_cheap)
    tree = enkg.run(experiment(*then), tmp_path / "killed", resume=True, force=True)
    np.testing.assert_array_equal(values(tree, "posterior", "x"), values(whole, "posterior", "x"))
    for one, two, calls in zip(first, then, (34, 100), strict=True):
        assert not set(one.seen) & set(two.seen)  # nothing is asked twice
        assert (one.seen + two.seen).total() == calls
    keys = ("calls", "low_calls", "call_equivalents")
    assert [summary(tree)[k] for k in keys] == [summary(whole)[k] for k in keys]


def test_that_a_run_with_another_partner_is_not_gone_on_with(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        enkg.run(experiment(low=Counting(numpy_cheap, 30)), tmp_path)
    with pytest.raises(enkg.StoreError, match="simulator's code"):
        enkg.run(experiment(low=lambda x: 2 * numpy_cheap(x)), tmp_path, resume=True)


def test_that_ranks_agree_to_the_last_bit():
    whole = values(enkg.run(experiment()), "posterior", "x")
    for size in (2, 5):
        for tree in spread(size, lambda comm: enkg.run(experiment(), comm=comm)):
            np.testing.assert_array_equal(values(tree, "posterior", "x"), whole)
            assert summary(tree)["low_calls"] == 100


def test_that_the_cache_keeps_both_apart(tmp_path: Path):
    whole = enkg.run(experiment(cache=tmp_path))
    again = enkg.run(experiment(cache=tmp_path))
    np.testing.assert_array_equal(values(again, "posterior", "x"), values(whole, "posterior", "x"))
    assert summary(again)["low_calls"] <= 2  # one is compared with what the cache has of it
    assert summary(again)["calls"] <= 2


def test_that_the_partner_may_be_observed_in_its_own_way():
    mine = Low(lambda x: np.repeat(numpy_cheap(x), 2, axis=1), 0.5, observe=lambda y: y[:, ::2])
    whole = values(enkg.run(experiment()), "posterior", "x")
    tree = enkg.run(replace(experiment(), low=mine))
    np.testing.assert_array_equal(values(tree, "posterior", "x"), whole)


def test_that_a_method_that_knows_no_partner_ignores_it():
    low = Counting(numpy_cheap)
    tree = enkg.run(experiment(low=low, guidance=replace(METHOD, pairs=0)))
    assert not low.seen
    assert summary(tree)["low_calls"] == 0
    alone = replace(experiment(guidance=replace(METHOD, pairs=0)), low=None)
    assert "low_calls" not in summary(enkg.run(alone))


def test_that_pairs_without_a_partner_are_refused_before_any_call():
    high = Counting(PROBLEM.simulate)
    with pytest.raises(MissingCapability, match=r"SLR with 12 pairs needs .* Experiment\(low="):
        enkg.run(replace(experiment(high), low=None))
    assert not high.seen


@pytest.mark.parametrize("cost", [0, 1, -0.1, np.nan])
def test_that_a_cost_is_a_share(cost):
    with pytest.raises(InputError, match="between 0 and 1"):
        Low(numpy_cheap, cost=cost)


def test_that_a_partner_is_a_simulator():
    with pytest.raises(InputError, match="is a int"):
        Low(3, cost=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"expected enkg.Low"):
        replace(experiment(), low=numpy_cheap)  # pyright: ignore[reportArgumentType]


def test_that_the_seed_alone_decides():
    assert torch.equal(last(seed=3).x, last(seed=3).x)
    assert (last(seed=3).x - last(seed=4).x).abs().max() > 0.1
