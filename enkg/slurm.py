"""enkg submit: a run, a grid of runs, or an ablation, as a job on a cluster with SLURM.

In the run directory, or the grid's folder:

    job.sh             the batch script (see `enkg.slurm_script`)
    job.id             number of the job that was submitted last
    job-JOB.log        what the script itself and srun say
    grid.json          the combinations of a grid (see `enkg.grid`)
    ablation.json      the cells of an ablation (see `enkg.ablation_cells`)

and in each run directory, where all that belongs to the job is called job something:

    job-rank-R.log     what rank R prints
    job.rc             exit code of the last start
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from enkg import grid
from enkg.errors import InputError, StoreError
from enkg.slurm_options import Submit, check, margin
from enkg.slurm_script import script

__all__ = ["JOB", "SCRIPT", "Submit", "in_queue", "submit"]

SCRIPT, JOB, CODE = "job.sh", "job.id", "job.rc"
SINGLE = ("experiment.json", CODE)
"""One of these is in a folder that a single run has made."""
ABLATION = "ablation.json"
OURS = (*SINGLE, SCRIPT, grid.FILE, ABLATION)
"""One of these is in a folder that a run or a job has made."""


@dataclass(frozen=True)
class Cells:
    """Of an ablation. numbers: those that are not finished. save: writes the plan of them all."""

    numbers: Sequence[int]
    total: int
    save: Callable[[], None]


def submit(
    options: Submit,
    rest: list[str],
    console: Console,
    program: Sequence[str] = (),
    cells: Cells | None = None,
) -> int:
    """Writes the batch script and submits it; returns the exit code, which is 0.

    rest: the experiment's own arguments, as `enkg run` takes them. program: what takes the place of
    `python -m enkg` in the job. cells: where the file is that of an ablation.

    Raises InputError for options that no job can have, where there is no SLURM, and where SLURM
    refuses; StoreError where the run directory is in use or finished.
    """
    array = cells is not None or bool(options.vary)
    check(options, array)
    folder = options.directory
    _check_vary(options, rest)
    if not options.file.is_file():
        raise InputError(f"there is no experiment file {options.file}")

    def written() -> tuple[Sequence[int], str]:
        indexes = _missing(options, rest) if cells is None else cells.numbers
        return indexes, script(options, rest, indexes, program, cells is not None)

    if options.dry_run:
        console.out(written()[1], end="", highlight=False)
        return 0
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch on the PATH, so this machine submits no jobs to SLURM; run this on "
            "a login node of the cluster, or print the script with --dry-run and copy it there"
        )
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    indexes, text = written()
    if array:
        total = cells.total if cells is not None else len(grid.grid(options.vary))
        what = "runs" if cells is None else "cells"
        if not indexes:
            _say(console, f"all {total} {what} of {folder} are finished; nothing to submit")
            return 0
        if len(indexes) < total:
            _say(console, f"{total - len(indexes)} of {total} {what} are finished; they stay")
        if cells is None:
            grid.save(folder, _grid(options, rest))
        else:
            cells.save()
    file = folder / SCRIPT
    _write(file, text, 0o755)
    job = _sbatch(file)
    _write(folder / JOB, f"{job}\n", 0o644)
    _tell(options, job, len(indexes), console, cells is not None)
    if cells is not None:
        words = ["enkg", "ablate", str(options.file), *rest, "--out", _shown(folder)]
        _say(console, f"  {'table':<8}{shlex.join(words)} --only-gather")
    return 0


def in_queue(job: str) -> bool:
    """Whether SLURM still has a job, waiting or at work; False where there is no SLURM to ask."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def _check_vary(options: Submit, rest: Sequence[str]) -> None:
    """No argument may be set to one value and varied as well."""
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in rest if word[:1] == "-"}
    if options.guidance is not None:
        given.add("guidance")
    varied = grid.grid(options.vary)[0] if options.vary else {}
    for name in varied:
        if name.replace("-", "_") in given:
            raise InputError(f"{name} is given and varied; leave out --{name}, or its --vary")


def _check_folder(folder: Path) -> None:
    """Raises StoreError if a job must not write here."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; a run needs a directory")
    if (folder / grid.FINISHED).is_file():
        raise StoreError(
            f"{folder} holds a finished run (see it with: enkg show {shlex.quote(str(folder))}); "
            "give another --out"
        )
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / name).exists() for name in OURS)
    ):
        raise StoreError(f"{folder} holds files that no run of enkg wrote; choose another --out")
    try:
        job = (folder / JOB).read_text().strip()
    except OSError:
        return
    if job and in_queue(job):
        raise StoreError(
            f"job {job} is already in the queue for {folder}; wait for its end, or cancel it with: "
            f"scancel {job}"
        )


def _grid(options: Submit, rest: Sequence[str]) -> grid.Grid:
    guidance = () if options.guidance is None else ("--guidance", options.guidance)
    configurations = tuple(grid.grid(options.vary))
    return grid.Grid(configurations, str(options.file.absolute()), (*guidance, *rest))


def _missing(options: Submit, rest: Sequence[str]) -> list[int]:
    """Numbers of the runs of the grid that are not finished; none where there is no grid.

    Raises StoreError if the folder holds something else.
    """
    folder = options.directory
    if (folder / ABLATION).is_file():
        raise StoreError(f"{folder} holds an ablation; give another --out")
    if grid.exists(folder):
        if not options.vary:
            raise StoreError(f"{folder} holds a grid, no single run; give another --out")
        grid.same(folder, _grid(options, rest))
        return grid.missing(folder)
    if not options.vary:
        return []
    if any((folder / name).exists() for name in SINGLE):
        raise StoreError(f"{folder} holds a single run, no grid; give another --out")
    return list(range(len(grid.grid(options.vary))))


def _sbatch(file: Path) -> str:
    """The job's number. Raises InputError with SLURM's own words if it refuses."""
    done = subprocess.run(
        ["sbatch", "--parsable", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    job = done.stdout.strip().partition(";")[0]  # ;cluster
    if done.returncode != 0 or not job:
        said = [line.removeprefix("sbatch: ").strip() for line in done.stderr.splitlines()]
        why = "; ".join(line.removeprefix("error: ") for line in said if line)
        raise InputError(
            f"SLURM refuses the job: {why or f'sbatch ended with {done.returncode}'} "
            f"(the script is {file})"
        )
    return job


def _shown(folder: Path) -> str:
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _tell(options: Submit, job: str, runs: int, console: Console, cells: bool) -> None:
    shown, array = shlex.quote(_shown(options.directory)), cells or bool(options.vary)
    nodes = f"{options.nodes} node{'s' * (options.nodes > 1)}"
    ranks = f"{options.ranks} rank{'s' * (options.ranks > 1)}"
    what = "cell" if cells else "run"
    many = f", {runs} {what}{'s' * (runs > 1)} of" if array else ","
    _say(console, f"submitted job {job}{many} {nodes} and {ranks}")
    last = "R" if options.ranks > 1 else "0"
    lines = [("script", f"{shown}/{SCRIPT}")]
    if array:
        lines += [("logs", f"{shown}/job-{job}_K.log, {shown}/KKKK/job-rank-{last}.log")]
    else:
        lines += [("logs", f"{shown}/job-{job}.log, {shown}/job-rank-{last}.log")]
    lines += [("follow", f"enkg status {shown}"), ("", f"squeue -j {job}")]
    lines += [("cancel", f"scancel {job}")]
    if options.time is not None:
        asked = f"{margin(options)} s before {options.time}; up to {options.requeues} restarts"
        lines.append(("stops", asked))
    for name, text in lines:
        _say(console, f"  {name:<8}{text}")


def _say(console: Console, text: str) -> None:
    console.out(text, highlight=False)


def _write(file: Path, text: str, mode: int) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.chmod(mode)
    os.replace(partial, file)
