"""Cases of controller mode, for ranks under mpiexec: crew.py FOLDER CASE...

Rank 0 goes through the cases and writes what it saw to FOLDER/CASE.json; the others serve.
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.enkg.execute import members

members.light()

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402

from enkg.errors import EnsembleFailure, InputError  # noqa: E402
from enkg.execute import crew as crew_module  # noqa: E402
from enkg.execute.cache import Cached  # noqa: E402
from enkg.execute.crew import Crew, serve  # noqa: E402
from enkg.execute.function import Function, opened  # noqa: E402
from enkg.execute.pool import Pool  # noqa: E402
from enkg.execute.program import Program  # noqa: E402
from enkg.failure import Cause, FailurePolicy  # noqa: E402

COMM = MPI.COMM_WORLD
HERE = Path(sys.argv[1])
ONCE = FailurePolicy(retries=0, minimum_success=0.1)
PLAIN = np.random.default_rng(3).standard_normal((101, 4))


def numbered(count):
    """Members (count, 4), the first number of each is its place."""
    x = PLAIN[:count].copy()
    x[:, 0] = np.arange(count)
    return x


def told(result):
    """What there is to know of a result, for JSON."""
    return {
        "y": result.y.tolist(),
        "dtype": str(result.y.dtype),
        "calls": result.calls,
        "failures": [None if f is None else [f.cause, f.detail] for f in result.failures],
        "kept": [None if f is None or f.kept is None else str(f.kept) for f in result.failures],
    }


def mark(name):
    (HERE / name).touch()


def await_marks(pattern, count):
    """Waits for so many marks; in vain, an error after half a minute."""
    end = time.monotonic() + 30
    while len(list(HERE.glob(pattern))) < count:
        if time.monotonic() > end:
            raise RuntimeError(f"no {pattern}")
        time.sleep(0.002)


def with_rank(x):
    return np.append(2 * x, COMM.rank)


def slow_first(x):
    """The first member takes longer than all the others together."""
    if x[0] == 0:
        await_marks("slow-*", 9)
    else:
        mark(f"slow-{int(x[0])}")
    return with_rank(x)


def unlucky(x):
    if x[0] == 1:
        raise ValueError("too cold\nand dark")
    if x[0] == 2:
        sys.exit(3)
    return np.full(4, np.nan) if x[0] == 4 else 2 * x


def second_time(x):
    if x[0] == 1 and not (HERE / "tried").exists():
        mark("tried")
        raise ValueError("not yet")
    return 2 * x


def chunks(x):
    """A batch; tells its size."""
    if (x[:, 0] == 5).any():
        raise ValueError("five")
    return np.append(2 * x, np.full((len(x), 1), len(x)), axis=1)


def released(x):
    """Members from 100 on need all three ranks at once; member 0 hangs until it is let go."""
    if x[0] >= 100:
        mark(f"together-{int(x[0])}")
        await_marks("together-*", 3)
    elif x[0] == 0:
        await_marks("let-go", 1)
    return 2 * x


def hang_and_return(evaluator):
    for old in (*HERE.glob("together-*"), *HERE.glob("let-go")):
        old.unlink()
    first = told(evaluator.evaluate(numbered(8)))
    mark("let-go")
    return [first, told(evaluator.evaluate(numbered(3) + 100))]


def odd_shapes(x):
    return x[: 2 + (x[0] == 1)]


def no_batch(x):
    return np.zeros(7)


class Unopened:
    @contextmanager
    def opened(self, policy, folder):
        if COMM.rank == 2:
            raise InputError("there is no licence on this node; ask for one")
        yield Function(chunks)


class Wrong:
    def evaluate(self, x, progress=None):
        raise TypeError("a mistake of the adapter")


def announced(evaluator):
    heard = []
    evaluator.announce = lambda *words: heard.append(int(words[0]))
    evaluator.evaluate(numbered(7))
    return sorted(heard)


def twice(evaluator):
    return [told(evaluator.evaluate(PLAIN[:5])) for _ in range(2)]


def interrupted(evaluator):
    """Ctrl-C, while the others are in a program that hangs."""

    def progress(done, total):
        if done:
            raise KeyboardInterrupt

    evaluator.evaluate(PLAIN[:20], progress)


def hang_last(evaluator):
    """A member that hangs, once enough others have answered; then others, on the same rank."""
    tail = np.abs(PLAIN[:, 0]) * 1000
    hang = tail - np.floor(tail) < 0.2
    first = evaluator.evaluate(np.concatenate([PLAIN[~hang][:8], PLAIN[hang][:1]]))
    return [told(first), told(evaluator.evaluate(PLAIN[~hang][:3]))]


def alone_too(evaluator):
    """Through the crew, and what it gives without."""
    simulator, policy = CASES[NAME][0], CASES[NAME][1]
    with opened(simulator, policy, HERE / "alone") as alone:
        expected = told(alone.evaluate(PLAIN[:10]))
    return [told(evaluator.evaluate(PLAIN[:10])), expected]


def input_error(evaluator):
    simulator, texts = CASES[NAME][0], []
    with opened(simulator, ONCE, None) as alone:
        for one in (evaluator, alone):
            try:
                one.evaluate(PLAIN[:1, :3])
            except InputError as error:
                texts.append(str(error))
    return texts


def die(x):
    if x[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * x


def interrupt(x):
    raise KeyboardInterrupt


def endless(x):
    if x[0] == 2:
        await_marks("never", 1)
    return 2 * x


def rows(count):
    return lambda evaluator: told(evaluator.evaluate(numbered(count)))


def program(name, **options):
    return lambda: Program(HERE / name, **options)


def each(f):
    return Function(f, batched=False)


crew_module.FAREWELL = 1.0
QUICK = FailurePolicy(timeout=0.6, retries=0, minimum_success=0.1)
# name: simulator (or how it is made), policy, what is done with it
CASES = {
    "many": (each(with_rank), ONCE, rows(101)),
    "few": (each(with_rank), ONCE, rows(2)),
    "slow": (each(slow_first), ONCE, rows(10)),
    "unlucky": (each(unlucky), ONCE, rows(7)),
    "retry": (each(second_time), FailurePolicy(retry_on=(Cause.EXCEPTION,)), rows(3)),
    "chunks": (Function(chunks, chunk=4), ONCE, rows(10)),
    "cut": (each(released), FailurePolicy(straggler=200.0, retries=0), hang_and_return),
    "time": (each(released), FailurePolicy(timeout=1.0, retries=0), hang_and_return),
    "single": (lambda x: np.float32(2) * x.astype("f4"), ONCE, rows(5)),
    "odd": (each(odd_shapes), ONCE, rows(6)),
    "no batch": (Function(no_batch), ONCE, input_error),
    "unopened": (Unopened(), ONCE, rows(3)),
    "wrong": (Wrong(), ONCE, rows(3)),
    "announced": (each(with_rank), ONCE, announced),
    "cached": (each(members.double), ONCE, twice),
    "pool": (Pool(members.double, processes=1), ONCE, rows(5)),
    "hang": (program("hang", slots=1), QUICK, alone_too),
    "straggler": (
        program("hang", slots=1),
        FailurePolicy(timeout=600.0, retries=0, minimum_success=0.3, straggler=1000.0),
        hang_last,
    ),
    "exit": (program("exit", slots=1, mode="oneshot"), ONCE, alone_too),
    "range": (program("range", slots=1), ONCE, alone_too),
    "shape": (program("exit", slots=1), ONCE, input_error),
    "interrupted": (program("hang", slots=1), ONCE, interrupted),
    "nested": (program("ranks", slots=1), ONCE, rows(4)),
    "die": (each(die), ONCE, rows(4)),
    "interrupt": (each(interrupt), ONCE, rows(4)),
    "endless": (each(endless), QUICK, rows(4)),
}


def guide(comm, simulator, policy, do):
    crew = Crew(comm, simulator)
    cached = Cached(crew, HERE / "cache") if NAME == "cached" else crew
    try:
        with opened(cached, policy, HERE / "failed") as evaluator:
            seen = do(evaluator)
    except (InputError, EnsembleFailure, RuntimeError, KeyboardInterrupt) as error:
        seen = [type(error).__name__, str(error)]
    (HERE / f"{NAME}.json").write_text(json.dumps([seen, crew.stuck]))
    if crew.stuck:
        comm.Abort(75)


for NAME in sys.argv[2:]:
    SIMULATOR, POLICY, DO = CASES[NAME]
    if getattr(SIMULATOR, "__qualname__", "").startswith("program."):
        SIMULATOR = SIMULATOR()
        CASES[NAME] = SIMULATOR, POLICY, DO
    if COMM.rank == 0:
        guide(COMM, SIMULATOR, POLICY, DO)
    else:
        serve(COMM, SIMULATOR, POLICY, HERE / "failed")
        mark(f"{NAME}-served-{COMM.rank}")
