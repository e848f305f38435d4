"""What can be asked of a batch job; the docstrings are the help of enkg submit."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from enkg.comm import Kind
from enkg.errors import InputError
from enkg.stop import seconds

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Submit:
    """Run an experiment file as a batch job on a cluster with SLURM.

    Writes the batch script DIR/job.sh and submits it. The job runs `enkg run FILE --resume` on all
    ranks. Before its time is up it stops in order, keeps what was computed, and is queued again
    until the run is finished. Arguments of the experiment follow FILE, as for `enkg run`.

    With --vary the job is an array: one run for each combination of the values, in DIR/0000,
    DIR/0001 and so on. The same command again submits only those that have no finished run.

    For a file that defines `ablation` (see enkg ablate) the job is an array with a task for each
    cell that is not finished; `enkg ablate FILE --only-gather` makes the tables of it.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file, or that of an ablation."""
    out: Path | None = None
    """The run directory; runs/NAME-OF-FILE if not given. All nodes must see it."""
    nodes: int = 1
    """Nodes of one run."""
    ranks_per_node: int = 1
    """Processes of enkg on each node, which share the members of the ensemble. 0: one process
    alone, which starts its simulators on all the nodes (those with `launcher = "srun"` under [mpi]
    in their simulator.toml)."""
    cpus_per_rank: int | None = None
    """Cores of each rank; SLURM gives 1 if not given. With --ranks-per-node 0: cores to use on each
    node, whole nodes if not given."""
    gpus_per_node: int = 0
    """GPUs on each node."""
    time: str | None = None
    """Time limit of one start, such as 4:00:00 or 1-12:00:00; the partition's if not given."""
    partition: str | None = None
    """Where to run (see sinfo)."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    memory: str | None = None
    """Memory on each node, such as 64G."""
    job_name: str | None = None
    """Name in the queue; enkg-NAME-OF-FILE if not given."""
    margin: int = 300
    """Seconds before the time limit at which the run is asked to stop; at most half the limit.
    SLURM may ask up to a minute earlier."""
    launcher: Literal["srun", "mpiexec"] = "srun"
    """What starts the ranks. A single process needs none of them."""
    mpi: str | None = None
    """Value of `srun --mpi=` (see `srun --mpi=list`); if not given, pmi2 for an mpi4py on MPICH and
    pmix for one on Open MPI."""
    setup: Repeated = ()
    """A line of shell before the run, such as 'module load gcc'; can be given several times."""
    sbatch: Repeated = ()
    """A further option of sbatch, such as constraint=a100 or exclusive; several times."""
    requeues: int = 20
    """How often the job is queued again, at most, while the run is not finished."""
    vary: Repeated = ()
    """NAME=V1,V2,...: run the experiment for each value of this argument; several times."""
    at_once: int | None = None
    """With --vary, or an ablation: how many runs may be at work at the same time."""
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
    comm: Kind = "auto"
    """As for enkg run."""
    controller: bool = False
    """As for enkg run."""
    dry_run: bool = False
    """Print the script, and neither write nor submit anything."""
    traceback: bool = False
    """Show where an error arose."""

    @property
    def directory(self) -> Path:
        """The run directory, or the grid's folder; absolute."""
        return Path(self.out or Path("runs") / self.file.stem).absolute()

    @property
    def ranks(self) -> int:
        """Processes of enkg, at least 1."""
        return max(1, self.nodes * self.ranks_per_node)


def check(options: Submit, several: bool) -> None:
    """Raises InputError for numbers and texts that no job can have. several: runs in an array."""
    for name, least in (
        ("nodes", 1),
        ("ranks_per_node", 0),
        ("gpus_per_node", 0),
        ("margin", 1),
        ("requeues", 0),
        ("cpus_per_rank", 1),
        ("at_once", 1),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            shown = name.replace("_", "-")
            raise InputError(f"--{shown} is {value}; expected at least {least}")
    if options.at_once is not None and not several:
        raise InputError("--at-once is for several runs; give --vary as well, or leave it out")
    if options.ranks == 1 and options.controller:
        raise InputError(
            "--controller needs ranks that simulate, and there is only one process; give "
            "--ranks-per-node as well"
        )
    if options.ranks == 1 and options.mpi is not None:
        raise InputError(
            "--mpi is given, but there is only one process; give --ranks-per-node or --nodes "
            "as well, or leave it out"
        )
    if options.launcher != "srun" and options.mpi is not None:
        raise InputError(f"--mpi is an option of srun, and --launcher is {options.launcher}")
    if re.search(r"[\x00-\x1f\x7f\\]", str(options.directory)):
        raise InputError(
            f"--out is {str(options.directory)!r}; SLURM cannot write logs to a path with a "
            "backslash or a line end in it; give another"
        )
    for word in options.sbatch:
        if "\n" in word or not word.strip("- "):
            raise InputError(f"--sbatch is {word!r}; expected one option, such as constraint=a100")
    if options.time is not None:
        seconds(options.time)


def margin(options: Submit) -> int:
    """Seconds before the time limit at which the run is asked to stop."""
    if options.time is None:
        return options.margin
    return max(1, min(options.margin, int(seconds(options.time)) // 2))
