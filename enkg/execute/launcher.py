"""What is put before the command of an MPI program: mpiexec, srun or flux, and their options."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enkg.errors import InputError
from enkg.execute import allocation
from enkg.execute.environment import environment
from enkg.execute.manifest import Environment, Mpi
from enkg.failure import Cause, MemberFailed


@dataclass(frozen=True)
class Launcher:
    """How one flavour of launcher is called.

    programs: its names, the first one found is taken. options: what follows the name. version: what
    `--version` prints; empty where the name alone tells.
    """

    programs: tuple[str, ...]
    options: tuple[str, ...]
    version: str = ""


LAUNCHERS = {
    "mpich": Launcher(
        ("mpiexec", "mpiexec.hydra", "mpiexec.mpich", "mpirun"),
        ("-n", "{ranks}"),
        r"HYDRA build details|Intel\(R\) MPI Library",
    ),
    # Without these two, Open MPI ties all programs that run side by side to the same first cores,
    # and refuses more ranks than cores.
    "openmpi": Launcher(
        ("mpiexec", "mpiexec.openmpi", "mpirun", "prterun"),
        ("-n", "{ranks}", "--bind-to", "none", "--oversubscribe"),
        r"Open ?MPI|OpenRTE|PRRTE|prterun",
    ),
    # All is stated again, so that a step takes no more of the allocation than it needs.
    "srun": Launcher(
        ("srun",),
        (
            *("-n", "{ranks}", "--exact", "--mem=0", "--cpus-per-task={threads}"),
            "--kill-on-bad-exit=1",
        ),
    ),
    "flux": Launcher(("flux",), ("run", "-n", "{ranks}", "-c", "{threads}")),
}
MISSING = (
    "install MPI (pip install mpich), load its module, or set mpi.launcher in simulator.toml to "
    "mpich, openmpi, srun or flux"
)


def prefix(mpi: Mpi, threads: int = 1, nodes: Sequence[str] = ()) -> list[str]:
    """The arguments before the program; none for one rank, unless a launcher is asked for.

    nodes: of a SLURM allocation, for srun; if not given and there are several, this one.

    Raises InputError if there is no launcher, or not the one asked for. The first look at an
    mpiexec runs it once with --version (0.01 to 1 s); later ones remember.
    """
    if mpi.ranks == 1 and mpi.launcher == "auto":
        return []
    flavour, program = detect(mpi.launcher)
    options = (o.format(ranks=mpi.ranks, threads=threads) for o in LAUNCHERS[flavour].options)
    where = _where(nodes) if flavour == "srun" else []
    return [program, *options, *where, *mpi.arguments]


def makes_steps(mpi: Mpi) -> bool:
    """Whether each start of the program is a step of the SLURM allocation that we are in."""
    if "SLURM_JOB_ID" not in os.environ or (mpi.ranks == 1 and mpi.launcher == "auto"):
        return False
    return detect(mpi.launcher)[0] == "srun"


def _where(nodes: Sequence[str]) -> list[str]:
    """On which nodes a step lies; and that it may share cores with the step that we are in."""
    here = os.environ.get("SLURMD_NODENAME")
    if not nodes and here and os.environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        nodes = (here,)
    words = [f"--nodes={len(nodes)}", "-w", ",".join(nodes)] if nodes else []
    return [*words, "--overlap"] if allocation.in_step() else words


def detect(launcher: str = "auto") -> tuple[str, str]:
    """The flavour of a launcher and its path.

    auto: srun inside a SLURM job that has no mpiexec, else the mpiexec beside this Python, else the
    one on the PATH.
    """
    if launcher != "auto":
        return launcher, _named(launcher)
    found = list(_candidates("mpiexec"))
    if "SLURM_JOB_ID" in os.environ and not found:
        found = list(_candidates("srun"))
        if found:
            return "srun", found[0]
    if not found:
        raise InputError(
            f"an MPI launcher is needed, and there is no mpiexec on the PATH; {MISSING}"
        )
    flavour = _flavour(found[0])
    if not flavour:
        raise InputError(
            f"{found[0]} is neither MPICH's nor Open MPI's by what its --version prints; set "
            "mpi.launcher in simulator.toml to the one that it resembles"
        )
    return flavour, found[0]


def check_world(reported: int, ranks: int, launcher: str) -> None:
    """Raises MemberFailed if an MPI program counts other ranks than it was started with.

    A program linked against one MPI and started by another's launcher runs as so many worlds of
    one rank, without an error.
    """
    if reported != ranks:
        raise MemberFailed(
            Cause.WORLD,
            f"the program counts {reported} ranks, {launcher} started {ranks}; it is linked "
            "against another MPI than the launcher's",
        )


def _named(launcher: str) -> str:
    """The path of the launcher that was asked for."""
    entry = LAUNCHERS[launcher]
    found = [path for name in entry.programs for path in _candidates(name)]
    for path in found:
        if not entry.version or _flavour(path) == launcher:
            return path
    for path in found:
        if not _flavour(path):  # neither known one: the user knows better
            return path
    if found:
        raise InputError(
            f"mpi.launcher is {launcher!r}, but {found[0]} is of {_flavour(found[0])}; {MISSING}"
        )
    raise InputError(
        f"mpi.launcher is {launcher!r}, and there is no {entry.programs[0]} on the PATH; {MISSING}"
    )


def _candidates(name: str) -> Iterator[str]:
    """Programs of this name: beside this Python, then on the PATH."""
    beside = Path(sys.executable or "python3").parent / name
    if name != "srun" and os.access(beside, os.X_OK):
        yield str(beside)
    path = shutil.which(name)
    if path:
        yield os.path.abspath(path)


def _flavour(program: str) -> str:
    """mpich, openmpi, or empty if it is neither."""
    return _version(program, os.stat(program).st_mtime_ns)


@functools.cache
def _version(program: str, _changed: int) -> str:
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(Environment(), {}),
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = done.stdout.decode(errors="replace")
    for flavour, entry in LAUNCHERS.items():
        if entry.version and re.search(entry.version, text):
            return flavour
    return ""
