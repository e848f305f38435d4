"""The verdict: each doubt alone, and the bounds that theory gives."""

from math import sqrt

import pytest

from enkg.diagnose import verdict

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
    "misfit too high": ({"misfit_per_datum": 1.5}, "above 1.30"),
    "misfit too low": ({"misfit_per_datum": 0.5}, "below 0.70"),
    "misfit unknown": ({"misfit_per_datum": float("nan")}, "misfit"),
    "collapsed": ({"spread": 1e-4}, "collapsed"),
    "grown": ({"spread": 1.5}, "should not grow"),
    "many failures": ({"failed_share": 0.3}, "30% of the simulator calls failed"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_that_each_doubt_alone_is_named(doubt):
    changes, words = DOUBTS[doubt]
    found = judged(**changes)
    assert not found.trusted
    assert words in found.reason
    assert ";" not in found.reason  # one doubt, one sentence


def test_that_all_doubts_are_named_together():
    found = judged(misfit_per_datum=9.0, spread=1e-4, failed_share=0.5)
    assert found.reason.count(";") == 2


@pytest.mark.parametrize("data", [8, 50, 100_000])
def test_that_the_bounds_are_three_standard_deviations_and_a_fifth_at_least(data):
    # (1/m) chi^2_m has standard deviation sqrt(2 / m).
    slack = max(0.2, 3 * sqrt(2 / data))
    for sign in (-1, 1):
        assert judged(data=data, misfit_per_datum=1 + sign * 0.99 * slack).trusted
    assert not judged(data=data, misfit_per_datum=1 + 1.01 * slack).trusted
    if slack < 1:
        assert not judged(data=data, misfit_per_datum=1 - 1.01 * slack).trusted
