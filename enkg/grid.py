"""Grids of experiments: every combination of the values that some arguments are to take.

A grid has a folder of its own: grid.json says what it consists of, and each combination has the run
directory with its number, 0000, 0001 and so on. A run directory with a summary.json is finished.
"""

import itertools
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enkg.errors import InputError, StoreError

FILE = "grid.json"
FORMAT = 1
FINISHED = "summary.json"

Configuration = dict[str, str]
"""What each argument that is varied is set to, by its name."""


@dataclass(frozen=True)
class Grid:
    """What a grid consists of. file: the experiment file; arguments: those that stay the same."""

    configurations: tuple[Configuration, ...]
    file: str = ""
    arguments: tuple[str, ...] = ()


def grid(vary: Sequence[str]) -> list[Configuration]:
    """All combinations of NAME=V1,V2,...; the last name varies fastest.

    Raises InputError for a text of another form, or a name or value that comes twice.

    >>> grid(["seed=0,1", "guidance.members=64,128"])[1]
    {'seed': '0', 'guidance.members': '128'}
    """
    axes: dict[str, list[str]] = {}
    for text in vary:
        name, _, values = text.partition("=")
        name, each = name.strip().lstrip("-"), [value.strip() for value in values.split(",")]
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name) or not all(each):
            raise InputError(
                f"--vary is {text!r}; expected NAME=V1,V2,... such as seed=0,1,2 or "
                "guidance.members=64,128"
            )
        if name in axes:
            raise InputError(f"--vary names {name!r} twice; give all its values at once")
        for value in each:
            if each.count(value) > 1:
                raise InputError(f"--vary {name} has the value {value!r} twice; give it once")
            _words(value)
        axes[name] = each
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def arguments(configuration: Mapping[str, str]) -> list[str]:
    """The words that set a configuration on the command line.

    A value of several words, such as the two ends of a range, becomes as many words. True and False
    become the switch and its opposite.

    >>> arguments({"seed": "3", "domain": "0 1", "double": "True", "guidance.dropout": "False"})
    ['--seed=3', '--domain=0', '1', '--double', '--guidance.no-dropout']
    """
    words: list[str] = []
    for name, value in configuration.items():
        first, *rest = _words(value)
        if not rest and first in ("True", "False"):
            parent, dot, own = name.rpartition(".")
            words.append(f"--{name}" if first == "True" else f"--{parent}{dot}no-{own}")
        else:
            words += [f"--{name}={first}", *rest]
    return words


def folder(directory: str | Path, index: int) -> Path:
    """The run directory of one configuration."""
    return Path(directory) / f"{index:04d}"


def exists(directory: str | Path) -> bool:
    """Whether the folder holds a grid."""
    return (Path(directory) / FILE).is_file()


def load(directory: str | Path) -> Grid:
    """The grid of a folder. Raises StoreError if there is none that can be read."""
    path = Path(directory) / FILE
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise StoreError(
                f"{path} has the format {content['format']!r}; this enkg reads format {FORMAT}"
            )
        return Grid(
            tuple({str(k): str(v) for k, v in c.items()} for c in content["configurations"]),
            content.get("file", ""),
            tuple(content.get("arguments", ())),
        )
    except FileNotFoundError as error:
        raise StoreError(f"there is no grid in {directory}: it has no {FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} cannot be read as a grid: {error}") from error


def same(directory: str | Path, wanted: Grid) -> None:
    """Raises StoreError if the folder holds another grid than this one."""
    if load(directory) != wanted:
        raise StoreError(
            f"{directory} holds another grid, or one of other arguments (see its {FILE}); give "
            "another --out"
        )


def save(directory: str | Path, wanted: Grid) -> None:
    """Writes grid.json."""
    path = Path(directory) / FILE
    content = {
        "format": FORMAT,
        "file": wanted.file,
        "arguments": list(wanted.arguments),
        "configurations": list(wanted.configurations),
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def missing(directory: str | Path) -> list[int]:
    """Numbers of the configurations that have no finished run. Raises StoreError without a grid."""
    count = len(load(directory).configurations)
    return [k for k in range(count) if not (folder(directory, k) / FINISHED).is_file()]


def _words(value: str) -> list[str]:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise InputError(f"the value {value!r} of --vary: {error}") from error
    if not words:
        raise InputError(f"the value {value!r} of --vary is empty")
    return words
