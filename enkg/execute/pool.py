"""The pool: a Python function whose members run side by side, in other processes."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.around import Around
from enkg.execute.function import Function
from enkg.execute.identity import identity_of
from enkg.execute.parcel import Opened, pack, refuse_in_worker
from enkg.execute.pool_executor import ExecutorDriver, Shop
from enkg.execute.pool_process import ProcessDriver
from enkg.execute.program import usable_cores
from enkg.execute.slots import Slots
from enkg.failure import FailurePolicy
from enkg.simulator import Evaluator, Progress, Result


@dataclass(frozen=True)
class Pool:
    """Calls `f` for several members at once; one that crashes or hangs harms no other.

    f: takes one member, `X` to `Y`; with `batched=True`, a batch, `(B, *X)` to `(B, *Y)`. It must
    be defined at the top level of a file, where the other processes find it by its name; they
    import that file, so a script starts its work below `if __name__ == "__main__":`.

    processes: how many members run at once; None takes the usable cores. Each is a Python process
    of our own, in which the numerical libraries have `threads` threads. It runs one call after
    another. A call that takes too long is ended with its process, and whatever that started. What f
    prints is not shown.

    executor: runs the calls instead: any `concurrent.futures.Executor`, such as those of loky, dask
    (`client.get_executor()`), Parsl, executorlib or mpi4py, and `processes` says how many calls it
    runs at once, if it does not tell itself. Such an executor cannot end a call: one that takes too
    long is given up and keeps its process. The time counts from the start of the call on this
    machine, elsewhere from when the executor says that it runs. Nor does an executor outlive a
    crash. So rather pass a function that makes one: then a new one is made when the old one broke
    or hangs, and the members that it held are run again.

    chunk: rows of a call, for functions of a batch; every call has exactly this many, the last one
    filled up by repeating. to: makes the array that f wants, as for `Function`.

    Costs some 0.5 s to start a process, beside the import of the file of f; a call of
    128 x 128 numbers to as many, 0.3 ms.
    """

    f: Callable[[Any], Any]
    processes: int | None = None
    executor: Executor | Callable[[], Executor] | None = None
    chunk: int = 1
    batched: bool = False
    to: Callable[[ndarray], Any] = np.asarray
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("processes", "chunk", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        if self.chunk > 1 and not self.batched:
            raise InputError(
                f"chunk is {self.chunk}, but f takes one member at a time; batched=True says that "
                "it takes a batch"
            )
        usable = self.executor is None or callable(self.executor)
        if not usable and not hasattr(self.executor, "submit"):
            raise InputError(
                f"the executor is a {type(self.executor).__name__}; expected an object with "
                "`submit`, as in concurrent.futures, or a function that makes one"
            )
        assert self.function

    @property
    def function(self) -> Function:
        """The same function, called in this process."""
        return Function(self.f, self.to, batched=self.batched, pad=False)

    def identity(self) -> str:
        """What the answers depend on; for the cache."""
        return identity_of(self.function)

    @contextmanager
    def opened(self, policy: FailurePolicy, folder: Path | None) -> Iterator[Evaluator]:
        """Each process starts at its first member; an executor is tried out at once."""
        refuse_in_worker()
        if self.executor is not None:
            with self._shop(policy) as evaluator:
                yield evaluator
            return
        parcel, shared = pack(self.function), Opened()
        drivers = [
            ProcessDriver(parcel, shared, self.threads)
            for _ in range(self.processes or usable_cores())
        ]
        slots = Slots(drivers, policy, batch=self.chunk)
        try:
            yield slots
        finally:
            for driver in drivers:
                driver.part()
            slots.close()

    @contextmanager
    def _shop(self, policy: FailurePolicy) -> Iterator[Evaluator]:
        shop = Shop(self.executor, self.function, self.processes)
        try:
            shop.probe()
            timed = bool(policy.timeout or policy.straggler)
            if timed and not (shop.marked or shop.width_known):
                raise InputError(
                    "a time limit needs to know how many calls the executor runs at once; say so "
                    "by Pool(f, executor=..., processes=...)"
                )
            shared = Opened()
            slots = Slots(
                [ExecutorDriver(shop, shared, timed) for _ in range(shop.width)],
                policy,
                batch=self.chunk,
            )
            try:
                yield _Counted(slots, shop)
            finally:
                slots.close()
        finally:
            shop.close()

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        """Starts the processes, evaluates one batch and ends them again. See `Evaluator`."""
        with self.opened(FailurePolicy(), None) as evaluator:
            return evaluator.evaluate(x, progress)

    def __call__(self, x: ndarray) -> ndarray:
        return self.evaluate(np.asarray(x)).y


class _Counted(Around):
    """The slots, and the calls that were made again after the executor broke."""

    def __init__(self, slots: Slots, shop: Shop) -> None:
        super().__init__(slots)
        self.shop = shop

    def evaluate(self, x: ndarray, progress: Progress | None = None) -> Result:
        before = self.shop.repeated
        result = self.slots.evaluate(x, progress)
        return dataclasses.replace(result, calls=result.calls + self.shop.repeated - before)
