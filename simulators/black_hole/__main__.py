"""The simulator as a program: images in one file, answers in another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .array import coverage
from .closures import minimal_closures
from .files import complete_or_absent
from .operator import BlackHole, pixel_centres

GOOD, BAD_INPUT, FAILED_MEMBER = 0, 2, 3

DESCRIPTION = """\
Closure phases and log closure amplitudes of images of a radio source.

  images.npy    one image (n, n) or a batch (B, n, n); row 0 is north, column 0 is east; real
                numbers in any unit (Jy per pixel where the products 'visibility', 'amplitude'
                or 'total_flux' are asked for)
  geometry.npz  the interferometer, as written by BlackHole.save:
                  u, v             (M,)    baselines in wavelengths
                  triangles        (T, 3)  row numbers (ab, bc, ac), stations a < b < c
                  quadrangles      (Q, 4)  row numbers (12, 34, 14, 23)
                  pixels           n
                  field_of_view    width of the image in microarcseconds
                  products, dtype  optional
  out.npy       the answer, (m,) or (B, m), float64. Phases come as all cosines, then all sines.

A member without an answer (not finite, or a zero visibility) is a row of NaN. The output is
written under a temporary name and renamed when it is complete.

With --serve there are no files but the geometry: batches of images and answers come and go through
enkg_worker.py; simulator.toml says how. m87.npz, beside this program, is the geometry of the EHT's
observation of M87 on 11 April 2017, low band, for images of 64 x 64 pixels and 128
microarcseconds.
"""

EPILOG = """\
exit status
  0  every member has an answer
  2  bad input: a file that is missing, unreadable or of the wrong shape; nothing was written
  3  out.npy was written, but some member failed and is NaN

try it
  python -m simulators.black_hole --example example
  python -m simulators.black_hole example/images.npy example/geometry.npz example/out.npy
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m simulators.black_hole",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument("images", nargs="?", help="images, .npy")
    line.add_argument("geometry", nargs="?", help="interferometer, .npz")
    line.add_argument("out", nargs="?", help="where the answer goes, .npy")
    line.add_argument(
        "--serve",
        type=Path,
        metavar="GEOMETRY",
        help="stay up and answer batches of images of this interferometer",
    )
    line.add_argument(
        "--example",
        metavar="FOLDER",
        help="write a small images.npy and geometry.npz there (five stations, 16 x 16 pixels)",
    )
    return line


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    line = parser()
    given = line.parse_args(argv)
    try:
        if given.example:
            write_example(Path(given.example))
            print(f"wrote images.npy and geometry.npz into {given.example}")
            return GOOD
        if given.serve:
            return serve(given.serve)
        if not (given.images and given.geometry and given.out):
            line.error("give three files: images.npy geometry.npz out.npy (or --serve, --example)")
        return run(Path(given.images), Path(given.geometry), Path(given.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def run(images: Path, geometry: Path, out: Path) -> int:
    """Read, simulate, write; returns GOOD or FAILED_MEMBER."""
    simulator = BlackHole.load(geometry)
    try:
        x = np.load(images, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{images} does not exist; expected images as .npy") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{images} is not a readable .npy file ({error})") from error
    if not isinstance(x, np.ndarray):
        raise ValueError(f"{images} holds several arrays; expected one array as .npy")
    one = x.ndim == 2
    y = simulator(x[None] if one else x)
    write_array(out, y[0] if one else y)
    failed = np.flatnonzero(np.isnan(y).any(axis=1))
    if failed.size:
        shown = ", ".join(map(str, failed[:10])) + (", ..." if failed.size > 10 else "")
        print(f"failed members (NaN in {out}): {shown}", file=sys.stderr)
        return FAILED_MEMBER
    return GOOD


def serve(geometry: Path) -> int:
    """Answer batches until nobody asks any more."""
    from simulators.stubs.python import enkg_worker

    simulator = BlackHole.load(geometry)
    enkg_worker.serve(simulator, batched=True, shape=simulator.x_shape)
    return GOOD


def write_array(path: Path, array: np.ndarray) -> None:
    """Write .npy; the file is complete or absent."""
    with complete_or_absent(path) as part, part.open("wb") as file:
        np.save(file, array)


def write_example(folder: Path) -> None:
    """Three Gaussian sources of 16 x 16 pixels, and five stations on 11 April 2017."""
    folder.mkdir(parents=True, exist_ok=True)
    track = coverage(("AA", "LM", "AZ", "PV", "SM"), hours=np.arange(1.0, 9.0))
    triangles, quadrangles = minimal_closures(track.time, track.station1, track.station2)
    BlackHole(track.u, track.v, triangles, quadrangles, 16, 128.0).save(folder / "geometry.npz")
    centre = pixel_centres(16, 128.0)
    images = [
        np.exp(-((centre[None, :] / 12) ** 2 + ((centre[:, None] - north) / 20) ** 2) / 2)
        + 0.3 * np.exp(-((centre[None, :] - 20) ** 2 + centre[:, None] ** 2) / (2 * 8**2))
        for north in (0.0, 10.0, 20.0)
    ]
    write_array(folder / "images.npy", np.stack(images))


if __name__ == "__main__":
    sys.exit(main())
