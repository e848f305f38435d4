"""The UM-Bridge client against sound servers, odd ones and none."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from enkg.errors import EnsembleFailure, InputError
from enkg.execute import opened
from enkg.execute.umbridge import UMBridge
from enkg.failure import Cause, Failure, FailurePolicy
from enkg.serve import Model
from tests.enkg.execute.um_bridge import (
    Odd,
    die,
    flood,
    free_port,
    half,
    leave,
    odd_server,
    send,
    served,
    sums,
    umbridge_served,
)

ONCE = FailurePolicy(retries=0)
X = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0], [0.1, 0.2, 0.3], [7.0, 8.0, 9.0]])
Y = np.stack([X.sum(axis=1), X.prod(axis=1)], axis=1)


@pytest.fixture(scope="module")
def python_server() -> Iterator[str]:
    """A model that the umbridge package serves, in a process of its own."""
    with umbridge_served() as url:
        yield url


def failure(model: UMBridge, x: np.ndarray = X[:2], policy: FailurePolicy = ONCE) -> Failure:
    """How the second of two members fails where the first one succeeds."""
    with opened(model, policy) as evaluator:
        result = evaluator.evaluate(x)
    assert result.failures[0] is None
    assert np.isnan(result.y[1]).all()
    found = result.failures[1]
    assert found is not None
    return found


def test_that_all_bits_of_float64_survive_the_way_to_our_server_and_back():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 4, 3)) * 10.0 ** rng.integers(-300, 300, (5, 4, 3))
    x[0, 0] = 5e-324, -0.0, np.finfo(float).max
    model = Model(lambda x: x[:, ::-1, :2], (4, 3), (4, 2))
    with served(model) as url:
        client = UMBridge(url, shape_in=(4, 3), shape_out=(4, 2))
        with opened(client) as evaluator:
            result = evaluator.evaluate(x)
            flat = UMBridge(url)(x.reshape(5, 12))
    expected = np.ascontiguousarray(x[:, ::-1, :2])
    assert result.y.tobytes() == expected.tobytes()
    assert result.failures == (None,) * 5
    assert result.calls == 5
    assert flat.tobytes() == expected.reshape(5, 8).tobytes()


def test_that_vectors_are_split_and_joined_by_the_sizes_of_a_python_server(python_server):
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    y = UMBridge(python_server, config={"scale": 10.0})(x)
    assert y.tolist() == [[6.0, 1.0, 2.0, 30.0], [15.0, 4.0, 5.0, 60.0]]


def test_that_an_exception_in_a_python_server_is_reported(python_server):
    found = failure(UMBridge(python_server), np.array([[1.0, 2.0, 3.0], [1.0, 2.0, -3.0]]))
    assert found.cause is Cause.REPORTED
    assert "500" in found.detail


def test_that_nan_in_the_words_of_python_is_nan(python_server):
    y = UMBridge(python_server)(np.array([[1.0, 2.0, 3.0], [101.0, 2.0, 3.0]]))
    assert np.array_equal(y[1], [106.0, np.nan, 2.0, 3.0], equal_nan=True)


@pytest.mark.parametrize("text", ["null", "NaN", "nan", "-nan", "inf", "-Infinity", "1e999"])
def test_that_a_member_of_nothing_but_nan_and_infinity_fails(text):
    def evaluate(handler, odd, question):
        if question["input"][0] == X[0].tolist():
            sums(handler, odd, question)
        else:
            send(handler, f'{{"output": [[{text}, {text}]]}}')

    with odd_server(evaluate) as odd:
        assert failure(UMBridge(odd.url)).cause is Cause.NONFINITE


def sending(answer, status: int = 200, **headers: str):
    return lambda handler, odd, question: send(handler, answer, status, **headers)


REPORTED = {"error": {"type": "InvalidInput", "message": "the\x1b[31m mesh\nis bad"}}


@pytest.mark.parametrize(
    ("evaluate", "cause", "words"),
    [
        (sending(REPORTED, 400), Cause.REPORTED, "InvalidInput: the [31m mesh is bad"),
        (sending(REPORTED, 200), Cause.REPORTED, "mesh"),
        (sending("went wrong", 500), Cause.REPORTED, "went wrong"),
        (sending("<html>Bad gateway</html>", 502), Cause.LOST, "502"),
        (sending("<html>Hello</html>"), Cause.MALFORMED, "<html>Hello"),
        (sending('{"output": [[1.0'), Cause.MALFORMED, "no JSON object"),
        (sending("[" * 50000), Cause.MALFORMED, "no JSON object"),
        (sending(""), Cause.MALFORMED, "nothing"),
        (sending([1, 2]), Cause.MALFORMED, "no JSON object"),
        (sending({"result": [[1.0, 2.0]]}), Cause.MALFORMED, "output"),
        (sending({"output": [1.0, 2.0]}), Cause.MALFORMED, "output"),
        (sending({"output": [["1", True]]}), Cause.MALFORMED, "not a number"),
        (sending({"output": [[1.0]]}), Cause.SHAPE, "[1]; expected [2]"),
        (sending({"output": [[1.0], [2.0]]}), Cause.SHAPE, "[1, 1]; expected [2]"),
        (sending("not here", 404), Cause.PROTOCOL, "404"),
        (lambda h, odd, q: h.wfile.write(b"ssh\r\n\r\n"), Cause.PROTOCOL, "HTTP"),
        (half, Cause.TRUNCATED, "amid"),
        (die, Cause.LOST, "before"),
        (leave, Cause.LOST, "before"),
        (flood, Cause.MALFORMED, "more than"),
    ],
)
def test_that_a_broken_answer_has_its_cause(evaluate, cause, words):
    def second_only(handler, odd, question):
        first = question["input"][0] == X[0].tolist()
        (sums if first else evaluate)(handler, odd, question)

    with odd_server(second_only) as odd:
        found = failure(UMBridge(odd.url))
        assert found.cause is cause
        assert words in found.detail
        assert found.detail.isprintable()


def test_that_a_redirection_is_not_followed():
    with odd_server(sums) as elsewhere:
        away = sending("", 307, Location=elsewhere.url + "/Evaluate")
        with odd_server(away) as odd, pytest.raises(EnsembleFailure, match="redirects"):
            UMBridge(odd.url)(X)
        assert not elsewhere.questions


def test_that_a_compressed_answer_is_not_inflated():
    with (
        odd_server(sending({"output": [[1.0, 2.0]]}, 200, **{"Content-Encoding": "gzip"})) as odd,
        odd_server(sending("\x1f\x8b", 200, **{"Content-Encoding": "gzip"})) as bomb,
    ):
        assert UMBridge(odd.url)(X).shape == (4, 2)  # as it is: nothing was asked to inflate it
        with pytest.raises(EnsembleFailure, match="no JSON object"):
            UMBridge(bomb.url)(X)


def silent(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    odd.hurry.wait(60)


def trickle(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    """Something comes all the time, but never an answer."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 4000\r\n\r\n")
    while not odd.hurry.wait(0.02):
        handler.wfile.write(b" ")


def trickle_headers(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
    while not odd.hurry.wait(0.02):
        handler.wfile.write(b"A: b\r\n")


def test_that_calls_end_at_their_deadline_whatever_the_server_does():
    deaf = {1: silent, 2: trickle, 3: trickle_headers}

    def evaluate(handler, odd, question):
        which = [row.tolist() for row in X].index(question["input"][0])
        deaf.get(which, sums)(handler, odd, question)

    begin = time.monotonic()
    with (
        odd_server(evaluate) as odd,
        opened(UMBridge(odd.url, slots=4), FailurePolicy(retries=0, timeout=1.0)) as evaluator,
    ):
        result = evaluator.evaluate(X)
    assert time.monotonic() - begin < 30
    assert np.array_equal(result.y[0], Y[0])
    assert result.failures[0] is None
    for found in result.failures[1:]:
        assert found is not None
        assert found.cause is Cause.TIMEOUT
        assert "1 s" in found.detail


def test_that_the_models_own_timeout_holds_where_the_policy_has_none():
    with odd_server(silent) as odd, pytest.raises(EnsembleFailure, match=r"no answer .* 0\.2 s"):
        UMBridge(odd.url, timeout=0.2)(X[:1])


@pytest.mark.parametrize("evaluate", [silent, trickle])
def test_that_a_straggler_is_cut(evaluate):
    def third_only(handler, odd, question):
        if question["input"][0] == X[2].tolist():
            evaluate(handler, odd, question)
        else:
            odd.hurry.wait(0.02)
            sums(handler, odd, question)

    policy = FailurePolicy(straggler=20.0, retries=0)
    with odd_server(third_only) as odd, opened(UMBridge(odd.url, slots=2), policy) as evaluator:
        result = evaluator.evaluate(X)
        failures = [None if f is None else f.cause for f in result.failures]
        assert failures == [None, None, Cause.CUT, None]
        again = evaluator.evaluate(X[:2])
    assert np.array_equal(again.y, Y[:2])


def test_that_a_lost_call_is_made_again():
    lost = []

    def once(handler, odd, question):
        if question["input"][0] == X[1].tolist() and not lost:
            lost.append(1)
            die(handler, odd, question)
        else:
            sums(handler, odd, question)

    with odd_server(once) as odd, opened(UMBridge(odd.url)) as evaluator:
        result = evaluator.evaluate(X)
    assert result.failures == (None,) * 4
    assert result.calls == 5
    assert np.array_equal(result.y, Y)


def test_that_each_server_gets_as_many_calls_at_once_as_it_has_slots():
    def slow(handler, odd, question):
        odd.hurry.wait(0.05)
        sums(handler, odd, question)

    x = np.tile(X, (4, 1))
    with odd_server(slow) as one, odd_server(slow) as two:
        y = UMBridge([one.url, two.url], slots=2)(x)
    assert np.array_equal(y, np.tile(Y, (4, 1)))
    assert one.at_once == two.at_once == 2
    assert min(len(one.questions), len(two.questions)) >= 1


def test_that_a_server_that_is_gone_is_replaced_by_the_others():
    with (
        odd_server(sums) as one,
        odd_server(sums) as two,
        opened(UMBridge([one.url, two.url]), ONCE) as evaluator,
    ):
        evaluator.evaluate(X)
        one.stop()
        result = evaluator.evaluate(X)
    assert result.failures == (None,) * 4
    assert np.array_equal(result.y, Y)


def test_that_members_are_lost_when_all_servers_are_gone():
    with (
        odd_server(sums) as odd,
        opened(UMBridge(odd.url)) as evaluator,
    ):
        evaluator.evaluate(X)
        odd.stop()
        with pytest.raises(EnsembleFailure, match="process lost: nothing listens at"):
            evaluator.evaluate(X)


def test_that_a_server_that_returns_is_used_again():
    with odd_server(sums) as odd, opened(UMBridge(odd.url)) as evaluator:
        port = int(odd.url.rpartition(":")[2])
        odd.stop()
        with pytest.raises(EnsembleFailure):
            evaluator.evaluate(X)
        with odd_server(sums, port=port):
            assert np.array_equal(evaluator.evaluate(X).y, Y)


def test_that_nothing_at_the_address_is_said_before_the_run():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        InputError, match=r"nothing listens at http://127.*start the model's server"
    ):
        UMBridge(url)(X)


def test_that_a_silent_server_is_noticed_before_the_run(monkeypatch):
    monkeypatch.setattr("enkg.execute.umbridge.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(InputError, match=r"did not answer /Info within 0\.2 s"):
            UMBridge(url)(X)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"/Info": {"protocolVersion": 1.0, "models": ["foward", "x"]}}, "did you mean 'foward'"),
        ({"/Info": {"protocolVersion": 0.9, "models": ["forward"]}}, "version 0.9"),
        ({"/Info": {"hello": 1}}, "no 'protocolVersion'"),
        ({"/Info": "<html>my home page</html>"}, "no UM-Bridge server.*home page"),
        ({"/ModelInfo": {"support": {"Evaluate": False}}}, "does not support Evaluate"),
        ({"/InputSizes": {"inputSizes": [1.5]}}, "expected a list of lengths"),
        ({"/OutputSizes": {"outputSizes": []}}, "not a single number"),
        (
            {"/OutputSizes": {"error": {"type": "Oops", "message": "no mesh"}}},
            "refused /OutputSizes: Oops: no mesh",
        ),
    ],
)
def test_that_a_server_without_this_model_is_refused(about, words):
    with odd_server(sums, about) as odd, pytest.raises(InputError, match=words):
        UMBridge(odd.url)(X)
    assert not odd.questions


def test_that_servers_of_different_models_are_refused():
    with (
        odd_server(sums) as one,
        odd_server(sums, {"/InputSizes": {"inputSizes": [4]}}) as two,
        pytest.raises(InputError, match="the same model on all servers"),
    ):
        UMBridge([one.url, two.url])(X)


def test_that_members_of_the_wrong_size_are_refused():
    with odd_server(sums) as odd:
        with pytest.raises(InputError, match=r"shape \(4,\).*takes 3 numbers"):
            UMBridge(odd.url)(np.ones((2, 4)))
        with pytest.raises(InputError, match=r"shape \(3, 1\).*takes the shape \(1, 3\)"):
            UMBridge(odd.url, shape_in=(1, 3))(np.ones((2, 3, 1)))
        with pytest.raises(InputError, match=r"shape_out is \(2, 2\).*OutputSizes \[2\]"):
            UMBridge(odd.url, shape_out=(2, 2))(X)
    assert not odd.questions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "localhost:4242"}, "did you mean http://localhost:4242"),
        ({"url": "http://"}, "such as http://localhost:4242"),
        ({"url": "http://a:port"}, "such as"),
        ({"url": "ftp://a"}, "such as"),
        ({"url": []}, "url is empty"),
        ({"url": "http://a", "slots": 0}, "slots is 0"),
        ({"url": "http://a", "timeout": 0}, "timeout is 0"),
        ({"url": "http://a", "config": {"f": print}}, "config"),
    ],
)
def test_that_bad_arguments_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        UMBridge(**arguments)


def test_that_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(InputError, match=r"pip install 'enkg\[umbridge\]'"):
        UMBridge("http://127.0.0.1:1")(X)


def test_that_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with odd_server(sums) as odd:
        assert np.array_equal(UMBridge(odd.url)(X), Y)


def test_that_a_password_in_the_url_stays_out_of_messages():
    with odd_server(sending("no", 404)) as odd:
        url = odd.url.replace("http://", "http://me:secret@")
        with pytest.raises(EnsembleFailure) as caught:
            UMBridge(url)(X)
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_that_no_thread_is_left_behind():
    before = set(threading.enumerate())
    with odd_server(silent) as odd:
        inside = set(threading.enumerate())
        with pytest.raises(EnsembleFailure):
            UMBridge(odd.url, timeout=0.1, slots=3)(X)
        ours = {t for t in set(threading.enumerate()) - inside if "request" not in t.name}
    assert not ours
    assert not {t for t in set(threading.enumerate()) - before if t.name.startswith("http")}
