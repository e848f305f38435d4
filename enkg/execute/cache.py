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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy import ndarray

from enkg.errors import EnsembleFailure, InputError
from enkg.execute.function import opened
from enkg.execute.identity import identity_of
from enkg.execute.slots import Slots
from enkg.failure import Failure, FailurePolicy
from enkg.simulator import Evaluator, Progress, Result

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

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        keys = [self._key(row) for row in x]
        first: dict[str, int] = {}
        for j, key in enumerate(keys):
            first.setdefault(key, j)
        known = {key: row for key in first if (row := self.store.read(key)) is not None}
        missing = [j for key, j in first.items() if key not in known]
        again = [] if self.trust.gained else [first[key] for key in known][:1]
        log.info("cache: %d of %d members found", len(x) - len(missing), len(x))
        done, calls, failures = len(x) - len(missing), 0, dict[str, Failure | None]()
        if again:  # before anything new stands beside what may be out of date
            answer = self._asked(x[again], True, lambda count, _: None)
            calls += answer.calls
            if answer.failures[0] is None:
                self._compare(known[keys[again[0]]], answer.y[0])
        if known and not missing:
            if progress is not None:
                progress(len(x), len(x))
            return self._joined(keys, known, {}, calls, ())

        def simulated(count: int, _: int) -> None:
            if progress is not None:
                progress(min(len(x), done + count), len(x))

        kept: set[int] = set()

        def keep(j: int, row: ndarray) -> None:
            kept.add(j)
            self.store.write(keys[missing[j]], row)

        with self._announced(keep):
            answers = self._asked(x[missing], bool(known), simulated)
        for k, (j, row) in enumerate(zip(missing, answers.y, strict=True)):
            failures[keys[j]] = answers.failures[k]
            if answers.failures[k] is None:
                known[keys[j]] = row
                if k not in kept:
                    keep(k, row)
        return self._joined(keys, known, failures, calls + answers.calls, answers.y.shape[1:])

    @contextmanager
    def _announced(self, keep: Callable[[int, ndarray], None]) -> Iterator[None]:
        """What is paid for is kept at once, should we be killed; by adapters that tell of it."""
        slots = getattr(self.inner, "slots", self.inner)
        if not isinstance(slots, Slots):
            yield
            return
        slots.announce = keep
        try:
            yield
        finally:
            slots.announce = None

    def _key(self, row: ndarray) -> str:
        row = np.ascontiguousarray(row)
        known = hashlib.sha256(f"{self.simulator}{row.dtype.str} {row.shape}\n".encode())
        known.update(row.tobytes())
        return known.hexdigest()

    def _asked(self, x: ndarray, others: bool, progress: Progress) -> Result:
        """Answers of the simulator. That all of these members fail is fatal if all members do."""
        x.setflags(write=False)
        try:
            return self.inner.evaluate(x, progress)
        except EnsembleFailure as error:
            if not others:
                raise
            if len(error.failures) != len(x):
                raise
            return Result(np.full((len(x), 0), np.nan), error.failures, error.calls)

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

    def _joined(
        self,
        keys: list[str],
        known: dict[str, ndarray],
        failures: dict[str, Failure | None],
        calls: int,
        blank: tuple[int, ...],
    ) -> Result:
        shapes = {row.shape for row in known.values()}
        if len(shapes) > 1:
            raise self._changed(f"there are shapes {sorted(shapes)}")
        kinds = {row.dtype for row in known.values()} or {np.dtype(np.float64)}
        shape = shapes.pop() if shapes else blank
        y = np.full((len(keys), *shape), np.nan, np.result_type(*kinds))
        for j, key in enumerate(keys):
            if key in known:
                y[j] = known[key]
        return Result(y, tuple(failures.get(key) for key in keys), calls)


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
