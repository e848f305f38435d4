"""What an unfinished run has on the disk, so that it can go on after any death.

    checkpoint/   where the run stood after a step (`enkg.checkpoint`)
    first/        the first clean ensemble and its data, which the results need
    answers/      what the simulator gave since that checkpoint (`enkg.ledger`)

The run after a checkpoint is repeated from the answers, bit for bit, without a simulator call. So
checkpoints need not follow each step: one is written where it costs less than `SHARE` of the time
since the last.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from torch import Tensor

from enkg import store
from enkg.checkpoint import Checkpoints, pack, unpack
from enkg.comm import Comm, once
from enkg.forward import Count
from enkg.guidance import State
from enkg.ledger import Ledger

SHARE = 0.02
"""Largest share of a run's time that its checkpoints take."""


@dataclass(eq=False)
class Standing:
    """Where a run stands: all that its results are made of.

    denoiser_calls, denoiser_vjps, vjps: of all ranks. rows: the trace so far. first: the first
    clean ensemble of this rank, and the data of all. seconds: of the run's earlier lives.
    """

    state: State
    count: Count
    denoiser_calls: int = 0
    denoiser_vjps: int = 0
    vjps: int = 0
    rows: tuple[dict[str, float], ...] = ()
    first: tuple[Tensor, Tensor] | None = None
    seconds: float = 0.0


class Journal:
    """Keeps a run's standing in its directory; without a directory, keeps nothing. All methods are
    collective."""

    def __init__(self, folder: Path | None, comm: Comm) -> None:
        self.folder, self.comm = folder, comm
        self.ledger: Ledger | None = None
        self._last, self._cost = perf_counter(), 0.0
        self._first_kept, self._before = False, 0
        if folder is not None:
            self._steps = Checkpoints(folder / store.CHECKPOINT, comm)
            self._first = Checkpoints(folder / store.FIRST, comm)

    def restore(self, kind: type[State], like: Tensor) -> Standing | None:
        """The newest standing, and the ledger from there on; None where the run has just begun.

        kind: the class of the method's state. like: dtype and device of the ensemble.
        """
        if self.folder is None:
            return None
        standing = None
        found, first = self._steps.load(), self._first.load()
        if found is not None and first is not None:
            _, mine, ours = found
            state = unpack(kind, mine, ours["state"], self.comm)
            x0, y = first[1]["x"].to(like.device), first[2]["y"].to(like.device)
            standing = Standing(
                state.to(like.device),
                Count.from_mapping(ours["count"]),
                ours["denoiser_calls"],
                ours["denoiser_vjps"],
                ours.get("vjps", 0),  # version 0.4 had none
                tuple(ours["rows"]),
                (x0, y),
                ours["seconds"],
            )
            self._first_kept, self._before = True, standing.count.batches
        batches = standing.count.batches if standing else 0
        self.ledger = Ledger(self.folder / store.ANSWERS, self.comm.rank, self.comm.size, batches)
        return standing

    def keep(self, standing: Standing) -> None:
        """Writes a checkpoint if it is due."""
        if self.folder is None or standing.first is None:
            return
        now = perf_counter()
        if not once(self.comm, lambda: SHARE * (now - self._last) >= self._cost):
            return
        mine, ours = pack(standing.state)
        ours = {
            "state": ours,
            "count": standing.count.as_mapping(),
            "denoiser_calls": standing.denoiser_calls,
            "denoiser_vjps": standing.denoiser_vjps,
            "vjps": standing.vjps,
            "rows": list(standing.rows),
            "seconds": standing.seconds,
        }
        if not self._first_kept:
            x0, y = standing.first
            self._first_kept = self._first.save(0, {"x": x0}, {"y": y})
        kept = self._first_kept and self._steps.save(standing.state.step, mine, ours)
        if kept and self.ledger is not None:
            # Not what came after the checkpoint before: should this one be damaged, it counts.
            self.ledger.forget(self._before)
            self._before = standing.count.batches
        self._last = perf_counter()
        self._cost = self._last - now

    def pardon(self, batch: int) -> None:
        """Too many members failed in a batch: the next life of the run tries them again."""
        if self.ledger is not None:
            self.ledger.pardon(batch)

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()

    def remove(self) -> None:
        """Once the results are written."""
        self.close()
        self.comm.barrier()
        if self.comm.rank == 0 and self.folder is not None:
            store.clear(self.folder)
