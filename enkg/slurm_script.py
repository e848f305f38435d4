"""The batch script of a run on SLURM: what it asks for, and how it stops, goes on and ends.

The script starts the run, hands on the signal that SLURM sends before the time is up, waits, and
asks for another start if the run says by exit code 75 that it is not finished.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from enkg import grid
from enkg.errors import InputError
from enkg.slurm_options import Submit, margin

UNFINISHED = 75
"""Exit code of a run that stopped in order before its end."""
APART = 20
"""Seconds by which the ranks of one run may end apart from each other."""


def script(
    options: Submit,
    rest: Sequence[str],
    indexes: Sequence[int] = (),
    program: Sequence[str] = (),
    cells: bool = False,
) -> str:
    """The batch script.

    rest: the experiment's own arguments. indexes: of the grid's configurations that are to run, or
    with `cells` the numbers of the cells of an ablation. program: what takes the place of `python
    -m enkg`.
    """
    configurations = grid.grid(options.vary) if options.vary else []
    verb = "ablate" if cells else "run"
    enkg = [*(program or (sys.executable, "-m", "enkg")), verb, str(options.file.absolute())]
    if options.guidance is not None:
        enkg += ["--guidance", options.guidance]
    enkg += [] if options.comm == "auto" else ["--comm", options.comm]
    enkg += ["--controller"] if options.controller else []
    which = (' "${values[@]}"' if configurations else "") + ' --out "$out" --resume)'
    if cells:
        out = shlex.quote(str(options.directory))
        which = f' --out {out} --cell "$SLURM_ARRAY_TASK_ID")'
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in _header(options, indexes, cells)),
            _SIGNALS,
            *_place(options, {} if cells else {k: configurations[k] for k in indexes}, cells),
            *_before(options),
            f"run=({shlex.join([*enkg, *rest])}{which}",
            *_start(options),
            _END.replace("REQUEUES", str(options.requeues)),
        ]
    )


def _header(options: Submit, indexes: Sequence[int], cells: bool) -> list[str]:
    several = cells or bool(options.vary)
    tasks = max(1, options.ranks_per_node)
    log = "job-%A_%a.log" if several else "job-%j.log"
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
    if several:
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


def _place(
    options: Submit, configurations: Mapping[int, grid.Configuration], cells: bool
) -> list[str]:
    """Where the run of this job lies, and what its own arguments are."""
    lines = [f"cd {shlex.quote(str(Path.cwd()))} || exit 1"]
    here = shlex.quote(str(options.directory))
    if not options.vary and not cells:
        return [*lines, f"out={here}", 'job="$SLURM_JOB_ID"']
    lines += [
        'number=$(printf %04d "$SLURM_ARRAY_TASK_ID")',
        f'out={here}/"$number"',
        'job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
    ]
    if cells:
        return lines
    lines.append('case "$SLURM_ARRAY_TASK_ID" in')
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
        return ['"${run[@]}" </dev/null >>"$out/job-rank-0.log" 2>&1 &']
    if options.launcher == "mpiexec":
        beside = Path(sys.executable).parent / "mpiexec"
        mpiexec = shlex.quote(str(beside)) if beside.exists() else "mpiexec"
        return [
            'export ENKG_LOG="$out/job-rank-"',
            f"{mpiexec} -n {options.ranks} bash -c '",
            "  rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-0}}}",
            """  exec "$@" >>"$ENKG_LOG$rank.log" 2>&1' enkg "${run[@]}" </dev/null &""",
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
        "# MPICH names its shared memory by the number of the step. What an earlier start of this",
        "# job may have left behind must not be taken for ours, so that number has to be new.",
        'for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do',
        "  srun --nodes=1 --ntasks=1 --mpi=none true",
        "done",
        " ".join(words) + " \\",
        """  --output="${out//%/%%}/job-rank-%t.log" "${run[@]}" </dev/null &""",
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
# A run that was told before it could listen is killed by the signal; and SLURM kills the ranks
# that are not yet done when the first one has ended by MPI_Abort.
if [ "$told" = USR1 ] && [ "$code" -gt 128 ]; then code={UNFINISHED}; fi
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
  if [ -s "$out/job-rank-0.log" ]; then
    echo "the end of $out/job-rank-0.log:" >&2
    tail -n 20 "$out/job-rank-0.log" >&2
  fi
fi
exit "$code"
"""
