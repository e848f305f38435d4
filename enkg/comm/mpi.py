"""Ranks under an MPI launcher, through mpi4py."""

import os
import pickle
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from enkg.comm.base import packed
from enkg.comm.wait import EAGER, PRESENT, polled


class Mpi:
    """All ranks of an MPI world; tensors travel through the host's memory."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD.Dup()
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank, self.size = self._comm.rank, self._comm.size
        self.local_rank, self.local_size = node.rank, node.size
        node.Free()

    def gather(self, value: Any) -> list[Any]:
        parts = self._gathered(np.frombuffer(packed(value), np.uint8))
        return [pickle.loads(part.tobytes()) for part in parts]

    def broadcast(self, value: Any) -> Any:
        size = np.zeros(1, np.int64)
        data = np.zeros(0, np.uint8)
        if self.rank == 0:
            data = np.frombuffer(packed(value), np.uint8)
            size[0] = len(data)
        self._wait(self._comm.Ibcast(size))
        if self.rank != 0:
            data = np.empty(int(size[0]), np.uint8)
        self._wait(self._comm.Ibcast(data), PRESENT)
        return value if self.rank == 0 else pickle.loads(data.tobytes())

    def rows(self, x: Tensor) -> Tensor:
        shapes = self.gather((tuple(x.shape), x.dtype))
        if not any(shape[0] for shape, _ in shapes):
            return x
        tail, dtype = next((shape[1:], dtype) for shape, dtype in shapes if shape[0])
        counts = [shape[0] * int(np.prod(tail)) for shape, _ in shapes]
        flat = _host(x.to(dtype)).reshape(-1)
        out = np.empty(sum(counts), flat.dtype)
        self._wait(self._comm.Iallgatherv(flat, [out, counts]), PRESENT)
        return torch.from_numpy(out).reshape(-1, *tail).to(x.device)

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        shapes = self.gather([tuple(part.shape) for part in parts])
        coming = [shapes[rank][self.rank] for rank in range(self.size)]
        send = np.concatenate([_host(part).reshape(-1) for part in parts])
        sent = [part.numel() for part in parts]
        counts = [int(np.prod(shape)) for shape in coming]
        out = np.empty(sum(counts), send.dtype)
        self._wait(self._comm.Ialltoallv([send, sent], [out, counts]), PRESENT)
        pieces = torch.from_numpy(out).to(parts[0].device).split(counts)
        return [piece.reshape(shape) for piece, shape in zip(pieces, coming, strict=True)]

    def barrier(self) -> None:
        self._wait(self._comm.Ibarrier())

    def abort(self, code: int) -> NoReturn:
        self._comm.Abort(code)
        os._exit(code)

    def duplicate(self) -> Any:
        """An mpi4py communicator of the same ranks, for messages of another kind. Collective."""
        return self._comm.Dup()

    def _gathered(self, data: np.ndarray) -> list[np.ndarray]:
        counts = np.zeros(self.size, np.int64)
        self._wait(self._comm.Iallgather(np.array([len(data)], np.int64), counts))
        out = np.empty(int(counts.sum()), np.uint8)
        self._wait(self._comm.Iallgatherv(data, [out, counts.tolist()]), PRESENT)
        return np.split(out, counts.cumsum()[:-1])

    def _wait(self, request: Any, eager: float = EAGER) -> None:
        polled(request.Test, eager)


def _host(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())
