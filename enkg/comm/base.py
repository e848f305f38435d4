"""What the ranks of a run say to each other, and the form for one process alone.

A run on P ranks (single program, multiple data) holds its ensemble in P contiguous blocks of
members. Three things cross the borders: simulated data, which every rank needs of all members
(`rows`); operations that mix members, which see all members of some unknowns (`across`,
`by_unknown`); and decisions, which rank 0 takes (`once`).

Operations that mix members work on tiles of `TILE` unknowns, always the same ones, however many
ranks there are. A product of matrices gives other last bits for another width, so this is what
makes the result the same on any number of ranks.
"""

import io
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.errors import EnkgError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
TILE = 256
"""Unknowns of one tile. It enters the last bits of every result."""


class Comm(Protocol):
    """The ranks of a run. All methods but `abort` are collective: every rank calls them, in the
    same order."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def local_rank(self) -> int:
        """This process among those of its node, from 0."""
        ...

    @property
    def local_size(self) -> int:
        """Number of processes of this node."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Small picklable values of all ranks, in rank order, on every rank."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        ...

    def rows(self, x: Tensor) -> Tensor:
        """All ranks' rows, (J_r, *Y) to (J, *Y), in rank order, on every rank. A rank without rows
        may give any shape (0, ...)."""
        ...

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Part k, of two axes, goes to rank k; returns what came from each rank."""
        ...

    def barrier(self) -> None:
        """Waits for all ranks, without keeping a core busy; signals are still handled."""
        ...

    def abort(self, code: int) -> NoReturn:
        """Ends all ranks at once, with this exit code."""
        ...


class Alone:
    """One process that holds every member."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def rows(self, x: Tensor) -> Tensor:
        return x

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def barrier(self) -> None: ...

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)


ALONE = Alone()


def share(count: int, size: int, rank: int) -> range:
    """This rank's block of `count` things, as even as can be; the first ranks take one more.

    >>> [list(share(7, 3, rank)) for rank in range(3)]
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    each, more = divmod(count, size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def once(comm: Comm, f: Callable[[], T]) -> T:
    """f() of rank 0, for everybody. What it raises, every rank raises."""
    if comm.size == 1:
        return f()
    outcome: tuple[Any, BaseException | None] = (None, None)
    if comm.rank == 0:
        try:
            outcome = f(), None
        except (Exception, SystemExit) as error:  # whatever it is, all ranks must know
            outcome = None, _portable(error)
    value, error = comm.broadcast(outcome)
    if error is not None:
        raise raised_by_all(error)
    return value


def together(comm: Comm, f: Callable[[], T]) -> T:
    """f() of each rank. If it raises on any rank, every rank raises the first one's error."""
    if comm.size == 1:
        return f()
    value, error = None, None
    try:
        value = f()
    except (Exception, SystemExit) as caught:  # whatever it is, all ranks must know
        error = _portable(caught)
    errors = comm.gather(error)
    for rank, found in enumerate(errors):
        if found is not None:
            if any(str(other) != str(found) for other in errors):
                found.add_note(f"on rank {rank} of {comm.size}")
            raise raised_by_all(found) from (error if rank == comm.rank else None)
    return value  # type: ignore[return-value]


@contextmanager
def one_for_all(comm: Comm) -> Iterator[None]:
    """Ends all ranks if this one cannot go on: the others would wait for it for ever.

    Exit code: the error's own `code`, else 130 for Ctrl-C and 1 for all else. An error that every
    rank raised passes, so that it can be told once.
    """
    try:
        yield
    except BaseException as error:
        if comm.size == 1 or is_common(error):
            raise
        by_hand = isinstance(error, KeyboardInterrupt)
        if comm.rank == 0 or not by_hand:
            text = str(error) or "stopped by the keyboard"
            text = text if by_hand else f"{type(error).__name__}: {text}"
            print(f"enkg: rank {comm.rank} of {comm.size}: {text}", file=sys.stderr, flush=True)
        code = getattr(error, "code", 130 if by_hand else 1)
        comm.abort(code if isinstance(code, int) else 1)


def is_common(error: BaseException) -> bool:
    """Whether every rank raised this error, so that one of them can speak for all."""
    return getattr(error, "enkg_common", False)


def raised_by_all(error: E) -> E:
    """The same error, marked: no rank waits for the one that raises it."""
    error.enkg_common = True  # type: ignore[attr-defined]
    return error


def packed(value: Any) -> bytes:
    """A value for another process. Tensors travel by way of the CPU and arrive there."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return torch.from_numpy, (obj.detach().cpu().numpy(),)
        return NotImplemented


def _portable(error: BaseException) -> BaseException:
    """The error itself where it can travel, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class that cannot be pickled raises anything
        return EnkgError(f"{type(error).__name__}: {error}")
    return error


def across(comm: Comm, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """An operation that mixes members: f of all members, tile by tile of the unknowns.

    x: this rank's members, (J_r, *X). f: (J, w) to (J, w) for the w unknowns of a tile, in rank
    order of the members. Returns this rank's rows, (J_r, *X), in the dtype that f gives.

    Each rank sends and receives 2 S (P - 1) / P^2 bytes of an ensemble of S bytes, and holds
    three times its S / P.
    """
    flat = rows(x)
    mine, widths = _transposed(comm, flat)
    out = [f(tile) for tile in _tiles(mine)]
    moved = torch.cat(out, dim=1) if out else mine
    if comm.size == 1:
        return moved.reshape(x.shape)
    told = comm.gather((len(flat), moved.dtype if out else None))
    # A rank without unknowns has not seen the dtype that f gives.
    dtype = next((dtype for _, dtype in told if dtype is not None), moved.dtype)
    back = comm.swap(list(moved.to(dtype).split([count for count, _ in told])))
    return torch.cat([part for part, w in zip(back, widths, strict=True) if w], dim=1).reshape(
        x.shape
    )


def by_unknown(comm: Comm, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """A statistic over members: f of all members, tile by tile of the unknowns.

    x: this rank's members, (J_r, *X). f: (J, w) to (w, ...). Returns f for all unknowns, (d, ...),
    on every rank.
    """
    mine, _ = _transposed(comm, rows(x))
    found = [f(tile) for tile in _tiles(mine)]
    return comm.rows(torch.cat(found) if found else mine.new_zeros(0))


def at_root(comm: Comm, x: Tensor) -> Tensor:
    """All members on rank 0, (J_r, *X) to (J, *X); the other ranks get none, (0, *X)."""
    if comm.size == 1:
        return x
    flat = rows(x)
    came = torch.cat(comm.swap([flat] + [flat[:0]] * (comm.size - 1)))
    return came.reshape(len(came), *x.shape[1:]) if comm.rank == 0 else x[:0]


def _transposed(comm: Comm, flat: Tensor) -> tuple[Tensor, list[int]]:
    """All members of this rank's unknowns, (J, w_r), and each rank's w."""
    if comm.size == 1:
        return flat, [flat.shape[1]]
    d = flat.shape[1]
    tiles = -(-d // TILE)
    runs = [share(tiles, comm.size, rank) for rank in range(comm.size)]
    widths = [min(run.stop * TILE, d) - min(run.start * TILE, d) for run in runs]
    return torch.cat(comm.swap(list(flat.split(widths, dim=1)))), widths


def _tiles(x: Tensor) -> list[Tensor]:
    # A copy of each: the last bits of a product depend on how its factors lie in memory.
    return [tile.contiguous() for tile in x.split(TILE, dim=1)] if x.shape[1] else []
