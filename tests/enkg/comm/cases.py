"""What every rank does to show that the ranks of a run work; rank 0 writes what it found.

Started with a folder for the report. Whatever goes wrong on a rank ends all of them.
"""

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from enkg.comm import ALONE, Comm, across, by_unknown, is_common, once, share, together, world
from enkg.errors import EnkgError, InputError

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()
MEMBERS, UNKNOWNS = (7, 10, 101), (1, 5, 255, 256, 257, 1000)
DTYPES = (torch.float32, torch.float64)


def blocks(count: int, size: int) -> Iterator[list[int]]:
    """Ways to share members: evenly, one rank with none, all with the last."""
    yield [len(share(count, size, rank)) for rank in range(size)]
    if size > 1:
        yield [0, *(len(share(count, size - 1, rank)) for rank in range(size - 1))]
        yield [0] * (size - 1) + [count]


def mine(comm: Comm, x: Tensor, counts: list[int]) -> Tensor:
    return x[slice(*list(pairwise(accumulate(counts, initial=0)))[comm.rank])]


def ensembles(comm: Comm) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Every ensemble (J, d), a matrix that mixes its members, and a way to share them."""
    for count, d, dtype in product(MEMBERS, UNKNOWNS, DTYPES):
        draw = torch.Generator().manual_seed(count * d)
        x = torch.randn(count, d, generator=draw, dtype=dtype)
        mix = torch.randn(count, count, generator=draw, dtype=dtype)
        ways = list(blocks(count, comm.size))
        for counts in ways if count == 10 else ways[:1]:
            yield x, mix, counts


def mixed_members_are_those_of_one_process(comm: Comm) -> str:
    digest = hashlib.sha256()
    for x, mix, counts in ensembles(comm):
        whole = across(ALONE, x, lambda tile, mix=mix: mix @ tile)
        part = across(comm, mine(comm, x, counts), lambda tile, mix=mix: mix @ tile)
        assert torch.equal(part, mine(comm, whole, counts)), (x.shape, x.dtype, counts)
        if counts[0]:  # shared evenly, as on any number of ranks
            digest.update(np.ascontiguousarray(whole.numpy()).tobytes())
    return digest.hexdigest()


def statistics_of_members_are_those_of_one_process(comm: Comm) -> str:
    digest = hashlib.sha256()

    def several(tile: Tensor) -> Tensor:
        return torch.stack((tile.mean(dim=0), tile.std(dim=0), tile.median(dim=0).values), dim=1)

    def one(tile: Tensor) -> Tensor:
        return tile.sum(dim=0)

    for x, _, counts in ensembles(comm):
        f = one if len(x) == 7 else several
        whole = by_unknown(ALONE, x, f)
        assert torch.equal(by_unknown(comm, mine(comm, x, counts), f), whole), (x.shape, counts)
        if counts[0]:
            digest.update(np.ascontiguousarray(whole.numpy()).tobytes())
    return digest.hexdigest()


def fields_keep_their_shape(comm: Comm) -> None:
    x = torch.arange(7.0 * 2 * 3 * 5).reshape(7, 2, 3, 5)
    for counts in blocks(7, comm.size):
        part = across(comm, mine(comm, x, counts), lambda tile: tile.flip(0))
        assert torch.equal(part, mine(comm, x.flip(0), counts))


def the_operation_decides_the_dtype(comm: Comm) -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))  # one tile: one rank works
    counts = next(blocks(7, comm.size))
    part = across(comm, mine(comm, x, counts), lambda tile: tile.double() / 3)
    assert part.dtype == torch.float64
    assert torch.equal(part, mine(comm, x.double() / 3, counts))


def values_travel(comm: Comm) -> None:
    for value in (comm.rank, None, "x" * comm.rank, {"big": np.arange(300_000.0) * comm.rank}):
        found = comm.gather(value)
        assert len(found) == comm.size
        assert str(found[comm.rank]) == str(value)
    assert comm.gather(comm.rank) == list(range(comm.size))
    assert comm.broadcast({"of": comm.rank, "and": b"\0" * 10**6}) == {
        "of": 0,
        "and": b"\0" * 10**6,
    }
    assert comm.broadcast(None if comm.rank == 0 else comm.rank) is None


def rows_come_in_rank_order(comm: Comm) -> None:
    for dtype in torch.float32, torch.float64, torch.int64, torch.bool:
        y = torch.arange(11 * 2 * 3).reshape(11, 2, 3).remainder(5).to(dtype)
        for counts in blocks(11, comm.size):
            part = mine(comm, y, counts)
            found = comm.rows(part)
            assert found.dtype == dtype
            assert torch.equal(found, y)
            # A rank without members does not know what data look like.
            assert torch.equal(comm.rows(part if len(part) else torch.zeros(0)), y)
    assert comm.rows(torch.zeros(0, 4)).shape == (0, 4)


def parts_reach_their_ranks(comm: Comm) -> None:
    def part(of: int, to: int) -> Tensor:
        return torch.arange(float(of * (to + 2))).reshape(of, to + 2) + 100 * of + to

    for dtype in DTYPES:
        got = comm.swap([part(comm.rank, to).to(dtype) for to in range(comm.size)])
        assert len(got) == comm.size
        for of, piece in enumerate(got):
            assert piece.dtype == dtype
            assert torch.equal(piece, part(of, comm.rank).to(dtype))
    turned = comm.swap([torch.eye(3)[:, : comm.rank + 1].T.T for _ in range(comm.size)])
    assert all(torch.equal(t, torch.eye(3)[:, : of + 1]) for of, t in enumerate(turned))


class Stubborn(Exception):
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("no")


class Forgetful(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def raised(f: Callable[[], object]) -> Exception:
    try:
        f()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def thrower(error: Exception) -> Callable[[], object]:
    def throw() -> object:
        raise error

    return throw


def rank_0_speaks_once(comm: Comm) -> None:
    asked = []
    assert once(comm, lambda: asked.append(comm.rank) or "value") == "value"
    assert asked == ([0] if comm.rank == 0 else [])
    error = raised(lambda: once(comm, thrower(InputError(f"of rank {comm.rank}"))))
    assert type(error) is InputError
    assert str(error) == "of rank 0"
    assert comm.size == 1 or is_common(error)
    for kind in Stubborn("odd"), Forgetful("odd", "more"):
        error = raised(lambda kind=kind: once(comm, thrower(kind)))
        if comm.size > 1:
            assert type(error) is EnkgError
            assert str(error) == f"{type(kind).__name__}: odd"


def an_error_of_one_rank_reaches_all(comm: Comm) -> None:
    assert together(comm, lambda: comm.rank) == comm.rank
    last = comm.size - 1

    def fails() -> None:
        if comm.rank == last:
            raise InputError("bad")

    error = raised(lambda: together(comm, fails))
    assert type(error) is InputError
    assert str(error) == "bad"
    if comm.size > 1:
        assert is_common(error)
        assert error.__notes__ == [f"on rank {last} of {comm.size}"]
        assert (error.__cause__ is not None) == (comm.rank == last)  # where it was raised
    same = raised(lambda: together(comm, thrower(InputError("the same"))))
    assert not getattr(same, "__notes__", [])
    first = raised(lambda: together(comm, thrower(InputError(f"of rank {comm.rank}"))))
    assert str(first) == "of rank 0"
    if comm.size > 1:
        odd = raised(lambda: together(comm, thrower(Stubborn("odd"))))
        assert type(odd) is EnkgError
        assert str(odd) == "Stubborn: odd"


def all_ranks_share_this_node(comm: Comm) -> None:
    assert comm.local_size == comm.size
    assert sorted(comm.gather(comm.local_rank)) == list(range(comm.size))


def a_waiting_rank_handles_signals(comm: Comm) -> None:
    """The last rank comes to the barrier only when rank 0 has handled a signal in there."""
    seen = FOLDER / "signal"
    pid = comm.broadcast(os.getpid())

    def handler(number: int, frame) -> None:
        while frame is not None and frame.f_code.co_name != "barrier":
            frame = frame.f_back
        if frame is not None:
            seen.touch()

    before = signal.signal(signal.SIGTERM, handler) if comm.rank == 0 else None
    comm.barrier()
    if comm.rank == comm.size - 1 and comm.size > 1:
        end = time.monotonic() + 30
        while not seen.exists() and time.monotonic() < end:
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.02)
    comm.barrier()
    comm.barrier()  # no more signals are under way
    if comm.rank == 0:
        signal.signal(signal.SIGTERM, before)
    assert comm.size == 1 or seen.exists()


def a_waiting_rank_leaves_its_core(comm: Comm) -> None:
    comm.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    if comm.rank == comm.size - 1:
        time.sleep(0.6)
    comm.barrier()
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert comm.size == 1 or share < 0.5, f"{share:.0%} of a core"


def main() -> None:
    torch.set_num_threads(1)
    comm = world()
    told = {}
    try:
        for case in CASES:
            told[case.__name__] = sorted(map(str, set(comm.gather(case(comm)))))
    except Exception:  # the other ranks wait for this one
        print(f"rank {comm.rank}:", traceback.format_exc(), file=sys.stderr, flush=True)
        comm.abort(1)
    if comm.rank == 0:
        about = {"size": comm.size, "form": type(comm).__name__, "told": told}
        (FOLDER / "report.json").write_text(json.dumps(about))


CASES: tuple[Callable[[Comm], object], ...] = (
    mixed_members_are_those_of_one_process,
    statistics_of_members_are_those_of_one_process,
    fields_keep_their_shape,
    the_operation_decides_the_dtype,
    values_travel,
    rows_come_in_rank_order,
    parts_reach_their_ranks,
    rank_0_speaks_once,
    an_error_of_one_rank_reaches_all,
    all_ranks_share_this_node,
    a_waiting_rank_handles_signals,
    a_waiting_rank_leaves_its_core,
)

if __name__ == "__main__":
    main()
