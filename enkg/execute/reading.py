"""Reads simulator.toml: every mistake is found here, before anything runs."""

import dataclasses
import difflib
import os
import shutil
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from enkg.errors import InputError
from enkg.execute import oneshot, template
from enkg.execute.manifest import LASTING, NAME, SUFFIX, Manifest, Port

OPERATORS = ("|", "||", ">", ">>", "<", "&", "&&", ";", "2>", "2>&1")


def read(folder: str | Path) -> Manifest:
    """The manifest in a folder, with absolute paths; raises InputError with the key at fault."""
    folder = Path(folder).expanduser().resolve()
    file = folder / NAME
    if folder.name == NAME:
        folder, file = folder.parent, folder
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; expected one with a {NAME}")
    if not file.is_file():
        raise InputError(
            f"{folder} has no {NAME}, which says how the program is started; "
            f"`enkg new simulator NAME` writes a folder that has one"
        )
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid TOML: {error}") from error
    try:
        return _checked(_build(Manifest, table, ""), folder)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _build(kind: type, table: dict[str, Any], path: str) -> Any:
    """A dataclass from a TOML table."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "folder"}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise InputError(
                f"unknown key `{path}{key}`; {hint}the keys here are {', '.join(fields)}"
            )
    needed = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in table:
            raise InputError(f"the key `{path}{name}` is missing")
    return kind(**{k: _value(hints[k], v, f"{path}{k}") for k, v in table.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    """One value, of the type that the dataclass names."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(a for a in inner if a is not type(None))
        return _value(hint, value, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"`{path}` is {value!r}; expected a table, [{path}]")
        return _build(typing.cast(type, hint), value, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"`{path}` is {value!r}; expected a list, such as [{value!r}]")
        return tuple(_value(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"`{path}` is {value!r}; expected a table")
        return {k: _value(inner[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in inner:
            raise InputError(
                f"`{path}` is {value!r}; expected one of {', '.join(map(repr, inner))}"
            )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(
            f"`{path}` is {value!r}, a {type(value).__name__}; expected a {hint.__name__}"
        )
    return value


def _checked(m: Manifest, folder: Path) -> Manifest:
    """The manifest with its defaults and paths filled in."""
    if m.oneshot is None and m.worker is None:
        raise InputError(
            "there is neither [oneshot] (the program starts anew for every member) nor [worker] "
            "(it stays up); give at least one of them a `command`"
        )
    _check_values(m)
    m = dataclasses.replace(
        m,
        folder=folder,
        input=_port(m.input, "input", "x"),
        output=_port(m.output, "output", "y"),
    )
    if m.input.minimum is not None or m.input.maximum is not None:
        raise InputError(
            "`input` has no minimum and maximum; choose units in the experiment that keep the "
            "members in bounds, such as enkg.Log for positive numbers"
        )
    if m.input.file == m.output.file:
        raise InputError(f"input and output are both in the file {m.input.file!r}")
    if m.oneshot is not None:
        command = _command(m, m.oneshot.command, "oneshot.command")
        m = dataclasses.replace(m, oneshot=dataclasses.replace(m.oneshot, command=command))
        oneshot.check(m)
        _uses_files(m)
        _placeholders(m, command, "oneshot.command")
    if m.worker is not None:
        command = _command(m, m.worker.command, "worker.command")
        m = dataclasses.replace(m, worker=dataclasses.replace(m.worker, command=command))
        _placeholders(m, command, "worker.command", worker=True)
    for key, value in m.environment.set.items():
        _placeholders(m, (value,), f"environment.set.{key}", worker=m.worker is not None)
    return m


def _check_values(m: Manifest) -> None:
    if not m.name:
        raise InputError("`name` is empty; give the simulator a name")
    for key, value in m.environment.set.items():
        if not key or "=" in key or "\0" in key + value:
            raise InputError(f"`environment.set` holds {key!r}, which is no name of a variable")
    for name, number, least in (
        ("threads", m.threads, 1),
        ("memory", m.memory, 0),
        ("mpi.ranks", m.mpi.ranks, 1),
        ("worker.batch", m.worker.batch if m.worker else 1, 1),
    ):
        if number < least:
            raise InputError(f"`{name}` is {number}; expected at least {least}")
    for name, seconds in (
        ("timeout", m.timeout),
        ("grace", m.grace),
        ("worker.startup", m.worker.startup if m.worker else 1),
    ):
        if not seconds > 0:
            raise InputError(f"`{name}` is {seconds}; expected seconds, more than 0")


def _placeholders(m: Manifest, texts: tuple[str, ...], key: str, *, worker: bool = False) -> None:
    for text in texts:
        if worker:
            template.check(text, f"`{key}`", LASTING)
        else:
            template.check(text, f"`{key}`", numbers=m.input.count)


def _port(port: Port, name: str, variable: str) -> Port:
    if not port.shape or any(n < 1 for n in port.shape):
        raise InputError(
            f"`{name}.shape` is {list(port.shape)}; expected the shape of one member, such as [128]"
        )
    low, high = port.minimum, port.maximum
    if low is not None and high is not None and not low < high:
        raise InputError(f"`{name}.minimum` is {low}, not below `{name}.maximum`, {high}")
    return dataclasses.replace(
        port,
        file=port.file or name + SUFFIX[port.format],
        variable=port.variable or variable,
    )


def _command(m: Manifest, command: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The command with the program's absolute path."""
    if not command:
        raise InputError(f"`{key}` is empty; expected the program and its arguments")
    for argument in command:
        if argument in OPERATORS:
            raise InputError(
                f"`{key}` holds {argument!r}, which only a shell understands; the program is "
                "started without one. Put the line into a script, and give that"
            )
    program = command[0].replace("{folder}", str(m.folder))
    if program in ("python", "python3"):
        return (sys.executable, *command[1:])
    if "/" in program:
        path = Path(os.path.normpath(m.folder / program))
        if not path.is_file():
            raise InputError(f"`{key}`: there is no program {path}{_how_to_build(m)}")
        if not os.access(path, os.X_OK):
            raise InputError(f"`{key}`: {path} may not be executed; try `chmod +x {path}`")
        return (template.escape(str(path)), *command[1:])
    found = shutil.which(program)
    if found is None:
        beside = m.folder / program
        if " " in program:
            raise InputError(
                f"`{key}`: there is no program {program!r}; give the program and its arguments as "
                f"a list, {program.split()}"
            )
        hint = f"; write ./{program} for the one in {m.folder}" if beside.is_file() else ""
        raise InputError(f"`{key}`: no program {program!r} on the PATH{hint or _how_to_build(m)}")
    return (found, *command[1:])


def _how_to_build(m: Manifest) -> str:
    if not m.build:
        return ""
    return f"; build it first: cd {m.folder} && {' '.join(m.build)}"


def _uses_files(m: Manifest) -> None:
    """A template without a placeholder says the same for every member: surely a mistake."""
    assert m.oneshot is not None
    for name in m.oneshot.templates:
        text = template.load(m.folder / name)
        template.check(text, f"`oneshot.templates`: {name}", numbers=m.input.count)
        if not template.placeholders(text):
            raise InputError(
                f"`oneshot.templates`: {name} holds no placeholder such as {{input}}; "
                "put it under `copy`, or say in it where the files are"
            )
