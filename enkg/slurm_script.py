"""The batch script of a run on SLURM: what it asks for, and how it stops, goes on and ends.

The script starts the run, hands on the signal that SLURM sends before the time is up, waits, and
asks for another start if the run says by exit code 75 that it is not finished.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from enkg import grid
from enkg.errors import InputError

UNFINISHED = 75
"""Exit code of a run that stopped in order before its end."""
APART = 20
"""Seconds by which the ranks of one run may end apart from each other."""

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Submit:
    """Run an experiment file as a batch job on a cluster with SLURM.

    Writes the batch script DIR/job.sh and submits it. The job runs `enkg run FILE --resume` on all
    ranks. Before its time is up it stops in order, keeps what was computed, and is queued again
    until the run is finished. Arguments of the experiment follow FILE, as for `enkg run`.

    With --vary the job is an array: one run for each combination of the values, in DIR/0000,
    DIR/0001 and so on. The same command again submits only those that have no finished run.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file."""
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
    """With --vary: how many runs may be at work at the same time."""
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
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


def check(options: Submit) -> None:
    """Raises InputError for numbers and texts that no job can have."""
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
    if options.at_once is not None and not options.vary:
        raise InputError("--at-once is for several runs; give --vary as well, or leave it out")
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
    seconds(options.time)


def seconds(time: str | None) -> int | None:
    """Seconds of a time limit in one of SLURM's forms; raises InputError for another."""
    if time is None:
        return None
    if not re.fullmatch(r"(\d+-\d+(:\d+){0,2})|(\d+(:\d+){0,2})", time):
        raise InputError(
            f"--time is {time!r}; expected hours, minutes and seconds such as 4:00:00, with days "
            "1-12:00:00, or minutes alone"
        )
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    found = int(days or 0) * 86400 + sum(a * b for a, b in zip(parts, units, strict=False))
    if found == 0:
        raise InputError(f"--time is {time!r}; expected more than no time at all")
    return found


def margin(options: Submit) -> int:
    """Seconds before the time limit at which the run is asked to stop."""
    limit = seconds(options.time)
    return options.margin if limit is None else max(1, min(options.margin, limit // 2))


def script(
    options: Submit,
    rest: Sequence[str],
    indexes: Sequence[int] = (),
    program: Sequence[str] = (),
) -> str:
    """The batch script.

    rest: the experiment's own arguments. indexes: of the grid's configurations that are to run.
    program: what takes the place of `python -m enkg`.
    """
    configurations = grid.grid(options.vary) if options.vary else []
    enkg = [*(program or (sys.executable, "-m", "enkg")), "run", str(options.file.absolute())]
    if options.guidance is not None:
        enkg += ["--guidance", options.guidance]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in _header(options, indexes)),
            _SIGNALS,
            *_place(options, {k: configurations[k] for k in indexes}),
            *_before(options),
            f"run=({shlex.join([*enkg, *rest])}"
            + (' "${values[@]}"' if configurations else "")
            + ' --out "$out" --resume)',
            *_start(options),
            _END.replace("REQUEUES", str(options.requeues)),
        ]
    )


def _header(options: Submit, indexes: Sequence[int]) -> list[str]:
    tasks = max(1, options.ranks_per_node)
    log = "slurm-%A_%a.log" if options.vary else "slurm-%j.log"
    lines = [
        f"--job-name={_quoted(options.job_name or f'enkg-{options.file.stem}')}",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={tasks}",
        f"--output={_quoted(_literal(options.directory) + '/' + log)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{margin(options)}",
    ]
    if options.cpus_per_rank is not None:
        lines.append(f"--cpus-per-task={options.cpus_per_rank}")
    elif options.ranks_per_node == 0:
        lines.append("--exclusive")
    if options.gpus_per_node:
        lines.append(f"--gpus-per-node={options.gpus_per_node}")
    for name, value in (
        ("time", options.time),
        ("partition", options.partition),
        ("account", options.account),
        ("qos", options.qos),
        ("mem", options.memory),
    ):
        if value is not None:
            lines.append(f"--{name}={_quoted(value)}")
    if options.vary:
        at_once = "" if options.at_once is None else f"%{options.at_once}"
        lines.append(f"--array={ranges(indexes)}{at_once}")
    return lines + [word if word.startswith("-") else f"--{word}" for word in options.sbatch]


def ranges(indexes: Sequence[int]) -> str:
    """Numbers as SLURM writes them.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for k in indexes:
        if runs and runs[-1][-1] == k - 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _place(options: Submit, configurations: Mapping[int, grid.Configuration]) -> list[str]:
    """Where the run of this job lies, and what its own arguments are."""
    lines = [f"cd {shlex.quote(str(Path.cwd()))} || exit 1"]
    here = shlex.quote(str(options.directory))
    if not options.vary:
        return [*lines, f"out={here}", 'job="$SLURM_JOB_ID"']
    lines += [
        'number=$(printf %04d "$SLURM_ARRAY_TASK_ID")',
        f'out={here}/"$number"',
        'job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        'case "$SLURM_ARRAY_TASK_ID" in',
    ]
    for k, configuration in configurations.items():
        lines.append(f"  {k}) values=({shlex.join(grid.arguments(configuration))}) ;;")
    return [*lines, '  *) echo "the grid has no run $number" >&2; exit 1 ;;', "esac"]


def _before(options: Submit) -> list[str]:
    # Without this, each rank takes all cores of its node for its threads.
    threads = f"export OMP_NUM_THREADS={options.cpus_per_rank or 1}"
    alone = options.ranks_per_node == 0 or options.ranks == 1
    lines = [] if alone else [threads]
    return ['mkdir -p "$out" || exit 1', *lines, *options.setup]


def _start(options: Submit) -> list[str]:
    """Starts the run in the background; each rank writes to a file of its own."""
    if options.ranks == 1:
        return ['"${run[@]}" </dev/null >>"$out/log-rank-0.txt" 2>&1 &']
    if options.launcher == "mpiexec":
        beside = Path(sys.executable).parent / "mpiexec"
        mpiexec = shlex.quote(str(beside)) if beside.exists() else "mpiexec"
        return [
            'export ENKG_LOG="$out/log-rank-"',
            f"{mpiexec} -n {options.ranks} bash -c '",
            "  rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-0}}}",
            """  exec "$@" >>"$ENKG_LOG$rank.txt" 2>&1' enkg "${run[@]}" </dev/null &""",
        ]
    mpi = flavour() if options.mpi is None else options.mpi
    words = [
        *("srun", f"--nodes={options.nodes}", f"--ntasks={options.ranks}"),
        f"--ntasks-per-node={options.ranks_per_node}",
        f"--cpus-per-task={options.cpus_per_rank or 1}",
    ]
    if options.gpus_per_node:
        words.append(f"--gpus-per-node={options.gpus_per_node}")
    if mpi:
        words.append(f"--mpi={shlex.quote(mpi)}")
    # The ranks of a run that stops in order end one after another with code 75. The first one to
    # end must not have the others killed at once, which would also hide the code.
    words += ["--kill-on-bad-exit=0", f"--wait={APART}", "--open-mode=append"]
    return [
        " ".join(words) + " \\",
        """  --output="${out//%/%%}/log-rank-%t.txt" "${run[@]}" </dev/null &""",
    ]


def flavour() -> str:
    """What `srun --mpi=` should say for the mpi4py of this Python; empty without mpi4py."""
    code = (
        "import mpi4py; mpi4py.rc(initialize=False, finalize=False)\n"
        "from mpi4py import MPI; print(MPI.get_vendor()[0])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    vendor = done.stdout.strip()
    return {"MPICH": "pmi2", "Intel MPI": "pmi2", "MVAPICH": "pmi2", "Open MPI": "pmix"}.get(
        vendor, ""
    )


def _literal(path: Path) -> str:
    """A path in which SLURM replaces nothing."""
    return str(path).replace("%", "%%")


def _quoted(text: str) -> str:
    """A value of an option in a line of #SBATCH, which SLURM reads by rules of its own."""
    if "\n" in text or "\0" in text:
        raise InputError(f"{text!r} has a line end in it; SLURM takes one line")
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_SIGNALS = """\
# Written by `enkg submit`. To change something, change it here and: sbatch job.sh

run_pid='' told=''
hand_on() {
  told=$1 again=yes
  [ -z "$run_pid" ] || kill -s "$1" "$run_pid" 2>/dev/null
}
trap 'hand_on USR1' USR1  # the time is nearly up
trap 'hand_on TERM' TERM  # the job is cancelled or preempted
"""

_END = f"""\
run_pid=$!
[ -z "$told" ] || kill -s "$told" "$run_pid" 2>/dev/null

again=yes
while [ "$again" = yes ]; do  # a signal ends `wait` before the run has ended
  again=no
  wait "$run_pid"
  code=$?
done
# A run that was told before it could listen is killed by the signal.
if [ "$told" = USR1 ] && [ "$code" -eq 138 ]; then code={UNFINISHED}; fi
echo "$code" >"$out/job.rc"

life=${{SLURM_RESTART_COUNT:-0}}
if [ "$code" -eq {UNFINISHED} ] && [ "$told" != TERM ]; then
  if [ "$life" -lt REQUEUES ]; then
    echo "$(date '+%F %T') stopped before the time limit; queued again (restart $((life + 1)))"
    trap - TERM USR1
    scontrol requeue "$job" && sleep 60  # SLURM ends this script now
  else
    echo "not finished after $life restarts; go on with: sbatch job.sh" >&2
  fi
elif [ "$code" -ne 0 ]; then
  echo "$(date '+%F %T') ended with exit code $code" >&2
  if [ -s "$out/log-rank-0.txt" ]; then
    echo "the end of $out/log-rank-0.txt:" >&2
    tail -n 20 "$out/log-rank-0.txt" >&2
  fi
fi
exit "$code"
"""
