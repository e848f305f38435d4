"""Programs that behave and programs that do not, and a look at what is left of them."""

import os
import sys
import time
from pathlib import Path

from enkg.execute.environment import environment
from enkg.execute.manifest import Environment
from enkg.execute.process import Process, Wake

PYTHON = (sys.executable, "-I", "-S", "-c")
MARK = "TEST_MARK"
ROOT = Path(__file__).resolve().parents[3]

ALONE = """
import os, sys, types
sys.path.insert(0, {root!r})
for name in "enkg", "enkg.execute":
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(sys.path[0], *name.split("."))]
"""
"""Makes modules of enkg importable without what the packages import, which takes seconds."""

DAEMON = """
import os, sys, time
def detached(keep_open):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        if not keep_open:
            os.closerange(0, 100)
        while True:
            time.sleep(1)
    os.wait()
"""
"""Defines a function that leaves a process behind, in a session of its own, child of nobody."""

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"

MPI = r"""
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int rank, size;
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "deaf")) signal(SIGTERM, SIG_IGN);
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (!strcmp(what, "size") && rank == 0) printf("%d ranks\n", size);
  if (!strcmp(what, "hang") || !strcmp(what, "deaf")) {
    printf("up "); fflush(stdout);
    for (;;) pause();
  }
  if (rank == size - 1) {
    if (!strcmp(what, "signal")) raise(atoi(argv[2]));
    if (!strcmp(what, "exit")) { fprintf(stderr, "negative depth\n"); exit(7); }
    if (!strcmp(what, "abort")) {
      fprintf(stderr, "negative depth\n"); fflush(stderr);
      usleep(100000); MPI_Abort(MPI_COMM_WORLD, 3);
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return 0;
}
"""


def start(argv, mark, cwd, **options) -> Process:
    """argv: a command, or the text of a Python program."""
    command = [*PYTHON, argv] if isinstance(argv, str) else argv
    env = environment(Environment(), {MARK: str(mark)}) | options.pop("env", {})
    return Process(command, cwd=Path(cwd), env=env, **{"grace": 0.3, **options})


def living(mark) -> list[int]:
    """Processes with this mark in their environment that have not ended."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in words:
                found.append(int(name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def become(condition, seconds=10.0) -> bool:
    """Whether the condition comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def ended(process: Process) -> Process:
    assert process.wait(20) is Wake.EXIT
    return process
