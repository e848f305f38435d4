"""Programs: any executable, described by the simulator.toml in its folder."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute import allocation, launcher, template
from enkg.execute.allocation import usable_cores
from enkg.execute.around import Around
from enkg.execute.manifest import NAME, Manifest
from enkg.execute.oneshot import OneShotDriver
from enkg.execute.reading import read
from enkg.execute.slots import Driver, Slots
from enkg.execute.worker import WorkerDriver
from enkg.failure import FailurePolicy
from enkg.simulator import Evaluator, Progress, Result

log = logging.getLogger("enkg")


@dataclass(frozen=True)
class Program:
    """The program in a folder with a simulator.toml (see `enkg.execute.manifest`).

    folder: where simulator.toml lies. slots: how many members run side by side; None takes the
    usable cores divided by the cores of one member. One-shot programs that srun launches use the
    cores of all nodes of the SLURM allocation. mode: "worker" (the program stays up) or "oneshot"
    (it starts anew for each member); None takes worker where the manifest has it. scratch: where
    run directories are made; None takes memory where there is room, else the temporary folder, and
    the run's own directory where members run on other nodes. ranks: MPI ranks of one member; None
    takes the manifest's.

    Raises InputError for a mistake in the manifest or a program that is not there.
    """

    folder: str | Path
    slots: int | None = None
    mode: Literal["worker", "oneshot"] | None = None
    scratch: str | Path | None = None
    ranks: int | None = None

    def __post_init__(self) -> None:
        manifest = self.manifest
        if self.mode is not None and getattr(manifest, self.mode) is None:
            other = "oneshot" if self.mode == "worker" else "worker"
            raise InputError(
                f"mode is {self.mode!r}, but {manifest.folder / NAME} has only [{other}]"
            )
        if self.slots is not None and self.slots < 1:
            raise InputError(f"slots is {self.slots}; expected at least 1")
        if self.ranks is not None and self.ranks < 1:
            raise InputError(f"ranks is {self.ranks}; expected at least 1")

    @cached_property
    def manifest(self) -> Manifest:
        m = read(self.folder)
        return m if self.ranks is None else replace(m, mpi=replace(m.mpi, ranks=self.ranks))

    @property
    def stays_up(self) -> bool:
        return self.manifest.worker is not None and self.mode != "oneshot"

    @property
    def count(self) -> int:
        """Members that run side by side."""
        return len(self.places())

    def places(self) -> list[tuple[str, ...]]:
        """The nodes of each slot; no names where the slot is on this machine in any case.

        Raises InputError if a SLURM allocation has no room for them.
        """
        m = self.manifest
        if self.stays_up or allocation.is_rank() or not launcher.makes_steps(m.mpi):
            return [()] * (self.slots or max(1, usable_cores() // (m.mpi.ranks * m.threads)))
        return allocation.places(allocation.nodes(), m.mpi.ranks, m.threads, self.slots)

    def identity(self) -> str:
        """What the answers depend on: manifest, command and executable; for the cache."""
        m = self.manifest
        table = m.worker if self.stays_up else m.oneshot
        assert table is not None
        known = hashlib.sha256((m.folder / NAME).read_bytes())
        known.update(f"{m.mpi.ranks} ranks".encode())
        named = [template.fill(a, {"folder": m.folder}, strict=False) for a in table.command]
        if m.oneshot is not None and not self.stays_up:
            named += [*m.oneshot.templates, *m.oneshot.copy, *m.oneshot.link]
        for name in named:
            known.update(name.encode() + b"\0")
            path = m.folder / name  # the name itself, where it is absolute
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    known.update(file.read_bytes())
        return f"program {m.name} {m.version} {known.hexdigest()}"

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """Starts nothing yet: each slot starts its program at its first member."""
        m, places = self.manifest, self.places()
        drivers: list[Driver]
        idle = allocation.others() if places[0] == () else 0
        if idle:
            log.warning(
                "%s runs on this node alone, and %d other nodes of the allocation are idle: start "
                "enkg on all nodes with srun, or make the program [oneshot] with launcher srun",
                m.name,
                idle,
            )
        if self.stays_up:
            drivers = [WorkerDriver(m) for _ in places]
        else:
            scratch = None if self.scratch is None else Path(self.scratch)
            if scratch is None and any(allocation.away(nodes) for nodes in places):
                scratch = Path.cwd() if folder is None else folder.parent  # all nodes see these
            drivers = [OneShotDriver(m, folder, scratch, nodes) for nodes in places]
        slots = Slots(
            drivers,
            policy,
            timeout=m.timeout,
            batch=m.worker.batch if m.worker and self.stays_up else 1,
            minimum=m.output.minimum,
            maximum=m.output.maximum,
        )
        try:
            yield _Checked(slots, m)
        finally:
            slots.close()

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """Starts the program, evaluates one batch and stops it again. See `Evaluator`."""
        with self.opened(FailurePolicy(), None) as evaluator:
            return evaluator.evaluate(x, progress)

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y


class _Checked(Around):
    """The slots, once the unknown has the shape that the program expects."""

    def __init__(self, slots: Slots, manifest: Manifest) -> None:
        super().__init__(slots)
        self.manifest = manifest

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        port = self.manifest.input
        if x.shape[1:] != port.shape:
            raise InputError(
                f"the members have shape {x.shape[1:]}, but `input.shape` in "
                f"{self.manifest.folder / NAME} is {list(port.shape)}"
            )
        if np.iscomplexobj(x):
            raise InputError(
                f"the members are {x.dtype}; a program takes real numbers: give it real and "
                "imaginary parts"
            )
        return self.slots.evaluate(x.astype(port.numpy), progress)
