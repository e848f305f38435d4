"""UM-Bridge: models that answer over HTTP, in any language, here or on other machines.

Protocol 1.0 of https://um-bridge-benchmarks.readthedocs.io: a model takes vectors of the lengths
`InputSizes` and answers with vectors of the lengths `OutputSizes`, in JSON. Numbers keep all bits
of float64. Writing and reading them on both sides costs some 40 ms for 128 x 128 numbers each way,
so the simulator should take longer than that.
"""

import asyncio
import difflib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.http import Server, Unreachable, Wire, document, short, shown
from enkg.execute.slots import Job, Slots
from enkg.failure import Cause, FailurePolicy, MemberFailed
from enkg.simulator import Evaluator, Progress, Result

PATIENCE = 30.0
"""Seconds in which a server must answer a question about its model."""
REST = 10.0
"""Seconds in which a server that takes no connections is left out, if there are others."""
LARGEST_ABOUT = 1 << 20
"""Bytes of an answer about the model."""


@dataclass(frozen=True)
class UMBridge:
    """A model of an UM-Bridge server; members go in and come out flattened, in C order.

    url: such as "http://localhost:4242", or several, all of the same model. model: its name on the
    server. shape_in, shape_out: shapes of one member; None takes any shape of the right size in,
    and gives one vector, the model's output vectors one after another. config: passed on to the
    model with every call. slots: calls that each server gets at once. timeout: seconds of one call
    where the failure policy sets none. They begin when the call is sent, so a call that waits
    inside of the server wastes them: do not set more slots than the server evaluates at once.

    A server that no longer takes connections is replaced by the others until it is back. A call
    that was given up may go on inside of the server; the protocol has no way to end it.
    """

    url: str | Sequence[str]
    model: str = "forward"
    shape_in: tuple[int, ...] | None = None
    shape_out: tuple[int, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    slots: int = 1
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise InputError("url is empty; expected a server such as http://localhost:4242")
        for url in self.urls:
            _check_url(url)
        if self.slots < 1:
            raise InputError(f"slots is {self.slots}; expected at least 1")
        if not self.timeout > 0:
            raise InputError(f"timeout is {self.timeout}; expected seconds, more than 0")
        try:
            json.dumps(dict(self.config), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"config cannot be written as JSON: {error}") from error

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,) if isinstance(self.url, str) else tuple(self.url)

    def identity(self) -> str:
        """What the answers depend on; for the cache."""
        config = json.dumps(dict(self.config), sort_keys=True)
        where = " ".join(map(shown, self.urls))
        return f"UM-Bridge {self.model} {config} {self.shape_out} at {where}"

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """Asks all servers about the model. Raises InputError where it cannot be used."""
        wire = Wire()
        try:
            servers = [Server(url, asyncio.Semaphore(self.slots)) for url in self.urls]
            sizes = _agreed(servers, wire.wait(_ask_all(wire, servers, self)))
            _check_shape("shape_in", self.shape_in, sizes[0], "InputSizes")
            _check_shape("shape_out", self.shape_out, sizes[1], "OutputSizes")
            drivers = [
                UMBridgeDriver(self, wire, servers[i:] + servers[:i], sizes)
                for _ in range(self.slots)
                for i in range(len(servers))
            ]
            slots = Slots(drivers, policy, timeout=self.timeout)
            try:
                yield slots
            finally:
                slots.close()
        finally:
            wire.close()

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """Connects, evaluates one batch and leaves. See `Evaluator`."""
        with self.opened(FailurePolicy(), None) as evaluator:
            return evaluator.evaluate(x, progress)

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y


Sizes = tuple[tuple[int, ...], tuple[int, ...]]
"""InputSizes and OutputSizes."""


class UMBridgeDriver:
    """A slot: sends its calls to the first of its servers that takes them."""

    def __init__(
        self, model: UMBridge, wire: Wire, servers: Sequence[Server], sizes: Sizes
    ) -> None:
        self.model, self.wire, self.servers, self.sizes = model, wire, servers, sizes
        self._ended = False
        self._future: Future | None = None

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        """One member, (1, *X) to (1, *Y). See `Driver`."""
        self._ended = False
        body = self._question(x[0])
        self._future = future = self.wire.submit(self._send(body, timeout))
        if self._ended:  # while the question was written
            future.cancel()
        try:
            server, status, answer = future.result()
        except CancelledError:
            raise MemberFailed(Cause.CUT, "the call was ended before its answer came") from None
        finally:
            self._future = None
        y = _numbers(document(server, status, answer), self.sizes[1], server)
        return y.reshape(1, *(self.model.shape_out or y.shape))

    def interrupt(self) -> None:
        self._ended = True
        future = self._future
        if future is not None:
            future.cancel()

    def close(self) -> None:
        self.interrupt()

    def _question(self, member: ndarray) -> bytes:
        want, count = self.model.shape_in, sum(self.sizes[0])
        if (want is not None and member.shape != tuple(want)) or member.size != count:
            shape = f"the shape {tuple(want)}" if want else f"{count} numbers"
            raise InputError(
                f"the members have shape {member.shape}, that is {member.size} numbers; the model "
                f"{self.model.model!r} at {self.servers[0]} takes {shape}"
            )
        if not np.isfinite(member).all():
            raise MemberFailed(Cause.NONFINITE, "the unknown holds NaN or infinity; JSON has none")
        parts = np.split(member.astype(np.float64).ravel(), np.cumsum(self.sizes[0])[:-1])
        question = {
            "name": self.model.model,
            "input": [part.tolist() for part in parts],
            "config": dict(self.model.config),
        }
        return json.dumps(question).encode()

    async def _send(self, body: bytes, timeout: float | None) -> tuple[Server, int, bytes]:
        """The answer of the first server that takes the call. Raises MemberFailed."""
        now = time.monotonic()
        awake = [s for s in self.servers if s.out_until <= now] or list(self.servers[:1])
        problem = ""
        for server in awake:
            async with server.free:
                try:
                    async with asyncio.timeout(timeout):
                        status, answer = await self.wire.exchange(
                            server, "/Evaluate", body, _largest(sum(self.sizes[1]))
                        )
                        return server, status, answer
                except Unreachable as error:
                    server.out_until = time.monotonic() + REST
                    problem = problem or f"{error}, though it was there when the run began"
                except TimeoutError:
                    raise MemberFailed(
                        Cause.TIMEOUT, f"no answer from {server} in {timeout:g} s"
                    ) from None
        raise MemberFailed(Cause.LOST, problem)


async def _ask_all(wire: Wire, servers: Sequence[Server], model: UMBridge) -> list[Sizes]:
    return await asyncio.gather(*[_ask(wire, server, model) for server in servers])


async def _ask(wire: Wire, server: Server, model: UMBridge) -> Sizes:
    """What a server says of the model. Raises InputError where it cannot be used."""
    info = await _say(wire, server, "/Info", None, "protocolVersion", "models")
    if info["protocolVersion"] != 1:
        raise InputError(
            f"{server} speaks version {short(info['protocolVersion'])} of the UM-Bridge protocol; "
            "expected 1.0"
        )
    names = [str(n) for n in info["models"]] if isinstance(info["models"], list) else []
    if model.model not in names:
        near = difflib.get_close_matches(model.model, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        has = short(", ".join(map(repr, names))) or "none"
        raise InputError(f"{server} has no model {model.model!r}; {hint}it has {has}")
    about = {"name": model.model}
    support = (await _say(wire, server, "/ModelInfo", about, "support"))["support"]
    if not (isinstance(support, dict) and support.get("Evaluate")):
        raise InputError(f"the model {model.model!r} at {server} does not support Evaluate")
    about |= {"config": dict(model.config)}
    given = await _say(wire, server, "/InputSizes", about, "inputSizes")
    wanted = await _say(wire, server, "/OutputSizes", about, "outputSizes")
    return (
        _sizes(server, "inputSizes", given["inputSizes"]),
        _sizes(server, "outputSizes", wanted["outputSizes"]),
    )


async def _say(
    wire: Wire, server: Server, path: str, question: dict[str, Any] | None, *keys: str
) -> dict[str, Any]:
    """The answer to a question about the model, which has these keys."""
    body = None if question is None else json.dumps(question).encode()
    try:
        async with asyncio.timeout(PATIENCE):
            status, answer = await wire.exchange(server, path, body, LARGEST_ABOUT)
        found = document(server, status, answer)
    except Unreachable as error:
        raise InputError(f"{error}; start the model's server first, or correct the url") from None
    except TimeoutError:
        raise InputError(f"{server} did not answer {path} within {PATIENCE:g} s") from None
    except MemberFailed as error:
        if error.failure.cause is Cause.REPORTED:
            raise InputError(f"{server} refused {path}: {error.failure.detail}") from None
        raise InputError(f"{server} is no UM-Bridge server; asked for {path}: {error}") from None
    for key in keys:
        if key not in found:
            raise InputError(f"{server} is no UM-Bridge server: its {path} has no {key!r}")
    return found


def _sizes(server: Server, key: str, sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise InputError(f"{server} gave {key} = {short(sizes)}; expected a list of lengths")
    if not sum(sizes):
        raise InputError(f"{server} gave {key} = {sizes}: there is not a single number")
    return tuple(sizes)


def _agreed(servers: Sequence[Server], all_sizes: Sequence[Sizes]) -> Sizes:
    for server, sizes in zip(servers, all_sizes, strict=True):
        if sizes != all_sizes[0]:
            raise InputError(
                f"{server} has sizes {sizes[0]} to {sizes[1]}, but {servers[0]} has "
                f"{all_sizes[0][0]} to {all_sizes[0][1]}; expected the same model on all servers"
            )
    return all_sizes[0]


def _check_shape(
    name: str, shape: Sequence[int] | None, sizes: Sequence[int], endpoint: str
) -> None:
    if shape is not None and int(np.prod(shape, dtype=int)) != sum(sizes):
        raise InputError(
            f"{name} is {tuple(shape)}, that is {int(np.prod(shape, dtype=int))} numbers; the "
            f"model has {endpoint} {list(sizes)}, that is {sum(sizes)}"
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        good = False
    if not good or parts.query or parts.fragment:
        hint = f"; did you mean http://{url}?" if "://" not in url else ""
        raise InputError(f"url is {url!r}; expected one such as http://localhost:4242{hint}")


def _numbers(found: dict[str, Any], sizes: Sequence[int], server: Server) -> ndarray:
    """The output vectors one after another, shape (sum(sizes),); null becomes NaN."""
    output = found.get("output")
    if not isinstance(output, list) or not all(isinstance(part, list) for part in output):
        raise MemberFailed(Cause.MALFORMED, f"{server} answered without a list of lists `output`")
    lengths = [len(part) for part in output]
    if lengths != list(sizes):
        raise MemberFailed(
            Cause.SHAPE, f"output vectors of lengths {short(lengths)}; expected {list(sizes)}"
        )
    values = [value for part in output for value in part]
    if not set(map(type, values)) <= {float, int, type(None)}:
        raise MemberFailed(Cause.MALFORMED, "the output holds something that is not a number")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond float64
        return np.array([np.nan if v is None else float(str(v)) for v in values])


def _largest(count: int) -> int:
    """Bytes that the answer of `count` numbers may have, with generous white space."""
    return 64 * count + (1 << 16)
