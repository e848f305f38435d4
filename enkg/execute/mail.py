"""Letters between the ranks of an MPI world: an array and a few words, sent without pickling.

In each process one thread makes all the MPI calls, so it is enough that MPI lets any one thread at
a time call it. It looks for news and rests in between, the longer the longer nothing came: a
blocking call of MPI would burn a core that a simulator needs, and keep Python from handling
signals.
"""

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.slots import Job

SHORTEST, LONGEST = 20e-6, 2e-3
"""Seconds between two looks."""
LOOKS = 3
"""Between two rests: MPI moves messages along in the calls that ask for them, and tells later."""
SHARE = 0.1
"""Of the time that nothing came; so long is the next rest."""
AXES = 16
HEAD = struct.Struct(f"<4sIQQQQQ8sI{AXES}Q")
"""magic, kind, number, batch, member, attempt, bytes of the words, dtype, axes, shape."""
MAGIC = b"ENKM"
HEADS, WORDS, ARRAYS = range(3)
"""Tags of the messages that make up a letter; the last two only where there is something in it."""


class Kind(IntEnum):
    """What a letter says. The first four come from rank 0's crew when asked for nothing."""

    READY = 1
    UNUSABLE = 2
    BROKEN = 3
    BYE = 4
    CALL = 5
    BEGUN = 6
    ANSWER = 7
    FAILED = 8
    STOP = 9
    END = 10


NO_JOB = Job(0, 0, 0)


@dataclass(frozen=True, eq=False)
class Letter:
    """number: of the call that it is about. array: C-contiguous, not to be changed once sent."""

    kind: Kind
    number: int = 0
    job: Job = NO_JOB
    words: str = ""
    array: ndarray | None = None


class Mail:
    """A process's end of the post. Used as a context; leaving it waits until all is sent.

    comm: an mpi4py communicator, of which a duplicate is made; so every rank must come to this, and
    the constructor waits for it. receive: told of each letter, with the rank
    it came from, in the order in which that rank sent them; by the thread of the post, so it must
    return at once. broken: told of an error of MPI, after which nothing comes or goes. look: called
    at each look for news.

    Raises InputError if MPI was started so that only the main thread may call it.
    """

    def __init__(
        self,
        comm: Any,
        receive: Callable[[int, Letter], None],
        broken: Callable[[Exception], None],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            raise InputError(
                "MPI was started for the main thread alone; controller mode calls it from another "
                "one. Remove the setting mpi4py.rc.thread_level (or MPI4PY_RC_THREAD_LEVEL), or "
                "use an MPI library that was built with threads"
            )
        self._mpi = MPI
        self._comm, request = comm.Idup()  # never freed, since that is a collective call too
        while not request.Test():
            time.sleep(LONGEST)
        self._receive, self._broken, self._look = receive, broken, look
        self._outbox: deque[tuple[int, Letter]] = deque()
        self._leaving: list[tuple[Any, Any]] = []  # requests, and what MPI reads from
        self._arriving: list[tuple[list[Any], int, Letter, bytearray]] = []
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mail", daemon=True)

    def __enter__(self) -> "Mail":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join()

    def send(self, rank: int, letter: Letter) -> None:
        """Returns at once."""
        self._outbox.append((rank, letter))
        self._wake.set()

    def _run(self) -> None:
        last = time.monotonic()
        try:
            while not (self._closing and not self._outbox and not self._leaving):
                if any([self._turn() for _ in range(LOOKS)]):
                    last = time.monotonic()
                self._look()
                rest = SHARE * (time.monotonic() - last)
                if self._wake.wait(min(max(rest, SHORTEST), LONGEST)):
                    self._wake.clear()
        except Exception as error:  # of MPI, or of one of the three functions
            self._broken(error)

    def _turn(self) -> bool:
        """Whether anything came or went."""
        sent, begun = self._dispatch(), self._open()
        return self._deliver() or sent or begun

    def _dispatch(self) -> bool:
        news = bool(self._outbox)
        while self._outbox:
            rank, letter = self._outbox.popleft()
            for tag, data in _parts(letter):
                request = self._comm.Isend([data, self._mpi.BYTE], rank, tag)
                self._leaving.append((request, data))
        self._leaving = [(request, data) for request, data in self._leaving if not request.Test()]
        return news

    def _open(self) -> bool:
        """Begins to receive what has arrived."""
        news, status, head = False, self._mpi.Status(), bytearray(HEAD.size)
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, HEADS, status):
            source, news = status.Get_source(), True
            self._comm.Recv([head, self._mpi.BYTE], source, HEADS)  # it is there
            letter, words = _opened(bytes(head))
            parts = ((WORDS, words), (ARRAYS, None if letter.array is None else _raw(letter.array)))
            requests = [
                self._comm.Irecv([part, self._mpi.BYTE], source, tag)
                for tag, part in parts
                if part is not None and len(part)
            ]
            self._arriving.append((requests, source, letter, words))
        return news

    def _deliver(self) -> bool:
        """Hands over what is complete, each sender's letters in their order."""
        waiting, held = [], set[int]()
        for entry in self._arriving:
            requests, source, letter, words = entry
            if source in held or not all(request.Test() for request in requests):
                held.add(source)
                waiting.append(entry)
                continue
            text = words.decode()
            whole = Letter(letter.kind, letter.number, letter.job, text, letter.array)
            self._receive(source, whole)
        news = len(waiting) < len(self._arriving)
        self._arriving = waiting
        return news


def _parts(letter: Letter) -> list[tuple[int, Any]]:
    """The messages of a letter: tag and bytes."""
    array, words, job = letter.array, letter.words.encode(), letter.job
    dtype, shape = (b"", ()) if array is None else (array.dtype.str.encode(), array.shape)
    if len(shape) > AXES:
        raise InputError(f"an array of {len(shape)} axes; at most {AXES} can be sent to a rank")
    head = HEAD.pack(
        *(MAGIC, letter.kind, letter.number, job.batch, job.member, job.attempt, len(words)),
        *(dtype, len(shape), *shape, *[0] * (AXES - len(shape))),
    )
    parts: list[tuple[int, Any]] = [(HEADS, head)]
    if words:
        parts.append((WORDS, words))
    if array is not None and array.size:
        parts.append((ARRAYS, _raw(array)))
    return parts


def _opened(head: bytes) -> tuple[Letter, bytearray]:
    """The letter as its head tells, its array not yet filled; and room for its words."""
    magic, kind, number, batch, member, attempt, words, dtype, axes, *shape = HEAD.unpack(head)
    if magic != MAGIC:
        raise RuntimeError("a message that is no letter; another user of this communicator?")
    name = dtype.rstrip(b"\0").decode()
    array = np.empty(shape[:axes], np.dtype(name)) if name else None
    return Letter(Kind(kind), number, Job(batch, member, attempt), "", array), bytearray(words)


def _raw(array: ndarray) -> ndarray:
    return array.reshape(-1).view(np.uint8)
