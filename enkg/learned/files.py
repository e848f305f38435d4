"""Samples in files: .npy files and folders of them, NetCDF, HDF5, Zarr.

Nothing is read before rows are asked for, and then these rows alone (whole chunks, where the file
has chunks: one chunk to a sample is best). A file is opened anew in each process.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.learned.sources import Indices, check_array, single

if TYPE_CHECKING:
    import xarray as xr

HDF5, NETCDF3 = b"\x89HDF", b"CDF"
ZARR = ("zarr.json", ".zgroup", ".zarray")
KINDS = ".npy, .nc, .h5 or .hdf5 files, .zarr folders, or a folder of .npy files"


@dataclass(frozen=True)
class Source:
    """Something open: shape (N, *X), type, and how to read rows, given in increasing order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    take: Callable[[ndarray], ndarray]


class Filed:
    """Samples in a file or folder (`Samples`).

    name: for messages. opener: picklable; called once in each process. Cost of `rows`: one read of
    these rows in increasing order, each once.
    """

    def __init__(self, name: str, opener: Callable[[], Source]) -> None:
        self.name, self.opener = name, opener
        found = opener()
        check_array(f"the samples in {name}", found.shape, found.dtype)
        self.length, self.shape = found.shape[0], tuple(found.shape[1:])
        self.open: tuple[int, Source] | None = None

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"{self.length} samples of shape {self.shape} in {self.name}"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"open": None}

    def rows(self, indices: Indices) -> ndarray:
        if self.open is None or self.open[0] != os.getpid():
            self.open = (os.getpid(), self.opener())
        order, back = np.unique(np.asarray(indices, dtype=np.intp), return_inverse=True)
        return single(self.open[1].take(order))[back]


def opened(path: Path, variable: str | None, sample_dim: str | None, stacked: bool) -> Filed:
    """The samples in a file or folder; the arguments are those of `enkg.learned.sources`."""
    if not path.exists():
        raise InputError(f"there is no {path}; samples come from {KINDS}")
    path = path.absolute()
    zarr = path.is_dir() and (path.suffix == ".zarr" or any((path / n).exists() for n in ZARR))
    folder = path.is_dir() and not zarr
    named = zarr or path.suffix in (".nc", ".nc4", ".h5", ".hdf5")
    if not named and (variable is not None or sample_dim is not None):
        raise InputError(
            f"variable and sample_dim are for NetCDF, HDF5 and Zarr; {path} has no names, and its "
            "first axis counts the samples"
        )
    if stacked and not folder:
        raise InputError(f"stacked is for a folder of .npy files; {path} is none")
    if folder:
        return _folder(path, stacked)
    if zarr and _is_array(path):
        if variable is not None or sample_dim is not None:
            raise InputError(f"{path} is one Zarr array; leave out variable and sample_dim")
        return Filed(str(path), partial(_zarr_array, path))
    if named:
        return Filed(str(path), partial(_variable, path, variable, sample_dim))
    if path.suffix == ".npy":
        return Filed(str(path), partial(_numpy, path))
    raise InputError(f"{path} is of a kind that is not read; expected {KINDS}")


def files(name: str, paths: list[Path]) -> Filed:
    """The samples in several .npy files, each (n, *X), one after the other; n may be 0."""
    shapes = [_mapped(path).shape for path in paths]
    return Filed(name, partial(_stacked, paths, shapes))


def _folder(path: Path, stacked: bool) -> Filed:
    paths = sorted(path.glob("*.npy"))
    if not paths:
        others = sorted({file.suffix for file in path.iterdir() if file.is_file()})
        kinds = f"; it holds {', '.join(others)}" if any(others) else ""
        raise InputError(
            f"{path} holds no .npy files{kinds}. Several NetCDF files become one with "
            "xarray.open_mfdataset(...).to_zarr(...)"
        )
    return files(str(path), paths) if stacked else Filed(str(path), partial(_singles, paths))


def _numpy(path: Path) -> Source:
    array = _mapped(path)
    return Source(array.shape, array.dtype, array.__getitem__)


def _mapped(path: Path) -> ndarray:
    """The array of a .npy file, not read yet."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a .npy file of numbers ({error}); write it with numpy.save"
        ) from error


def _singles(paths: list[Path]) -> Source:
    first = _mapped(paths[0])

    def take(rows: ndarray) -> ndarray:
        found = [_mapped(paths[row]) for row in rows]
        for row, array in zip(rows, found, strict=True):
            if array.shape != first.shape:
                raise InputError(
                    f"{paths[row]} has shape {array.shape}, {paths[0].name} beside it "
                    f"{first.shape}; all samples have one shape. Where each file holds several, "
                    "give stacked=True"
                )
        return np.stack(found) if found else np.empty((0, *first.shape), first.dtype)

    return Source((len(paths), *first.shape), first.dtype, take)


def _stacked(paths: list[Path], shapes: list[tuple[int, ...]]) -> Source:
    for path, shape in zip(paths, shapes, strict=True):
        if len(shape) < 2 or shape[1:] != shapes[0][1:]:
            raise InputError(
                f"{path} has shape {shape}, {paths[0].name} beside it {shapes[0]}; each holds "
                "several samples, (n, *X), with one X. Where each file is a sample, leave out "
                "stacked"
            )
    ends = np.cumsum([shape[0] for shape in shapes])
    dtype = _mapped(paths[0]).dtype

    def take(rows: ndarray) -> ndarray:
        which = np.searchsorted(ends, rows, side="right")
        parts = [
            _mapped(paths[k])[rows[which == k] - ends[k] + shapes[k][0]] for k in np.unique(which)
        ]
        return np.concatenate(parts) if parts else np.empty((0, *shapes[0][1:]), dtype)

    return Source((int(ends[-1]), *shapes[0][1:]), dtype, take)


def _is_array(path: Path) -> bool:
    """Whether a Zarr folder is an array rather than a group of them."""
    meta = path / "zarr.json"
    return (path / ".zarray").exists() or (
        meta.is_file() and json.loads(meta.read_text()).get("node_type") == "array"
    )


def _zarr_array(path: Path) -> Source:
    import zarr

    array = zarr.open_array(path, mode="r")
    return Source(array.shape, np.dtype(array.dtype), lambda rows: np.asarray(array.oindex[rows]))


def _variable(path: Path, variable: str | None, sample_dim: str | None) -> Source:
    group, _, name = (variable or "").rpartition("/")
    found = _chosen(path, _dataset(path, group or None), name)
    dim = str(found.dims[0]) if sample_dim is None and found.dims else sample_dim
    if dim not in found.dims:
        raise InputError(
            f"{found.name} in {path} has the dimensions {tuple(found.dims)}, and sample_dim is "
            f"{sample_dim!r}; name one of them"
        )
    found = found.transpose(dim, ...)
    return Source(found.shape, found.dtype, lambda rows: found.isel({dim: rows}).values)


def _dataset(path: Path, group: str | None) -> "xr.Dataset":
    import xarray as xr

    options: dict[str, Any] = {"group": group, "cache": False, "decode_times": False}
    if path.is_dir():
        options |= {"engine": "zarr", "consolidated": False}
    else:
        start = _start(path)
        if start.startswith(HDF5):
            options |= {"engine": "h5netcdf", "phony_dims": "access"}
        elif start.startswith(NETCDF3) and group is None:
            options |= {"engine": "scipy"}
            del options["group"]
        else:
            raise InputError(f"{path} is no NetCDF or HDF5 file, or it is damaged or has no groups")
    try:
        return xr.open_dataset(path, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}{f', group {group},' if group else ''} cannot be read by xarray "
            f"({type(error).__name__}: {error}); is it whole, and written by xarray or alike? A "
            "single Zarr array can be given by its own path"
        ) from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _chosen(path: Path, dataset: "xr.Dataset", name: str) -> "xr.DataArray":
    names = [str(key) for key in dataset.data_vars]
    if name:
        if name not in names:
            raise InputError(f"{path} has no variable {name!r}; it has {', '.join(names) or None}")
        return dataset[name]
    wide = [key for key in names if dataset[key].ndim > 1]
    if len(wide) == 1:
        return dataset[wide[0]]
    if wide:
        raise InputError(f"{path} holds the variables {', '.join(wide)}; name one as `variable`")
    raise InputError(
        f"{path} holds no variable with a dimension for the samples and another; it has "
        f'{", ".join(names) or None}. One inside a group is named "group/name"'
    )
