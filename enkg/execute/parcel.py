"""Python functions on their way into another process, and their answers on the way back.

A function travels by its name: the other process imports the module that defines it. Experiment
files, which no import can find, are loaded from their paths. What f raises comes back as text,
since the class of an exception may not be known where it arrives.
"""

import contextlib
import functools
import importlib
import importlib.abc
import importlib.util
import io
import logging
import multiprocessing.spawn
import operator
import os
import pickle
import sys
import threading
import time
import traceback
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy import ndarray

from enkg.errors import InputError
from enkg.execute.function import Function, exception
from enkg.failure import Cause, MemberFailed

EXPERIMENTS = "enkg_experiment_"
"""How the names of modules begin that `enkg.load` made from experiment files."""

log = logging.getLogger("enkg")

_importing_main = threading.Event()


@dataclass(frozen=True)
class Parcel:
    """What another process needs for the same function.

    data: the pickled function. path: where modules are looked for. files: of the experiments, by
    module. main: how the main script is imported, if the function needs it. whole: the function
    itself, where it stays in this process or only the executor knows how to send it.
    """

    data: bytes = b""
    path: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    main: tuple[tuple[str, Any], ...] = ()
    whole: Function | None = None

    def unpack(self) -> Function:
        """From the data: the function. Raises InputError where it cannot be loaded."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        if self.files:
            sys.meta_path.append(_Experiments(dict(self.files)))
        try:
            if self.main:
                _import_main(dict(self.main))
            return pickle.loads(self.data)
        except InputError:
            raise
        except Exception as error:  # the user's modules may raise anything
            raise InputError(
                f"a worker process cannot load the function: {exception(error).detail}. It is "
                "imported there by its name, so it must be defined in a file"
            ) from error


def refuse_in_worker() -> None:
    """Raises InputError in a worker process that imports the main script, and so runs it."""
    if _importing_main.is_set():
        raise InputError(
            "the script starts its work whenever it is imported, and the worker processes import "
            'it to find the function. Put what starts the work below: if __name__ == "__main__":'
        )


def pack(function: Function) -> Parcel:
    """For a process on this machine. Raises InputError for what has no name to be imported by."""
    try:
        data = _pickled(function)
    except Exception as error:  # objects may raise anything here
        raise InputError(
            f"{_name(function.f)} cannot be sent to another process: {error}. Define it by def at "
            "the top level of a file, neither inside of another function nor by lambda; or let "
            "loky run it, which sends such functions too: "
            "Pool(f, executor=loky.get_reusable_executor)"
        ) from error
    main = tuple(_main().items()) if b"__main__" in data else ()
    return Parcel(data, *_places(), main)


def pack_for(executor: Any, function: Function) -> Parcel:
    """For the workers of an executor, wherever they are.

    Functions without a name go by cloudpickle where it is installed, else as the executor sees fit.
    """
    if isinstance(executor, ThreadPoolExecutor):
        return Parcel(whole=function)
    with contextlib.suppress(Exception):  # objects may raise anything here
        if b"__main__" not in (data := _pickled(function)):
            return Parcel(data, *_places())
    with contextlib.suppress(Exception):  # nor need it be installed
        import cloudpickle

        return Parcel(cloudpickle.dumps(function), *_places())
    return Parcel(whole=function)


class _Pickler(pickle.Pickler):
    """Sends by name whatever has one, such as a function compiled by jax or numba."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
            return NotImplemented  # pickle does so itself
        name = (getattr(obj, "__module__", None), getattr(obj, "__qualname__", None))
        try:
            found = _named(*name)
        except (ImportError, AttributeError, TypeError):
            return NotImplemented
        return (_named, name) if found is obj else NotImplemented


def _named(module: Any, name: Any) -> Any:
    return operator.attrgetter(name)(sys.modules.get(module) or importlib.import_module(module))


def _pickled(function: Function) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(function)
    return buffer.getvalue()


def _places() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Where modules are looked for, and the files of the experiments."""
    files = (
        (name, getattr(module, "__file__", None))
        for name, module in list(sys.modules.items())
        if name.startswith(EXPERIMENTS)
    )
    return (
        tuple(folder or os.getcwd() for folder in sys.path),
        tuple((name, os.path.abspath(file)) for name, file in files if file),
    )


def _main() -> dict[str, Any]:
    """How the script that was started is imported elsewhere."""
    known = multiprocessing.spawn.get_preparation_data("")
    return {
        name: known[name]
        for name in ("init_main_from_name", "init_main_from_path")
        if name in known
    }


def _import_main(how: dict[str, Any]) -> None:
    _importing_main.set()
    try:
        multiprocessing.spawn.prepare(how)
    finally:
        _importing_main.clear()


def _name(f: Any) -> str:
    return getattr(f, "__qualname__", None) or f"this {type(f).__qualname__}"


Answer = tuple[str, Any]
"""("rows", array), ("failed", (cause, detail, where)) or ("unusable", text)."""


def answer(function: Function, x: ndarray) -> Answer:
    """x: (B, *X). Raises nothing that f raises."""
    try:
        return "rows", function._call(x, len(x))
    except InputError as error:
        return "unusable", str(error)
    except Exception as error:  # a simulator may raise anything
        return _failed(error, error)


def _failed(shown: Exception, error: BaseException) -> Answer:
    trace = traceback.extract_tb(error.__traceback__)
    where = f"{trace[-1].filename}:{trace[-1].lineno}" if trace else ""
    return "failed", (str(Cause.EXCEPTION), exception(shown).detail, where)


def probe(parcel: Parcel, mark: str) -> str:
    """A first task: why the function cannot be used, or nothing."""
    time.sleep(0.1)  # long enough to be seen running
    kind, text = task(parcel, None, mark)
    return text if kind == "unusable" else ""


def task(parcel: Parcel, x: ndarray | None, mark: str) -> Answer:
    """What an executor is given to run; without members, only a trial.

    mark: a file to be made when the call begins, if that is possible where it runs.
    """
    try:
        function = parcel.whole or _unpacked(parcel)
    except InputError as error:
        return "unusable", str(error)
    with contextlib.suppress(OSError):
        os.close(os.open(mark, os.O_CREAT))
    return ("ready", None) if x is None else answer(function, x)


class Opened:
    """Reads the answers of one pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._told = False

    def rows(self, answer: Answer, batch: int) -> ndarray:
        """Raises MemberFailed, or InputError for a simulator that is unusable."""
        kind, value = answer
        if kind == "failed":
            cause, detail, where = value
            if where and not self._told:
                log.info("the simulator raised %s at %s", detail, where)
                self._told = True
            raise MemberFailed(Cause(cause), detail)
        if kind == "unusable":
            raise InputError(value)
        with self._lock:
            first = self._shapes.setdefault(batch, value.shape[1:])
        if value.shape[1:] != first:
            shapes = sorted({first, value.shape[1:]})
            raise InputError(f"the simulator returned members of different shapes: {shapes}")
        return value


class _Experiments(importlib.abc.MetaPathFinder):
    """Finds experiment files by the names that `enkg.load` gave to them."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        file = self.files.get(fullname)
        return file and importlib.util.spec_from_file_location(fullname, file)


@functools.lru_cache(maxsize=4)
def _unpacked(parcel: Parcel) -> Function:
    return parcel.unpack()
