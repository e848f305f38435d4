"""The in-process adapter: chunks, padding, failures of single members, and foreign arrays."""

import numpy as np
import pytest
import torch

import enkg
from enkg.execute import as_evaluator

X = np.random.default_rng(0).standard_normal((10, 3))
X.setflags(write=False)


def plain(x):
    return np.stack([x[:, 0] + x[:, 1], x[:, 2] ** 2], axis=1)


def one(member):
    return plain(member[None])[0]


class Recorder:
    """Remembers the shapes it was called with."""

    def __init__(self, f):
        self.f, self.shapes = f, []

    def __call__(self, x):
        self.shapes.append(x.shape)
        return self.f(x)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 5, 10, 64])
def test_that_chunks_and_padding_change_no_answer(chunk, pad):
    result = enkg.Function(plain, chunk=chunk, pad=pad).evaluate(X)
    np.testing.assert_array_equal(result.y, plain(X))
    assert result.failures == (None,) * 10
    assert result.calls == 10


def test_that_every_padded_call_has_the_same_number_of_rows():
    f = Recorder(plain)
    enkg.Function(f, chunk=4).evaluate(X)
    assert f.shapes == [(4, 3)] * 3
    f = Recorder(plain)
    enkg.Function(f, chunk=64).evaluate(X)
    assert f.shapes == [(64, 3)]


def test_that_without_padding_the_last_call_is_shorter():
    f = Recorder(plain)
    enkg.Function(f, chunk=4, pad=False).evaluate(X)
    assert f.shapes == [(4, 3), (4, 3), (2, 3)]


def test_that_without_chunks_the_whole_batch_goes_at_once():
    f = Recorder(plain)
    enkg.Function(f).evaluate(X)
    assert f.shapes == [(10, 3)]


def test_that_a_function_of_one_member_sees_one_member():
    f = Recorder(one)
    result = enkg.Function(f, batched=False).evaluate(X)
    assert f.shapes == [(3,)] * 10
    np.testing.assert_array_equal(result.y, plain(X))


def test_that_an_adapter_is_itself_a_simulator():
    np.testing.assert_array_equal(enkg.Function(plain, chunk=3)(X), plain(X))
    adapter = enkg.Function(plain)
    assert as_evaluator(adapter) is adapter
    np.testing.assert_array_equal(as_evaluator(plain).evaluate(X).y, plain(X))


# --- failures -------------------------------------------------------------------------------


def raising(x):
    if (x[:, 0] == X[4, 0]).any():
        raise ArithmeticError("negative depth\nat cell 7")
    return plain(x)


@pytest.mark.parametrize("chunk", [None, 1, 3, 64])
def test_that_a_member_that_raises_harms_no_other(chunk):
    result = enkg.Function(raising, chunk=chunk).evaluate(X)
    others = np.arange(10) != 4
    np.testing.assert_array_equal(result.y[others], plain(X)[others])
    assert np.isnan(result.y[4]).all()
    assert str(result.failures[4]) == "ArithmeticError: negative depth"
    assert [f for f in result.failures if f] == [result.failures[4]]
    repeated = 0 if chunk == 1 else min(chunk or 10, 10)
    assert result.calls == 10 + repeated


def test_that_a_single_member_function_that_raises_is_not_repeated():
    def f(member):
        return raising(member[None])[0]

    result = enkg.Function(f, batched=False).evaluate(X)
    assert result.calls == 10
    assert "ArithmeticError" in str(result.failures[4])
    assert np.isnan(result.y[4]).all()
    assert np.isfinite(result.y[5]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_that_a_row_of_bad_numbers_has_a_reason_and_a_part_of_one_is_passed_on(bad):
    # Which elements matter, only the observation's mask can say.
    def f(x):
        y = plain(x)
        y[x[:, 0] == X[4, 0]] = bad
        y[x[:, 0] == X[7, 0], 1] = bad
        return y

    result = enkg.Function(f).evaluate(X)
    assert str(result.failures[4]) == "NaN or infinity: all values are NaN or infinite"
    assert result.failures[7] is None
    np.testing.assert_array_equal(result.y[7], [plain(X)[7, 0], bad])
    assert np.isfinite(np.delete(result.y, [4, 7], axis=0)).all()


def test_that_an_error_without_words_still_has_a_name():
    def f(x):
        raise ValueError

    with pytest.raises(enkg.EnsembleFailure, match="all 10 members; first: ValueError"):
        enkg.Function(f).evaluate(X)


def test_that_the_keyboard_stops_the_simulator():
    def f(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enkg.Function(f).evaluate(X)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: plain(x)[:-1], "axis 0 counts the members"),
        (lambda x: 1.0, "axis 0 counts the members"),
        (lambda x: plain(x).T, r"returned shape \(2, 10\)"),
        (lambda x: plain(x) + 1j, "real and imaginary parts"),
        (lambda x: None, "real numbers"),
        (lambda x: np.array(["a"] * len(x)), "real numbers"),
    ],
)
def test_that_an_answer_of_the_wrong_kind_is_refused_in_words(f, words):
    with pytest.raises(enkg.InputError, match=words):
        enkg.Function(f).evaluate(X)


def test_that_members_must_answer_alike():
    def f(member):
        return np.zeros(2 if member[0] == X[4, 0] else 3)

    with pytest.raises(enkg.InputError, match="different shapes"):
        enkg.Function(f, batched=False).evaluate(X)


def test_that_impossible_adapters_are_refused():
    with pytest.raises(enkg.InputError, match="cannot be called"):
        enkg.Function("solver")  # pyright: ignore[reportArgumentType]
    with pytest.raises(enkg.InputError, match="at least one member"):
        enkg.Function(plain, chunk=0)


# --- arrays ---------------------------------------------------------------------------------


def test_that_a_simulator_may_write_into_its_argument():
    def f(x):
        x *= 2
        return plain(x)

    before = X.copy()
    for chunk in (None, 3):
        np.testing.assert_array_equal(enkg.Function(f, chunk=chunk).evaluate(X).y, plain(2 * X))
    np.testing.assert_array_equal(X, before)


def test_that_a_simulator_may_reuse_its_output():
    buffer = np.empty((3, 2))

    def f(x):
        buffer[:] = plain(x)
        return buffer

    np.testing.assert_array_equal(enkg.Function(f, chunk=3).evaluate(X).y, plain(X))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i4", "bool", "f2"])
def test_that_answers_may_have_any_real_type(dtype):
    expected = (10 * plain(X)).astype(dtype)
    result = enkg.Function(lambda x: (10 * plain(x)).astype(dtype)).evaluate(X)
    assert result.y.dtype.kind == "f"
    np.testing.assert_array_equal(result.y, expected)


def test_that_a_torch_function_works():
    f = enkg.Function(lambda x: (x[:, :2] ** 2).requires_grad_(), to=torch.from_numpy, chunk=4)
    np.testing.assert_allclose(f.evaluate(X).y, X[:, :2] ** 2)


def test_that_a_jax_function_works():
    jnp = pytest.importorskip("jax.numpy")
    f = enkg.Function(lambda x: jnp.sin(x[:, :2]), to=jnp.asarray, chunk=4)
    np.testing.assert_allclose(f.evaluate(X).y, np.sin(X[:, :2]), rtol=1e-5)


def test_that_a_datum_may_have_no_axis_and_many():
    assert enkg.Function(lambda x: x[:, 0]).evaluate(X).y.shape == (10,)
    deep = enkg.Function(lambda x: np.zeros((len(x), 2, 3, 4)), chunk=3).evaluate(X)
    assert deep.y.shape == (10, 2, 3, 4)


def test_that_progress_counts_every_member_once():
    seen = []
    enkg.Function(raising, chunk=4).evaluate(X, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
