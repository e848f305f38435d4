"""The laws that every method of independent chains obeys. One joins them in `tests/gradients.py`.

What a method's ensemble tends to is a law of its own, in its own test file.
"""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.guidance import Guidance
from tests.enkg.problems import SINGLE, LinearOperator, follow, values
from tests.enkg.threads_comm import spread
from tests.gradients import (
    CHAINS,
    METHODS,
    OBSERVATION,
    PROBLEM,
    experiment,
    posterior,
    run,
    sized,
)
from tests.laws import rows

every_method = pytest.mark.parametrize("name", METHODS)


def failing(name: str, dead: int) -> tuple[LinearOperator, Guidance]:
    """One chain whose simulator never answers."""
    operator = PROBLEM.operator
    answers = operator.forward

    def fails(x: Tensor) -> Tensor:
        y = answers(x).clone()
        y.unflatten(0, (CHAINS, -1))[dead] = torch.nan
        return y

    return LinearOperator(PROBLEM, fails), sized(name)


@every_method
def test_that_a_chain_alone_is_the_chain_in_company(name):
    together = run(name)[-1].x
    for k in (0, CHAINS - 1):
        alone = run(name, change=lambda state, k=k: rows(state, [k]))[-1].x
        assert torch.equal(alone[0], together[k])


@every_method
def test_that_a_chain_whose_simulator_fails_leaves_the_others_alone(name):
    plain = run(name)[-1].x
    operator, _ = failing(name, 2)
    found = run(name, operator)[-1].x
    others = [k for k in range(CHAINS) if k != 2]
    assert torch.equal(found[others], plain[others])
    assert found.isfinite().all()


@every_method
def test_that_all_is_counted(name):
    tree = enkg.run(experiment(name))
    summary = json.loads(tree.attrs["summary"])
    method, operator = sized(name), PROBLEM.operator
    prior = Counting()
    follow(method, prior, operator, OBSERVATION)
    predict = CHAINS
    constant = summary["calls"] - predict - operator.calls
    assert constant in (0, 1)  # the simulator's offset
    assert summary["calls"] - predict <= method.sweeps * CHAINS + 1
    assert summary["vjps"] == operator.vjps
    assert summary["denoiser_calls"] == prior.calls
    assert summary["denoiser_vjps"] == prior.vjps


class Counting:
    """The prior of the problem, which counts the members that it is asked of."""

    def __init__(self) -> None:
        self.inner, self.calls, self.vjps = PROBLEM.one_component, 0, 0
        self.shape = self.inner.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += len(x)
        return self.inner.denoise(x, sigma)

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        self.vjps += len(x)
        return self.inner.vjp(x, sigma, v)

    def draw(self, seed: int, members, step: int) -> Tensor:
        return self.inner.draw(seed, members, step)


@every_method
def test_that_ranks_and_chunks_agree_to_the_last_bit(name):
    whole = posterior(name)
    for found in spread(4, lambda comm: posterior(name, comm)):  # blocks of 2, 2, 1, 1
        np.testing.assert_array_equal(found, whole)
    simulator = replace(PROBLEM.simulator, chunk=4)
    np.testing.assert_array_equal(posterior(name, simulator=simulator), whole)


@every_method
def test_that_a_run_goes_on_from_any_state_to_the_last_bit(name):
    states = run(name)
    for state in states[1:-1:3]:
        again = pickle.loads(pickle.dumps(state))
        resumed = run(name, change=lambda _, s=again: s)
        assert torch.equal(resumed[-1].x, states[-1].x)
        assert torch.equal(state.x, again.x)


@every_method
def test_that_the_seed_alone_decides(name):
    zero = posterior(name)
    np.testing.assert_array_equal(posterior(name, truth=PROBLEM.mean), zero)
    assert np.abs(posterior(name, seed=1) - zero).max() > 1e-3


@every_method
def test_that_the_dtype_is_kept(name):
    assert run(name, like=SINGLE)[-1].x.dtype == torch.float32


@every_method
def test_that_a_missing_ability_is_told_before_anything_runs(name):
    calls = []

    def plain(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return PROBLEM.simulate(x)

    needs = sized(name).needs
    if not needs:
        assert values(enkg.run(experiment(name, simulator=plain)), "posterior", "x").size
        return
    with pytest.raises(enkg.MissingCapability, match=f"{type(sized(name)).__name__} needs"):
        enkg.run(experiment(name, simulator=plain))
    assert not calls
