"""simulator.toml: how a program is started and spoken to.

One folder holds one simulator: its program and this file. At least one of the tables `oneshot` and
`worker` says how the program runs. `enkg.execute.reading` reads and checks the file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

NAME = "simulator.toml"
PLACEHOLDERS = (
    "input",
    "output",
    "folder",
    "run",
    "member",
    "batch",
    "attempt",
    "threads",
    "ranks",
)
"""What may stand in braces in arguments, templates and environment values:

input, output: paths of the two files. folder: the simulator's own folder. run: the run directory
of this call. member, batch, attempt: numbers of this call. threads, ranks: as in the manifest.
Beside these, x0, x1, ...: the numbers of the member, in C order. A worker, which is not started
anew, knows folder, threads and ranks alone.
"""
LASTING = ("folder", "threads", "ranks")
"""The placeholders that mean the same in every call."""
SUFFIX = {"npy": ".npy", "raw": ".bin", "text": ".txt", "netcdf": ".nc"}

Format = Literal["npy", "raw", "text", "netcdf"]


@dataclass(frozen=True)
class Port:
    """What goes in, or what comes out, for one member."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "float64"] = "float64"
    format: Format = "npy"
    """One-shot programs: the file format. text: numbers separated by white space."""
    file: str = ""
    """One-shot programs: name of the file in the run directory; input.npy, output.npy and so on."""
    variable: str = ""
    """netcdf: name of the variable; x for the input, y for the output."""
    order: Literal["C", "F"] = "C"
    """F: the program stores arrays by columns, as Fortran and Julia do."""
    endian: Literal["little", "big"] = "little"
    """raw: order of the bytes."""
    minimum: float | None = None
    """Output: a member with a smaller number has failed."""
    maximum: float | None = None
    """Output: a member with a larger number has failed."""

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.dtype)

    @property
    def count(self) -> int:
        """Numbers of one member."""
        return int(np.prod(self.shape, dtype=int))


@dataclass(frozen=True)
class OneShot:
    """The program starts anew for every member, in a run directory of its own."""

    command: tuple[str, ...]
    """Arguments, the program first. No shell: no pipes, no globbing, no variables."""
    templates: tuple[str, ...] = ()
    """Files of the folder that are copied into the run directory with their placeholders filled."""
    copy: tuple[str, ...] = ()
    """Files of the folder that are copied into the run directory."""
    link: tuple[str, ...] = ()
    """Files of the folder that are linked into the run directory: large tables, meshes."""
    stdin: str = ""
    """File of the run directory that the program reads as its standard input."""
    error_file: str = ""
    """File of the run directory whose presence means failure."""
    keep: Literal["failed", "never", "all"] = "failed"
    """Which run directories stay after the run."""


@dataclass(frozen=True)
class Worker:
    """The program stays up and is handed one member after another."""

    command: tuple[str, ...]
    """Arguments, the program first."""
    memory: Literal["shared", "pipe"] = "pipe"
    """How the numbers travel: through shared memory, or through the pipe behind the header."""
    batch: int = 1
    """Members of one call, for programs that work on several at once."""
    startup: float = 60.0
    """Seconds until the program must have said that it is ready."""


@dataclass(frozen=True)
class Mpi:
    """Members that are MPI programs."""

    ranks: int = 1
    launcher: Literal["auto", "mpich", "openmpi", "srun", "flux"] = "auto"
    arguments: tuple[str, ...] = ()
    """Further arguments for the launcher."""


@dataclass(frozen=True)
class Environment:
    """The program's environment: ours, without MPI's and SLURM's step variables, and these."""

    set: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A simulator.toml that was read and checked. folder: where it lies."""

    name: str
    input: Port
    output: Port
    version: str = "0"
    description: str = ""
    build: tuple[str, ...] = ()
    """The command that makes the program, for messages; enkg never runs it."""
    oneshot: OneShot | None = None
    worker: Worker | None = None
    mpi: Mpi = field(default_factory=Mpi)
    environment: Environment = field(default_factory=Environment)
    threads: int = 1
    """Threads of each process; sets OMP_NUM_THREADS and its kin."""
    memory: int = 0
    """Largest address space of the program in MiB; 0 sets no limit."""
    timeout: float = 3600.0
    """Seconds that one call may take."""
    grace: float = 5.0
    """Seconds between the request to end and the kill."""
    folder: Path = Path()
