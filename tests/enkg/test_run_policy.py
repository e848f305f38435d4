"""What a run does with failures: blow-ups, dropped members, causes, the instrument, the cache."""

import json

import numpy as np
import pytest
import torch

import enkg
from tests.enkg.kelvin import MEMBERS, experiment, simulator
from tests.enkg.problems import values


def numbers(tree) -> dict:
    return json.loads(tree.attrs["summary"])


def fragile(bad: float):
    """Member 3 of every batch answers rubbish."""

    def simulate(x):
        y = simulator(x)
        y[3] = bad
        return y

    return simulate


@pytest.mark.parametrize("bad", [1e9, -1e20, 1e300])
def test_that_a_finite_blow_up_counts_as_a_failure_and_moves_nobody(bad):
    blown = enkg.run(experiment(simulator=fragile(bad)))
    dead = enkg.run(experiment(simulator=fragile(np.nan)))
    assert numbers(blown)["failed"] == numbers(dead)["failed"] > 0
    np.testing.assert_array_equal(
        values(blown, "posterior", "temperature"), values(dead, "posterior", "temperature")
    )


def test_that_blow_ups_are_told_apart_from_nan():
    blown = numbers(enkg.run(experiment(simulator=fragile(1e9))))["causes"]
    assert set(blown) == {"blow-up"}
    assert set(numbers(enkg.run(experiment(simulator=fragile(np.nan))))["causes"]) == {
        "NaN or infinity"
    }


def test_that_a_wide_prior_is_no_blow_up():
    def wide(x):
        return simulator(x) ** 2

    tree = enkg.run(experiment(simulator=wide))
    assert numbers(tree)["failed"] == 0


def test_that_the_limit_of_a_blow_up_can_be_taken_away():
    tree = enkg.run(experiment(simulator=fragile(1e5), failure=enkg.FailurePolicy(blow_up=0.0)))
    assert numbers(tree)["failed"] == 0


def test_that_dropped_members_stay_away():
    def fails_once(x):
        y = simulator(x)
        if len(x) == MEMBERS:
            y[[3, 7]] = np.nan
        return y

    guidance = enkg.EnKG(members=MEMBERS, updates=4)
    kept = enkg.run(experiment(simulator=fails_once, guidance=guidance))
    assert len(kept["posterior"]["member"]) == MEMBERS
    policy = enkg.FailurePolicy(drop=True)
    dropped = enkg.run(experiment(simulator=fails_once, guidance=guidance, failure=policy))
    assert len(dropped["posterior"]["member"]) == MEMBERS - 2
    assert numbers(dropped)["failed"] == 2
    assert numbers(dropped)["members"] == MEMBERS - 2


def test_that_dropping_keeps_the_order_and_the_identity_of_the_others():
    guidance = enkg.EnKG(members=6)
    state = guidance.init(experiment().prior, 0, torch.empty(0, dtype=torch.float64))
    living = torch.tensor([True, False, True, True, False, True])
    after = guidance.drop(state, living)
    assert after.members == (0, 2, 3, 5)
    assert torch.equal(after.x, state.x[[0, 2, 3, 5]])


def test_that_methods_that_draw_afresh_have_nobody_to_drop():
    policy = enkg.FailurePolicy(drop=True)
    made = experiment(
        simulator=fragile(np.nan), failure=policy, guidance=enkg.SLR(members=32, steps=3, draws=64)
    )
    assert len(enkg.run(made)["posterior"]["member"]) == 64


def test_that_the_instrument_stands_between_simulator_and_data():
    plain = enkg.run(experiment())
    calls = []

    def everything(x):
        calls.append(len(x))
        return np.concatenate([simulator(x), np.full((len(x), 3), 1e30)], axis=1)

    seen = enkg.run(experiment(simulator=everything, observe=lambda y: y[:, :4]))
    assert calls
    np.testing.assert_array_equal(
        values(seen, "posterior", "temperature"), values(plain, "posterior", "temperature")
    )


def test_that_the_instrument_never_sees_a_failed_member():
    def observe(y):
        assert np.isfinite(y).all()
        return y

    tree = enkg.run(experiment(simulator=fragile(np.nan), observe=observe))
    assert numbers(tree)["failed"] > 0


@pytest.mark.parametrize(
    ("observe", "words"),
    [
        (lambda y: y[:, :2], r"observe returned data of shape \(2,\)"),
        (lambda y: y[:1], "axis 0 counts the members"),
        (lambda y: 3.0, "axis 0 counts the members"),
    ],
)
def test_that_an_instrument_of_the_wrong_shape_is_named(observe, words):
    with pytest.raises(enkg.InputError, match=words):
        enkg.run(experiment(observe=observe))


COUNTED = []


def counting(x):
    COUNTED.append(len(x))
    return simulator(x)


def test_that_a_cached_run_pays_once(tmp_path):
    COUNTED.clear()
    first = enkg.run(experiment(simulator=counting, cache=tmp_path / "cache"))
    paid = sum(COUNTED)
    again = enkg.run(experiment(simulator=counting, cache=tmp_path / "cache"))
    assert sum(COUNTED) == paid + 1  # one member is simulated again, to see that nothing changed
    assert numbers(again)["calls"] == 1
    assert numbers(first)["calls"] == paid
    for name in ("posterior", "predicted"):
        variable = "temperature" if name == "posterior" else "flux"
        np.testing.assert_array_equal(values(first, name, variable), values(again, name, variable))
