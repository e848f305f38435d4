"""A project with a small ablation: four numbers of which two are seen, the simulator in a file of
its own, which notes every member that it is asked for.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import xarray as xr

from tests.enkg.ranks import ROOT

MODEL = '''
"""Two of four numbers. A line in `calls` for each member."""
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def simulate(x, pause=0.0):
    with (HERE / "calls").open("a") as file:
        for _ in x:
            time.sleep(pause)
            file.write(".")
    return x[:, :2]
'''
FILE = '''
"""Two methods, two noise levels."""
import functools
import os
import signal

import torch

import enkg
from enkg import ablation_figures
from model import simulate

ablation_figures.draw = lambda data, folder: []  # it takes longer than all else here
METHODS = {"ES-MDA": enkg.ESMDA(16, updates=2), "EnKG": enkg.EnKG(16, updates=2)}


def build(guidance, noise, seed, pause=0.0):
    return enkg.Experiment(
        prior=enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,))),
        simulator=enkg.Function(functools.partial(simulate, pause=pause), chunk=4),
        observation=enkg.Observation(torch.ones(2), std=noise),
        guidance=guidance,
        truth=torch.ones(4),
        seed=seed,
    )


def broken(guidance, noise, seed):
    """One cell is as the file `broken` says, as long as it is there."""
    bad = guidance is METHODS["EnKG"] and noise == 0.2 and seed == 1
    if bad and os.path.exists("broken"):
        if open("broken").read() == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("too warm\\ntoday")
    return build(guidance, noise, seed)


def ablation(quick: bool = False, seeds: int = 2, pause: float = 0.0) -> enkg.Ablation:
    """Args:
        quick: One noise level.
    """
    return enkg.Ablation(
        broken if not pause else functools.partial(build, pause=pause),
        {"guidance": METHODS, "noise": (0.2,) if quick else (0.2, 0.4), "seed": range(seeds)},
        title="Four numbers",
        measures=("relative_error", "coverage_90", "calls", "vjps", "seconds"),
    )
'''
TIMES = ("seconds", "simulator_seconds")


def write(folder: Path) -> Path:
    """The project's files; returns the folder."""
    (folder / "model.py").write_text(MODEL)
    (folder / "grid.py").write_text(FILE)
    return folder


def calls(folder: Path) -> int:
    """Members that the simulator was asked for, by all processes."""
    file = folder / "calls"
    return len(file.read_text()) if file.exists() else 0


def process(folder: Path, *words: str) -> subprocess.Popen[str]:
    """enkg in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "enkg", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(life: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed, once it has ended with this code."""
    text, _ = life.communicate(timeout=120)
    assert life.returncode == code, text
    return text


def opened(out: Path) -> xr.Dataset:
    with xr.open_dataset(out / "ablation.nc", engine="h5netcdf") as data:
        return data.load()


def assert_same(one: xr.Dataset, two: xr.Dataset) -> None:
    """The same bits everywhere but in the times."""
    assert set(one.variables) == set(two.variables)
    for name in set(one.variables) - set(TIMES):
        a, b = one[name].values, two[name].values
        assert a.dtype == b.dtype
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
