"""What an experiment refuses before the first simulator call, and the names of its fields."""

import numpy as np
import pytest
import torch

import enkg

PRIOR = enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,)))
OBSERVATION = enkg.Observation(torch.ones(2), std=0.5)


def first_two(x):
    return x[:, :2]


def experiment(**changes) -> enkg.Experiment:
    fields = {"prior": PRIOR, "simulator": first_two, "observation": OBSERVATION}
    return enkg.Experiment(**{**fields, **changes})


WRONG = {
    "prior": ({"prior": torch.zeros(4)}, "expected an object with `shape`"),
    "guidance": ({"guidance": "enkg"}, "expected a method"),
    "observation": ({"observation": torch.ones(2)}, "enkg.Observation"),
    "simulator": ({"simulator": 3.0}, "simulator is a float"),
    "predict": ({"predict": 0}, "at least one member"),
    "truth": ({"truth": torch.zeros(5)}, r"truth has shape \(5,\)"),
    "axes of the unknown": ({"unknown": enkg.Field("x", dims=("a", "b"))}, "2 axes"),
    "axes of the data": ({"data": enkg.Field("y", dims=("a", "b"))}, "2 axes"),
    "coordinates": (
        {"unknown": enkg.Field("x", dims=("a",), coords={"a": range(3)})},
        "3 values along a",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_that_an_impossible_experiment_is_refused_in_words(wrong):
    changes, words = WRONG[wrong]
    with pytest.raises(enkg.InputError, match=words):
        experiment(**changes)


CLASHES = {
    "the data's name for an axis of the unknown": {
        "unknown": enkg.Field("z", dims=("y",)),
        "data": enkg.Field("y"),
    },
    "one name for both": {"unknown": enkg.Field("z"), "data": enkg.Field("z")},
    "one axis of two lengths": {
        "unknown": enkg.Field("x", dims=("place",)),
        "data": enkg.Field("y", dims=("place",)),
    },
    "an axis called member": {"unknown": enkg.Field("x", dims=("member",))},
    "an axis with the name of the field": {"unknown": enkg.Field("x", dims=("x",))},
    "one name for two axes": {
        "prior": enkg.Gaussian(torch.zeros(2, 2), torch.ones(4), enkg.Identity((2, 2))),
        "simulator": lambda x: x[:, 0],
        "unknown": enkg.Field("x", dims=("side", "side")),
    },
}


@pytest.mark.parametrize("clash", CLASHES)
def test_that_names_that_clash_cost_no_simulator_call(clash, tmp_path):
    """Either they are refused beforehand, or the run goes through."""
    calls = []
    changes = dict(CLASHES[clash])
    simulate = changes.pop("simulator", first_two)

    def counting(x):
        calls.append(len(x))
        return simulate(x)

    method = enkg.ESMDA(members=8)
    try:
        enkg.run(experiment(simulator=counting, guidance=method, **changes), tmp_path)
    except enkg.InputError:
        assert not calls


@pytest.mark.parametrize("make", [enkg.EnKG, enkg.ESMDA, enkg.SLR, enkg.EnKGPublished])
@pytest.mark.parametrize("members", [1, 0, -3])
def test_that_an_ensemble_of_one_is_refused(make, members):
    with pytest.raises(enkg.InputError, match="at least 2"):
        make(members=members)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: enkg.EnKG(cap=0.0), "cap"),
        (lambda: enkg.EnKG(cap=1.5), "cap"),
        (lambda: enkg.EnKG(updates=0), "at least"),
        (lambda: enkg.EnKG(levels=0), "at least"),
        (lambda: enkg.EnKG(sigma_start=0.01), "sigma_min"),
        (lambda: enkg.EnKG(sigma_end=0.0), "sigma_min"),
        (lambda: enkg.EnKG(updates=4, ratio=-1.0), "positive"),
        (lambda: enkg.EnKG(members=8, folds=8), "two members for each"),
        (lambda: enkg.EnKG(polish=enkg.Polish(levels=-1)), "polish levels"),
        (lambda: enkg.SLR(kept_variance=0.0), "kept_variance"),
        (lambda: enkg.ESMDA(updates=0), "at least 1"),
        (lambda: enkg.ESMDA(members=8, folds=5), "two members for each"),
        (lambda: enkg.SLR(steps=0), "at least 1"),
        (lambda: enkg.SLR(draws=1), "expected at least"),
        (lambda: enkg.EnKGPublished(last_guided=80), "do not lie among"),
        (lambda: enkg.EnKGPublished(first_guided=9, last_guided=8), "do not lie among"),
        (lambda: enkg.EnKGPublished(updates=0), "at least one"),
        (lambda: enkg.EnKGPublished(step_size=0.0), "positive length"),
    ],
)
def test_that_an_impossible_method_is_refused_in_words(make, words):
    with pytest.raises(enkg.InputError, match=words):
        make()


def test_that_slr_refuses_a_prior_that_is_not_gaussian_before_any_call():
    mixture = enkg.Mixture(torch.zeros(1, 4), torch.ones(4), torch.zeros(4), enkg.Identity((4,)))

    def never(x):
        raise AssertionError

    with pytest.raises(enkg.InputError, match="needs a Gaussian prior"):
        enkg.run(experiment(prior=mixture, guidance=enkg.SLR(), simulator=never))


def test_that_every_preset_is_a_method_that_says_its_cost():
    for method in enkg.METHODS.values():
        assert isinstance(method, enkg.Guidance)
        assert method.sweeps >= 1 or method.needs  # an SVD may spare all calls
        assert method.members >= 2
    # The constants of the public scripts: 142, 63 and 158 sweeps.
    published = [m.sweeps for m in enkg.METHODS.values() if isinstance(m, enkg.EnKGPublished)]
    assert published == [142, 63, 158]


def test_that_a_field_names_its_axes():
    assert enkg.Field("x").axes((2, 3)) == ("x_dim_0", "x_dim_1")
    assert enkg.Field("x", dims=("a", "b")).axes((2, 3)) == ("a", "b")
    assert enkg.Field("x").axes(()) == ()


def test_that_a_field_has_the_attributes_of_the_convention():
    plain = enkg.Field("x").attributes()
    assert plain == {"units": "1", "long_name": "x"}
    full = enkg.Field("x", unit="K", long_name="temperature").attributes()
    assert full == {"units": "K", "long_name": "temperature"}


def test_that_a_truth_may_be_a_numpy_array():
    assert isinstance(experiment(truth=np.zeros(4)).truth, torch.Tensor)
