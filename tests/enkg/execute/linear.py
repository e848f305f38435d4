"""One linear problem, and the program that simulates it, for the tests of all adapters."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import enkg

HERE = Path(__file__).parent
STUBS = Path(enkg.__file__).parent / "stubs"
PRIOR = enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,)))
OBSERVATION = enkg.Observation([1.0, -0.5, 0.3], std=0.3)
MEMBERS = 24

MANIFEST = """
name = "faulty"
timeout = 20.0
grace = 0.3
[input]
shape = [4]
format = "raw"
[output]
shape = [3]
format = "raw"
[oneshot]
command = ["./faulty", "{input}", "{output}"]
[worker]
command = ["./faulty"]
"""


def simulate(x):
    """One member, (4,) to (3,)."""
    return x[:3] + 0.5 * x[1:]


def simulate_all(x):
    """(B, 4) to (B, 3)."""
    return x[:, :3] + 0.5 * x[:, 1:]


def experiment(simulator, **changes) -> enkg.Experiment:
    fields = {
        "prior": PRIOR,
        "simulator": simulator,
        "observation": OBSERVATION,
        "guidance": enkg.EnKG(members=MEMBERS, updates=2),
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


def build(folder: Path, manifest: str = MANIFEST) -> Path:
    """Compiles the program into a folder and writes its simulator.toml."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    folder.mkdir(exist_ok=True)
    source = HERE / "programs" / "faulty.c"
    options = ["-O1", "-I", str(STUBS / "c"), "-o", str(folder / "faulty"), str(source), "-lm"]
    subprocess.run([compiler, *options], check=True)
    (folder / "simulator.toml").write_text(manifest)
    return folder


def posterior(made: enkg.Experiment) -> np.ndarray:
    return enkg.run(made)["posterior"].to_dataset()["x"].values


def left_running(name: str) -> list[str]:
    """Command lines of living processes that mention a name."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if name in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found
