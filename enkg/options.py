"""What can be asked on the command line; the docstrings are the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from enkg.comm import Kind
from enkg.scaffold import Language
from enkg.slurm_options import Repeated


@dataclass(frozen=True)
class Run:
    """Run an experiment file and leave a run directory behind.

    FILE defines `experiment`: an enkg.Experiment, or a function with typed arguments that returns
    one. Every argument of the function and every field of the experiment can be given after FILE,
    for instance --guidance.members 512 --seed 3; `enkg run FILE --help` lists them.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file."""
    out: Path | None = None
    """The run directory; runs/NAME-OF-FILE if not given."""
    overwrite: bool = False
    """Replace a run that is already there; its results are removed before the new run starts."""
    resume: bool = False
    """Go on with the unfinished run in the directory, or begin; a finished one is only printed."""
    force: bool = False
    """With --resume: go on even though the experiment has changed."""
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
    time_limit: str | None = None
    """Stop after H:MM:SS and end with exit code 75, so that `enkg resume` can go on."""
    comm: Kind = "auto"
    """How the ranks of a parallel run speak to each other: auto asks the launcher (mpiexec, srun,
    torchrun); alone is for one process that has nothing to do with the others."""
    controller: bool = False
    """Under mpiexec or srun: the first rank guides, the others simulate, one call at a time each.
    For members that take very different times; else every rank guides its share."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was killed, stopped or failed; nothing is simulated twice.

    The experiment is built anew from the file and the arguments that the run was begun with. Any
    number of ranks may go on with what any other number began.
    """

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    force: bool = False
    """Go on even though the experiment has changed since."""
    time_limit: str | None = None
    """Stop after H:MM:SS and end with exit code 75."""
    comm: Kind = "auto"
    """As for enkg run."""
    controller: bool = False
    """As for enkg run."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Calibrate:
    """Invert synthetic truths and see whether they lie where the ensembles say.

    Truths are samples of the experiment's prior; their data come from its simulator and noise, in
    place of those of FILE. Prints how often intervals hold the truth, and whether its ranks are
    uniform. Takes the same arguments after FILE as `enkg run`; costs as many runs as there are
    truths. Given again, the command goes on, or adds truths.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file."""
    truths: int = 50
    """How many; with less than 30 only gross faults are seen."""
    out: Path | None = None
    """Where the runs go; runs/NAME-OF-FILE-calibration if not given."""
    force: bool = False
    """Go on even though the experiment has changed."""
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
    time_limit: str | None = None
    """Stop after H:MM:SS and end with exit code 75; the same command goes on."""
    comm: Kind = "auto"
    """As for enkg run."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Ablate:
    """Run a grid of experiments: methods, noise levels, budgets, seeds; end in tables and figures.

    FILE defines `ablation`: an enkg.Ablation, or a function with typed arguments that returns one;
    the arguments can be given after FILE, such as --quick. Each combination is a cell, a run with a
    directory of its own. Given again, the command goes on: finished cells stay, others are tried
    again, new ones are added. A cell that fails leaves the others alone; the exit code is 1 then.
    With SLURM: enkg submit FILE runs the cells as an array job.
    """

    file: tyro.conf.Positional[Path]
    """The file of the ablation."""
    out: Path | None = None
    """Where the cells go; runs/NAME-OF-FILE if not given, with -quick behind it for --quick."""
    only: Repeated = ()
    """AXIS=LABEL,LABEL,...: run and show these alone; several times."""
    workers: int = 1
    """Cells at a time, each in a process of its own on this machine."""
    dry_run: bool = False
    """Print the cells and what they cost at most, and run nothing."""
    only_gather: bool = False
    """Run nothing; make tables and figures of the cells that are finished."""
    resume: bool = False
    """No effect: the command always goes on with what is there."""
    force: bool = False
    """Take cells whose experiment has changed as they are, and go on with unfinished ones."""
    time_limit: str | None = None
    """Stop after H:MM:SS and end with exit code 75; the same command goes on."""
    cell: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Run this cell alone, by its number, and make no tables: what the tasks of a job do."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Train:
    """Turn samples of the unknown into a diffusion prior, a folder for enkg.Trained(folder).

    FILE is data (.npy, NetCDF or Zarr, or a folder of .npy files), or a Python file that defines
    `training`: an enkg.Training, or a function with typed arguments that returns one, for samples
    that a generator or a simulator makes. The fields of the training can be given after FILE, such
    as --steps 50000 --network.channels 64 128 256; `enkg train FILE --help` lists them. On several
    GPUs: torchrun --nproc-per-node=4 -m enkg train FILE.
    """

    file: tyro.conf.Positional[Path]
    """The samples, or the file that defines `training`."""
    out: Path | None = None
    """The folder of the prior; priors/NAME-OF-FILE if not given."""
    overwrite: bool = False
    """Replace a prior, or an unfinished training, that is already there."""
    resume: bool = False
    """Go on with the unfinished training in the folder, or begin."""
    force: bool = False
    """With --resume: go on even though the training has changed, such as with other --steps."""
    time_limit: str | None = None
    """Stop after H:MM:SS and end with exit code 75; --resume goes on."""
    variable: str | None = None
    """Of NetCDF and Zarr: the variable, where there are several."""
    sample_dim: str | None = None
    """Of NetCDF and Zarr: the dimension that counts the samples; the first if not given."""
    stacked: bool = False
    """Of a folder: each .npy file holds several samples, (n, *X)."""
    comm: Kind = "auto"
    """The ranks: auto asks torchrun; alone is for one process."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Status:
    """Show how far a run is, from another terminal or another node.

    Says whether it runs, was stopped, was killed, or is finished, and what to do then. For a
    directory of runs (enkg submit --vary, enkg ablate), one line for each.
    """

    directory: tyro.conf.Positional[Path]
    """The run directory, or a directory of runs."""
    watch: bool = False
    """Look again every 2 s until it ends."""


@dataclass(frozen=True)
class List:
    """List the experiments, ablations, methods, priors and simulators that enkg sees from here."""

    root: tyro.conf.Positional[Path | None] = None
    """The project to look at; the one around the working directory if not given."""


@dataclass(frozen=True)
class Show:
    """Print the numbers of a finished run, a calibration, an ablation, or a learned prior."""

    directory: tyro.conf.Positional[Path]
    """The directory of the run, the calibration, the ablation or the prior."""


@dataclass(frozen=True)
class Export:
    """Write all arrays of a finished run into one NetCDF file."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    netcdf: Path
    """The file to write."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class Check:
    """Try a few prior draws on the simulator of an experiment, before the whole run.

    Says whether the same input gives the same output, whether a member's answer depends on its
    neighbours, how failures look, what a call takes, what the run will cost, and what to change.
    Ends with exit code 1 if the simulator is not sound. Takes the same arguments after FILE as
    `enkg run`.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file."""
    draws: int = 4
    """Prior draws to try; the check costs three calls for each and three more."""
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
    traceback: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class New:
    """Write a simulator that works, to be filled with your own code."""

    kind: tyro.conf.Positional[Literal["simulator"]]
    """What to write."""
    name: tyro.conf.Positional[str]
    """Its name: small letters, digits and _."""
    language: Language = "python"
    """The language of the program."""
    folder: Path | None = None
    """Where to put it; simulators/ if that is here, else the working directory."""
