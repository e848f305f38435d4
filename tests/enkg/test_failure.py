"""The failure policy: what it refuses, and how failures read."""

from pathlib import Path

import pytest

import enkg
from enkg.failure import TRANSIENT, MemberFailed

WRONG = {
    "no success": ({"minimum_success": 0.0}, "share above 0"),
    "too much success": ({"minimum_success": 1.5}, "at most 1"),
    "no time": ({"timeout": 0.0}, "timeout is 0"),
    "no number for a time": ({"timeout": float("nan")}, "timeout is nan"),
    "negative retries": ({"retries": -1}, "retries is -1"),
    "a straggler before the median": ({"straggler": 0.5}, "more than 1, or 0"),
    "a blow-up that is none": ({"blow_up": 1.0}, "more than 1, or 0"),
    "an unknown cause": ({"retry_on": ("bad luck",)}, "'bad luck'; the causes are 'timeout'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_that_an_impossible_policy_is_refused_in_words(wrong):
    changes, words = WRONG[wrong]
    with pytest.raises(enkg.InputError, match=words):
        enkg.FailurePolicy(**changes)


def test_that_causes_may_be_named_in_words():
    policy = enkg.FailurePolicy(retry_on=("timeout",))  # type: ignore[arg-type]
    assert enkg.Cause.TIMEOUT in policy.retry_on


def test_that_what_comes_from_the_input_is_not_tried_again():
    assert not {enkg.Cause.EXIT, enkg.Cause.NONFINITE, enkg.Cause.SHAPE} & set(TRANSIENT)


def test_that_a_failure_reads_as_one_line():
    failure = MemberFailed(enkg.Cause.EXIT, "7: no such file", Path("/tmp/x")).failure
    assert str(failure) == "exit code: 7: no such file (files kept in /tmp/x)"
    assert failure.text == "exit code: 7: no such file"
    assert enkg.Failure(enkg.Cause.EXCEPTION, "ValueError: no").text == "ValueError: no"
    assert enkg.Failure(enkg.Cause.CUT).text == "straggler cut"
