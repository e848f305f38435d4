"""The axes of an ablation's grid: their values, labels and mistakes."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from enkg.ablation_cells import label
from enkg.errors import InputError

Values = Sequence[Any] | Mapping[str, Any]
"""Numbers or words, or a mapping from labels to anything."""
TAKEN = ("state", "reason", "trusted", "cell", "mean", "std")
"""Names that the results need for themselves."""


def labelled(values: Values) -> dict[str, Any]:
    """The values of an axis by their labels.

    >>> labelled((0.2, 0.4)), labelled({"none": None})
    ({'0.2': 0.2, '0.4': 0.4}, {'none': None})
    """
    items = values.items() if isinstance(values, Mapping) else ((v, v) for v in values)
    return {label(k): v.item() if isinstance(v, np.generic) else v for k, v in items}


def coordinates(values: Values) -> tuple[str | float, ...]:
    """Numbers where all values are numbers without labels of their own, else the labels.

    >>> coordinates(range(2)), coordinates((1, "many")), coordinates({"few": 3})
    ((0, 1), ('1', 'many'), ('few',))
    """
    found = labelled(values)
    numbers = [v for v in found.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    if isinstance(values, Mapping) or len(numbers) < len(found):
        return tuple(found)
    return tuple(numbers)


def combinations(grid: Mapping[str, Values]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and values of each cell; the last axis varies fastest."""
    for items in itertools.product(*(labelled(values).items() for values in grid.values())):
        labels, values = zip(*items, strict=True)
        yield dict(zip(grid, labels, strict=True)), dict(zip(grid, values, strict=True))


def check_grid(grid: Any) -> None:
    """Raises InputError for a grid that makes no sense."""
    if not isinstance(grid, Mapping) or not grid:
        raise InputError("the grid has no axes; expected {axis: values, ...}")
    for name, values in grid.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{name!r} is no name of an axis; expected one such as 'noise'")
        if name in TAKEN:
            raise InputError(f"no axis can be called {name!r}; the results need that name")
        _check_axis(name, values)


def _check_axis(name: str, values: Any) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence | Mapping | np.ndarray):
        raise InputError(
            f"the axis {name!r} is a {type(values).__name__}; expected a list of values, or a "
            "mapping from labels to values"
        )
    if not len(values):
        raise InputError(f"the axis {name!r} has no values")
    if not isinstance(values, Mapping):
        for value in values:
            if not isinstance(value, str | bool | int | float | np.generic):
                raise InputError(
                    f"the axis {name!r} has a {type(value).__name__} among its values, which has "
                    "no label; give a mapping {label: value, ...}"
                )
    labels = [label(value) for value in values]
    for word in labels:
        if labels.count(word) > 1:
            raise InputError(f"the axis {name!r} has the value {word!r} twice; give it once")
        if not word.strip() or not word.isprintable():
            raise InputError(f"the axis {name!r} has the label {word!r}; expected printed words")


def check_names(measures: Any, grid: Mapping[str, Values]) -> None:
    """Raises InputError for further numbers that the results cannot hold."""
    if not isinstance(measures, Mapping):
        raise InputError(f"measure returned a {type(measures).__name__}; expected {{name: number}}")
    for name in measures:
        if not isinstance(name, str) or name in grid or name in TAKEN:
            raise InputError(f"measure returned the name {name!r}, which stands for something else")


def check_takes(function: Callable[..., Any], axes: Sequence[str]) -> None:
    """Raises InputError if the function cannot be called with these keywords."""
    signature = None
    with suppress(ValueError, TypeError):  # some callables have none
        signature = inspect.signature(function)
    try:
        if signature is not None:
            signature.bind(**dict.fromkeys(axes))
    except TypeError as error:
        raise InputError(
            f"{called(function)} is called with the axes of the grid, {words(axes)}: {error}"
        ) from error


def called(function: Any) -> str:
    """The name of a function, for a message."""
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def words(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))


def only(texts: Sequence[str], grid: Mapping[str, Values]) -> dict[str, list[str]]:
    """What AXIS=LABEL,LABEL,... asks for. A label may itself hold commas.

    >>> only(["a=x,y", "a=u,v"], {"a": ("x", "y", "z", "u,v")})
    {'a': ['x', 'y', 'u,v']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        name = name.strip().lstrip("-")
        if not equals or not rest.strip():
            raise InputError(
                f"--only is {text!r}; expected AXIS=LABEL,LABEL,... with the axes {words(grid)}"
            )
        whole = name in grid and rest.strip() in labelled(grid[name])
        parts = [rest.strip()] if whole else [part.strip() for part in rest.split(",")]
        found.setdefault(name, []).extend(parts)
    chosen(found, grid)
    return found


def chosen(wanted: Mapping[str, Sequence[Any]], grid: Mapping[str, Values]) -> dict[str, list[str]]:
    """Labels in the order of the grid. Raises InputError for axes and labels that it has not."""
    found = {}
    for name, values in wanted.items():
        if name not in grid:
            raise InputError(f"there is no axis {name!r}; the grid has {words(grid)}")
        labels, asked = list(labelled(grid[name])), [label(value) for value in values]
        for word in asked:
            if word not in labels:
                raise InputError(f"the axis {name!r} has no value {word!r}; it has {words(labels)}")
        found[name] = [word for word in labels if word in asked]
    return found
