"""Makes a Python function a simulator that stays up: one call, `serve(f)`.

Copy this file beside your program; it needs only NumPy.

    import numpy as np
    from enkg_worker import serve

    def simulate(x):            # x: (n_in,) numbers of one member
        return np.cumsum(x)     # (n_out,) numbers

    serve(simulate)             # returns when enkg has no more members

and in simulator.toml:

    [worker]
    command = ["python", "simulate.py"]
    memory = "shared"           # or "pipe"

Printing is allowed. An exception fails the call with its message, and the program goes on.
"""

import mmap
import os
import struct
import sys
import time
import traceback

import numpy as np

HEADER = struct.Struct("<4sIQIiQQQQQ")
MAGIC = b"EKG1"
HELLO, READY, EVAL, RESULT, ERROR, BYE = range(1, 7)
PATIENCE = 2.0
"""Seconds that a rank on which `f` raised waits for the others."""
NOTHING = memoryview(b"")
DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8")}


def serve(f, batched=False, shape=None, comm=None):
    """Answers enkg's calls with `f` until there are no more.

    f: takes the numbers of one member, shape (n_in,), and returns (n_out,); with batched=True,
    (B, n_in) to (B, n_out). shape: gives each member that shape instead of (n_in,); the answer may
    have any shape with n_out numbers. The array that `f` gets is used again for the next call:
    copy what is to be kept.

    comm: an mpi4py communicator. Every process calls `serve`, every process calls `f` with the same
    numbers, and what `f` returns on rank 0 is the answer. If `f` raises on some ranks while others
    are held up in it, waiting for them, the program ends.
    """
    comm = None if comm is None else comm.Dup()  # what we send meets nothing of f's
    rank, ranks = (0, 0) if comm is None else (comm.Get_rank(), comm.Get_size())
    if rank:
        _follow(f, batched, shape, comm)
        return
    channel = _Channel()
    while (frame := channel.receive()) is not None:
        kind, seq, code, batch, n, extra = frame
        if kind == HELLO:
            if not channel.agree(code, batch, n, extra):
                channel.error(seq, f"unknown dtype {code}; expected 1 or 2", 0)
                continue
            channel.send(READY, seq, status=ranks, batch=batch, n=n, extra=int(channel.shared))
            continue
        x = channel.input(batch, n)
        if comm is not None:
            comm.bcast((x, batch, channel.n_out))
        try:
            y = _attempt(f, x, batched, shape, channel.n_out, comm)
        except Exception as error:
            channel.error(seq, _text(error), 1)
        else:
            channel.result(seq, batch, y)
    if comm is not None:
        comm.bcast(None)


def _follow(f, batched, shape, comm):
    """What the ranks after the first do."""
    while (task := comm.bcast(None)) is not None:
        x, _, n_out = task
        try:
            _attempt(f, x, batched, shape, n_out, comm)
        except Exception:
            traceback.print_exc()


def _attempt(f, x, batched, shape, n_out, comm):
    """The answers of all members; with MPI, every rank raises if one of them does."""
    if comm is None:
        return _evaluate(f, x, batched, shape, n_out)
    y = failed = None
    try:
        y = _evaluate(f, x, batched, shape, n_out, check=comm.Get_rank() == 0)
    except Exception as error:
        failed = error
    arrival, limit = comm.Ibarrier(), time.monotonic() + PATIENCE
    while failed and not arrival.Test():
        if time.monotonic() > limit:
            print(_text(failed), file=sys.stderr, flush=True)
            comm.Abort(1)
        time.sleep(0.001)
    arrival.Wait()
    texts = comm.allgather(failed and _text(failed))
    for rank, text in enumerate(texts):
        if text:
            raise failed or RuntimeError(f"rank {rank}: {text}")
    return y


def _evaluate(f, x, batched, shape, n_out, check=True):
    members = x if shape is None else x.reshape(len(x), *shape)
    rows = [f(members)] if batched else [f(member) for member in members]
    if not check:
        return None
    wanted = x.shape[0] * n_out if batched else n_out
    for row in rows:
        if np.size(row) != wanted:
            raise ValueError(
                f"the function returned shape {np.shape(row)}; expected {wanted} numbers, "
                "by output.shape in simulator.toml"
            )
        if np.iscomplexobj(row):
            raise TypeError("the function returned complex numbers; expected real ones")
    return [np.reshape(row, (-1, n_out)) for row in rows]


def _text(error):
    """The message of an exception and the line of the function that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = not frames or frames[-1].filename == __file__
    where = "" if own else f" ({frames[-1].filename}:{frames[-1].lineno})"
    message = str(error).strip()
    name = type(error).__name__
    return (f"{name}: {message}" if message else name) + where


class _Channel:
    """The two streams to enkg, and the memory shared with it."""

    def __init__(self):
        try:
            rx, tx = os.environ["ENKG_IN"], os.environ["ENKG_OUT"]
        except KeyError:
            sys.exit("ENKG_IN and ENKG_OUT are not set: this program is started by enkg")
        self.rx = os.open(rx, os.O_RDONLY)  # in this order: named pipes wait for each other
        self.tx = os.open(tx, os.O_WRONLY)
        self.n_out, self.dtype, self.code = 0, DTYPES[2], 2
        self.shared, self.memory = False, np.empty(0, np.uint8)
        self.nbytes = self.offset = 0
        self.header = bytearray(HEADER.size)
        self.buffer = np.empty(0, np.uint8)

    def agree(self, code, n_in, n_out, size):
        """Notes the sizes, and maps the shared memory if there is some."""
        if code not in DTYPES:
            return False
        self.code, self.dtype, self.n_out = code, DTYPES[code], n_out
        if size and os.environ.get("ENKG_SHM"):
            try:
                fd = os.open(os.environ["ENKG_SHM"], os.O_RDWR)
                self.memory = np.frombuffer(mmap.mmap(fd, size), np.uint8)
                os.close(fd)
            except OSError:
                pass  # the numbers go through the pipe
        self.shared = len(self.memory) > 0
        return True

    def receive(self):
        """The next frame, or None at the end."""
        if not self.read(self.header):
            return None
        magic, kind, seq, code, _, batch, n, self.nbytes, _, extra = HEADER.unpack(self.header)
        if magic != MAGIC:
            sys.exit(f"enkg_worker: not a frame: {bytes(self.header[:8])!r}")
        if kind == BYE:
            return None
        if kind not in (HELLO, EVAL) or (kind == HELLO and self.nbytes):
            sys.exit(f"enkg_worker: unexpected frame of kind {kind}")
        return kind, seq, code, batch, n, extra

    def input(self, batch, n):
        """The numbers of this call, shape (batch, n)."""
        size = batch * n * self.dtype.itemsize
        if self.nbytes != (0 if self.shared else size):
            sys.exit(f"enkg_worker: {self.nbytes} bytes of input; expected {size}")
        if self.shared:
            self.offset = -(-size // 4096) * 4096
            place = self.memory[:size]
        else:
            if len(self.buffer) != size:
                self.buffer = np.empty(size, np.uint8)
            place = self.buffer
            if not self.read(place):
                sys.exit("enkg_worker: the input ends too early")
        return place.view(self.dtype).reshape(batch, n)

    def result(self, seq, batch, rows):
        if self.shared:
            size = batch * self.n_out * self.dtype.itemsize
            y = self.memory[self.offset : self.offset + size].view(self.dtype)
            np.concatenate(rows, out=y.reshape(batch, self.n_out), casting="unsafe")
            self.send(RESULT, seq, batch=batch, n=self.n_out)
        else:
            y = rows[0] if len(rows) == 1 else np.concatenate(rows)
            y = np.ascontiguousarray(y, self.dtype)
            self.send(RESULT, seq, batch=batch, n=self.n_out, payload=y.data)

    def error(self, seq, text, status):
        message = text.encode("utf-8", "replace")[:60000]
        self.send(ERROR, seq, status=status, payload=memoryview(message))

    def send(self, kind, seq, status=0, batch=0, n=0, extra=0, payload=NOTHING):
        size = payload.nbytes
        header = HEADER.pack(MAGIC, kind, seq, self.code, status, batch, n, size, 0, extra)
        parts = [memoryview(header), payload.cast("B")]
        while parts:
            sent = os.writev(self.tx, parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][sent:]

    def read(self, buffer):
        """Fills the buffer; False if the stream ends first."""
        view, done = memoryview(buffer), 0
        while done < len(view):
            got = os.readv(self.rx, [view[done:]])
            if not got:
                return False
            done += got
        return True
