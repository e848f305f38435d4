"""The ledger: what every member's call gave, on the disk as soon as it came.

A run that was killed goes on from its last checkpoint and asks the simulator again for what came
after it. What is in the ledger is not asked again: a killed run loses only the calls that were
running. Failures that are final are kept as well, so that the run decides as it did before.

The folder has a file for each forward call of the run and each rank, to which that rank only
appends; any number of ranks can read them later. A file is a sequence of records:

    MAGIC, kind, batch, place of the member among all, digest of the member's bits, calls,
    bytes and CRC-32 of the body, CRC-32 of all this
    body: length of a text; the text (JSON); the answer's numbers

A record that is torn or damaged counts as not there.
"""

import hashlib
import json
import logging
import math
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import StoreError
from enkg.execute.remember import Settled, complete
from enkg.failure import Cause, Failure
from enkg.simulator import Evaluator, Progress, Result

log = logging.getLogger("enkg")

MAGIC = b"EKL1"
HEAD = struct.Struct("<4sIQQ16sQQI")
CHECK = struct.Struct("<I")
SIZE = HEAD.size + CHECK.size
ANSWER, FAILURE, REST, PARDON = range(4)
"""Kinds of record. REST: calls that belong to no member. PARDON: failures before it are void."""
NAME = re.compile(r"batch-(\d+)-rank-(\d+)\.log")
SYNC = 5.0
"""Seconds between two requests to the disk; a node that dies loses what came since."""
BLOCK = 1 << 20
"""Bytes read at once in the search for the next record."""


@dataclass(frozen=True)
class _Record:
    kind: int
    batch: int
    place: int
    digest: bytes
    calls: int
    bytes: int
    """Of the body."""
    crc: int
    """Of the body."""
    at: int = 0
    """Where the record begins in its file."""

    @property
    def end(self) -> int:
        return self.at + SIZE + self.bytes


class Ledger:
    """The ledger of one rank.

    folder: of all ranks; made if it is not there. after: what belongs to earlier batches is not
    looked at. size: number of ranks now; whatever the number was before, all is found.

    Cost: one write of each answer; a request to the disk to keep them every `SYNC` seconds. If the
    disk refuses, the run goes on without a ledger, and the log says so. Raises StoreError if the
    folder cannot be made.
    """

    def __init__(self, folder: Path, rank: int, size: int, after: int = 0) -> None:
        self.folder, self.rank, self.size, self.after = folder, rank, size, after
        self.writes = True
        self._lock = threading.Lock()
        self._file: int | None = None
        self._end = 0
        self._synced = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder of answers {folder}: {error}") from error
        # Files by batch and rank, with the bytes of former lives of the run: what the other ranks
        # write in this one is their own.
        self._there: dict[tuple[int, int], float] = {}
        for entry in os.scandir(folder):
            if name := NAME.fullmatch(entry.name):
                self._there[int(name[1]), int(name[2])] = entry.stat().st_size

    def evaluate(
        self,
        inner: Evaluator,
        x: ndarray,
        batch: int,
        first: int,
        progress: Progress | None = None,
        others: tuple[int, int] = (0, 0),
    ) -> Result:
        """The evaluator's answers for this rank's members, with as few calls as can be.

        x: (B, *X). batch: number of the forward call in the run. first: place of x[0] among the
        members of all ranks. others: see `enkg.simulator.Judging`. Members that are in the ledger,
        with the same batch, place and bits, are not evaluated again; their calls count as if they
        were. Raises what the evaluator raises.
        """
        digests = [digest(row) for row in x]
        known, rest = self._known(digests, batch, first)
        if known:
            log.info("ledger: %d of %d answers found", len(known), len(x))
        spent = 0

        def keep(j: int, y: ndarray | None, failure: Failure | None, calls: int) -> None:
            nonlocal spent
            about, numbers = _told(y, failure)
            kind = ANSWER if failure is None else FAILURE
            record = _packed((kind, batch, first + j, digests[j], calls), about, numbers)
            with self._lock:
                spent += calls
                self._append(record)

        self._open(batch)
        try:
            result = complete(inner, x, known, keep, progress, others)
            extra = result.calls - spent - sum(member.calls for member in known.values())
            if extra > 0:
                with self._lock:
                    self._append(_packed((REST, batch, 0, bytes(16), extra), {}, b""))
        finally:
            self._shut()
        return Result(result.y, result.failures, result.calls + rest)

    def pardon(self, batch: int) -> None:
        """Voids the failures of a batch, so that the next life of the run tries them again.

        For a batch in which too many failed: the user is going to mend the simulator. By each rank.
        """
        record = _packed((PARDON, batch, 0, bytes(16), 0), {}, b"")
        for path in self._mine(batch):
            with suppress(OSError):
                handle = os.open(path, os.O_RDWR | os.O_APPEND)
                try:
                    os.ftruncate(handle, _whole(handle))
                    os.write(handle, record)
                finally:
                    os.close(handle)

    def forget(self, before: int) -> None:
        """Removes what belongs to earlier batches. By each rank: it removes its own files, and rank
        0 those of ranks that are no more."""
        for batch in {batch for batch, _ in self._there if batch < before}:
            for path in self._mine(batch):
                with suppress(OSError):
                    path.unlink()
        self._there = {key: size for key, size in self._there.items() if key[0] >= before}

    def close(self) -> None:
        """Nothing more is written."""
        self._shut()

    def _mine(self, batch: int) -> list[Path]:
        """Files of a batch that this rank looks after."""
        ranks = sorted(rank for number, rank in self._there if number == batch)
        mine = [r for r in ranks if r == self.rank or (self.rank == 0 and r >= self.size)]
        return [self._path(batch, rank) for rank in mine]

    def _path(self, batch: int, rank: int) -> Path:
        return self.folder / f"batch-{batch:06d}-rank-{rank:04d}.log"

    # --- reading ------------------------------------------------------------------------------

    def _known(
        self, digests: list[bytes], batch: int, first: int
    ) -> tuple[dict[int, Settled], int]:
        """What is known of these members, and the calls that belong to none and are ours to count.

        Of two records of one member, the first counts.
        """
        known: dict[int, Settled] = {}
        rest = 0
        if batch < self.after:
            return known, rest
        for rank, size in sorted((r, size) for (b, r), size in self._there.items() if b == batch):
            try:
                handle = os.open(self._path(batch, rank), os.O_RDONLY)
            except FileNotFoundError:  # removed by hand, or by a rank that is ahead
                continue
            try:
                found, more = _read(handle, size, digests, batch, first)
            finally:
                os.close(handle)
            known = found | known
            rest += more if self.rank == 0 else 0
        return known, rest

    # --- writing ------------------------------------------------------------------------------

    def _open(self, batch: int) -> None:
        self._shut()
        if not self.writes:
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path(batch, self.rank), flags, 0o666)
            self._there[batch, self.rank] = math.inf
            self._end = _whole(self._file)
            os.ftruncate(self._file, self._end)  # what a killed write left
        except OSError as error:
            self._give_up(error)

    def _append(self, record: bytes) -> None:
        """All of the record or nothing. If that cannot be, the run goes on without it."""
        if self._file is None:
            return
        try:
            written = os.write(self._file, record)
            if written < len(record):
                written += os.write(self._file, record[written:])  # says why
            if written < len(record):
                raise OSError(f"{written} of {len(record)} bytes were written")
            self._end += len(record)
            self._sync()
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            self._give_up(error)

    def _sync(self) -> None:
        if self._file is not None and time.monotonic() - self._synced > SYNC:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _shut(self) -> None:
        with self._lock:
            handle, self._file = self._file, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)

    def _give_up(self, error: OSError) -> None:
        if self.writes:
            log.warning(
                "%s cannot be written: %s. Were this run killed, it would repeat the calls that "
                "came after its last checkpoint",
                self.folder,
                error.strerror or error,
            )
        self.writes = False
        handle, self._file = self._file, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)


def digest(row: ndarray) -> bytes:
    """16 bytes that tell members apart by type, shape and bits."""
    row = np.ascontiguousarray(row)
    found = hashlib.blake2b(f"{row.dtype.str} {row.shape}\n".encode(), digest_size=16)
    found.update(row.data if row.size else b"")
    return found.digest()


def _told(y: ndarray | None, failure: Failure | None) -> tuple[dict[str, Any], bytes]:
    if failure is not None:
        kept = None if failure.kept is None else str(failure.kept)
        return {"cause": str(failure.cause), "detail": failure.detail, "kept": kept}, b""
    assert y is not None
    return {"dtype": y.dtype.str, "shape": list(y.shape)}, y.tobytes()


def _packed(head: tuple[int, int, int, bytes, int], about: dict[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(about).encode()
    body = CHECK.pack(len(text)) + text + numbers
    top = HEAD.pack(MAGIC, *head, len(body), zlib.crc32(body))
    return top + CHECK.pack(zlib.crc32(top)) + body


def _records(handle: int, limit: float = math.inf) -> Iterator[_Record]:
    """All whole heads whose body lies inside of the file, and of its first `limit` bytes."""
    size = min(os.fstat(handle).st_size, limit)
    at = 0
    while at + SIZE <= size:
        data = os.pread(handle, SIZE, at)
        if len(data) == SIZE and data[:4] == MAGIC:
            top = data[: HEAD.size]
            record = _Record(*HEAD.unpack(top)[1:], at=at)
            if CHECK.unpack(data[HEAD.size :])[0] == zlib.crc32(top) and record.end <= size:
                yield record
                at = record.end
                continue
        at = _next(handle, at + 1)


def _next(handle: int, at: int) -> int:
    """Where the next record may begin; after damage only."""
    while True:
        data = os.pread(handle, BLOCK, at)
        found = data.find(MAGIC)
        if found >= 0 or len(data) < len(MAGIC):
            return at + (found if found >= 0 else len(data) + SIZE)
        at += len(data) - len(MAGIC) + 1


def _whole(handle: int) -> int:
    """Bytes of the file up to the end of its last record that is whole."""
    return max((r.end for r in _records(handle) if _body(handle, r) is not None), default=0)


def _body(handle: int, record: _Record) -> bytes | None:
    data = os.pread(handle, record.bytes, record.at + SIZE)
    return data if zlib.crc32(data) == record.crc and len(data) == record.bytes else None


def _read(
    handle: int, limit: float, digests: list[bytes], batch: int, first: int
) -> tuple[dict[int, Settled], int]:
    """What a file holds of these members, and the calls that belong to none."""
    found: dict[int, Settled] = {}
    rest = 0
    for record in _records(handle, limit):
        j = record.place - first
        if record.batch != batch:
            continue
        if record.kind == PARDON:
            found = {k: member for k, member in found.items() if member.failure is None}
        elif record.kind == REST:
            rest += record.calls
        elif 0 <= j < len(digests) and record.digest == digests[j] and j not in found:
            member = _member(_body(handle, record), record)
            if member is not None:
                found[j] = member
    return found, rest


def _member(body: bytes | None, record: _Record) -> Settled | None:
    if body is None:
        return None
    (length,) = CHECK.unpack(body[: CHECK.size])
    about = json.loads(body[CHECK.size : CHECK.size + length])
    if record.kind == FAILURE:
        if about["cause"] not in list(Cause):  # of a later version
            return None
        kept = about["kept"] and Path(about["kept"])
        return Settled(None, Failure(Cause(about["cause"]), about["detail"], kept), record.calls)
    numbers = np.frombuffer(body, np.dtype(about["dtype"]), offset=CHECK.size + length)
    return Settled(numbers.reshape(about["shape"]), None, record.calls)
