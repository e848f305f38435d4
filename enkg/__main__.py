"""The command line: enkg run, check, new, serve, list, show, export."""

import dataclasses
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table as Grid

import enkg
from enkg import findings, report, serve, store
from enkg.check import check
from enkg.errors import EnkgError, InputError
from enkg.experiment import Experiment
from enkg.guidance import METHODS
from enkg.load import discover, guarded, load, project_root
from enkg.progress import Watch, calls
from enkg.run import run
from enkg.scaffold import Language, new_simulator, next_steps
from enkg.serve import Serve


class Patient(Console):
    """Goes on in silence when the reader of our output, such as head, has gone."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = Patient()
CONFIG = (tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)


@dataclasses.dataclass(frozen=True)
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
    guidance: str | None = None
    """Use this method or preset, with its own defaults, in place of the file's (see enkg list)."""
    traceback: bool = False
    """Show where an error arose."""


@dataclasses.dataclass(frozen=True)
class List:
    """List the experiments, guidance methods, priors and simulators that enkg can see from here."""

    root: tyro.conf.Positional[Path | None] = None
    """The project to look at; the one around the working directory if not given."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the numbers of a finished run and whether it can be trusted."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write all arrays of a finished run into one NetCDF file."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    netcdf: Path
    """The file to write."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
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


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[New, tyro.conf.subcommand("new")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it: everything is ended as by Ctrl-C."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


Options = TypeVar("Options", Run, Check)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 an error that the message explains, 2 usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in ([], ["-h"]):
        given = ["--help"]
    if given == ["--version"]:
        console.print(f"enkg {enkg.__version__}", highlight=False)
        return 0
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if given[0] == "run":
            return _run(given[1:])
        if given[0] == "check":
            return _check(given[1:])
        command = tyro.cli(
            Command,  # type: ignore[arg-type]
            args=given,
            prog="enkg",
            description="Invert black-box simulators with diffusion priors.",
        )
        commands = {List: _list, Show: _show, Export: _export, New: _new, Serve: _serve}
        return commands[type(command)](command)
    except EnkgError as error:
        return _complain(error, "--traceback" in given)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        by, code = ("SIGTERM", 143) if isinstance(error, Terminated) else ("the keyboard", 130)
        left = "; the run is not finished" if given[0] == "run" else ""
        Console(stderr=True).print(f"stopped by {by}{left}", highlight=False)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(error: EnkgError, traceback: bool) -> int:
    stderr = Console(stderr=True)
    if traceback:
        stderr.print_exception()
    stderr.print("[bold red]error[/]: ", end="")
    stderr.print(str(error), markup=False, highlight=False, soft_wrap=True)
    return 1


def _run(given: list[str]) -> int:
    options, experiment = _experiment(Run, "run", given)
    out = options.out or Path("runs") / options.file.stem
    tree = run(
        experiment,
        out,
        overwrite=options.overwrite,
        observer=Watch(console),
        source=options.file,
    )
    del tree
    report.show(store.summary(out), console)
    console.print(f"results in {out}/", highlight=False)
    return 0


def _check(given: list[str]) -> int:
    options, experiment = _experiment(Check, "check", given)
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


def _experiment(kind: type[Options], verb: str, given: list[str]) -> tuple[Options, Experiment]:
    """The options of a command, and the experiment that the rest of the line describes."""
    wants_help = any(word in ("-h", "--help") for word in given)
    rest = [word for word in given if word not in ("-h", "--help")]
    if not rest:
        tyro.cli(kind, args=given, prog=f"enkg {verb}")
    options, rest = tyro.cli(kind, args=rest, prog=f"enkg {verb}", return_unknown_args=True)
    found = load(options.file)
    if wants_help:
        _print_help(lambda: tyro.cli(kind, args=["--help"], prog=f"enkg {verb}"))
        console.print(f"[bold]What {options.file} accepts besides[/]")
    return options, _build(options, verb, found, rest, wants_help)


def _build(
    options: Run | Check,
    verb: str,
    found: Experiment | Callable[..., Experiment],
    rest: list[str],
    wants_help: bool,
) -> Experiment:
    """The experiment with everything that the command line changes."""
    program = f"enkg {verb} {options.file}"
    if isinstance(found, Experiment):
        experiment = found
    else:
        if wants_help:
            _print_help(lambda: tyro.cli(found, args=["--help"], prog=program, config=CONFIG))
        experiment, rest = guarded(
            options.file,
            lambda: tyro.cli(
                found, args=rest, prog=program, return_unknown_args=True, config=CONFIG
            ),
        )
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"`experiment` in {options.file} returned a {type(experiment).__name__}; expected "
                "an enkg.Experiment"
            )
    if options.guidance is not None:
        if options.guidance not in METHODS:
            raise InputError(
                f"there is no guidance method {options.guidance!r}; there are {', '.join(METHODS)}"
            )
        experiment = dataclasses.replace(experiment, guidance=METHODS[options.guidance])
    return tyro.cli(
        Experiment,
        default=experiment,
        args=["--help"] if wants_help else rest,
        prog=program,
        config=CONFIG,
    )


def _print_help(show: Callable[[], Any]) -> None:
    with suppress(SystemExit):
        show()


def _list(command: List) -> int:
    root = command.root or project_root(Path.cwd() / "x")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the root of a project")
    grid = Grid("guidance", "", show_edge=False)
    for name, method in METHODS.items():
        module = inspect.getdoc(inspect.getmodule(type(method))) or ""
        grid.add_row(name, f"{module.splitlines()[0]} {_differences(method)}".strip())
    console.print(grid)
    for room, entries in discover(root).items():
        if entries:
            grid = Grid(room, "", show_edge=False)
            for entry in entries:
                grid.add_row(entry.path, entry.line)
            console.print()
            console.print(grid)
    return 0


def _differences(method: Any) -> str:
    """How a preset differs from the defaults of its class."""
    plain = type(method)()
    changed = [
        f"{f.name}={getattr(method, f.name)}"
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != getattr(plain, f.name)
    ]
    return f"({', '.join(changed)})" if changed else ""


def _show(command: Show) -> int:
    report.show(store.summary(command.directory), console)
    return 0


def _export(command: Export) -> int:
    file = store.export_netcdf(command.directory, command.netcdf, command.overwrite)
    console.print(f"wrote {file}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
