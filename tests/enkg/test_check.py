"""enkg check: every kind of unsound simulator is found, and sound ones pass."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import enkg
from enkg.check import check
from enkg.findings import Grade

PRIOR = enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,)))


def pairs(x):
    return x[:, :2] + x[:, 2:]


def experiment(simulator=pairs, **changes) -> enkg.Experiment:
    observation = enkg.Observation(np.ones(2), std=0.5)
    guidance = enkg.EnKG(members=50, updates=4)
    made = enkg.Experiment(PRIOR, simulator, observation, guidance)
    return dataclasses.replace(made, **changes)


def grades(report) -> dict[str, Grade]:
    return {finding.subject: finding.grade for finding in report.findings}


def text(report) -> str:
    return " ".join(f"{f.subject}: {f.text} {f.advice}" for f in report.findings)


def test_that_a_sound_simulator_passes_with_its_cost():
    counted = []

    def simulator(x):
        counted.append(len(x))
        return pairs(x)

    report = check(experiment(simulator), draws=3)
    assert report.sound
    assert set(grades(report).values()) == {Grade.GOOD}
    assert "to the last bit" in text(report)
    assert sum(counted) == 4 * 3
    assert "at most 250 calls" in report.facts["the whole run"]
    assert report.facts["each member"] == "float32, shape (4,), to 2 data of shape (2,)"
    assert report.facts["answers"] == "float32, shape (2,)"


noise = itertools.count()

UNSOUND = {
    "random": (lambda x: pairs(x) + next(noise), "repeatable", "random seeds"),
    "mixed with its neighbours": (
        lambda x: pairs(x) + x.mean(axis=0)[:2],
        "independent",
        "must follow from that member only",
    ),
    "sorted": (lambda x: np.sort(pairs(x), axis=0), "independent", "alone and in company"),
    "deaf": (lambda x: np.ones((len(x), 2)), "sensitivity", "does not read its input"),
    "of another shape": (lambda x: x, "shapes", r"shape (4,)"),
    "poisoned by one": (
        lambda x: pairs(x) + 0 * x.sum() if np.isnan(x).any() else pairs(x),
        "failures",
        "takes its neighbours with it",
    ),
    "always failing": (lambda x: pairs(x) * np.nan, "answers", "all values are NaN"),
    "raising": (lambda x: 1 // 0, "answers", "ZeroDivisionError"),
    "answering too few": (lambda x: pairs(x)[:1], "shapes", "axis 0 counts the members"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_that_an_unsound_simulator_is_found_out(kind):
    simulator, subject, words = UNSOUND[kind]
    report = check(experiment(simulator))
    assert not report.sound
    assert grades(report)[subject] is Grade.UNSOUND
    assert words in text(report)


def some_fail(x):
    y = pairs(x)
    y[x[:, 0] < 0] = np.nan
    return y


DOUBTFUL = {
    "failing for some draws": (experiment(some_fail), "prior draws failed"),
    "in other units than the data": (
        experiment(observation=enkg.Observation(np.full(2, 300.0), std=0.5)),
        "check the units",
    ),
    "hardly seen by the data": (
        experiment(observation=enkg.Observation(np.ones(2), std=100.0)),
        "say little about the unknown",
    ),
    "answering NaN with numbers": (
        experiment(lambda x: np.nan_to_num(pairs(x))),
        "answered with finite numbers",
    ),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_that_a_doubtful_simulator_is_sound_but_named(kind):
    made, words = DOUBTFUL[kind]
    report = check(made, draws=6)
    assert report.sound, text(report)
    assert Grade.DOUBT in grades(report).values()
    assert words in text(report)


def test_that_rounding_is_no_fault():
    def simulator(x):
        return pairs(x) + 1e-6 * len(x)

    report = check(experiment(simulator))
    assert report.sound
    assert grades(report)["independent"] is Grade.GOOD


def test_that_holes_under_the_mask_are_no_failures():
    observation = enkg.Observation([1.0, np.nan], std=0.5, mask=[True, False])

    def simulator(x):
        return pairs(x) * np.array([1.0, np.nan])

    assert check(experiment(simulator, observation=observation)).sound


def test_that_one_draw_is_too_few():
    with pytest.raises(enkg.InputError, match="at least 2"):
        check(experiment(), draws=1)


def test_that_progress_ends_at_the_number_of_calls():
    told = []
    check(experiment(), draws=2, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (9, 9)
    assert told == sorted(told)
