"""A simulator offered to other programs over HTTP, as an UM-Bridge server.

Protocol 1.0 of https://um-bridge-benchmarks.readthedocs.io with one vector in and one out, without
derivatives and without its shared memory. One member is evaluated at a time, the others wait. A
member whose client has gone is given up. Written on aiohttp rather than `umbridge.serve_models`,
which listens on all interfaces of the machine and answers with nan, which is not JSON.

There is no password: whoever reaches the port can run the simulator with numbers of their choice.
"""

import asyncio
import ipaddress
import json
import logging
import math
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import tyro
from numpy import ndarray

from enkg.errors import EnkgError, EnsembleFailure, InputError
from enkg.execute import opened
from enkg.execute.http import library
from enkg.execute.slots import Slots
from enkg.experiment import Experiment
from enkg.failure import FailurePolicy
from enkg.load import guarded, load
from enkg.simulator import Evaluator, Result

log = logging.getLogger("enkg")

LEAVE = 5.0
"""Seconds for the member at work to end when the server is stopped."""
DERIVATIVES = ("Gradient", "ApplyJacobian", "ApplyHessian")
SHARED_MEMORY = tuple(f"{name}ShMem" for name in ("Test", "Evaluate", *DERIVATIVES))


@dataclass(frozen=True)
class Serve:
    """Offer a simulator to other programs over HTTP, by the UM-Bridge protocol.

    FILE is an experiment file, with the defaults of its arguments, or a folder with a
    simulator.toml. Numbers are in the simulator's units. Ends with Ctrl-C.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file, or the folder of a program."""
    host: str = "127.0.0.1"
    """Where to listen: this machine alone, or 0.0.0.0 for everyone who can reach it."""
    port: int = 4242
    """The port; 0 takes any that is free."""
    name: str = "forward"
    """What clients call the model."""


@dataclass(frozen=True, eq=False)
class Model:
    """What is served: a simulator and the shapes X and Y of one member.

    observe: as in an experiment, applied to the simulator's answers. dtype: of the members that the
    simulator is given.
    """

    simulator: Any
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    name: str = "forward"
    observe: Callable[[ndarray], Any] | None = None
    policy: FailurePolicy = field(default_factory=FailurePolicy)
    dtype: type = np.float64


def find(path: Path, name: str = "forward") -> Model:
    """The simulator of an experiment file or of a folder with a simulator.toml."""
    if path.is_dir() or path.suffix == ".toml":
        from enkg.execute.program import Program

        program = Program(path)
        ports = program.manifest.input, program.manifest.output
        return Model(program, ports[0].shape, ports[1].shape, name)
    found = load(path)
    experiment = found if isinstance(found, Experiment) else guarded(path, found)
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"`experiment` in {path} returned a {type(experiment).__name__}; expected an "
            "enkg.Experiment"
        )
    return Model(
        experiment.simulator,
        experiment.shape,
        tuple(experiment.observation.y.shape),
        name,
        experiment.observe,
        experiment.failure,
        np.float64 if experiment.double else np.float32,  # as in a run
    )


def _say(text: str) -> None:
    print(text, flush=True)


def serve(
    model: Model, *, host: str = "127.0.0.1", port: int = 4242, say: Callable[[str], Any] = _say
) -> None:
    """Serves until SIGINT or SIGTERM. Raises InputError where it cannot listen."""
    library()
    with opened(model.simulator, model.policy) as evaluator:
        asyncio.run(_serve(model, evaluator, host, port, say))


async def _serve(
    model: Model, evaluator: Evaluator, host: str, port: int, say: Callable[[str], Any]
) -> None:
    from aiohttp import web

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # With handler_cancellation, a request whose client has gone ends.
    runner = web.AppRunner(
        application(model, evaluator),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen on {host}, port {port}: {error}; give another --port, 0 for any "
                "that is free, or another --host"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {model.name} at http://{shown}:{runner.addresses[0][1]}")
        if not all(ipaddress.ip_address(a[0].split("%")[0]).is_loopback for a in runner.addresses):
            say("everyone who can reach this address can run the simulator; there is no password")
        await stop.wait()
    finally:
        await runner.cleanup()


def application(model: Model, evaluator: Evaluator) -> Any:
    """The aiohttp application, with a thread of its own for the simulator."""
    from aiohttp import web

    service = _Service(model, evaluator)

    @web.middleware
    async def errors_as_json(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            if "Origin" in request.headers:
                raise _Refused("InvalidInput", "pages in a browser may not run the simulator")
            return await handler(request)
        except _Refused as error:
            return web.json_response(error.json, status=error.status)
        except web.HTTPRequestEntityTooLarge:
            refused = _Refused(
                "InvalidInput", f"the request is larger than {service.largest} bytes"
            )
            return web.json_response(refused.json, status=400)
        except web.HTTPException as error:
            refused = _Refused("InvalidInput", f"{request.method} {request.path}: {error.reason}")
            return web.json_response(refused.json, status=error.status)
        except Exception as error:  # the server goes on
            log.exception("a request failed")
            refused = _Refused("EvaluationFailed", f"{type(error).__name__}: {error}")
            return web.json_response(refused.json, status=500)

    app = web.Application(client_max_size=service.largest, middlewares=[errors_as_json])

    def as_json(handler: Callable[[Any], Awaitable[dict]]) -> Callable[[Any], Awaitable[Any]]:
        async def answer(request: Any) -> Any:
            return web.json_response(await handler(request))

        return answer

    app.router.add_get("/Info", as_json(service.info))
    for path, handler in service.endpoints.items():
        app.router.add_post(f"/{path}", as_json(handler))
    app.on_startup.append(service.start)
    app.on_shutdown.append(service.stop)
    return app


class _Refused(Exception):
    """An answer that is an error, in the form that the protocol gives it."""

    def __init__(self, kind: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.json = {"error": {"type": kind, "message": message}}


@dataclass(eq=False)
class _Task:
    """One member on its way through the simulator."""

    x: ndarray
    answer: asyncio.Future


class _Service:
    """The endpoints. All but `_work` runs in the event loop."""

    def __init__(self, model: Model, evaluator: Evaluator) -> None:
        self.model, self.evaluator = model, evaluator
        self.count_in, self.count_out = math.prod(model.shape_in), math.prod(model.shape_out)
        self.largest = 64 * self.count_in + (1 << 16)
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.running: _Task | None = None
        self.stopping = False
        self.endpoints: dict[str, Callable[[Any], Awaitable[dict]]] = {
            "ModelInfo": self.model_info,
            "InputSizes": self.input_sizes,
            "OutputSizes": self.output_sizes,
            "Evaluate": self.evaluate,
            **dict.fromkeys(DERIVATIVES + SHARED_MEMORY, self.unsupported),
        }
        self._leaving: set[asyncio.Task] = set()

    async def info(self, request: Any) -> dict:
        return {"protocolVersion": 1.0, "models": [self.model.name]}

    async def model_info(self, request: Any) -> dict:
        await self._asked(request)
        return {"support": {"Evaluate": True} | dict.fromkeys(DERIVATIVES, False)}

    async def input_sizes(self, request: Any) -> dict:
        await self._asked(request)
        return {"inputSizes": [self.count_in]}

    async def output_sizes(self, request: Any) -> dict:
        await self._asked(request)
        return {"outputSizes": [self.count_out]}

    async def unsupported(self, request: Any) -> dict:
        await self._asked(request)
        feature = request.path.strip("/")
        raise _Refused("UnsupportedFeature", f"{feature} is not supported by this model")

    async def evaluate(self, request: Any) -> dict:
        x = self._member(await self._asked(request))
        loop = asyncio.get_running_loop()
        task = _Task(x, loop.create_future())
        self.tasks.put(task)
        try:
            outcome = await task.answer
        except asyncio.CancelledError:  # the client has gone
            leaving = loop.create_task(self._give_up(task))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            raise
        return {"output": [self._values(outcome)]}

    async def start(self, app: Any) -> None:
        loop = asyncio.get_running_loop()
        # A daemon, so that a Python function at work does not keep a stopped server alive.
        threading.Thread(target=self._work, args=(loop,), name="simulator", daemon=True).start()

    async def stop(self, app: Any) -> None:
        self.stopping = True
        self.tasks.put(None)
        task = self.running
        if task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._give_up(task), LEAVE)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The simulator's thread: an evaluator need not bear calls from several."""
        while (task := self.tasks.get()) is not None:
            if self.stopping or task.answer.cancelled():
                continue
            self.running = task
            outcome: Any
            try:
                outcome = self.evaluator.evaluate(task.x)
            except BaseException as error:  # told to the client
                outcome = error
            self.running = None
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_settle, task.answer, outcome)

    async def _give_up(self, task: _Task) -> None:
        """Ends a task that has begun. A Python function cannot be ended; it goes on."""
        slots = getattr(self.evaluator, "slots", self.evaluator)
        if isinstance(slots, Slots):
            while self.running is task:  # not once: it may be just about to begin
                slots.stop()
                await asyncio.sleep(0.1)

    async def _asked(self, request: Any) -> dict:
        """The JSON object that was sent, for this model and without a config."""
        try:
            asked = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise _Refused("InvalidInput", f"the request is not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise _Refused("InvalidInput", "the request is no JSON object")
        if asked.get("name") != self.model.name:
            raise _Refused(
                "ModelNotFound",
                f"there is no model {asked.get('name')!r}; there is {self.model.name!r}",
            )
        if asked.get("config"):
            raise _Refused("InvalidInput", "this model has no config; expected {}")
        return asked

    def _member(self, asked: dict) -> ndarray:
        """The one input vector, shape (1, *X)."""
        given = asked.get("input")
        if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], list):
            raise _Refused("InvalidInput", "expected `input` to be a list of one list of numbers")
        if len(given[0]) != self.count_in:
            raise _Refused(
                "InvalidInput",
                f"the input vector has length {len(given[0])}; expected {self.count_in}",
            )
        if not set(map(type, given[0])) <= {int, float}:
            raise _Refused("InvalidInput", "the input vector holds something that is not a number")
        try:
            x = np.array(given[0], dtype=np.float64).astype(self.model.dtype)
        except OverflowError:
            x = np.array([np.inf])
        if not np.isfinite(x).all():
            raise _Refused("InvalidInput", "the input vector holds NaN, infinity or a huge number")
        x = x.reshape(1, *self.model.shape_in)
        x.setflags(write=False)
        return x

    def _values(self, outcome: Result | BaseException) -> list[float]:
        """The output vector. Raises _Refused for a failed member."""
        if isinstance(outcome, EnkgError):
            known = outcome.failures if isinstance(outcome, EnsembleFailure) else ()
            raise _Refused("EvaluationFailed", str(known[0] if known else outcome), 500)
        if isinstance(outcome, BaseException):
            log.error("the simulator raised", exc_info=outcome)
            raise _Refused("EvaluationFailed", f"{type(outcome).__name__}: {outcome}", 500)
        if outcome.failures[0] is not None:
            raise _Refused("EvaluationFailed", str(outcome.failures[0]), 500)
        y = outcome.y if self.model.observe is None else self.model.observe(outcome.y)
        y = np.asarray(y, dtype=np.float64).ravel()
        if len(y) != self.count_out:
            raise _Refused(
                "InvalidOutput",
                f"the simulator returned {len(y)} numbers; expected {self.count_out}",
                500,
            )
        if not np.isfinite(y).all():
            raise _Refused("EvaluationFailed", "NaN or infinity in the output", 500)
        return y.tolist()


def _settle(answer: asyncio.Future, outcome: Any) -> None:
    if not answer.done():
        answer.set_result(outcome)
