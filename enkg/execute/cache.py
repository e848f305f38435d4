"""The cache: members that were simulated before are not simulated again.

A member's answer is kept in a file of its own, under a name made of the simulator's identity, the
version and the member's bits. Several processes may share one directory. A file is a NumPy array
with a checksum behind it; one that is damaged counts as not there.
"""

import hashlib
import io
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure, InputError
from enkg.execute.function import opened
from enkg.execute.identity import identity_of
from enkg.execute.remember import Settled, ShapesDiffer, complete
from enkg.failure import Failure, FailurePolicy
from enkg.simulator import Announce, Evaluator, Progress, Result

log = logging.getLogger("enkg")

TOLERANCE = 1e-5
"""Largest difference between an answer and its repetition, by the answer's largest number."""
MARK = b"enkgcrc1"
"""Stands before the checksum."""
TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory holds answers of simulators, kept by enkg (see README.txt).
# About cache directory tags: https://bford.info/cachedir/
"""
README = """Answers of simulators, kept by enkg.Cached: a NumPy file for each member, with its
simulated data. The name of a file is a digest of the simulator and of the member. Any file, or the
whole directory, may be removed at any time; what is missing is simulated again.
"""


@runtime_checkable
class Identified(Protocol):
    """A simulator that says what its answers depend on."""

    def identity(self) -> str:
        """Changes when, and only when, the same member may get another answer."""
        ...


@dataclass
class _Trust:
    """Whether what lies in the cache was compared with the simulator already."""

    gained: bool = False


@dataclass(frozen=True)
class Cached:
    """Any simulator, whose answers are kept in a directory.

    simulator: a function or an adapter. directory: where the answers are kept; made if it is not
    there. version: of what the simulator's identity does not show, such as the code that it
    imports; another version means other answers.

    Only successes are kept. Members that are the same to the last bit count as one. The first time
    that members are found in the cache, one of them is simulated nevertheless: InputError if the
    simulator gives something else than the cache.

    Costs the read or the write of one file for each member: some 0.5 ms for a field of 128 x 128.
    """

    simulator: Any
    directory: str | Path
    version: str = ""
    _trust: _Trust = field(default_factory=_Trust, init=False, repr=False, compare=False)

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        identity = identity_of(self.simulator, strict=not self.version)
        store = _Store(Path(self.directory))
        with opened(self.simulator, policy, folder) as inner:
            yield _Evaluator(inner, store, f"{identity}\n{self.version}\n", self._trust)

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """Starts the simulator, evaluates one batch and stops it again. See `Evaluator`."""
        with self.opened(FailurePolicy(), None) as evaluator:
            return evaluator.evaluate(x, progress)

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y


@dataclass
class _Evaluator:
    inner: Evaluator
    store: "_Store"
    simulator: str
    trust: _Trust
    announce: Announce | None = None
    others: tuple[int, int] = (0, 0)

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        keys = [self._key(row) for row in x]
        places: dict[str, list[int]] = {}
        for j, key in enumerate(keys):
            places.setdefault(key, []).append(j)
        distinct = list(places)  # members that are the same are asked for once
        known = {
            k: Settled(row)
            for k, key in enumerate(distinct)
            if (row := self.store.read(key)) is not None
        }
        found = sum(len(places[distinct[k]]) for k in known)
        log.info("cache: %d of %d members found", found, len(x))
        first = [places[key][0] for key in distinct]
        # Before anything new stands beside what may be out of date.
        calls = 0 if self.trust.gained else self._check(x[first], known)

        def settled(k: int, y: ndarray | None, failure: Failure | None, calls: int) -> None:
            if self.announce is not None:
                for j in places[distinct[k]]:
                    self.announce(j, y, failure, calls)
                    calls = 0  # once for all of them

        def keep(k: int, y: ndarray | None, failure: Failure | None, calls: int) -> None:
            if y is not None:
                self.store.write(distinct[k], y)
            settled(k, y, failure, calls)

        def simulated(count: int, _: int) -> None:
            if progress is not None:
                progress(len(x) - len(distinct) + count, len(x))

        for k, member in known.items():
            settled(k, member.y, None, 0)
        try:
            result = complete(self.inner, x[first], known, keep, simulated, self.others)
        except ShapesDiffer as error:
            raise self._changed(str(error)) from None
        row = {key: k for k, key in enumerate(distinct)}
        rows = [row[key] for key in keys]
        return Result(result.y[rows], tuple(result.failures[k] for k in rows), calls + result.calls)

    def _check(self, x: ndarray, known: Mapping[int, Settled]) -> int:
        """Simulates one of the known members again; returns the calls."""
        for k, member in known.items():
            try:
                answer = complete(self.inner, x[k : k + 1], {}, lambda *_: None)
            except EnsembleFailure as error:
                if not error.failures:
                    raise
                return error.calls
            if answer.failures[0] is None and member.y is not None:
                self._compare(member.y, answer.y[0])
            return answer.calls
        return 0

    def _key(self, row: ndarray) -> str:
        row = np.ascontiguousarray(row)
        known = hashlib.sha256(f"{self.simulator}{row.dtype.str} {row.shape}\n".encode())
        known.update(row.tobytes())
        return known.hexdigest()

    def _compare(self, kept: ndarray, now: ndarray) -> None:
        same = kept.shape == now.shape and np.allclose(
            kept, now, rtol=0, atol=TOLERANCE * _scale(kept), equal_nan=True
        )
        if not same:
            how = (
                f"shape {kept.shape} became {now.shape}"
                if kept.shape != now.shape
                else f"one of them, with numbers up to {_scale(kept):.3g}, is now another by "
                f"{_scale(now - kept):.2g}"
            )
            raise self._changed(how)
        self.trust.gained = True

    def _changed(self, how: str) -> InputError:
        return InputError(
            f"the answers in the cache {self.store.root} are not those of this simulator: {how}. "
            "Either it changed since they were written: use another directory, or another "
            "version=. Or its answers vary from call to call: then it cannot be cached"
        )


class _Store:
    """Files of answers. Two processes may read and write the same one at the same time."""

    def __init__(self, root: Path) -> None:
        self.root, self.writes = root, True
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the cache directory {root} cannot be made: {error.strerror}"
            ) from error
        for name, text in (("CACHEDIR.TAG", TAG), ("README.txt", README)):
            if not (root / name).exists():
                self._put(root / name, text.encode())

    def read(self, key: str) -> ndarray | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, end = data[: -len(MARK) - 4], data[-len(MARK) - 4 :]
        if end == _checksum(key, body):
            with suppress(ValueError, EOFError):
                return np.load(io.BytesIO(body), allow_pickle=False)
        log.warning("cache: %s is damaged; its member is simulated again", path)
        return None

    def write(self, key: str, row: ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, row, allow_pickle=False)
        body = buffer.getvalue()
        self._put(self._path(key), body + _checksum(key, body))

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key[2:]}.npy"

    def _put(self, path: Path, data: bytes) -> None:
        """All of the file or nothing. If that cannot be, the run goes on without it."""
        if not self.writes:
            return
        part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                part.write_bytes(data)
                os.replace(part, path)
            except OSError:
                with suppress(OSError):
                    part.unlink()
                raise
        except OSError as error:
            self.writes = False
            log.warning(
                "cache: nothing more is kept in %s, since it cannot be written: %s",
                self.root,
                error.strerror or error,
            )


def _checksum(key: str, body: bytes) -> bytes:
    """For this member's answer alone: a file under another member's name is damaged, too."""
    return MARK + zlib.crc32(body, zlib.crc32(key.encode())).to_bytes(4, "little")


def _scale(row: ndarray) -> float:
    finite = np.abs(row[np.isfinite(row)])
    return float(finite.max()) if finite.size else 0.0
