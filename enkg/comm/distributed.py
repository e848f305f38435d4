"""Ranks under torchrun, through torch.distributed.

    torchrun --nproc-per-node 2 -m enkg run FILE

Objects and tensors of the host travel over gloo; tensors on GPUs travel over NCCL where each rank
has a GPU of its own, else through the host's memory. The way over gloo is tested; the way over
NCCL has not run on a GPU yet.

torchrun ends the other ranks when one fails, and its own exit code is then 1, whatever the rank's
code was.
"""

import os
import pickle
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from enkg.comm.base import packed
from enkg.comm.wait import polled
from enkg.errors import InputError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a rank."""
LONG = timedelta(days=30)
"""A rank may simulate for as long as this while the others wait for it."""


class Distributed:
    """All ranks of a torch.distributed world; starts one if this process has none yet.

    timeout: longest wait of a rank for another one. Raises InputError without torchrun's variables.
    """

    def __init__(self, timeout: timedelta = LONG) -> None:
        if not dist.is_available():
            raise InputError("this build of torch has no torch.distributed; start under mpiexec")
        if not dist.is_initialized():
            missing = [name for name in ENVIRONMENT if name not in os.environ]
            if missing:
                raise InputError(
                    f"torch.distributed needs {', '.join(missing)} in the environment; start with "
                    "torchrun --nproc-per-node RANKS -m enkg run FILE"
                )
            dist.init_process_group("gloo")
        self._timeout = timeout
        self._host: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._devices: dict[tuple[str, ...], Any] = {}
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def gather(self, value: Any) -> list[Any]:
        data = _tensor(packed(value))
        sizes = self._gathered(_bytes(torch.tensor([len(data)])), [8] * self.size, self._host)
        counts = [int(size.view(torch.int64)) for size in sizes]
        parts = self._gathered(data, counts, self._host)
        return [pickle.loads(part.numpy().tobytes()) for part in parts]

    def broadcast(self, value: Any) -> Any:
        size, data = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8)
        if self.rank == 0:
            data = _tensor(packed(value))
            size[0] = len(data)
        self._wait(dist.broadcast(size, 0, group=self._host, async_op=True))
        if self.rank != 0:
            data = torch.empty(int(size), dtype=torch.uint8)
        self._wait(dist.broadcast(data, 0, group=self._host, async_op=True))
        return value if self.rank == 0 else pickle.loads(data.numpy().tobytes())

    def rows(self, x: Tensor) -> Tensor:
        shapes, dtypes, places = zip(
            *self.gather((tuple(x.shape), x.dtype, _place(x.device))), strict=True
        )
        holding = [rank for rank, shape in enumerate(shapes) if shape[0]]
        if not holding:
            return x
        tail, dtype = shapes[holding[0]][1:], dtypes[holding[0]]
        device, group = self._way(x.device, places)
        data = _bytes(x.detach().to(device, dtype))
        each = int(np.prod(tail)) * dtype.itemsize
        parts = self._gathered(data, [shape[0] * each for shape in shapes], group)
        return torch.cat(parts).view(dtype).reshape(-1, *tail).to(x.device)

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        home, dtype = parts[0].device, parts[0].dtype
        told = self.gather(([tuple(part.shape) for part in parts], _place(home)))
        coming = [shapes[self.rank] for shapes, _ in told]
        device, group = self._way(home, tuple(place for _, place in told))
        sent = torch.cat([_bytes(part.detach().to(device)) for part in parts])
        counts = [int(np.prod(shape)) for shape in coming]
        got = sent.new_empty(sum(counts) * dtype.itemsize)
        self._wait(
            dist.all_to_all_single(
                got,
                sent,
                [count * dtype.itemsize for count in counts],
                [part.numel() * dtype.itemsize for part in parts],
                group=group,
                async_op=True,
            )
        )
        pieces = got.view(dtype).to(home).split(counts)
        return [piece.reshape(shape) for piece, shape in zip(pieces, coming, strict=True)]

    def barrier(self) -> None:
        self._wait(dist.barrier(group=self._host, async_op=True))

    def abort(self, code: int) -> NoReturn:
        """Ends this rank with that code; torchrun ends the others, and with exit code 1 itself."""
        os._exit(code)  # leaving the group in order would wait for ranks that may never come

    def _gathered(self, data: Tensor, counts: list[int], group: Any) -> list[Tensor]:
        """All ranks' bytes. Both transports want one length for all, so shorter ones are padded."""
        padded = data.new_zeros(max(counts))
        padded[: len(data)] = data
        out = [torch.empty_like(padded) for _ in counts]
        if len(padded):
            self._wait(dist.all_gather(out, padded, group=group, async_op=True))
        return [part[:count] for part, count in zip(out, counts, strict=True)]

    def _way(self, home: torch.device, places: tuple[str, ...]) -> tuple[torch.device, Any]:
        """Where tensors travel, and in which group: all ranks decide alike."""
        direct = "cpu" not in places and len(set(places)) == self.size and dist.is_nccl_available()
        if not direct:
            return torch.device("cpu"), self._host
        if places not in self._devices:
            torch.cuda.set_device(home)  # where NCCL makes its communicator
            self._devices[places] = dist.new_group(backend="nccl", timeout=self._timeout)
        return home, self._devices[places]

    def _wait(self, work: Any) -> None:
        polled(work.is_completed, eager=0.0)  # threads of gloo's own attend to transfers
        work.wait()  # raises what went wrong


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def _place(device: torch.device) -> str:
    """Which memory a tensor is in: of two ranks with one GPU, NCCL would refuse one."""
    if device.type != "cuda":
        return "cpu"
    return str(torch.cuda.get_device_properties(device).uuid)
