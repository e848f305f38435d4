"""The project of a run that is killed: an experiment file, its simulator, and a program of it."""

import shutil
import sys
from pathlib import Path

import enkg

MEMBERS = 33
"""Of all experiments here; no number of ranks used divides it."""

MODEL = '''
"""Three numbers from six. Notes when each evaluation begins and ends."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def note(what, member):
    """One line of 32 bytes, appended at once."""
    handle = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, f"{what} {member} {os.getpid():8d}\\n".encode())
    os.close(handle)


def simulate(x, fails="never", pause=0.005):
    """x: (6,) to (3,). fails: which members have no answer; none once `mended` is there."""
    x = np.array(x, np.float32)
    member = hashlib.blake2b(x.tobytes(), digest_size=8).hexdigest()
    note("begun", member)
    try:
        time.sleep(pause)
        bad = not (HERE / "mended").exists() and (
            (fails in ("some", "slow") and x[0] > 0.9)
            or (fails == "most" and x[0] > -0.8)
            or fails in ("all", "hang")
        )
        if bad and fails in ("slow", "hang"):
            time.sleep(60)
        if bad:
            note("wrong", member)
            raise ArithmeticError("too warm")
        x = x.astype(np.float64)
        return np.tanh(x[:3]) + 0.3 * x[1:4] * x[3:]
    finally:
        note("ended", member)
'''

EXPERIMENT = '''
"""Six numbers, of which three are seen."""

import functools
from pathlib import Path
from typing import Literal

import torch

import enkg
from enkg import journal, report
from model import simulate

HERE = Path(__file__).resolve().parent


def experiment(
    kind: Literal["function", "program", "cached"] = "function",
    fails: str = "never",
    pause: float = 0.005,
    often: bool = True,
    figures: bool = False,
) -> enkg.Experiment:
    """Args:
        often: A checkpoint after each step; else after the first one only.
        figures: Drawn as ever; they take longer than all else here.
    """
    if not figures:
        report.figures = lambda tree, folder: []
    journal.SHARE = 1e9 if often else 0.0
    simulator = enkg.Function(
        functools.partial(simulate, fails=fails, pause=pause), batched=False
    )
    if kind == "cached":
        simulator = enkg.Cached(simulator, HERE / "cache")
    if kind == "program":
        simulator = enkg.Program(HERE / "program", slots=1)
    return enkg.Experiment(
        prior=enkg.Gaussian(
            torch.linspace(-0.5, 0.5, 6), torch.linspace(1, 0.4, 6), enkg.Identity((6,))
        ),
        simulator=simulator,
        observation=enkg.Observation([0.4, -0.3, 0.2], std=0.2),
        guidance=enkg.EnKG(members=MEMBERS, updates=3),
        truth=torch.linspace(0.4, -0.4, 6),
    )
'''.replace("MEMBERS", str(MEMBERS))

WORKER = """
import os
import signal
import sys

if FAILS == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path.insert(0, os.path.dirname(os.environ["ENKG_FOLDER"]))
from enkg_worker import serve
from model import simulate

serve(lambda x: simulate(x, fails=FAILS))
"""

MANIFEST = """
name = "mortal"
timeout = 30.0
grace = GRACE
[input]
shape = [6]
[output]
shape = [3]
[worker]
command = ["PYTHON", "{folder}/worker.py"]
"""


def write(folder: Path, fails: str = "never") -> None:
    """Writes the project. fails: what the program's members do (see MODEL)."""
    (folder / "pyproject.toml").touch()  # the root of the project
    (folder / "model.py").write_text(MODEL)
    (folder / "experiment.py").write_text(EXPERIMENT)
    program = folder / "program"
    program.mkdir()
    shutil.copy(Path(enkg.__file__).parent / "stubs" / "python" / "enkg_worker.py", program)
    (program / "worker.py").write_text(WORKER.replace("FAILS", repr(fails)))
    manifest = MANIFEST.replace("GRACE", "10.0" if fails == "hang" else "0.3")
    (program / "simulator.toml").write_text(manifest.replace("PYTHON", sys.executable))
