"""Experiment files: Python that defines `experiment`, and how the command line finds them.

`experiment` is an `Experiment`, or a function with typed arguments that returns one; so are the
`ablation` of a file for `enkg ablate` and the `training` of one for `enkg train`. The project's
root (the nearest folder above with a pyproject.toml or a .git) goes on the import path, so that the
file may import its neighbours.
"""

import ast
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enkg.errors import InputError
from enkg.experiment import Experiment

VERBS = {"experiment": "run", "ablation": "ablate", "training": "train"}
"""What a file may define, and the command that takes it."""


class UserCodeError(InputError):
    """The experiment file itself raised; the original error is the cause."""


def load(file: Path) -> Experiment | Callable[..., Experiment]:
    """What the file defines as `experiment`."""
    return defined(
        file,
        "experiment",
        Experiment,
        "experiment = enkg.Experiment(...), or a function of that name that returns one",
    )


def defined(file: Path, name: str, kind: type, expected: str) -> Any:
    """What the file defines by this name: an object of that kind, or a function that returns one.

    expected: for the message where there is no such name.
    """
    found = getattr(module(file), name, None)
    if found is None:
        there = [other for other in VERBS if other in names(file)]
        advice = "".join(f". It defines `{o}`, which is for: enkg {VERBS[o]} {file}" for o in there)
        raise InputError(f"{file} defines no `{name}`; expected {expected}{advice}")
    if not isinstance(found, kind) and not inspect.isfunction(found):
        raise InputError(
            f"`{name}` in {file} is a {type(found).__name__}; expected an enkg.{kind.__name__} or "
            "a function that returns one"
        )
    return found


def module(file: Path) -> types.ModuleType:
    """The file, imported. Raises InputError where there is none, UserCodeError where it raises."""
    if not file.is_file():
        raise InputError(
            f"there is no file {file}; the experiment file comes right after the command"
        )
    if file.suffix != ".py":
        raise InputError(f"{file} is not a Python file; an experiment file defines `experiment`")
    for folder in (project_root(file), file.resolve().parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    name = "enkg_experiment_" + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    try:
        guarded(file, lambda: spec.loader.exec_module(found))  # type: ignore[union-attr]
    except SystemExit as error:
        raise UserCodeError(f"{file} called exit({error.code}) while it was read") from error
    return found


def guarded(file: Path, build: Callable[[], Any]) -> Any:
    """Runs the user's code; its errors become one sentence with the line of the file."""
    try:
        return build()
    except Exception as error:  # whatever the user's code raises
        place = _place(file, error)
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise UserCodeError(f"{place}: {kind}{error}") from error


def _place(file: Path, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    lines, trace = [], error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == file.resolve():
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{file}:{lines[-1]}" if lines else str(file)


def project_root(file: Path) -> Path:
    """Nearest folder above the file with a pyproject.toml or a .git, else the file's own."""
    folder = file.resolve().parent
    for parent in (folder, *folder.parents):
        if (parent / "pyproject.toml").is_file() or (parent / ".git").exists():
            return parent
    return folder


@dataclass(frozen=True)
class Found:
    """Something `enkg list` can see: where it is and the first line of its docstring."""

    path: str
    line: str


def discover(root: Path) -> dict[str, list[Found]]:
    """Experiments, ablations, trainings, priors and simulators of a project, without running any of
    them."""
    out: dict[str, list[Found]] = {f"{name}s": [] for name in VERBS}
    for room in ("experiments", "priors", "simulators"):
        patterns = ("**/*.py",) if room == "experiments" else ("*.py", "*/__init__.py")
        for file in sorted(f for p in patterns for f in (root / room).glob(p)):
            try:
                tree = ast.parse(file.read_text())
            except (SyntaxError, UnicodeDecodeError):
                continue
            rooms = [room]
            if room == "experiments":
                rooms = [f"{n}s" for n in VERBS if n in _names(tree)]
            text = (ast.get_docstring(tree) or "").strip()
            if text:
                path = file.parent if file.name == "__init__.py" else file
                found = Found(str(path.relative_to(root)), text.splitlines()[0])
                for each in rooms:
                    out.setdefault(each, []).append(found)
    return out


def names(file: Path) -> set[str]:
    """What a file itself defines, without running it; nothing where it cannot be read."""
    try:
        return _names(ast.parse(file.read_text()))
    except (OSError, SyntaxError, ValueError):
        return set()


def _names(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found
