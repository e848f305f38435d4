"""The command line: enkg run, resume, calibrate, ablate, submit, status, check, new, list, ..."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import tyro
from rich.console import Console

import enkg
from enkg import (
    ablation_command,
    calibration_report,
    findings,
    grid,
    listing,
    report,
    serve,
    slurm,
    status,
    stop,
    store,
    train_command,
)
from enkg.build import Options, described
from enkg.calibrate import NUMBERS, calibrate, is_calibration, numbers
from enkg.check import check
from enkg.comm import ALONE, Comm, Kind, once, one_for_all, raised_by_all, together, world
from enkg.comm.mpi import Mpi
from enkg.errors import EnkgError, InputError, StoreError
from enkg.execute import crew
from enkg.execute.crew import Crew
from enkg.experiment import Experiment
from enkg.load import project_root
from enkg.machine import own_cores, threads
from enkg.options import (
    Ablate,
    Calibrate,
    Check,
    Export,
    List,
    New,
    Resume,
    Run,
    Show,
    Status,
    Train,
)
from enkg.progress import Truths, Watch, calls
from enkg.run import run
from enkg.scaffold import new_simulator, next_steps
from enkg.serve import Serve
from enkg.slurm import Submit


class Patient(Console):
    """Goes on in silence when the reader of our output, such as head, has gone."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = Patient()

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Ablate, tyro.conf.subcommand("ablate")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Submit, tyro.conf.subcommand("submit")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[New, tyro.conf.subcommand("new")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    0 done, 1 an error that the message explains, 2 usage, 75 stopped and `enkg resume` goes on, 130
    stopped by Ctrl-C, 143 ended by SIGTERM where there is nothing to go on with.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in ([], ["-h"]):
        given = ["--help"]
    if given == ["--version"]:
        console.print(f"enkg {enkg.__version__}", highlight=False)
        return 0
    command = given[0]
    whole = {"run": _run, "calibrate": _calibrate, "check": _check, "submit": _submit}
    whole |= {"ablate": _ablate, "train": _train}
    try:
        with stop.signals():
            if command in whole:
                return whole[command](given[1:])
            chosen = tyro.cli(
                Command,  # type: ignore[arg-type]
                args=given,
                prog="enkg",
                description="Invert black-box simulators with diffusion priors.",
            )
            return COMMANDS[type(chosen)](chosen)
    except EnkgError as error:
        return _complain(error, "--traceback" in given)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        runs = command in ("run", "resume", "calibrate", "ablate", "train")
        by, code = "stopped by the keyboard", 130
        if isinstance(error, stop.Stopped):
            by, code = str(error), error.code if runs else stop.AT_ONCE
        left = "; the run is not finished: enkg resume goes on with it" if runs else ""
        unfinished = {
            "calibrate": "; the calibration is not finished: the same command goes on with it",
            "ablate": "; the ablation is not finished: the same command goes on with it",
            "train": "; the training is not finished: the same command with --resume goes on",
        }
        left = unfinished.get(command, left)
        Console(stderr=True).print(f"{by}{left}", highlight=False, soft_wrap=True)
        return code


def _complain(error: EnkgError, traceback: bool) -> int:
    if console.quiet:  # the first rank speaks for all
        return 1
    stderr = Console(stderr=True)
    if traceback:
        stderr.print_exception()
    stderr.print("[bold red]error[/]: ", end="")
    words = "; ".join((str(error), *getattr(error, "__notes__", ())))
    stderr.print(words, markup=False, highlight=False, soft_wrap=True)
    return 1


def _run(given: list[str]) -> int:
    with _ranks(_kind(given)) as comm:
        options, experiment, rest = together(comm, lambda: _built(Run, "run", given))
        out = options.out or Path("runs") / options.file.stem
        return _inverted(options, experiment, out, comm, rest)


def _resume(command: Resume) -> int:
    out = command.directory.resolve()
    record = store.recorded(out)
    if "arguments" not in record:
        raise StoreError(
            f"{command.directory} was begun by a version of enkg that could not go on with a run; "
            "begin it anew by enkg run FILE --overwrite"
        )
    if record["source"] is None:
        raise InputError(
            f"{command.directory} was begun by a Python script, not by `enkg run`; go on with it "
            "there: enkg.run(experiment, directory, resume=True)"
        )
    if not Path(record["folder"]).is_dir():
        raise StoreError(
            f"{command.directory} was begun in {record['folder']}, which is not there any more; "
            f"enkg run FILE --out {command.directory} --resume goes on, from wherever FILE is"
        )
    given = [record["source"], *record["arguments"]]
    with _ranks(command.comm) as comm, chdir(record["folder"]):
        _, experiment, rest = together(comm, lambda: _built(Run, "run", given))
        options = dataclasses.replace(
            Run(Path(record["source"]), resume=True),
            **{f.name: getattr(command, f.name) for f in dataclasses.fields(command)[1:]},
        )
        return _inverted(options, experiment, out, comm, rest)


def _built(
    kind: type[Options], verb: str, given: list[str]
) -> tuple[Options, Experiment, list[str]]:
    """What the command was told. On one thread, for the same last bits wherever it is built."""
    with ExitStack() as stack:
        stack.enter_context(threads(1))
        if console.quiet:  # a mistake is told by the first rank
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        return described(kind, verb, given, console)


def _calibrate(given: list[str]) -> int:
    with _ranks(_kind(given)) as comm:
        options, experiment, rest = together(comm, lambda: _built(Calibrate, "calibrate", given))
        out = options.out or Path("runs") / f"{options.file.stem}-calibration"
        if options.time_limit is not None:
            stop.limit(options.time_limit)
        with Truths(console) as witness:
            found = calibrate(
                experiment,
                options.truths,
                out,
                force=options.force,
                witness=witness,
                source=options.file,
                arguments=_arguments(options.guidance, rest),
                comm=comm,
            )
        if comm.rank == 0:
            calibration_report.show(found.numbers, console)
            console.print(f"numbers in {out}/{NUMBERS}, figures beside it", highlight=False)
        return 0


def _arguments(guidance: str | None, rest: list[str]) -> list[str]:
    """What was added to the file, for the record."""
    return [*(["--guidance", guidance] if guidance else []), *rest]


@contextmanager
def _ranks(kind: str) -> Iterator[Comm]:
    """The ranks of a run; all but the first say nothing but what is theirs alone."""
    comm = world(cast("Kind", kind if kind in get_args(Kind) else "auto"))
    with one_for_all(comm), ExitStack() as stack:
        if comm.rank > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            console.quiet = True
        yield comm


def _kind(given: list[str]) -> str:
    """The value of --comm, which is needed before the rest of the line can be read."""
    words = [word for given_word in given for word in given_word.split("=", 1)]
    return words[words.index("--comm") + 1] if "--comm" in words[:-1] else "auto"


def _inverted(options: Run, experiment: Experiment, out: Path, comm: Comm, rest: list[str]) -> int:
    """Runs it and prints the numbers."""
    together(comm, lambda: stop.seconds(options.time_limit or "1"))
    hands = None
    if options.controller:
        done = once(comm, lambda: options.resume and store.is_complete(out))
        hands = None if done else _crew(comm, experiment, out)
        if comm.rank > 0:
            return 0
        if hands is not None:
            experiment = dataclasses.replace(experiment, simulator=hands)
        comm = ALONE
    if options.time_limit is not None:
        stop.limit(options.time_limit)
    try:
        run(
            experiment,
            out,
            overwrite=options.overwrite,
            resume=options.resume,
            force=options.force,
            observer=Watch(console),
            source=options.file,
            arguments=_arguments(options.guidance, rest),
            comm=comm,
        )
    except BaseException as error:
        if hands is not None and not hands.stuck:
            raised_by_all(error)  # nobody waits for this rank: the others have ended in order
        raise
    if comm.rank == 0:
        report.show(store.summary(out), console)
        console.print(f"results in {out}/", highlight=False)
    if hands is not None and hands.stuck:  # MPI would wait for them for ever
        hands.comm.Abort(0)
    return 0


def _crew(comm: Comm, experiment: Experiment, out: Path) -> Crew | None:
    """The other ranks, for the first one. They themselves simulate here until it is done."""
    if not isinstance(comm, Mpi):
        raise InputError(
            "--controller needs an MPI launcher: mpiexec -n 9 enkg run FILE --controller guides on "
            "one rank and simulates on eight"
        )
    ranks = comm.duplicate()
    with own_cores(comm):
        if comm.rank > 0:
            with stop.left_to_the_first_rank():
                crew.serve(ranks, experiment.simulator, experiment.failure, out / store.FAILED)
            return None
    return Crew(ranks, experiment.simulator)


def _ablate(given: list[str]) -> int:
    return ablation_command.ablate(given, console)


def _train(given: list[str]) -> int:
    with _ranks(_kind(given)) as comm:
        return train_command.train(given, comm, console)


def _submit(given: list[str]) -> int:
    if ablation_command.is_one(given):
        return ablation_command.submit(given, console)
    options, experiment, rest = described(Submit, "submit", given, console)
    runs = [experiment]
    if options.vary:  # a mistake is told now, not in the queue
        words = [[*given, *grid.arguments(values)] for values in grid.grid(options.vary)]
        runs = [described(Submit, "submit", line, console)[1] for line in words]
    for members in {each.guidance.members for each in runs}:
        if not options.controller and options.ranks > members:
            raise InputError(
                f"{options.ranks} ranks for {members} members; give at most one rank for each"
            )
    return slurm.submit(options, rest, console)


def _status(command: Status) -> int:
    if command.watch:
        status.follow(command.directory, console)
    else:
        status.show(status.read(command.directory), console)
    return 0


def _check(given: list[str]) -> int:
    options, experiment, _ = described(Check, "check", given, console)
    with calls(console) as progress:
        found = check(experiment, options.draws, progress)
    findings.show(found, console)
    return 0 if found.sound else 1


def _new(command: New) -> int:
    parent = command.folder or Path("simulators" if Path("simulators").is_dir() else "")
    folder = new_simulator(command.name, command.language, parent)
    console.print(f"wrote {folder}/; now:\n{next_steps(folder)}", highlight=False)
    return 0


def _serve(command: Serve) -> int:
    serve.serve(serve.find(command.file, command.name), host=command.host, port=command.port)
    return 0


def _list(command: List) -> int:
    root = command.root or project_root(Path.cwd() / "x")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the root of a project")
    listing.show(root, console)
    return 0


def _show(command: Show) -> int:
    if ablation_command.is_ablation(command.directory):
        ablation_command.show(command.directory, console)
    elif train_command.is_prior(command.directory):
        train_command.show(command.directory, console)
    elif is_calibration(command.directory):
        calibration_report.show(numbers(command.directory), console)
    else:
        report.show(store.summary(command.directory), console)
    return 0


def _export(command: Export) -> int:
    file = store.export_netcdf(command.directory, command.netcdf, command.overwrite)
    console.print(f"wrote {file}", highlight=False)
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    Resume: _resume,
    Status: _status,
    List: _list,
    Show: _show,
    Export: _export,
    New: _new,
    Serve: _serve,
}

if __name__ == "__main__":
    sys.exit(main())
