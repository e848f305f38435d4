"""What a simulator's answers depend on, in one line: its code and its parameters, for the cache.

A function is known by its name, the text of the file that it stands in, its defaults and what it
closes over; an object by its class and its attributes. What it imports from other files is not
looked at.
"""

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from enkg.errors import InputError
from enkg.execute.function import Function


def identity_of(simulator: Any, strict: bool = True) -> str:
    """The same text for the same simulator, in any session.

    strict: raises InputError for parameters that cannot be told apart from others, such as open
    files; else they are left out.
    """
    function = getattr(simulator, "function", simulator)  # a Pool has one
    if isinstance(function, Function):
        return _function(function, strict)
    own = getattr(simulator, "identity", None)
    if callable(own) and not isinstance(simulator, type):
        return str(own())
    return _line(_Known(strict), simulator)


def _function(function: Function, strict: bool) -> str:
    """Wherever it runs; and the size of the chunks changes no answer."""
    known = _Known(strict)
    if not function.batched or function.to is not np.asarray:
        known.add((function.batched, function.to))
    return _line(known, function.f)


def _line(known: "_Known", simulator: Any) -> str:
    known.add(simulator)
    return f"{_name(simulator)} {known.sum.hexdigest()}"


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


class _Known:
    """A running digest of nested values."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.sum = hashlib.sha256()
        self.seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._word(type(value).__name__, repr(value))
        elif id(value) in self.seen:
            self._word("again", str(list(self.seen).index(id(value))))
        else:
            self.seen[id(value)] = value  # kept, so that its id stays its own
            self._add(value)

    def _add(self, value: Any) -> None:  # noqa: PLR0912
        match value:
            case np.ndarray() if value.dtype != object:
                self._word("array", f"{value.dtype.str} {value.shape}")
                self.sum.update(np.ascontiguousarray(value).tobytes())
            case np.generic() | np.dtype() | range() | slice():
                self._word(type(value).__name__, repr(value))
            case Path() | enum.Enum():
                self._word(_name(value), str(value))
            case tuple() | list() | np.ndarray():
                self._all(_name(value), value)
            case dict():
                self._unordered("dict", value.items())
            case set() | frozenset():
                self._unordered("set", value)
            case types.ModuleType():
                self._word("module", value.__name__)
                self.sum.update(_source(value.__name__))
            case type():
                self._word("class", _name(value))
                self.sum.update(_source(value.__module__))
            case types.FunctionType():
                self._function(value)
            case types.MethodType():
                self._all("method", (value.__func__, value.__self__))
            case functools.partial():
                self._all("partial", (value.func, value.args, value.keywords))
            case types.BuiltinFunctionType() | np.ufunc():
                self._word("builtin", getattr(value, "__qualname__", value.__name__))
                self._word("of", str(getattr(value, "__module__", "")))
            case _:
                self._object(value)

    def _function(self, f: types.FunctionType) -> None:
        source = _source(f.__module__)
        self._word("function", _name(f))
        self.sum.update(source)
        if not source or "<" in f.__qualname__:  # others in this file have the same name
            self._code(f.__code__)
        self.add(f.__defaults__)
        self.add(f.__kwdefaults__)
        for cell in f.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self._word("cell", "empty")

    def _code(self, code: types.CodeType) -> None:
        self._word("code", code.co_code.hex())
        self._word("names", repr(code.co_names))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            elif isinstance(constant, frozenset):
                self._word("constant", repr(sorted(map(repr, constant))))
            else:
                self._word("constant", repr(constant))

    def _object(self, value: Any) -> None:
        self.add(type(value))
        torch = sys.modules.get("torch")
        if hasattr(value, "__wrapped__"):  # compiled by jax, cached by functools
            self.add(value.__wrapped__)
        elif torch is not None and isinstance(value, torch.Tensor):
            self._word("tensor", str(value.dtype))
            half = value.dtype == torch.bfloat16  # which NumPy does not have
            self.add((value.float() if half else value).detach().cpu().numpy())
        elif hasattr(value, "__array__"):
            self.add(np.asarray(value))
        elif dataclasses.is_dataclass(value):
            named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            self._unordered("fields", named.items())
        else:
            self._state(value)

    def _state(self, value: Any) -> None:
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:  # an object may raise anything here
            if not self.strict:
                return
            raise InputError(
                f"the cache cannot tell this {_name(value)} of the simulator apart from others: "
                f"{error}. Keep it out of the simulator's attributes, or name what the simulator "
                'does by Cached(..., version="...") and change the version with it'
            ) from error
        if isinstance(parts, str):
            self._word("global", parts)
            return
        make, given, state, *rest = (*parts, None, None, None)[:5]
        if isinstance(state, dict):
            lazy = {n for n in state if isinstance(_of(type(value), n), functools.cached_property)}
            state = {name: part for name, part in state.items() if name not in lazy}
        self._all("object", (make, given, state, *(None if r is None else list(r) for r in rest)))

    def _all(self, kind: str, values: Iterable[Any]) -> None:
        values = list(values)
        self._word(kind, str(len(values)))
        for value in values:
            self.add(value)

    def _unordered(self, kind: str, values: Iterable[Any]) -> None:
        digests = []
        for value in values:
            part = _Known(self.strict)
            part.seen = dict(self.seen)
            part.add(value)
            digests.append(part.sum.digest())
        self._word(kind, str(len(digests)))
        self.sum.update(b"".join(sorted(digests)))

    def _word(self, kind: str, text: str) -> None:
        data = text.encode()
        self.sum.update(f"{kind} {len(data)} ".encode() + data)


def _of(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


@functools.cache
def _source(module: str | None) -> bytes:
    """Digest of the file that a module was loaded from; empty if there is none."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest() if file else b""
    except OSError:
        return b""
