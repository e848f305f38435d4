"""What the tests of the pool and the cache share."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from enkg.execute import pool_main
from enkg.failure import FailurePolicy
from tests.enkg.execute.members import light

ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)
NO_RETRY = FailurePolicy(retries=0)


def batch(count, *acts):
    """Plain members, but for those that get something to do: (member, what)."""
    x = RNG.standard_normal((count, 3))
    for member, what in acts:
        x[member, 0] = what
    x.setflags(write=False)
    return x


def spawned(count=2):
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=light)


def agrees(result, x, dead):
    """Doubled, but for the dead: member to cause."""
    good = [j for j in range(len(x)) if j not in dead]
    np.testing.assert_array_equal(result.y[good], 2 * x[good])
    assert {j: f.cause for j, f in enumerate(result.failures) if f is not None} == dead
    assert np.isnan(result.y[list(dead)]).all()


LIGHT = f"import runpy; runpy.run_path({str(pool_main.__file__)!r})['light']()\n"


def python(code, *path, **variables):
    """A new Python process; imports enkg's modules without the rest of enkg."""
    env = {**os.environ, "PYTHONPATH": ":".join(map(str, (ROOT, *path))), **variables}
    command = [sys.executable, "-c", LIGHT + textwrap.dedent(code)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def printed(process):
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out
