"""An epidemic as a program: how contagious it was, in; how many fell ill each week, out.

    python seir.py IN OUT

Susceptible, exposed, infectious and recovered shares of a population of 100 000:

    S' = -beta S I    E' = beta S I - E / 4    I' = E / 4 - I / 5    R' = I / 5      (days)

from S = 1 - 1e-4, I = 1e-4. ln beta is linear between 11 knots, 14 days apart. A week's count is
the expected number of people who become infectious in it, 100 000 times the integral of E / 4.
Needs numpy and scipy.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

POPULATION = 1e5
START = 1e-4  # infectious share on day 0
LATENT, INFECTIOUS = 4.0, 5.0  # days
KNOTS = np.arange(0.0, 141.0, 14.0)  # days
WEEKS = np.arange(0.0, 141.0, 7.0)  # days: ends of the 20 weeks, and day 0
EVALUATIONS = 20_000  # ten times what a likely epidemic takes

GOOD, BAD_INPUT, IMPOSSIBLE = 0, 2, 3

EPILOG = """\
files
  IN   11 numbers with white space between them: ln beta on days 0, 14, ..., 140. beta is the
       infections per day that one infectious person causes while everybody is susceptible
  OUT  20 numbers, one per line: expected count of newly infectious people in weeks 1 to 20. OUT is
       written under another name and renamed when complete, so it is never half a file.

exit status
  0  good
  2  bad input: the file, or what is in it; nothing was written
  3  an impossible epidemic: so fast that the integration gives up; nothing was written

example
  python -c "for k in range(11): print(-1.05)" > in.txt
  python seir.py in.txt out.txt
"""


class ImpossibleError(ArithmeticError):
    """The integration gave up."""


def trajectory(log_beta: np.ndarray, days: np.ndarray) -> np.ndarray:
    """S, E, I, R on the given days between 0 and 140, ascending: (11,), (T,) to (4, T).

    Dormand and Prince's method of order 8. The error of a weekly count is below a thousandth of its
    square root, the standard deviation of a Poisson count. Cost: about 2000 evaluations of the
    right-hand side, 10 ms. Raises ImpossibleError after `EVALUATIONS` of them, ValueError where
    log_beta is not finite.
    """
    level = np.asarray(log_beta, dtype=np.float64).tolist()
    if not np.isfinite(level).all():
        raise ValueError("ln beta holds NaN or infinity")
    spacing, last = float(KNOTS[1]), len(KNOTS) - 2
    slope = (np.diff(level) / spacing).tolist()
    calls = 0

    def derivative(t: float, u: np.ndarray) -> tuple[float, float, float, float]:
        nonlocal calls
        calls += 1
        if calls > EVALUATIONS:
            raise ImpossibleError(f"no end after {EVALUATIONS} evaluations, on day {t:.1f}")
        s, e, i, _ = u.tolist()
        k = min(int(t / spacing), last)
        try:
            beta = math.exp(level[k] + slope[k] * (t - k * spacing))
        except OverflowError:
            raise ImpossibleError(f"beta is infinite on day {t:.1f}") from None
        infections, onsets, recoveries = beta * s * i, e / LATENT, i / INFECTIOUS
        return -infections, infections - onsets, onsets - recoveries, recoveries

    found = solve_ivp(
        derivative,
        (0.0, float(KNOTS[-1])),
        (1 - START, 0.0, START, 0.0),
        method="DOP853",
        t_eval=days,
        rtol=1e-8,
        atol=1e-11,
    )
    if not found.success or not np.isfinite(found.y).all():
        raise ImpossibleError(f"the integration failed: {found.message}")
    return found.y


def weekly_counts(log_beta: np.ndarray) -> np.ndarray:
    """Expected counts of newly infectious people in 20 weeks, (11,) to (20,)."""
    _, _, infectious, recovered = trajectory(log_beta, WEEKS)
    ever = infectious + recovered  # grows by E / 4, for recovery does not change it
    return np.maximum(POPULATION * np.diff(ever), 0.0)


def read(path: Path) -> np.ndarray:
    """The 11 numbers of a file. ValueError or OSError with a sentence where it holds others."""
    try:
        x = np.array([float(word) for word in path.read_text().split()])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a text of numbers ({error})") from None
    if x.shape != KNOTS.shape:
        raise ValueError(f"{path} holds {x.size} numbers; expected {len(KNOTS)}")
    return x


def write(path: Path, y: np.ndarray) -> None:
    """One number per line, every bit kept, under a temporary name that is renamed at the end."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(f"{v!r}\n" for v in y.tolist()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        description=str(__doc__).split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("input", metavar="IN", nargs="?", type=Path, help="ln beta at the knots")
    add("output", metavar="OUT", nargs="?", type=Path, help="expected weekly counts")
    add("--serve", action="store_true", help="stay up and answer one member after another")
    add("--sleep", type=float, default=0.0, metavar="S", help="take S seconds longer per member")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    line = parser()
    given = line.parse_args(arguments)
    if given.serve:
        serve(given.sleep)
        return GOOD
    if given.input is None or given.output is None:
        line.error("give two files, IN and OUT (or --serve)")
    try:
        x = read(given.input)
        time.sleep(given.sleep)
        write(given.output, weekly_counts(x))
    except ImpossibleError as error:
        print(f"impossible: {error}", file=sys.stderr)
        return IMPOSSIBLE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return GOOD


def serve(seconds: float) -> None:
    """Answer members until nobody asks any more."""
    import enkg_worker  # the file beside this one

    def answer(x: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return weekly_counts(x)

    enkg_worker.serve(answer)  # an exception fails its member, and the program goes on


if __name__ == "__main__":
    sys.exit(main())
