"""Every bundled evaluator tells of each member as soon as it is settled."""

from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg.execute.function import opened
from enkg.simulator import Announcing
from tests.enkg.execute.linear import build
from tests.enkg.execute.test_adapters import ADAPTERS


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("program"))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_that_what_is_told_is_what_the_batch_returns(adapter, program, tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 4))
    told = {}
    with opened(ADAPTERS[adapter](program, tmp_path)) as evaluator:
        assert isinstance(evaluator, Announcing)
        evaluator.announce = lambda j, y, failure, calls: told.setdefault(j, (y, failure, calls))
        result = evaluator.evaluate(x)
    assert sorted(told) == list(range(9))
    for j, (y, failure, _) in told.items():
        assert failure is None
        np.testing.assert_array_equal(y, result.y[j])
    assert sum(calls for _, _, calls in told.values()) == result.calls


def test_that_a_function_tells_of_each_chunk_before_the_next():
    told, order = {}, []

    def simulator(x):
        order.append(len(told))
        if 4.0 in x:
            raise ValueError("four")
        return np.where(x == 1.0, np.nan, x)

    with opened(enkg.Function(simulator, chunk=2, pad=False)) as evaluator:
        assert isinstance(evaluator, Announcing)
        evaluator.announce = lambda j, y, failure, calls: told.setdefault(j, (y, failure, calls))
        result = evaluator.evaluate(np.arange(7.0)[:, None])
    assert order == [0, 2, 4, 4, 4, 6]
    assert [told[j][2] for j in range(7)] == [1, 1, 1, 1, 2, 2, 1]
    assert result.calls == 9
    for j, (y, failure, _) in told.items():
        assert failure == result.failures[j]
        assert (y is None) == (j in (1, 4))
    assert np.isnan(result.y[[1, 4]]).all()
