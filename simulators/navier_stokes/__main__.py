"""The simulator as a program: a file of fields in, a file of fields out.

    python -m simulators.navier_stokes in.npy out.npy --every 2
    python -m simulators.navier_stokes --serve --every 2

The output appears under its own name only when it is complete. With --serve the program stays up
and answers batches; simulator.toml says how it is started.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from simulators.navier_stokes.solver import NavierStokes2D
from simulators.navier_stokes.subsampling import subsample

GOOD, BAD_INPUT, FAILED_MEMBER = 0, 2, 3

DESCRIPTION = """\
Advance vorticity fields in time: two-dimensional Navier-Stokes flow on the torus [0, 2 pi)^2,
stirred by the body force (A sin(K y), 0). Axis 0 of a field is x, axis 1 is y.
"""

EPILOG = """\
files
  IN   a .npy file of real numbers, shape (B, s, s) or (s, s), s even: vorticity at time 0
  OUT  a .npy file of float32, shape (B, s/Q, s/Q) or (s/Q, s/Q): vorticity at time T, every Q-th
       point. A member that failed is NaN throughout. OUT is written under another name in the
       same folder and renamed when complete, so it is never half a file.

exit status
  0  every member is good
  2  bad input: an option, the file, its shape or its numbers' kind; nothing was written
  3  OUT was written, but some member failed: its input was not finite, it is too fast for the
     ladder of step counts, or it blew up twice, the second time at a quarter of the step

example
  python -c "import numpy as np; x = np.arange(64) * 2 * np.pi / 64; \\
             np.save('in.npy', np.sin(3 * x)[:, None] * np.cos(2 * x))"
  python -m simulators.navier_stokes in.npy out.npy --duration 0.5 --every 2

served
  With --serve there are no files: batches of fields come and go through the stub enkg_worker.py.
  Give --size where it is not 64. A member that failed is NaN.
"""


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of NavierStokes2D."""
    default = NavierStokes2D()
    command = argparse.ArgumentParser(
        prog="python -m simulators.navier_stokes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("input", metavar="IN", nargs="?", type=Path, help="vorticity at time 0 (.npy)")
    add("output", metavar="OUT", nargs="?", type=Path, help="vorticity at time T (.npy)")
    add("--serve", action="store_true", help="stay up and answer one batch after another")
    add("--size", type=int, metavar="S", help="points per side (those of IN)")
    for name, kind, metavar, text in (
        ("reynolds", float, "RE", "1 / viscosity"),
        ("duration", float, "T", "time units to advance"),
        ("forcing", int, "K", "wavenumber of the body force"),
        ("amplitude", float, "A", "strength of the body force; 0 for none"),
        ("courant", float, "C", "largest Courant number a member may start with"),
        ("chunk", int, "N", "members computed together"),
    ):
        start = getattr(default, name)
        add(f"--{name}", type=kind, default=start, metavar=metavar, help=f"{text} ({start})")
    add("--every", type=int, default=1, metavar="Q", help="keep every Q-th point; divides S (1)")
    return command


def read(path: Path) -> np.ndarray:
    """The array in a .npy file; ValueError or OSError with a sentence where it holds none."""
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is not a .npy file of numbers ({error})") from error
    if not isinstance(x, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays; give a .npy file with one array")
    if x.ndim not in (2, 3) or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{path} has shape {x.shape}; expected (B, s, s) or (s, s)")
    return x


def write(path: Path, y: np.ndarray) -> None:
    """Write y as .npy under a temporary name beside `path`, then rename it to `path`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.save(file, y)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    line = parser()
    options = line.parse_args(arguments)
    if not options.serve and options.output is None:
        line.error("give two files, IN and OUT (or --serve)")
    try:
        return serve(options) if options.serve else run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def solver(options: argparse.Namespace, size: int) -> NavierStokes2D:
    """The flow that the options describe; ValueError where there is no such flow."""
    flow = NavierStokes2D(
        size=size if options.size is None else options.size,
        reynolds=options.reynolds,
        duration=options.duration,
        forcing=options.forcing,
        amplitude=options.amplitude,
        courant=options.courant,
        chunk=options.chunk,
    )
    subsample(np.empty((1, flow.size, flow.size)), options.every)  # refuse before the work
    return flow


def run(options: argparse.Namespace) -> int:
    """Read, simulate, write."""
    began = time.perf_counter()
    x = read(options.input)
    flow = solver(options, x.shape[-1])
    if not options.output.parent.is_dir():
        raise ValueError(f"the folder of {options.output} does not exist; make it first")
    found = flow.run(x if x.ndim == 3 else x[None])
    y = subsample(found.y, options.every)
    write(options.output, y if x.ndim == 3 else y[0])
    failed = np.flatnonzero(found.failed)
    print(
        f"{len(y)} fields, {found.steps.sum()} steps, {found.reruns.sum()} re-runs, "
        f"{failed.size} failed, {time.perf_counter() - began:.1f} s"
    )
    if failed.size:
        shown = ", ".join(map(str, failed[:10])) + (", ..." if failed.size > 10 else "")
        print(f"failed members (NaN in {options.output}): {shown}", file=sys.stderr)
        return FAILED_MEMBER
    return GOOD


def serve(options: argparse.Namespace) -> int:
    """Answer batches until nobody asks any more."""
    from simulators.stubs.python import enkg_worker

    flow = solver(options, NavierStokes2D().size)
    enkg_worker.serve(
        lambda x: subsample(flow(x), options.every), batched=True, shape=(flow.size, flow.size)
    )
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
