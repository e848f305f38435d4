"""What the samples of a generator depend on, as JSON: to tell whether it is still the same.

Unlike `enkg.execute.identity` it looks at the function, not at the whole file, so that an edit
elsewhere in the file of a training does not throw its samples away; and arrays that differ by
rounding are alike (`enkg.sketch`).
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enkg.sketch import sketched


def described(value: Any, home: str | None = None, seen: tuple[Any, ...] = ()) -> Any:
    """A function by its text, defaults, and the variables it uses; arrays by a sketch; data classes
    and networks by what they hold; all else by its name.

    home: the module whose functions are looked into; those of others are known by name. seen: what
    holds this value. Mappings and sequences become mappings, as `enkg.sketch.differences` has them.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if any(value is other for other in seen):
        return "itself"
    inner = functools.partial(described, home=home, seen=(*seen, value))
    match value:
        case Tensor():
            wide = value.float() if value.dtype == torch.bfloat16 else value
            return sketched(wide.detach().cpu().numpy())
        case np.ndarray() if value.dtype != object:
            return sketched(value)
        case np.generic() | complex() | bytes() | Path():
            return str(value)
        case Mapping():
            return {str(key): inner(each) for key, each in value.items()}
        case list() | tuple():
            return {str(k): inner(each) for k, each in enumerate(value)}
        case functools.partial():
            return inner({"of": value.func, "with": value.args, "and": value.keywords})
        case types.MethodType():
            return inner({"of": value.__self__, "method": value.__func__})
        case types.FunctionType() if home in (None, value.__module__):
            return _function(value, seen)
        case torch.nn.Module():
            return {"type": name_of(value), **inner(value.state_dict())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: inner(getattr(value, f.name)) for f in dataclasses.fields(value)}
        call = getattr(type(value), "__call__", None)  # noqa: B004
        text = {"call": _text(call)} if isinstance(call, types.FunctionType) else {}
        return {"type": name_of(value), **fields, **text}
    return name_of(value)


def name_of(value: Any) -> str:
    """Module and name, of an object those of its class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}".lstrip(".")


def _function(f: types.FunctionType, seen: tuple[Any, ...]) -> dict[str, Any]:
    found = inspect.getclosurevars(f)
    parts = {
        "defaults": [*(f.__defaults__ or ()), f.__kwdefaults__],
        "variables": {**found.globals, **found.nonlocals},
    }
    inner = functools.partial(described, home=f.__module__, seen=(*seen, f))
    return {"name": f.__qualname__, "text": _text(f)} | {k: inner(v) for k, v in parts.items()}


def _text(f: types.FunctionType) -> str:
    """The source, without comments and layout; of one that cannot be read the compiled code."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(f)))
    except (OSError, TypeError, SyntaxError):  # typed in, or a part of a longer expression
        return _code(f.__code__)
    if f.__name__ != "<lambda>":
        return ast.unparse(tree)
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return ast.unparse(inside[0]) if len(inside) == 1 else _code(f.__code__)


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
