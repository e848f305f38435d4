"""All ranks must have been given the same experiment."""

from dataclasses import replace

import numpy as np
import pytest

import enkg
from enkg.agreement import check
from enkg.sketch import differences, sketched
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


SMALL_BESIDE_LARGE = np.array([1e4] + [0.003] * 20)
MASK = np.ones(10**5, dtype=bool)


def changed(array: np.ndarray, place: int, value) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([1 + 2j, 3j]), np.array([5 + 2j, 9j])),
        (np.array([np.nan, 0.0, 1.0]), np.array([0.0, np.nan, 1.0])),
        (SMALL_BESIDE_LARGE, changed(SMALL_BESIDE_LARGE, 5, -0.003)),
        (MASK, changed(MASK, 777, False)),
        (np.array(["a", "b"]), np.array(["c", "d"])),
        (np.arange(5), changed(np.arange(5), 2, 7)),
        (np.linspace(0, 1, 5000), np.linspace(0, 1, 5000)[::-1].copy()),
        (np.ones(3), np.ones(3, np.float32)),
    ],
)
def test_that_a_real_change_of_an_array_is_seen(one, other):
    found = differences({"a": sketched(one)}, {"a": sketched(other)})
    assert found
    assert all(name.split(".")[0] == "a" for name in found)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 64, 65, 5000])
def test_that_another_rounding_of_an_array_is_let_pass(kind, size):
    one = np.random.default_rng(0).normal(size=size).astype(kind)
    other = np.nextafter(one, np.inf, dtype=kind)
    assert not np.array_equal(one, other)
    assert differences(sketched(one), sketched(other)) == []
