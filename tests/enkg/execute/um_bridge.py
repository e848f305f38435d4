"""UM-Bridge servers for tests: ours in a thread, and one that misbehaves as it is told."""

import asyncio
import json
import threading
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
