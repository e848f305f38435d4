"""The verdict: each doubt alone, and the bounds that theory gives."""

from math import sqrt

import pytest
from scipy.stats import chi2

from enkg.diagnose import Ranks, most_error, verdict
from enkg.distance import Distance

SOUND = {
    "law": "linear-Gaussian",
    "beta": 1.0,
    "misfit_per_datum": 1.0,
    "data": 200,
    "spread": 0.4,
    "members": 100,
    "failed_share": 0.0,
}


def judged(**changes):
    return verdict(**{**SOUND, **changes})


def test_that_a_sound_run_is_trusted_and_says_what_was_found():
    found = judged()
    assert found.trusted
    assert "1.00" in found.reason
    assert "100 members" in found.reason


DOUBTS = {
    "no law": ({"law": None}, "no posterior law"),
    "likelihood unspent": ({"beta": 0.5}, "only 0.50 of the likelihood"),
    "misfit too high": ({"misfit_per_datum": 1.5}, "above 1.33"),
    "misfit too low": ({"misfit_per_datum": 0.5}, "below 0.73"),
    "misfit unknown": ({"misfit_per_datum": float("nan")}, "misfit"),
    "collapsed": ({"spread": 1e-4}, "collapsed"),
    "grown": ({"spread": 1.5}, "should not grow"),
    "many failures": ({"failed_share": 0.3}, "30% of the simulator calls failed"),
    "one direction left": ({"ranks": Ranks(1.1, 20.0, 64)}, "differ in 1.1 directions"),
    "left the prior": ({"distance": Distance(3.0, (0.5, 1.5))}, "leaving the prior"),
    "distance unknown": ({"distance": Distance(float("nan"), (0.5, 1.5))}, "leaving the prior"),
    "too sure": ({"spread_skill": 0.3, "ranks": Ranks(50.0, 20.0, 64)}, "3.33 times the spread"),
    "no spread at all": ({"spread_skill": 0.0, "ranks": Ranks(9.0, 9.0, 64)}, "too sure"),
    "given up": ({"remarks": ("not converged: 3 steps were too few",)}, "3 steps were too few"),
}

SOUND_TOO = {
    "a prior of few directions": {"ranks": Ranks(1.5, 3.0, 64)},
    "nearer than prior samples": {"distance": Distance(0.1, (0.5, 1.5))},
    "within the bounds": {"distance": Distance(1.4, (0.5, 1.5))},
    "too unsure": {"spread_skill": 3.0, "ranks": Ranks(50.0, 50.0, 64)},
    "few directions, by chance": {"spread_skill": 0.5, "ranks": Ranks(2.0, 2.0, 64)},
    "a remark": {"remarks": ("fell back to half steps",)},
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_that_each_doubt_alone_is_named(doubt):
    changes, words = DOUBTS[doubt]
    found = judged(**changes)
    assert not found.trusted
    assert words in found.reason
    assert ";" not in found.reason  # one doubt, one sentence


@pytest.mark.parametrize("case", SOUND_TOO)
def test_that_what_chance_or_caution_explains_is_no_doubt(case):
    found = judged(**SOUND_TOO[case])
    assert found.trusted, found.reason


@pytest.mark.parametrize("rank", [1.0, 5.0, 400.0])
def test_that_an_error_is_too_large_only_beyond_its_chi_square(rank):
    # error^2 / spread^2 is a mean of `rank` squares; 2 spreads are forgiven in any case.
    allowed = max(2.0, sqrt(chi2.isf(0.00135, rank) / rank))
    assert most_error(rank) == pytest.approx(allowed)
    ranks = Ranks(rank, rank, 64)
    assert judged(spread_skill=1.01 / allowed, ranks=ranks).trusted
    assert not judged(spread_skill=0.99 / allowed, ranks=ranks).trusted


def test_that_all_doubts_are_named_together():
    found = judged(misfit_per_datum=9.0, spread=1e-4, failed_share=0.5)
    assert found.reason.count(";") == 2


@pytest.mark.parametrize("data", [1, 8, 50, 100_000])
def test_that_the_bounds_are_those_of_chi_square_and_a_fifth_at_least(data):
    tail = 0.00135  # three standard deviations of a normal
    low = min(0.8, chi2.ppf(tail, data) / data)
    high = max(1.2, chi2.isf(tail, data) / data)
    assert judged(data=data, misfit_per_datum=high - 1e-3).trusted
    assert judged(data=data, misfit_per_datum=low + 1e-3).trusted
    assert not judged(data=data, misfit_per_datum=high + 1e-3).trusted
    assert not judged(data=data, misfit_per_datum=low - 1e-3).trusted or low < 1e-3
    assert f"({low:.2f} to {high:.2f} expected)" in judged(data=data).reason
