"""Simulators for the tests of the pool and the cache, which other processes import.

A member is told what to do by its first number; plain numbers are doubled.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from functools import update_wrapper
from pathlib import Path

import numpy as np

KILL, SEGFAULT, EXIT, HANG, NAN, RAISE, ODD, LEAVE, BROOD, STUBBORN, PRINT, SLOW, SHAPE = range(
    1000, 1013
)


def light():
    """Spares a new process the import of all of enkg."""
    runpy.run_path(str(Path(__file__).parents[3] / "enkg/execute/pool_main.py"))["light"]()


class OddError(Exception):
    """Cannot be unpickled: it is made of two things and remembers one."""

    def __init__(self, one, two):
        super().__init__(one)


def double(x):
    return 2 * x


def mean_and_size(x):
    return np.array([x.mean(), x.size], dtype=np.float32)


def doubles(x):
    """Of a batch; remembers nothing, and tells how many rows it got."""
    return np.stack([2 * x[:, 0], np.full(len(x), float(len(x)))], axis=1)


def act(x):  # noqa: PLR0912
    match int(x.flat[0]):
        case 1000:
            os.kill(os.getpid(), signal.SIGKILL)
        case 1001:
            ctypes.string_at(0)
        case 1002:
            os._exit(3)
        case 1003:
            time.sleep(600)
        case 1004:
            return np.full_like(x, np.nan)
        case 1005:
            raise ValueError("too cold\nby far")
        case 1006:
            raise OddError("odd", "even")
        case 1007:
            sys.exit(4)
        case 1008:
            subprocess.run(["sleep", "600"], start_new_session=True, check=False)
        case 1009:
            ctypes.PyDLL(None).sleep(600)  # keeps the interpreter to itself
        case 1010:
            print("much\n" * 200_000)
        case 1011:
            time.sleep(0.4)
        case 1012:
            return np.zeros(7)
    return 2 * x


def act_on_all(x):
    """`act` for a batch: the first that misbehaves spoils all."""
    return np.stack([act(row) for row in x])


def own_pid(x):
    time.sleep(0.05)
    return np.array([float(os.getpid())])


def wrong_batch(x):
    return np.zeros(3)


def text(x):
    return np.array(["a"])


def threads(x):
    return np.array([float(os.environ[name]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")])


class Compiled:
    """What a compiler such as jax.jit makes of a function: it has the name, and is no function."""

    def __init__(self, f):
        update_wrapper(self, f)
        self.f, self.lock = f, threading.Lock()

    def __call__(self, x):
        with self.lock:
            return self.f(x)


@Compiled
def compiled(x):
    return 3 * x


class Scaled:
    """A simulator with parameters."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x
