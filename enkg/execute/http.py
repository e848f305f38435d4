"""HTTP requests of many threads, each ended at its deadline or on demand.

Made with aiohttp in an event loop of its own, so that no server can hold a call up. Proxies of the
environment are not used, redirections are not followed, an answer has a largest size, and every
request has a connection of its own: load balancers distribute connections, and a server may close
an idle one at any moment.
"""

import asyncio
import errno
import json
import re
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from enkg.errors import InputError
from enkg.failure import Cause, MemberFailed

CONNECT = 10.0
"""Seconds in which a server must take a connection."""


@dataclass(eq=False)
class Server:
    """One server, and what is known of its health. Touched in the thread of the wire only."""

    url: str
    free: asyncio.Semaphore
    """Calls that it still takes."""
    out_until: float = 0.0
    """Left out until then, on the monotonic clock, since it took no connection."""

    def __str__(self) -> str:
        return shown(self.url)


class Unreachable(Exception):
    """The server takes no connection: the call did not reach it, and another may have it."""


class Wire:
    """The event loop and its thread."""

    def __init__(self) -> None:
        self.aiohttp = library()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self.session = self.wait(self._open())

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.submit(work).result()

    def close(self) -> None:
        """Ends what still runs."""
        self.wait(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def exchange(
        self, server: Server, path: str, body: bytes | None, largest: int
    ) -> tuple[int, bytes]:
        """Status and body of the answer; GET without a body. Raises MemberFailed or Unreachable."""
        aiohttp, begun = self.aiohttp, False
        answer = bytearray()
        try:
            async with self.session.request(
                "GET" if body is None else "POST",
                server.url.rstrip("/") + path,
                data=body,
                allow_redirects=False,
            ) as response:
                begun = True
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > largest:
                        raise MemberFailed(
                            Cause.MALFORMED, f"{server} sent more than the {largest} bytes allowed"
                        )
                return response.status, bytes(answer)
        except aiohttp.ServerTimeoutError:
            raise Unreachable(f"{server} took no connection within {CONNECT:g} s") from None
        except aiohttp.ClientConnectorDNSError:
            raise Unreachable(f"the host of {server} is not known") from None
        except aiohttp.ClientConnectorError as error:
            if getattr(error, "errno", None) == errno.ECONNREFUSED:
                raise Unreachable(f"nothing listens at {server}") from None
            raise Unreachable(f"cannot connect to {server}: {short(error)}") from None
        except aiohttp.ClientResponseError as error:
            raise MemberFailed(
                Cause.PROTOCOL, f"{server} does not speak HTTP: {short(error.message)}"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise MemberFailed(
                Cause.TRUNCATED if begun else Cause.LOST,
                f"the connection to {server} broke "
                f"{'amid' if begun else 'before'} its answer: {short(error)}",
            ) from None

    async def _open(self) -> Any:
        aiohttp = self.aiohttp
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,  # a small answer must not become a large one
            trust_env=False,
        )

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.session.close()


def library() -> Any:
    """aiohttp, or an InputError that says how to get it."""
    try:
        import aiohttp
    except ImportError as error:
        raise InputError(
            "UM-Bridge needs the package aiohttp; install it with: pip install 'enkg[umbridge]'"
        ) from error
    return aiohttp


def document(server: Server, status: int, answer: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Raises MemberFailed for all others, error messages included."""
    found = _json(answer)
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict):
        kind = error.get("type", f"HTTP {status}")
        raise MemberFailed(Cause.REPORTED, f"{short(kind)}: {short(error.get('message', ''))}")
    if status in (502, 503, 504):  # from a proxy: the server behind it is away
        raise MemberFailed(Cause.LOST, f"{server} answered with HTTP {status}")
    if status >= 500:
        raise MemberFailed(Cause.REPORTED, f"HTTP {status}: {short(answer)}")
    if 300 <= status < 400:
        raise MemberFailed(Cause.PROTOCOL, f"{server} redirects elsewhere (HTTP {status})")
    if status != 200:
        raise MemberFailed(Cause.PROTOCOL, f"{server} answered with HTTP {status}")
    if not isinstance(found, dict):
        raise MemberFailed(
            Cause.MALFORMED, f"{server} sent no JSON object, but: {short(answer) or 'nothing'}"
        )
    return found


def shown(url: str) -> str:
    """The address without a user's name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def short(text: Any) -> str:
    """A server's words, on one line that harms no terminal."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
    return line if len(line) <= 200 else line[:197] + "..."


def _json(answer: bytes) -> Any:
    """What the JSON says; None if it is none."""
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        pass
    # Python servers write nan and inf, which no standard knows.
    mended = re.sub(rb"-?\bnan\b", b"NaN", re.sub(rb"\binf\b", b"Infinity", answer))
    try:
        return json.loads(mended)
    except (ValueError, RecursionError):
        return None
