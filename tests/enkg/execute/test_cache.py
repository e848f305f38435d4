"""The cache: what was paid for is found again, and nothing else is."""

import logging
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import enkg
from enkg.execute.cache import Cached, Identified
from enkg.execute.pool import Pool
from enkg.failure import Cause, Failure, FailurePolicy
from enkg.simulator import Announcing
from tests.enkg.execute import members as m
from tests.enkg.execute.helpers import printed, python


class Counted:
    """Doubles, and remembers which members it was asked for. NaN members stay NaN."""

    def __init__(self, factor=2.0, name="counted"):
        self.factor, self.name, self.asked = factor, name, []

    def identity(self):
        return self.name

    def evaluate(self, x, progress=None):
        self.asked += [float(row.flat[0]) for row in x]
        result = enkg.Function(lambda x: self.factor * x).evaluate(x, progress)
        return result

    def __call__(self, x):
        return self.evaluate(x).y


def batch(*firsts):
    x = np.stack([np.full((2, 3), float(first)) for first in firsts])
    x.setflags(write=False)
    return x


def files(folder):
    return sorted(p for p in folder.rglob("*.npy"))


def test_that_members_are_simulated_once_and_in_their_order(tmp_path):
    inner = Counted()
    cached = Cached(inner, tmp_path)
    np.testing.assert_array_equal(cached(batch(1, 2, 3)), 2 * batch(1, 2, 3))
    assert inner.asked == [1, 2, 3]
    result = cached.evaluate(batch(3, 5, 1, 4))
    np.testing.assert_array_equal(result.y, 2 * batch(3, 5, 1, 4))
    assert result.failures == (None,) * 4
    assert inner.asked[3:] == [3, 5, 4]  # the first one is the check
    assert result.calls == 3
    result = cached.evaluate(batch(5, 4, 3, 2, 1))
    np.testing.assert_array_equal(result.y, 2 * batch(5, 4, 3, 2, 1))
    assert result.calls == 0
    assert len(inner.asked) == 6


def test_that_equal_members_of_a_batch_are_simulated_once(tmp_path):
    inner = Counted()
    np.testing.assert_array_equal(Cached(inner, tmp_path)(batch(1, 2, 1, 1)), 2 * batch(1, 2, 1, 1))
    assert inner.asked == [1, 2]


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), max_size=5))
def test_that_a_cache_changes_no_answer(batches, tmp_path_factory):
    def simulator(x):
        y = np.sqrt(x - 2)  # 0 and 1 have no root, so they fail
        return y[:, 0]

    cached = Cached(simulator, tmp_path_factory.mktemp("cache"))
    paid = 0
    with np.errstate(invalid="ignore"):
        for numbers in batches:
            x = batch(*numbers)
            try:
                expected = enkg.Function(simulator).evaluate(x)
            except enkg.EnsembleFailure:
                continue
            result = cached.evaluate(x)
            np.testing.assert_array_equal(result.y, expected.y)
            assert result.y.dtype == expected.y.dtype
            assert [f and f.cause for f in result.failures] == [
                f and f.cause for f in expected.failures
            ]
            paid += result.calls
    distinct = {n for numbers in batches for n in numbers}
    failing = sum(n < 2 for numbers in batches for n in numbers)
    assert paid <= len(distinct) + failing + 1


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_that_shape_and_type_of_the_data_are_kept(tmp_path, shape, dtype):
    def simulator(x):
        return np.broadcast_to(x[:, 0, 0].reshape(-1, *([1] * len(shape))), (len(x), *shape))

    x = batch(1, 2, 3).astype(dtype)
    for _ in range(3):
        y = Cached(simulator, tmp_path)(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, simulator(x))


def test_that_bits_shape_type_version_and_simulator_tell_members_apart(tmp_path):
    x = np.zeros((1, 4))
    others = [
        np.array([[0.0, 0, 0, 5e-324]]),
        np.zeros((1, 2, 2)),
        np.zeros((1, 4), np.float32),
        np.zeros((1, 8), np.float32),
    ]
    inner = Counted()
    cached = Cached(inner, tmp_path)
    cached(x)
    cached(x)
    asked = len(inner.asked)
    for other in others:
        cached(other)
        asked += 1
        assert len(inner.asked) == asked
    Cached(inner, tmp_path, version="2")(x)
    assert len(inner.asked) == asked + 1
    another = Counted(name="another")
    Cached(another, tmp_path)(x)
    assert len(another.asked) == 1
    assert isinstance(inner, Identified)


def test_that_failures_are_not_kept_and_keep_their_reasons(tmp_path):
    def simulator(x):
        if x[0, 0] == 3:
            raise ValueError("three")
        return x * (np.nan if x[0, 0] == 4 else 1)

    cached = Cached(enkg.Function(simulator, batched=False), tmp_path)
    for calls in (4, 3, 2):  # all; the failed ones and the check; the failed ones
        result = cached.evaluate(batch(1, 3, 4, 2))
        assert result.failures == (
            None,
            Failure(Cause.EXCEPTION, "ValueError: three"),
            Failure(Cause.NONFINITE, "all values are NaN or infinite"),
            None,
        )
        np.testing.assert_array_equal(result.y[[0, 3]], batch(1, 2))
        assert np.isnan(result.y[1:3]).all()
        assert result.calls == calls
    assert len(files(tmp_path)) == 2


def test_that_a_batch_whose_new_members_all_fail_is_no_disaster_if_others_are_known(tmp_path):
    def simulator(x):
        if x[0, 0] >= 3:
            raise ValueError("too large")
        return x

    cached = Cached(enkg.Function(simulator, batched=False), tmp_path)
    cached(batch(1, 2))
    cached(batch(1, 2))
    result = cached.evaluate(batch(1, 3, 2, 4))
    assert [f is None for f in result.failures] == [True, False, True, False]
    assert "ValueError: too large" in str(result.failures[1])
    with pytest.raises(enkg.EnsembleFailure, match="all 2 members; first: ValueError: too large"):
        cached(batch(3, 4))


def test_that_an_empty_batch_is_refused_as_by_the_simulator(tmp_path):
    with pytest.raises(enkg.EnsembleFailure, match="the batch is empty"):
        Cached(m.double, tmp_path)(np.empty((0, 3)))


def test_that_members_that_are_partly_nan_are_kept_as_they_are(tmp_path):
    def simulator(x):
        y = x.copy()
        y[:, 0] = np.nan
        return y

    for _ in range(3):
        np.testing.assert_array_equal(Cached(simulator, tmp_path)(batch(1)), simulator(batch(1)))
    assert len(files(tmp_path)) == 1


def test_that_progress_counts_what_was_found(tmp_path):
    told = []
    cached = Cached(m.double, tmp_path)
    cached(batch(1, 2))
    for x in (batch(1, 2, 3, 4), batch(1, 2, 3, 4)):
        cached.evaluate(x, lambda done, total: told.append((done, total)))
        assert told[-1] == (4, 4)
        assert all(2 <= done <= 4 == total for done, total in told)


def test_that_hits_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "enkg")
    cached = Cached(m.double, tmp_path)
    cached(batch(1, 2))
    cached(batch(1, 2, 3))
    assert [r.getMessage() for r in caplog.records] == [
        "cache: 0 of 2 members found",
        "cache: 2 of 3 members found",
    ]


def test_that_what_is_found_and_what_is_simulated_is_announced(tmp_path):
    def simulator(x):
        if x[0, 0] == 5:
            raise ValueError("five")
        return 2 * x

    cached = Cached(enkg.Function(simulator, batched=False), tmp_path)
    told = {}
    with cached.opened(FailurePolicy(), None) as evaluator:
        evaluator.evaluate(batch(1, 2))
        evaluator.evaluate(batch(1, 2))  # and the check
        assert isinstance(evaluator, Announcing)
        evaluator.announce = lambda j, y, failure, calls: told.setdefault(j, (y, failure, calls))
        result = evaluator.evaluate(batch(2, 3, 5, 3, 5, 1))
    assert sorted(told) == list(range(6))
    for j, (y, failure, _) in told.items():
        assert failure == result.failures[j]
        if failure is None:
            np.testing.assert_array_equal(y, result.y[j])
    assert [failure is None for _, failure, _ in (told[j] for j in range(6))] == [
        *(True, True, False),
        *(True, False, True),
    ]
    assert [told[j][2] for j in range(6)] == [0, 1, 1, 0, 0, 0]
    assert result.calls == 2


# --- trust -----------------------------------------------------------------------------------


def test_that_a_simulator_that_changed_is_noticed(tmp_path):
    Cached(Counted(2.0), tmp_path)(batch(1, 2, 3))
    with pytest.raises(enkg.InputError, match=r"those of this simulator.*version="):
        Cached(Counted(2.0 + 1e-4), tmp_path)(batch(1, 2, 3))
    with pytest.raises(enkg.InputError, match=r"shape \(2, 3\) became \(2,\)"):
        Cached(Changed(), tmp_path)(batch(1))
    Cached(Counted(2.0 + 1e-4), tmp_path, version="new")(batch(1, 2, 3))


class Changed(Counted):
    def evaluate(self, x, progress=None):
        return enkg.Function(lambda x: x[:, :, 0]).evaluate(x, progress)


def test_that_rounding_is_no_change(tmp_path):
    Cached(Counted(2.0), tmp_path)(batch(1, 2))
    result = Cached(Counted(2.0 + 1e-7), tmp_path).evaluate(batch(1, 2, 3))
    assert result.calls == 2


def test_that_a_check_that_fails_to_run_is_made_up_for_later(tmp_path):
    broken = Counted()
    Cached(broken, tmp_path)(batch(1, 2))
    broken.factor = np.nan
    cached = Cached(broken, tmp_path)
    result = cached.evaluate(batch(1, 2))
    assert result.failures == (None, None)
    assert result.calls == 1
    broken.factor = 3.0
    with pytest.raises(enkg.InputError, match="not those of this simulator"):
        cached(batch(1, 2))


def test_that_the_check_writes_nothing_under_another_members_name(tmp_path):
    x = [row[:, 0] for row in (batch(1, 2, 3), batch(4, 3), batch(1, 2, 3, 4))]
    with Cached(Pool(m.double, processes=1), tmp_path).opened(FailurePolicy(), None) as cached:
        for rows in x:
            np.testing.assert_array_equal(cached.evaluate(rows).y, 2 * rows)
    assert len(files(tmp_path)) == 4


# --- the directory ---------------------------------------------------------------------------


def test_that_the_directory_says_what_it_is(tmp_path):
    old = os.umask(0o027)
    try:
        Cached(m.double, tmp_path / "a" / "b")(batch(1))
    finally:
        os.umask(old)
    root = tmp_path / "a" / "b"
    assert (root / "CACHEDIR.TAG").read_bytes()[:43] == (
        b"Signature: 8a477f597d28d172789f06886806bc55"
    )
    assert "simulated again" in (root / "README.txt").read_text()
    [file] = files(root)
    assert len(file.parent.name) == 2
    assert file.stat().st_mode & 0o777 == 0o640
    np.testing.assert_array_equal(np.load(file, allow_pickle=False), 2 * batch(1)[0])
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[:-30],
        lambda data: data + b"x",
        lambda data: data[:150] + bytes([data[150] ^ 1]) + data[151:],
        lambda data: bytes(len(data)),
    ],
)
def test_that_a_damaged_answer_is_simulated_again_and_mended(tmp_path, harm, caplog):
    inner = Counted()
    Cached(inner, tmp_path)(batch(1))
    [file] = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    result = Cached(inner, tmp_path).evaluate(batch(1))
    np.testing.assert_array_equal(result.y, 2 * batch(1))
    assert inner.asked == [1, 1]
    assert file.read_bytes() == whole
    assert "is damaged" in caplog.text


def test_that_an_answer_under_another_members_name_is_damaged(tmp_path):
    Cached(Counted(), tmp_path)(batch(1, 2))
    one, two = files(tmp_path)
    two.write_bytes(one.read_bytes())
    np.testing.assert_array_equal(Cached(Counted(), tmp_path)(batch(1, 2)), 2 * batch(1, 2))


def test_that_pickles_are_never_loaded(tmp_path):
    from enkg.execute.cache import _checksum

    Cached(Counted(), tmp_path)(batch(1))
    [file] = files(tmp_path)
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    body = file.read_bytes()
    file.write_bytes(body + _checksum(file.parent.name + file.stem, body))
    np.testing.assert_array_equal(Cached(Counted(), tmp_path)(batch(1)), 2 * batch(1))


def test_that_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(enkg.InputError, match="cannot be made"):
        Cached(m.double, tmp_path / "file")(batch(1))


def test_that_a_run_goes_on_when_the_disk_is_full(tmp_path, caplog):
    inner = Counted()
    cached = Cached(inner, tmp_path)
    with cached.opened(FailurePolicy(), None) as evaluator:
        evaluator.evaluate(batch(1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        try:
            for _ in range(2):
                y = evaluator.evaluate(batch(1, 2, 3)).y
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(y, 2 * batch(1, 2, 3))
    assert caplog.text.count("nothing more is kept") == 1
    assert len(files(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.part"))
    np.testing.assert_array_equal(Cached(Counted(), tmp_path)(batch(1)), 2 * batch(1))


def test_that_several_processes_share_a_directory(tmp_path):
    code = f"""
        import numpy as np
        from enkg.execute.cache import Cached
        from tests.enkg.execute import members
        x = np.arange(400.0).reshape(100, 4)
        for turn in range(3):
            rng = np.random.default_rng()
            rows = rng.integers(0, 100, 150)
            y = Cached(members.double, {str(tmp_path)!r})(x[rows])
            assert (y == 2 * x[rows]).all()
    """
    for process in [python(code) for _ in range(3)]:
        printed(process)
    assert 90 <= len(files(tmp_path)) <= 100
    assert not list(tmp_path.rglob("*.part"))


def test_that_a_pool_is_cached_like_its_function(tmp_path):
    x = batch(1, 2, 3)
    x = x[:, 0]
    Cached(enkg.Function(m.double, batched=False), tmp_path)(x)
    cached = Cached(Pool(m.double, processes=1), tmp_path)
    with cached.opened(FailurePolicy(), None) as evaluator:
        assert evaluator.evaluate(x).calls == 1  # the check
        assert evaluator.evaluate(x).calls == 0
    assert len(files(tmp_path)) == 3
