"""The run directory: what a run leaves behind, and how to open it again.

    experiment.json   every field, versions, seed, git state, host, command; written at the start
    log.txt           what happened, line by line
    posterior.zarr    xarray DataTree: posterior, prior_samples, observation, predicted, trace and,
                      where it is known, truth
    figures/*.png     pictures
    failed/           files of members whose program failed, if there were any
    progress.json     while it runs: how far it is (`enkg.beat`); log-3.txt: what rank 3 has to say
    checkpoint/, first/, answers/
                      while it is unfinished: all that was paid for (`enkg.journal`)
    summary.json      the numbers; written once the arrays are complete, and again with the tables
                      of the experiment's own analysis. A directory without it is no finished run

Files are written under a temporary name and renamed, so that none is ever half there.
"""

import dataclasses
import fcntl
import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from enkg.errors import InUse, StoreError
from enkg.sketch import differences, sketched

log = logging.getLogger("enkg")

LOCK, PARTIAL = ".lock", ".partial"
FREE = ("device", "failure", "cache", "analyse", "simulator", "low")
"""Fields of an experiment that may change while it is unfinished; what the simulator's answers
depend on is recorded for itself."""
CHECKPOINT, FIRST, ANSWERS = "checkpoint", "first", "answers"
LOG_OF_RANK = "log-{}.txt"
JOB = "job"
"""What the files of a batch job begin with (`enkg.slurm`)."""
RECORD, LOG, TREE, SUMMARY, FIGURES, FAILED = (
    "experiment.json",
    "log.txt",
    "posterior.zarr",
    "summary.json",
    "figures",
    "failed",
)


@contextmanager
def claimed(directory: str | Path | None) -> Iterator[None]:
    """Keeps a run directory for one run; raises StoreError while another run writes into it."""
    if directory is None or Path(directory).is_file():
        yield
        return
    lock = Path(directory) / LOCK
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot make the run directory {directory}: {error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                f"another run is writing into {directory}; give another --out, or wait for its end"
            ) from error
        except OSError:
            log.warning("%s: this file system has no locks", directory)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def create(directory: Path, overwrite: bool) -> Path:
    """Makes a run directory; refuses one that holds results, or anything that was paid for, unless
    told to overwrite it.

    A run that stopped before its first simulator call is replaced without being told.
    """
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; a run needs a directory")
    if directory.is_dir() and any(not _is_trifle(file) for file in directory.iterdir()):
        if not _is_ours(directory / RECORD):
            raise StoreError(
                f"{directory} holds files that no run of enkg wrote; choose another --out"
            )
        if not overwrite and is_unfinished(directory):
            raise StoreError(
                f"{directory} holds an unfinished run; `enkg resume {directory}` goes on with it, "
                "--overwrite starts anew and throws away what it has simulated"
            )
        if not overwrite and (directory / TREE).exists():
            state = "a finished run" if (directory / SUMMARY).is_file() else "an unfinished run"
            raise StoreError(
                f"{directory} holds {state}; give another --out, or --overwrite to replace it"
            )
        (directory / SUMMARY).unlink(missing_ok=True)  # from here on it is not a finished run
        for name in (TREE, FIGURES, FAILED):
            shutil.rmtree(directory / name, ignore_errors=True)
        clear(directory)
        for file in (directory / LOG, *directory.glob(LOG_OF_RANK.format("*"))):
            file.unlink(missing_ok=True)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the run directory {directory}: {error}") from error
    return directory


def _is_trifle(file: Path) -> bool:
    """Whether a file may lie in a run directory before the run: its lock, a record that a killed
    run left half written, the script and logs of a batch job."""
    return file.name in (LOCK, RECORD + PARTIAL) or file.name.startswith(JOB)


def is_unfinished(directory: Path) -> bool:
    """Whether a run has left anything there that it could go on from."""
    answers = any(file.stat().st_size for file in (directory / ANSWERS).glob("*"))
    return (answers or any((directory / CHECKPOINT).glob("*"))) and not is_complete(directory)


def is_complete(directory: Path) -> bool:
    """Whether the directory holds a finished run with all its figures and tables, to which a
    resumed run has nothing to add."""
    return is_finished(directory) and not (directory / ANSWERS).exists()


def clear(directory: Path) -> None:
    """Removes what a run keeps there while it is unfinished. The answers go at once, so that they
    never lack a part."""
    gone = directory / (ANSWERS + PARTIAL)
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(directory / ANSWERS, gone)
    for name in (gone.name, CHECKPOINT, FIRST):
        shutil.rmtree(directory / name, ignore_errors=True)


def check_unchanged(directory: Path, record: Mapping[str, Any], force: bool) -> list[str]:
    """Raises StoreError where an unfinished run was begun with another experiment.

    record: what experiment.json would hold now. Fields that decide nothing but how the run copes
    may differ: device, failure, cache, analyse. Returns what the log should warn of; force: the
    changes as well.
    """
    before, now = recorded(directory), plain(record)
    old, new = ({k: v for k, v in r["experiment"].items() if k not in FREE} for r in (before, now))
    changed = list(dict.fromkeys("experiment." + d.split(".")[0] for d in differences(old, new)))
    if before.get("simulator") != now.get("simulator"):
        changed.append("the simulator's code or program")
    if changed and not force:
        raise StoreError(
            f"{directory} was begun with another experiment: {', '.join(changed)} changed since. "
            "Undo that, or give another --out; --force goes on all the same, and mixes both"
        )
    doubts = []
    if old != new and not changed:
        doubts.append(
            "arrays of the experiment differ in their last digits, and so may the result; calls of "
            "the sweep that was interrupted may be made again"
        )
    if changed:
        doubts.append(f"going on although the experiment changed: {', '.join(changed)}")
    if before["versions"] != now["versions"]:
        doubts.append("other versions of packages than at the start; the last bits may differ")
    return doubts


def recorded(directory: Path) -> dict[str, Any]:
    """What experiment.json holds."""
    if not _is_ours(directory / RECORD):
        raise StoreError(f"{directory} is not a run directory: it has no {RECORD} of a run of enkg")
    return json.loads((directory / RECORD).read_text())


def _is_ours(record: Path) -> bool:
    """Whether a file is the experiment.json of a run of enkg."""
    try:
        return "enkg" in json.loads(record.read_text())["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_json(path: Path, value: Any) -> None:
    """JSON under a temporary name, then renamed. NaN and infinity become null."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def write_tree(directory: Path, tree: xr.DataTree) -> None:
    """posterior.zarr, complete or not there at all."""
    partial = directory / (TREE + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    tree.to_zarr(partial, mode="w", consolidated=False)
    shutil.rmtree(directory / TREE, ignore_errors=True)
    os.replace(partial, directory / TREE)


def open_run(directory: str | Path) -> xr.DataTree:
    """The DataTree of a finished run, loaded lazily.

    Groups: posterior, prior_samples, observation, predicted, trace and, where it is known, truth.
    Raises StoreError where there is no finished run.
    """
    folder = finished(Path(directory))
    tree = xr.open_datatree(folder / TREE, engine="zarr", consolidated=False)
    return attach(tree, summary(folder))


def attach(tree: xr.DataTree, numbers: Mapping[str, Any]) -> xr.DataTree:
    """The tree with the numbers of summary.json as text in its attribute `summary`."""
    tree.attrs["summary"] = json.dumps(plain(numbers))
    return tree


def summary(directory: str | Path) -> dict[str, Any]:
    """The numbers of a finished run."""
    return json.loads((finished(Path(directory)) / SUMMARY).read_text())


def is_finished(directory: Path) -> bool:
    """Whether the directory holds a finished run."""
    return (directory / SUMMARY).is_file() and (directory / TREE).is_dir()


def finished(directory: Path) -> Path:
    """The directory itself, if it holds a finished run."""
    if is_finished(directory):
        return directory
    if (directory / RECORD).is_file():
        raise StoreError(
            f"the run in {directory} did not finish; `enkg resume {directory}` goes on with it, "
            f"and {directory / LOG} tells how far it came"
        )
    raise StoreError(f"{directory} is not a run directory: it has no {RECORD}")


def export_netcdf(directory: str | Path, file: str | Path, overwrite: bool = False) -> Path:
    """Writes the whole tree as one NetCDF-4 file with groups."""
    file = Path(file)
    if file.exists() and not overwrite:
        raise StoreError(f"{file} exists; give another name, or --overwrite to replace it")
    partial = file.with_name(file.name + PARTIAL)
    tree = open_run(directory).load()
    try:
        tree.to_netcdf(partial, engine="h5netcdf")
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"cannot write {file}: {error}") from error
    return file


def provenance(
    experiment: Any, source: Path | None, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """What experiment.json holds. arguments: what the command line added to the source."""
    return {
        "experiment": describe(experiment),
        "seed": experiment.seed,
        "source": str(source) if source else None,
        "arguments": list(arguments),
        "folder": os.getcwd(),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions()},
        "git": _git(source.parent if source else Path.cwd()),
    }


def describe(value: Any) -> Any:
    """Any field as JSON: arrays by `enkg.sketch.sketched`, functions by name."""
    if isinstance(value, Tensor | np.ndarray):
        return sketched(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _name(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [describe(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return _name(value if isinstance(value, type | Callable) else type(value))


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    return f"{getattr(thing, '__module__', '')}.{name}".lstrip(".")


def plain(value: Any) -> Any:
    """Numbers, text, lists and mappings only; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic | Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def versions() -> dict[str, str | None]:
    """Of the packages that a result depends on; None for those that are not installed."""
    out: dict[str, str | None] = {}
    for package in ("enkg", "torch", "numpy", "scipy", "xarray", "zarr", "jax", "jax-cfd", "ehtim"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            out[package] = None
    return out


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that holds the folder, and whether files differ from it."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain")
    return None if commit is None else {"commit": commit, "changed": bool(changed)}
