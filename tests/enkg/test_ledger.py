"""The ledger: no call that had finished is made again, and nothing else changes."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg.errors import StoreError
from enkg.execute.cache import Cached
from enkg.execute.function import opened
from enkg.execute.slots import Slots
from enkg.failure import Cause, Failure, FailurePolicy, MemberFailed
from enkg.ledger import Ledger
from enkg.simulator import Announce, Announcing, Result
from tests.enkg.lives import ask, ends, members, same, the_file

ROOT = Path(__file__).parents[2]
J = 8


class Recorder:
    """A function that notes which members it was asked for, and does not announce."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def answer(self, member: np.ndarray) -> np.ndarray:
        return np.array([-0.0, member[0], np.nan, 1 / 3], dtype=np.float32)

    def evaluate(self, x, progress=None) -> Result:
        self.asked += [int(row[0]) // 3 for row in x]
        y = np.array([self.answer(row) for row in x]).reshape(len(x), 4)
        return Result(y, (None,) * len(x), len(x))


class Spendthrift(Recorder):
    """Announces, and pays five calls in a batch that belong to no member."""

    announce: Announce | None = None

    def evaluate(self, x, progress=None) -> Result:
        result = super().evaluate(x, progress)
        for j, row in enumerate(result.y):
            if self.announce is not None:
                self.announce(j, row, None, 1)
        return Result(result.y, result.failures, result.calls + 5)


class Whimsical:
    """A driver with failures of all kinds: 2 and 5 fail for good, 3 at its first attempt."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def call(self, x, job, timeout):
        numbers = [int(row[0]) // 3 for row in x]
        self.asked += numbers
        if 2 in numbers:
            raise MemberFailed(Cause.EXIT, "7", Path("/run/failed/member00002"))
        if 5 in numbers:
            raise MemberFailed(Cause.TIMEOUT, "ran longer than 3 s")
        if numbers == [3] and job.attempt == 0:
            raise MemberFailed(Cause.LOST, "gone")
        return np.sqrt(x)

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


# --- what is found ---------------------------------------------------------------------------


def test_that_a_second_life_asks_nothing_again(tmp_path):
    inner = Recorder()
    first = ask(tmp_path, inner)
    told = []
    ledger = Ledger(tmp_path, 0, 1)
    again = ledger.evaluate(inner, members(), 0, 0, lambda done, total: told.append((done, total)))
    assert inner.asked == list(range(J))
    assert same(first, again)
    assert told == [(J, J)]


def test_that_batch_place_and_bits_tell_members_apart(tmp_path):
    inner = Recorder()
    ask(tmp_path, inner)
    ask(tmp_path, inner, batch=1)
    assert inner.asked == [*range(J)] * 2
    moved = np.roll(members(), 1, axis=0)
    ask(tmp_path, inner, moved)
    assert inner.asked[2 * J :] == [J - 1, *range(J - 1)]
    other = members().copy()
    other[4, 2] = np.nextafter(other[4, 2], 1e9)
    ask(tmp_path, inner, other)
    assert inner.asked[3 * J :] == [4]
    ask(tmp_path, inner, members().astype(np.float32))
    assert inner.asked[3 * J + 1 :] == [*range(J)]


@pytest.mark.parametrize("known", range(J + 1))
@pytest.mark.parametrize("kind", ["slots", "slots of 3", "function", "cache", "silent"])
def test_that_a_resumed_batch_equals_an_uninterrupted_one(tmp_path, known, kind):
    def simulator(x):
        if 3 * 2 in x[:, 0]:
            raise ValueError("two")
        return np.where(x[:, :1] == 3 * 5, np.nan, np.sqrt(x))

    def evaluator(folder):
        match kind:
            case "slots":
                return opened_slots(1)
            case "slots of 3":
                return opened_slots(3)
            case "function":
                return opened(enkg.Function(simulator, chunk=1))
            case "cache":
                return opened(Cached(enkg.Function(simulator, chunk=1), folder))
        return opened(Recorder())

    def opened_slots(width):
        return opened(Slots([Whimsical()], FailurePolicy(), batch=width))

    answers = tmp_path / "answers"
    with evaluator(tmp_path / "one") as inner:
        expected = ask(answers, inner)
    file = the_file(answers)
    os.truncate(file, [0, *ends(file)][known])
    with evaluator(tmp_path / "two") as inner:
        assert isinstance(inner, Announcing) == (kind != "silent")
        result = ask(answers, inner)
    if kind == "slots of 3":  # who is in a call with whom is another matter
        result = Result(result.y, result.failures, expected.calls)
    assert same(result, expected)
    with evaluator(tmp_path / "three") as inner:
        third = ask(answers, inner)
        assert same(third, Result(expected.y, expected.failures, third.calls))
        if kind != "slots of 3":
            assert third.calls == expected.calls


def test_that_failures_come_back_with_all_they_say(tmp_path):
    slots = Slots([Whimsical()], FailurePolicy())
    expected = ask(tmp_path, slots)
    driver = Whimsical()
    result = ask(tmp_path, Slots([driver], FailurePolicy()))
    assert driver.asked == []
    assert same(result, expected)
    assert result.failures[2] == Failure(Cause.EXIT, "7", Path("/run/failed/member00002"))
    assert result.calls == J + 2  # 3 and 5 were tried twice


def test_that_a_ledger_works_above_a_cache(tmp_path):
    inner = Recorder()
    with opened(Cached(enkg.Function(lambda x: 2 * x), tmp_path / "cache")) as cached:
        cached.evaluate(members(4))
        first = ask(tmp_path / "answers", cached)
    result = ask(tmp_path / "answers", inner)
    assert inner.asked == []
    assert same(first, result)


@pytest.mark.parametrize(("wrote", "reads"), [(1, 3), (4, 2), (3, 1), (2, 8)])
def test_that_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, wrote, reads):
    inner = Spendthrift()
    first = [ask(tmp_path, inner, rank=rank, size=wrote) for rank in range(wrote)]
    inner.asked.clear()
    again = [ask(tmp_path, inner, rank=rank, size=reads) for rank in range(reads)]
    assert inner.asked == []
    assert b"".join(r.y.tobytes() for r in again) == b"".join(r.y.tobytes() for r in first)
    assert sum(r.calls for r in again) == sum(r.calls for r in first) == J + 5 * wrote


def test_that_what_other_ranks_do_in_this_life_is_their_own(tmp_path):
    inner = Spendthrift()
    for rank in range(2):
        ask(tmp_path, inner, rank=rank, size=2)
    for file in tmp_path.iterdir():
        os.truncate(file, ends(file)[1])
    ledgers = [Ledger(tmp_path, rank, 2) for rank in range(2)]
    x = members()
    calls = [ledgers[r].evaluate(inner, x[4 * r : 4 * r + 4], 0, 4 * r).calls for r in (1, 0)]
    assert calls == [2 + 2 + 5] * 2


# --- damage ----------------------------------------------------------------------------------


def test_that_a_torn_record_is_asked_for_again_wherever_it_is_torn(tmp_path):
    expected = ask(tmp_path, Recorder(), members(3))
    file = the_file(tmp_path)
    whole = file.read_bytes()
    _, before, end = ends(file)
    assert end == len(whole)
    for size in range(before, end):
        file.write_bytes(whole[:size])
        inner = Recorder()
        assert same(ask(tmp_path, inner, members(3)), expected)
        assert inner.asked == [2]
        assert file.read_bytes() == whole


def test_that_only_the_damaged_record_is_asked_for_again(tmp_path):
    expected = ask(tmp_path, Recorder(), members(3))
    file = the_file(tmp_path)
    whole = file.read_bytes()
    first, second, _ = ends(file)
    for at in range(first, second):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        file.write_bytes(data)
        for expected_asked in ([1], []):
            inner = Recorder()
            assert same(ask(tmp_path, inner, members(3)), expected)
            assert inner.asked == expected_asked, at


def test_that_rubbish_is_no_ledger(tmp_path):
    (tmp_path / "batch-000000-rank-0000.log").write_bytes(os.urandom(5000) + b"EKL1" * 100)
    (tmp_path / "notes.txt").write_text("mine")
    inner = Recorder()
    ask(tmp_path, inner)
    ask(tmp_path, inner)
    assert inner.asked == [*range(J)]


def test_that_a_full_disk_is_no_disaster(tmp_path, caplog):
    expected = Recorder().evaluate(members())
    ledger = Ledger(tmp_path, 0, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        for batch in range(3):
            assert same(ledger.evaluate(Recorder(), members(), batch, 0), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("cannot be written") == 1
    assert 0 < (tmp_path / "batch-000000-rank-0000.log").stat().st_size < 300
    inner = Recorder()
    assert same(ask(tmp_path, inner), expected)
    assert 0 < len(inner.asked) < J


def test_that_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        Ledger(tmp_path / "file", 0, 1)


# --- what is forgotten -----------------------------------------------------------------------


def test_that_what_comes_before_a_checkpoint_is_forgotten(tmp_path):
    for rank in range(3):
        for batch in range(3):
            ask(tmp_path, Recorder(), rank=rank, size=3, batch=batch)
    inner = Recorder()
    ask(tmp_path, inner, after=1)
    assert inner.asked == [*range(J)]
    ledgers = [Ledger(tmp_path, rank, 2) for rank in range(2)]
    ledgers[1].forget(2)
    gone = {"batch-000000-rank-0001.log", "batch-000001-rank-0001.log"}
    assert not gone & {p.name for p in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 7
    ledgers[0].forget(2)  # and what a third rank left
    assert sorted(p.name[:12] for p in tmp_path.iterdir()) == ["batch-000002"] * 3
    ledgers[0].evaluate(Recorder(), members(), 2, 0)
    ledgers[0].forget(3)
    assert [p.name for p in tmp_path.iterdir()] == ["batch-000002-rank-0001.log"]


def test_that_pardoned_failures_are_tried_again_and_answers_stay(tmp_path):
    for rank in range(2):
        with opened(Slots([Whimsical()], FailurePolicy())) as slots:
            ask(tmp_path, slots, rank=rank, size=2)
    Ledger(tmp_path, 0, 1).pardon(0)
    inner = Recorder()
    with pytest.raises(enkg.InputError, match="different shapes"):  # it is another simulator
        ask(tmp_path, inner)
    assert inner.asked == [2, 5]
