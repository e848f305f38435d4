"""Ranks that are threads of this process, for tests."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import torch
from torch import Tensor


class _Board:
    """What the ranks show each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size


class ThreadComm:
    """See `enkg.comm.Comm`."""

    local_rank = 0
    local_size = 1

    def __init__(self, board: _Board, rank: int) -> None:
        self.board, self.rank, self.size = board, rank, len(board.values)

    def gather(self, value: Any) -> list[Any]:
        self.board.values[self.rank] = value
        self.board.barrier.wait()
        found = list(self.board.values)
        self.board.barrier.wait()
        return found

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def rows(self, x: Tensor) -> Tensor:
        parts = self.gather(x)
        return torch.cat([part for part in parts if len(part)] or parts[:1])

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [row[self.rank] for row in self.gather(list(parts))]

    def barrier(self) -> None:
        self.gather(None)

    def abort(self, code: int) -> NoReturn:
        self.board.barrier.abort()
        raise SystemExit(code)


def spread(size: int, f: Callable[[ThreadComm], Any]) -> list[Any]:
    """f(comm) on each of so many ranks, side by side; what each returned, or the first error."""
    board = _Board(size)

    def run(rank: int) -> Any:
        try:
            return f(ThreadComm(board, rank))
        except BaseException:
            board.barrier.abort()  # the others must not wait for it
            raise

    with ThreadPoolExecutor(size) as pool:
        runs = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for run in runs if (error := run.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [run.result() for run in runs]
