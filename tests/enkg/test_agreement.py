"""All ranks must have been given the same experiment."""

from dataclasses import replace

import numpy as np
import pytest

import enkg
from enkg.agreement import check
from enkg.sketch import differences
from tests.enkg.problems import small_problem
from tests.enkg.threads_comm import spread

PROBLEM = small_problem()


def experiment(**changes) -> enkg.Experiment:
    fields = {"guidance": enkg.EnKG(members=8), "seed": 3}
    return enkg.Experiment(
        PROBLEM.gaussian, PROBLEM.simulate, PROBLEM.observation, **{**fields, **changes}
    )


def refused(change) -> pytest.ExceptionInfo:
    """What three ranks say if the last one has a changed experiment."""

    def on_rank(comm):
        mine = experiment()
        check(change(mine) if comm.rank == 2 else mine, comm)

    with pytest.raises(enkg.InputError) as caught:
        spread(3, on_rank)
    return caught


def test_that_ranks_that_agree_go_on():
    assert spread(3, lambda comm: check(experiment(), comm)) == [None] * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 4), ("guidance", enkg.EnKG(members=9)), ("truth", np.arange(6.0)), ("double", True)],
)
def test_that_a_rank_with_another_experiment_is_named(field, value):
    caught = refused(lambda mine: replace(mine, **{field: value}))
    assert "rank 2 has another experiment than rank 0" in str(caught.value)
    assert field in str(caught.value)


def test_that_a_measurement_drawn_without_a_seed_is_found():
    y = PROBLEM.observation.y.numpy()
    other = enkg.Observation(y[::-1].copy(), covariance=PROBLEM.observation.covariance)
    assert "observation.y" in str(refused(lambda mine: replace(mine, observation=other)).value)


def test_that_rounding_is_no_difference():
    y = PROBLEM.observation.y.numpy() * (1 + 1e-12)
    near = enkg.Observation(y, covariance=PROBLEM.observation.covariance)

    def on_rank(comm):
        mine = experiment()
        check(replace(mine, observation=near) if comm.rank else mine, comm)

    spread(2, on_rank)


def test_that_a_field_that_one_lacks_is_a_difference():
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["a.b"]
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []
