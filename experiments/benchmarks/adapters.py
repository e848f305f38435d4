"""What a call costs through each adapter, beside the call itself.

    python experiments/benchmarks/adapters.py

The simulator copies a field of 128 x 128 float64 numbers, so that all of the time is overhead. One
call: the median over calls of the adapter's driver, without the queue of members. In a batch: the
time of a batch, divided by its members, with one slot: queue, checks, and the memory that the
answers of the ensemble take. Needs a C compiler; the rows of MPI and UM-Bridge need their extras.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import enkg
from enkg.execute.function import opened
from enkg.execute.slots import Job, Slots

STUBS = Path(enkg.__file__).parent / "stubs"

PROGRAM = """
#include "enkg_worker.h"
static int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out) {
  memcpy(y, x, n_out * sizeof *y);
  return n_in == n_out ? 0 : 1;
}
int main(int argc, char **argv) {
  static char bytes[1 << 22];
  FILE *file;
  size_t count;
  if (argc != 3) return enkg_serve(simulate);
  file = fopen(argv[1], "rb");
  count = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  file = fopen(argv[2], "wb");
  fwrite(bytes, 1, count, file);
  return fclose(file);
}
"""

MANIFEST = """
name = "copy"
[input]
shape = [{n}, {n}]
format = "{format}"
[output]
shape = [{n}, {n}]
format = "{format}"
[mpi]
ranks = {ranks}
[oneshot]
command = ["./copy", "{{input}}", "{{output}}"]
[worker]
command = ["./copy"]
memory = "{memory}"
"""


def copy(x: np.ndarray) -> np.ndarray:
    return x.copy()


def program(root: Path, n: int, memory: str = "shared", ranks: int = 1, form: str = "npy") -> Path:
    """A folder with the program and a simulator.toml."""
    folder = Path(tempfile.mkdtemp(dir=root))
    shutil.copy(root / "copy", folder / "copy")
    text = MANIFEST.format(n=n, memory=memory, ranks=ranks, format=form)
    (folder / "simulator.toml").write_text(text)
    return folder


def measure(simulator: Any, x: np.ndarray, seconds: float) -> tuple[float, float, float]:
    """Seconds of one call, median and tenth percentile, and of a call in a batch."""
    with opened(simulator) as evaluator:
        evaluator.evaluate(x[:1])
        slots = getattr(evaluator, "slots", evaluator)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            begin = time.perf_counter()
            if isinstance(slots, Slots):
                slots.drivers[0].call(x[:1], Job(0, 0, len(times)), 60.0)
            else:
                evaluator.evaluate(x[:1])
            times.append(time.perf_counter() - begin)
        count = max(2, min(len(x), int(seconds / np.median(times))))
        begin = time.perf_counter()
        evaluator.evaluate(x[:count])
        batch = (time.perf_counter() - begin) / count
    return float(np.median(times)), float(np.quantile(times, 0.1)), batch


def bare(root: Path, x: np.ndarray, seconds: float) -> tuple[float, float, float]:
    """The one-shot program without enkg: write the file, subprocess.run, read the file."""
    times = []
    end = time.perf_counter() + seconds
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as d:
        into, out = Path(d, "in.npy"), Path(d, "out.npy")
        while time.perf_counter() < end:
            begin = time.perf_counter()
            np.save(into, x[0])
            subprocess.run([root / "copy", into, out], check=True)
            np.load(out)
            times.append(time.perf_counter() - begin)
    return float(np.median(times)), float(np.quantile(times, 0.1)), float(np.mean(times))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the program behind `enkg serve`, in another process."""
    command = [sys.executable, "-u", "-m", "enkg", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split(" at ")[1].strip()
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--size", type=int, default=128, help="points per side of the field")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument("--members", type=int, default=100, help="largest batch")
    given = parser.parse_args()
    n = given.size
    x = np.random.default_rng(0).normal(size=(given.members, n, n))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "copy.c").write_text(PROGRAM)
        flags = ["-O2", "-I", str(STUBS / "c"), "-o", str(root / "copy"), str(root / "copy.c")]
        subprocess.run(["cc", *flags], check=True)
        rows: dict[str, Callable[[], Any]] = {
            "function in this process": lambda: enkg.Function(copy, chunk=1),
            "worker, shared memory": lambda: enkg.Program(program(root, n), slots=1),
            "worker, pipe": lambda: enkg.Program(program(root, n, "pipe"), slots=1),
            "pool, own processes": lambda: enkg.Pool(copy, processes=1),
            "pool, ThreadPoolExecutor": lambda: enkg.Pool(
                copy, executor=lambda: ThreadPoolExecutor(1), processes=1
            ),
            "pool, ProcessPoolExecutor": lambda: enkg.Pool(
                copy, executor=lambda: ProcessPoolExecutor(1), processes=1
            ),
            "one-shot, npy": lambda: enkg.Program(program(root, n), slots=1, mode="oneshot"),
            "one-shot, raw": lambda: enkg.Program(
                program(root, n, form="raw"), slots=1, mode="oneshot"
            ),
            "one-shot, text": lambda: enkg.Program(
                program(root, n, form="text"), slots=1, mode="oneshot"
            ),
            "one-shot, mpiexec -n 2": lambda: enkg.Program(
                program(root, n, ranks=2), slots=1, mode="oneshot"
            ),
        }
        print(f"{'adapter':28s} {'one call':>10s} {'fastest 10%':>12s} {'in a batch':>11s}   ms")
        show("no enkg: file, program, file", bare(root, x, given.seconds))
        for name, make in rows.items():
            try:
                show(name, measure(make(), x, given.seconds))
            except enkg.EnkgError as error:
                print(f"{name:28s} not measured: {error}")
        try:
            with served(program(root, n)) as url:
                model = enkg.UMBridge(url, shape_in=(n, n), shape_out=(n, n))
                show("UM-Bridge, enkg serve", measure(model, x, given.seconds))
        except (enkg.EnkgError, IndexError) as error:
            print(f"UM-Bridge not measured: {error}")


def show(name: str, times: tuple[float, float, float]) -> None:
    print(f"{name:28s} {times[0] * 1e3:10.3f} {times[1] * 1e3:12.3f} {times[2] * 1e3:11.3f}")


if __name__ == "__main__":
    main()
