"""The experiment that a command line describes: the file, its arguments, its fields."""

import dataclasses
import difflib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tyro
from rich.console import Console

from enkg.errors import InputError
from enkg.experiment import Experiment
from enkg.guidance import METHODS
from enkg.load import guarded, load

CONFIG = (tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)


class Command(Protocol):
    """What the options of each command hold that takes an experiment file."""

    @property
    def file(self) -> Path: ...

    @property
    def guidance(self) -> str | None: ...


Options = TypeVar("Options", bound=Command)


def described(
    kind: type[Options], verb: str, given: list[str], console: Console
) -> tuple[Options, Experiment, list[str]]:
    """The options of a command, the experiment that the rest of the line describes, the rest."""
    wants_help = any(word in ("-h", "--help") for word in given)
    rest = [word for word in given if word not in ("-h", "--help")]
    if not rest:
        tyro.cli(kind, args=given, prog=f"enkg {verb}")
    options, rest = tyro.cli(kind, args=rest, prog=f"enkg {verb}", return_unknown_args=True)
    found = load(options.file)
    if wants_help:
        print_help(lambda: tyro.cli(kind, args=["--help"], prog=f"enkg {verb}"))
        console.print(f"[bold]What {options.file} accepts besides[/]")
    return options, _built(options, verb, found, rest, wants_help), rest


def _built(
    options: Command,
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
            print_help(lambda: tyro.cli(found, args=["--help"], prog=program, config=CONFIG))
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
            raise InputError(_unknown(options.guidance))
        experiment = dataclasses.replace(experiment, guidance=METHODS[options.guidance])
    return tyro.cli(
        Experiment,
        default=experiment,
        args=["--help"] if wants_help else rest,
        prog=program,
        config=CONFIG,
    )


def _unknown(name: str) -> str:
    """What to say of a method that is not there."""
    near = difflib.get_close_matches(name.lower(), METHODS, n=4, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}; " if near else ""
    return f"there is no guidance method {name!r}; {hint}`enkg list` shows all"


def print_help(show: Callable[[], Any]) -> None:
    """Prints the help of a command and goes on."""
    with suppress(SystemExit):
        show()
