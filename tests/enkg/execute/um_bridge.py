"""UM-Bridge servers for tests: ours in a thread, and one that misbehaves as it is told."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from aiohttp import web

from enkg.execute import opened
from enkg.serve import Model, application


@contextmanager
def served(model: Model) -> Iterator[str]:
    """Our own server, as `enkg serve` starts it; gives its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    with opened(model.simulator, model.policy) as evaluator:
        runner = web.AppRunner(
            application(model, evaluator), handler_cancellation=True, shutdown_timeout=0.1
        )
        wait(runner.setup())

        async def start() -> None:
            await web.TCPSite(runner, "127.0.0.1", 0).start()

        wait(start())
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            wait(runner.cleanup())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@dataclass
class Odd:
    """A server whose model is sound but for what `evaluate` does; the questions that came."""

    url: str = ""
    questions: list[dict] = field(default_factory=list)
    at_once: int = 0
    """The largest number of calls that were on their way at the same time."""
    hurry: threading.Event = field(default_factory=threading.Event)
    """Set at the end: calls that still wait are to return."""
    stop: Callable[[], None] = lambda: None


@contextmanager
def odd_server(
    evaluate: Callable[[BaseHTTPRequestHandler, Odd, dict], None],
    about: dict[str, Any] | None = None,
    port: int = 0,
) -> Iterator[Odd]:
    """A real HTTP server; `evaluate` writes the answers of /Evaluate, `about` replaces others."""
    odd = Odd()
    lock = threading.Lock()
    count = [0]
    answers = {
        "/Info": {"protocolVersion": 1.0, "models": ["forward", "backward"]},
        "/ModelInfo": {"support": {"Evaluate": True, "Gradient": False}},
        "/InputSizes": {"inputSizes": [3]},
        "/OutputSizes": {"outputSizes": [2]},
        **(about or {}),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            send(self, answers[self.path])

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/Evaluate":
                send(self, answers[self.path])
                return
            with lock:
                odd.questions.append(question)
                count[0] += 1
                odd.at_once = max(odd.at_once, count[0])
            try:
                evaluate(self, odd, question)
            except OSError:  # the client has gone
                pass
            finally:
                with lock:
                    count[0] -= 1

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    odd.url = f"http://127.0.0.1:{server.server_port}"

    def stop() -> None:
        odd.hurry.set()
        server.shutdown()
        server.server_close()
        thread.join()

    odd.stop = stop
    try:
        yield odd
    finally:
        if thread.is_alive():
            stop()


def send(handler: BaseHTTPRequestHandler, answer: Any, status: int = 200, **headers: str) -> None:
    """A whole answer: JSON of anything but text, which is sent as it is."""
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def sums(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    """A sound model: sum and product of the three numbers."""
    x = np.array(question["input"][0])
    send(handler, {"output": [[float(x.sum()), float(x.prod())]]})


PYTHON_SERVER = """
import sys, umbridge, aiohttp.web as web

class Sum(umbridge.Model):
    def get_input_sizes(self, config): return [2, 1]
    def get_output_sizes(self, config): return [1, 3]
    def supports_evaluate(self): return True
    def __call__(self, parameters, config):
        (a, b), (c,) = parameters
        if c < 0:
            raise ValueError("c is negative")
        nan = float("nan") if a > 100 else a
        return [[a + b + c], [nan, b, c * config.get("scale", 1)]]

run_app = web.run_app  # listens on all interfaces
web.run_app = lambda app, port: run_app(app, host="127.0.0.1", port=port, print=None)
umbridge.serve_models([Sum("forward")], int(sys.argv[1]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def umbridge_served() -> Iterator[str]:
    """A model that the umbridge package serves, in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", PYTHON_SERVER, str(port)])
    try:
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def half(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    handler.wfile.write(b'HTTP/1.0 200 OK\r\nContent-Length: 40\r\n\r\n{"output": [[1.0,')


def die(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    handler.connection.setsockopt(  # the connection is reset
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )
    handler.connection.close()


def leave(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def flood(handler: BaseHTTPRequestHandler, odd: Odd, question: dict) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    while not odd.hurry.is_set():
        handler.wfile.write(b"[" * 65536)
