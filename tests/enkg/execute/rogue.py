"""A worker that misbehaves: in its answers as the first number of the input says, and at the start
as its argument says. It doubles otherwise. Standard library only, so that it starts fast."""

import os
import signal
import struct
import sys
import time
from pathlib import Path

HEADER = struct.Struct("<4sIQIiQQQQQ")
MODES = (
    *("fine", "killed", "crash", "exit 7", "exit 0", "between", "half", "half hang", "print"),
    *("hang", "ignore SIGTERM", "seq", "magic", "huge", "short", "n", "batch", "dtype", "kind"),
    *("huge error", "extra", "closed", "child", "report", "error seq", "pid", "junk"),
)


def main(start: str, note: str) -> None:
    with Path(note).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if start == "dies":
        print("no licence found", file=sys.stderr)
        sys.exit(3)
    if start == "hangs":
        print("waiting for a licence", file=sys.stderr, flush=True)
        time.sleep(600)
    rx, tx = (
        os.open(os.environ["ENKG_IN"], os.O_RDONLY),
        os.open(os.environ["ENKG_OUT"], os.O_WRONLY),
    )
    if start == "slow reader":
        time.sleep(0.3)
    _, _, _, dtype, _, n_in, n_out, *_ = HEADER.unpack(read(rx, 64))
    size = 4 * dtype
    if start == "refuses":
        send(tx, 5, 0, dtype, payload=b"this grid is\ntoo large")
    elif start == "other sizes":
        send(tx, 2, 0, dtype, batch=n_in + 1, n=n_out)
    elif start == "world":
        send(tx, 2, 0, dtype, status=1)
    elif start == "no ready":
        send(tx, 4, 0, dtype)
    elif start == "silent":
        time.sleep(600)
    else:
        send(tx, 2, 0, dtype, batch=n_in, n=n_out)
    while head := read(rx, 64):
        _, kind, seq, _, _, batch, n, nbytes, *_ = HEADER.unpack(head)
        if kind == 6:
            if start == "stays":
                time.sleep(600)
            return
        payload = read(rx, nbytes)
        letter = "f" if size == 4 else "d"
        x = struct.unpack(f"<{batch * n}{letter}", payload)
        y = struct.pack(f"<{batch * n}{letter}", *(2 * v for v in x))
        answer(MODES[int(x[0])], tx, seq, dtype, batch, n, y)


def answer(mode: str, tx: int, seq: int, dtype: int, batch: int, n: int, y: bytes) -> None:
    act(mode)
    if mode in ("half", "half hang", "between"):
        part = b"" if mode == "between" else y[: len(y) // 2]
        send(tx, 4, seq, dtype, batch, n, part, nbytes=len(y))
        time.sleep(600 if mode == "half hang" else 0)
        sys.exit(5 if mode == "between" else 0)
    elif mode == "closed":
        os.closerange(3, 64)
        time.sleep(600)
    elif mode == "junk":
        os.write(tx, b"Traceback (most recent call last):\n" * 3)
    elif mode == "report":
        send(tx, 5, seq, dtype, payload=b"the time step\nis too long")
    elif mode == "error seq":
        send(tx, 5, seq + 1, dtype, payload=b"not yours")
    elif mode == "huge error":
        send(tx, 5, seq, dtype, nbytes=1 << 40)
    else:
        right = {"kind": 4, "seq": seq, "dtype": dtype, "batch": batch, "n": n, "payload": y}
        changes = {
            "seq": {"seq": seq - 1},
            "magic": {"magic": b"HTTP"},
            "huge": {"payload": b"", "nbytes": 1 << 60},
            "short": {"payload": y[:-8]},
            "n": {"n": n + 1},
            "batch": {"batch": batch + 1},
            "dtype": {"dtype": 3 - dtype},
            "kind": {"kind": 77},
            "extra": {"payload": y + b"left over", "nbytes": len(y)},
            "pid": {"payload": struct.pack(f"<{n}d", *[os.getpid()] * n)},
        }
        send(tx, **{**right, **changes.get(mode, {})})


def act(mode: str) -> None:
    """What happens before the answer, or instead of it."""
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "crash":
        print("index out of bounds", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "exit 7":
        print("no convergence", file=sys.stderr)
        sys.exit(7)
    elif mode == "exit 0":
        sys.exit(0)
    elif mode == "print":
        for _ in range(100):
            sys.stdout.write("x" * (1 << 20))
        sys.stdout.flush()
    elif mode == "hang":
        time.sleep(600)
    elif mode == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif mode == "child":  # it keeps the channel open
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        sys.exit(4)


def send(tx, kind, seq, dtype, batch=0, n=0, payload=b"", nbytes=None, magic=b"EKG1", status=0):
    nbytes = len(payload) if nbytes is None else nbytes
    data = HEADER.pack(magic, kind, seq, dtype, status, batch, n, nbytes, 0, 0) + payload
    while data:
        data = data[os.write(tx, data) :]


def read(rx: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(rx, count - len(data))):
        data += piece
    return data


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
