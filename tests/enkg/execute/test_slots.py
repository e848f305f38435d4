"""The queue over slots: order, retries, stragglers, errors, and the end of hope."""

import threading
import time

import numpy as np
import pytest

import enkg
from enkg.execute.slots import Job, Slots
from enkg.failure import Cause, FailurePolicy, MemberFailed
from enkg.simulator import Announcing


class Doubling:
    """A driver in the same process: doubles, after what `act(x, job)` does."""

    def __init__(self, act=lambda x, job: None) -> None:
        self.act, self.ended, self.closed = act, threading.Event(), False
        self.jobs: list[Job] = []

    def call(self, x, job, timeout):
        self.ended.clear()
        self.jobs.append(job)
        answer = self.act(x, job)
        if answer == "wait":
            self.ended.wait(30)
            raise MemberFailed(Cause.SIGNAL, "ended")
        return np.full_like(x, np.nan) if answer == "rubbish" else 2 * x

    def interrupt(self) -> None:
        self.ended.set()

    def close(self) -> None:
        self.closed = True


def members(count: int) -> np.ndarray:
    return np.arange(count * 3.0).reshape(count, 3)


def of(x) -> int:
    """Which member of `members` this row is."""
    return int(x.flat[0]) // 3


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 7, 10])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_that_every_member_gets_its_own_answer(slots, count, batch):
    drivers = [Doubling() for _ in range(slots)]
    evaluator = Slots(drivers, FailurePolicy(), batch=batch)
    for _ in range(2):
        result = evaluator.evaluate(members(count))
        np.testing.assert_array_equal(result.y, 2 * members(count))
        assert result.failures == (None,) * count
        assert result.calls == count
    evaluator.close()
    assert all(driver.closed for driver in drivers)


def test_that_calls_always_have_the_rows_that_were_promised():
    widths = []
    driver = Doubling(lambda x, job: widths.append(len(x)))
    Slots([driver], FailurePolicy(), batch=4).evaluate(members(10))
    assert widths == [4, 4, 4]


def test_that_a_failed_member_harms_no_other():
    def act(x, job):
        if of(x) == 3:
            raise MemberFailed(Cause.EXIT, "7")

    result = Slots([Doubling(act), Doubling(act)], FailurePolicy()).evaluate(members(8))
    assert np.isnan(result.y[3]).all()
    np.testing.assert_array_equal(np.delete(result.y, 3, 0), np.delete(2 * members(8), 3, 0))
    assert result.failures[3] == enkg.Failure(Cause.EXIT, "7")
    assert [f for f in result.failures if f] == [result.failures[3]]
    assert result.calls == 8  # an exit code is not tried again


def test_that_a_passing_trouble_is_tried_again_as_often_as_allowed():
    def act(x, job):
        if of(x) == 2 and job.attempt < 2:
            raise MemberFailed(Cause.SIGNAL, "SIGKILL")

    good = Slots([Doubling(act)], FailurePolicy(retries=2)).evaluate(members(4))
    assert good.failures == (None,) * 4
    assert good.calls == 6
    bad = Slots([Doubling(act)], FailurePolicy(retries=1)).evaluate(members(4))
    assert str(bad.failures[2]) == "signal: SIGKILL"
    assert bad.calls == 5


def test_that_the_causes_worth_a_second_attempt_can_be_chosen():
    def act(x, job):
        if job.attempt == 0:
            raise MemberFailed(Cause.EXIT, "75")

    policy = FailurePolicy(retry_on=(Cause.EXIT,))
    assert Slots([Doubling(act)], policy).evaluate(members(3)).failures == (None,) * 3


def test_that_a_failed_batch_is_repeated_one_by_one():
    def act(x, job):
        if 5 in [of(row) for row in x]:
            raise MemberFailed(Cause.REPORTED, "negative depth")

    result = Slots([Doubling(act)], FailurePolicy(), batch=4).evaluate(members(10))
    assert [j for j, f in enumerate(result.failures) if f] == [5]
    assert result.calls == 14
    np.testing.assert_array_equal(np.delete(result.y, 5, 0), np.delete(2 * members(10), 5, 0))


def test_that_retries_do_not_hold_up_the_others():
    order = []

    def act(x, job):
        order.append((of(x), job.attempt))
        if of(x) == 0 and job.attempt == 0:
            raise MemberFailed(Cause.TIMEOUT)

    Slots([Doubling(act)], FailurePolicy()).evaluate(members(4))
    assert order == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]


def test_that_a_slow_member_holds_nobody_up_but_itself():
    done = threading.Event()
    seen = []

    def act(x, job):
        if of(x) == 0:
            assert done.wait(30)
        else:
            seen.append(of(x))
            if len(seen) == 7:
                done.set()

    result = Slots([Doubling(act), Doubling(act)], FailurePolicy()).evaluate(members(8))
    assert result.failures == (None,) * 8


def test_that_stragglers_are_cut_once_enough_members_are_there():
    policy = FailurePolicy(straggler=3, minimum_success=0.5, retries=0)
    act = lambda x, job: "wait" if of(x) == 1 else time.sleep(0.01)  # noqa: E731
    result = Slots([Doubling(act), Doubling(act)], policy).evaluate(members(8))
    failure = result.failures[1]
    assert failure is not None
    assert failure.cause is Cause.CUT
    assert sum(f is not None for f in result.failures) == 1


def test_that_hopeless_batches_are_given_up():
    calls = []

    def act(x, job):
        calls.append(job)
        if of(x) > 0:
            raise MemberFailed(Cause.EXIT, "1")

    policy = FailurePolicy(minimum_success=0.9)
    result = Slots([Doubling(act)], policy).evaluate(members(100))
    assert len(calls) < 15
    causes = {f.cause for f in result.failures if f}
    assert causes == {Cause.EXIT, Cause.UNFINISHED}
    assert result.failures[0] is None


def test_that_all_failing_is_one_error_with_the_first_reason():
    def act(x, job):
        raise MemberFailed(Cause.EXIT, "1: no license")

    with pytest.raises(
        enkg.EnsembleFailure,
        match=r"all 3 members that were tried, of 5; first: exit code: 1: no lic",
    ):
        Slots([Doubling(act)], FailurePolicy()).evaluate(members(5))


def test_that_the_true_cause_is_told_before_what_was_given_up():
    def act(x, job):
        if of(x) in (1, 4):
            raise MemberFailed(Cause.REPORTED, "too wet")

    policy = FailurePolicy(minimum_success=1.0)
    result = Slots([Doubling(act)], policy).evaluate(members(6))
    assert result.failures[1] == enkg.Failure(Cause.REPORTED, "too wet")
    assert {f.cause for f in result.failures[2:] if f} == {Cause.UNFINISHED}


def test_that_the_start_of_a_program_makes_no_straggler():
    class Starting(Doubling):
        since: float | None = None

    def act(x, job):
        time.sleep(0.7 if of(x) == 5 else 0.01)  # the program is started anew

    policy = FailurePolicy(straggler=2, retries=0)
    result = Slots([Starting(act)], policy).evaluate(members(6))
    assert result.failures == (None,) * 6


def test_that_a_mistake_ends_the_batch_and_what_still_runs():
    def act(x, job):
        if of(x) == 1:
            raise enkg.InputError("no such model")
        return "wait"

    with pytest.raises(enkg.InputError, match="no such model"):
        Slots([Doubling(act), Doubling(act)], FailurePolicy()).evaluate(members(6))


def test_that_the_keyboard_ends_what_runs():
    drivers = [Doubling(lambda x, job: "wait") for _ in range(2)]

    def pressed(done, total):
        raise KeyboardInterrupt

    slots = Slots(drivers, FailurePolicy())
    threading.Timer(0.3, drivers[0].interrupt).start()  # one member ends: progress is told
    with pytest.raises(KeyboardInterrupt):
        slots.evaluate(members(4), pressed)
    slots.close()


def test_that_progress_counts_every_member_once():
    told = []

    def act(x, job):
        if job.attempt == 0 and of(x) % 2:
            raise MemberFailed(Cause.SIGNAL)

    Slots([Doubling(act)], FailurePolicy()).evaluate(
        members(6), lambda done, total: told.append((done, total))
    )
    assert told[-1] == (6, 6)
    assert told == sorted(told)


LIMITS = {"minimum": (-1.0, None), "maximum": (None, 9.0)}


@pytest.mark.parametrize("limit", LIMITS)
def test_that_numbers_out_of_range_are_failures(limit):
    low, high = LIMITS[limit]
    x = np.array([[1.0], [-2.0], [2.0], [6.0]])
    result = Slots([Doubling()], FailurePolicy(), minimum=low, maximum=high).evaluate(x)
    bad = 1 if limit == "minimum" else 3
    failure = result.failures[bad]
    assert failure is not None
    assert failure.cause is Cause.RANGE
    assert limit in failure.detail
    assert sum(f is not None for f in result.failures) == 1


def test_that_a_row_of_nan_is_a_failure_and_a_hole_is_left_to_the_mask():
    x = np.array([[1.0, 1.0], [np.nan, np.nan], [1.0, np.nan]])
    result = Slots([Doubling()], FailurePolicy()).evaluate(x)
    failure = result.failures[1]
    assert failure is not None
    assert failure.cause is Cause.NONFINITE
    assert result.failures[2] is None


# --- what is told of a batch, and its order ----------------------------------------------------


def test_that_each_settled_member_is_announced_with_its_calls():
    def act(x, job):
        if of(x) == 3 or (of(x) == 1 and job.attempt == 0):
            raise MemberFailed(Cause.SIGNAL, "SIGKILL")
        return "rubbish" if of(x) == 2 else None

    told = {}
    evaluator = Slots([Doubling(act), Doubling(act)], FailurePolicy(retries=2))
    assert isinstance(evaluator, Announcing)
    evaluator.announce = lambda j, y, failure, calls: told.setdefault(j, (y, failure, calls))
    x = members(6)
    result = evaluator.evaluate(x.copy())
    assert sorted(told) == list(range(6))
    for j, (y, failure, _) in told.items():
        assert failure == result.failures[j]
        assert (y is None) == (failure is not None)
        if y is not None:
            np.testing.assert_array_equal(y, result.y[j])
    assert [told[j][2] for j in range(6)] == [1, 2, 1, 3, 1, 1]
    assert result.calls == 9


def test_that_members_of_a_batch_that_is_repeated_one_by_one_cost_two_calls():
    def act(x, job):
        if 5 in [of(row) for row in x]:
            raise MemberFailed(Cause.REPORTED, "negative depth")

    told = {}
    evaluator = Slots([Doubling(act)], FailurePolicy(), batch=4)
    evaluator.announce = lambda j, y, failure, calls: told.setdefault(j, calls)
    result = evaluator.evaluate(members(10))
    assert [told[j] for j in range(10)] == [1, 1, 1, 1, 2, 2, 2, 2, 1, 1]
    assert sum(told.values()) == result.calls


def test_that_what_was_stopped_is_not_announced():
    told = []
    begun = threading.Event()

    def act(x, job):
        if of(x) == 2:
            begun.set()
        return "wait" if of(x) == 2 else None

    # The driver says "signal", as of a program that was killed together with us.
    evaluator = Slots([Doubling(act)], FailurePolicy(retries=0))
    evaluator.announce = lambda j, y, failure, calls: told.append(j)
    stopping = threading.Thread(target=lambda: (begun.wait(30), evaluator.stop()))
    stopping.start()
    result = evaluator.evaluate(members(5))
    stopping.join()
    assert told == [0, 1]
    assert [f is None for f in result.failures] == [True, True, False, False, False]


def test_that_an_error_of_the_listener_ends_the_batch():
    def listen(j, y, failure, calls):
        raise OSError("no room")

    evaluator = Slots([Doubling(), Doubling()], FailurePolicy())
    evaluator.announce = listen
    with pytest.raises(OSError, match="no room"):
        evaluator.evaluate(members(8))


def test_that_a_batch_remembers_what_each_member_took():
    slots = Slots([Doubling(lambda x, job: time.sleep(0.02 * (of(x) == 1)))], FailurePolicy())
    begin = time.monotonic()
    slots.evaluate(members(3))
    assert slots.seconds[1] >= 0.02
    assert slots.seconds.sum() <= time.monotonic() - begin


@pytest.mark.parametrize("batch", [1, 2])
def test_that_the_longest_of_the_last_batch_goes_first(batch):
    driver = Doubling()
    slots = Slots([driver], FailurePolicy(), batch=batch)
    first = slots.evaluate(members(6))
    slots.seconds = np.array([1, 1, 9, 1, 1, 3])
    second = slots.evaluate(members(6))
    slots.evaluate(members(4))  # of another length: in its order
    order = [[job.member for job in driver.jobs if job.batch == number] for number in range(3)]
    if batch == 1:
        assert order == [[0, 1, 2, 3, 4, 5], [2, 5, 0, 1, 3, 4], [0, 1, 2, 3]]
    else:
        assert order == [[0, 2, 4], [2, 4, 0], [0, 2]]
    np.testing.assert_array_equal(first.y, second.y)


def test_that_others_of_the_batch_count_when_it_is_judged():
    def act(x, job):
        if of(x) != 1:
            raise MemberFailed(Cause.EXIT, "1")

    alone, among = Doubling(act), Doubling(act)
    Slots([alone], FailurePolicy()).evaluate(members(6))
    assert len(alone.jobs) == 5  # 1 and the last could not make three
    evaluator = Slots([among], FailurePolicy())
    evaluator.others = (6, 0)
    evaluator.evaluate(members(6))
    assert len(among.jobs) == 6
    evaluator.others = (1, 30)
    with pytest.raises(enkg.EnsembleFailure, match="not finished"):
        evaluator.evaluate(members(6))
    assert len(among.jobs) == 6
