"""The UM-Bridge server against the umbridge package's client, ours, and clients that err."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import umbridge

from enkg.errors import EnsembleFailure, InputError
from enkg.execute import opened
from enkg.execute.umbridge import UMBridge
from enkg.failure import FailurePolicy
from enkg.serve import Model, find, serve
from tests.enkg.execute.um_bridge import odd_server, served, sums

EXPERIMENT = """
import numpy as np
import enkg

def simulator(x):
    assert x.dtype == np.float32 and x.shape == (1, 2, 2)
    return x * 10

def observe(y):
    return y.sum(axis=(1, 2))[:, None]

experiment = enkg.Experiment(
    prior=enkg.Gaussian.from_covariance(np.zeros((2, 2)), np.eye(4)),
    simulator=simulator,
    observation=enkg.Observation(np.zeros(1), std=1.0),
    observe=observe,
)
"""
SLEEPER = """
import sys, time
from enkg.serve import Model, serve

def simulator(x):
    if x[0, 0] > 0:
        print("asleep", flush=True)
        time.sleep(60)
    return x

serve(Model(simulator, (2,), (2,), sys.argv[1]), port=0)
"""


def simulator(x: np.ndarray) -> np.ndarray:
    """Sum and product; the first number says how to fail."""
    match x[0, 0]:
        case -1.0:
            raise ValueError("the mesh is tangled")
        case -2.0:
            raise SystemExit(3)
        case -3.0:
            return np.full((1, 2), np.nan)
        case -4.0:
            return np.array([[1.0, np.inf]])
        case -5.0:
            return np.ones((1, 3))
    return np.stack([x.sum(axis=1), x.prod(axis=1)], axis=1)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Model(simulator, (3,), (2,), "sums")) as address:
        yield address


def ask(
    url: str, data: Any, method: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict]:
    """Status and JSON of an answer."""
    body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_that_the_client_of_the_umbridge_package_gets_the_numbers(url):
    model = umbridge.HTTPModel(url, "sums")
    assert umbridge.supported_models(url) == ["sums"]
    assert model.get_input_sizes() == [3]
    assert model.get_output_sizes() == [2]
    assert model.supports_evaluate()
    assert not model.supports_gradient()
    assert not model.supports_apply_jacobian()
    assert not model.supports_apply_hessian()
    x = [0.1, 1e-300, -7.3]
    assert model([x]) == [[sum(x), 0.1 * 1e-300 * -7.3]]


def test_that_a_client_that_hopes_for_shared_memory_does_without(url):
    assert umbridge.HTTPModel(url, "sums", use_shmem=True)([[1.0, 2.0, 4.0]]) == [[7.0, 8.0]]


def test_that_the_umbridge_package_understands_the_errors(url):
    model = umbridge.HTTPModel(url, "sums")
    with pytest.raises(Exception, match=r"EvaluationFailed.*the mesh is tangled"):
        model([[-1.0, 0.0, 0.0]])
    with pytest.raises(Exception, match=r"InvalidInput.*length 2; expected 3"):
        model([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (-1.0, "the mesh is tangled"),
        (-2.0, "exit(3)"),
        (-3.0, "NaN"),
        (-4.0, "NaN or infinity"),
        (-5.0, "3 numbers; expected 2"),
    ],
)
def test_that_a_failed_member_is_an_error_and_the_server_goes_on(url, first, words):
    status, answer = ask(f"{url}/Evaluate", {"name": "sums", "input": [[first, 1, 2]]})
    assert status == 500
    assert words in answer["error"]["message"]
    status, answer = ask(f"{url}/Evaluate", {"name": "sums", "input": [[1, 2, 4]]})
    assert (status, answer) == (200, {"output": [[7.0, 8.0]]})


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        ({"name": "summs", "input": [[1, 2, 3]]}, "ModelNotFound", "there is 'sums'"),
        ({"input": [[1, 2, 3]]}, "ModelNotFound", "there is 'sums'"),
        ({"name": "sums"}, "InvalidInput", "list of one list"),
        ({"name": "sums", "input": [1, 2, 3]}, "InvalidInput", "list of one list"),
        ({"name": "sums", "input": [[1, 2, 3], [4]]}, "InvalidInput", "list of one list"),
        ({"name": "sums", "input": [[1, 2, 3, 4]]}, "InvalidInput", "length 4; expected 3"),
        ({"name": "sums", "input": [[1, 2, "3"]]}, "InvalidInput", "not a number"),
        ({"name": "sums", "input": [[1, 2, None]]}, "InvalidInput", "not a number"),
        ({"name": "sums", "input": [[1, 2, float("nan")]]}, "InvalidInput", "NaN"),
        ({"name": "sums", "input": [[1, 2, float("inf")]]}, "InvalidInput", "NaN"),
        ({"name": "sums", "input": [[1, 2, 10**400]]}, "InvalidInput", "huge"),
        ({"name": "sums", "input": [[1, 2, 3]], "config": {"n": 1}}, "InvalidInput", "config"),
        (b'{"name": "sums", "input": [[1, 2', "InvalidInput", "not JSON"),
        (b"[" * 60000, "InvalidInput", "not JSON"),
        (b"\xff\xfe", "InvalidInput", "not JSON"),
        (b"[1]", "InvalidInput", "no JSON object"),
        (b" " * 100_000, "InvalidInput", "larger than"),
    ],
)
def test_that_a_bad_request_is_refused_in_the_words_of_the_protocol(url, data, kind, words):
    status, answer = ask(f"{url}/Evaluate", data)
    assert status == 400
    assert set(answer) == {"error"}
    assert answer["error"]["type"] == kind
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("feature", ["Gradient", "ApplyJacobian", "ApplyHessian", "EvaluateShMem"])
def test_that_derivatives_are_not_supported(url, feature):
    status, answer = ask(f"{url}/{feature}", {"name": "sums"})
    assert status == 400
    assert answer["error"]["type"] == "UnsupportedFeature"


def test_that_unknown_pages_and_browsers_get_an_error_in_json(url):
    assert ask(f"{url}/Elsewhere", None)[0] == 404
    assert ask(f"{url}/Evaluate", None)[0] == 405
    status, answer = ask(f"{url}/Info", None, headers={"Origin": "http://evil.example"})
    assert status == 400
    assert "browser" in answer["error"]["message"]
    assert ask(f"{url}/Info", None) == (200, {"protocolVersion": 1.0, "models": ["sums"]})


def test_that_our_client_gives_the_servers_reason(url):
    x = np.array([[1.0, 2.0, 4.0], [-1.0, 0.0, 0.0]])
    with opened(UMBridge(url, "sums"), FailurePolicy(retries=0)) as evaluator:
        result = evaluator.evaluate(x)
    assert result.y[0].tolist() == [7.0, 8.0]
    assert "the mesh is tangled" in str(result.failures[1])


def test_that_members_are_evaluated_one_at_a_time():
    inside, most = [0], [0]

    def alone(x):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return x

    with served(Model(alone, (2,), (2,))) as url:
        y = UMBridge(url, slots=4)(np.arange(16.0).reshape(8, 2))
    assert np.array_equal(y, np.arange(16.0).reshape(8, 2))
    assert most == [1]


def test_that_a_member_whose_client_has_gone_is_given_up():
    """The call that hangs is ended, not waited for; the next one has its turn."""
    heard = []

    def hang_once(handler, odd, question):
        heard.append(question["input"][0])
        if len(heard) == 1:
            odd.hurry.wait(60)
        else:
            sums(handler, odd, question)

    with (
        odd_server(hang_once) as odd,
        served(Model(UMBridge(odd.url), (3,), (2,))) as url,
        opened(UMBridge(url), FailurePolicy(timeout=1.5, retries=1)) as evaluator,
    ):
        result = evaluator.evaluate(np.array([[1.0, 2.0, 4.0]]))
    assert result.y.tolist() == [[7.0, 8.0]]
    assert len(heard) == 2


def test_that_a_waiting_member_whose_client_has_gone_is_never_begun():
    go, begun = threading.Event(), []

    def first_waits(x):
        begun.append(x[0, 0])
        go.wait(20)
        return x

    with served(Model(first_waits, (1,), (1,))) as url:
        first = threading.Thread(
            target=ask, args=(f"{url}/Evaluate", {"name": "forward", "input": [[1.0]]})
        )
        first.start()
        while not begun:
            time.sleep(0.005)
        with (
            opened(UMBridge(url), FailurePolicy(timeout=0.2, retries=0)) as evaluator,
            pytest.raises(EnsembleFailure, match="timeout"),
        ):
            evaluator.evaluate(np.array([[2.0]]))
        go.set()
        first.join()
        status, answer = ask(f"{url}/Evaluate", {"name": "forward", "input": [[3.0]]})
    assert (status, answer) == (200, {"output": [[3.0]]})
    assert begun == [1.0, 3.0]


def test_that_an_experiment_file_serves_what_a_run_would_see(tmp_path):
    (tmp_path / "file.py").write_text(EXPERIMENT)
    model = find(tmp_path / "file.py", "observed")
    assert (model.shape_in, model.shape_out, model.name) == ((2, 2), (1,), "observed")
    with served(model) as url:
        y = UMBridge(url, "observed")(np.array([[[1.0, 2.0], [3.0, 4.5]]]))
    assert y.tolist() == [[105.0]]


def test_that_a_folder_with_a_program_is_served(tmp_path):
    (tmp_path / "simulator.toml").write_text(
        'name = "double"\n[input]\nshape = [2]\n[output]\nshape = [2]\n'
        '[oneshot]\ncommand = ["python", "{folder}/double.py", "{input}", "{output}"]\n'
    )
    (tmp_path / "double.py").write_text(
        "import sys, numpy as np\nx = np.load(sys.argv[1])\n"
        "if x[0] < 0: sys.exit('x is negative')\nnp.save(sys.argv[2], 2 * x)\n"
    )
    with served(find(tmp_path)) as url:
        model = umbridge.HTTPModel(url, "forward")
        assert model([[1.25, 2.0]]) == [[2.5, 4.0]]
        with pytest.raises(Exception, match="x is negative"):
            model([[-1.0, 2.0]])


def test_that_ctrl_c_ends_the_server_and_restores_what_ctrl_c_did_before():
    said, answers = [], []

    def visit(url: str) -> None:
        answers.append(ask(f"{url}/Evaluate", {"name": "sums", "input": [[1, 2, 4]]}))
        os.kill(os.getpid(), signal.SIGINT)

    def say(line: str) -> None:
        said.append(line)
        threading.Thread(target=visit, args=(line.rsplit(maxsplit=1)[-1],)).start()

    before = signal.getsignal(signal.SIGINT)
    serve(Model(simulator, (3,), (2,), "sums"), port=0, say=say)
    assert answers == [(200, {"output": [[7.0, 8.0]]})]
    assert len(said) == 1
    assert said[0].startswith("serving sums at http://127.0.0.1:")
    assert signal.getsignal(signal.SIGINT) is before


def test_that_sigterm_ends_the_server_with_status_0_even_amid_a_call():
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "sleeper"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            url = line.removeprefix("serving sleeper at ").strip()
            assert url.startswith("http://127.0.0.1:"), line
            connections = psutil.Process(process.pid).net_connections("inet")
            assert {c.laddr[0] for c in connections if c.status == "LISTEN"} == {"127.0.0.1"}
            body = json.dumps({"name": "sleeper", "input": [[1, 2]]}).encode()
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
                client.sendall(
                    b"POST /Evaluate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                client.sendall(body)
                assert process.stdout.readline() == "asleep\n"
                process.terminate()
                assert process.wait(timeout=30) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_that_a_port_in_use_and_a_wrong_host_are_input_errors():
    model = Model(simulator, (3,), (2,))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match=r"in use.*--port"),
    ):
        serve(model, port=taken.getsockname()[1])
    with pytest.raises(InputError, match=r"cannot listen on 203\.0\.113\.7"):
        serve(model, host="203.0.113.7", port=0)
    with pytest.raises(InputError, match="cannot listen"):
        serve(model, port=70000)
