"""One array in a netCDF file.

Written as NetCDF classic with 64-bit offsets, which every netCDF library reads. Read as classic or
as netCDF-4 (HDF5). Elements that were never written hold the library's fill value; they are read
as NaN, and so is whatever `_FillValue` or `missing_value` names. Packed integers are unpacked.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy import ndarray

from enkg.execute.files import fail, one_line, read_all
from enkg.failure import Cause, MemberFailed

LIMIT = 256 * 2**20
"""Most bytes of a classic file, and of one HDF5 chunk, beyond 16 times those of the array."""
FILL = 9.969209968386869e36
"""What the netCDF library puts where a program wrote nothing."""
HDF5 = b"\x89HDF\r\n\x1a\n"
ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset")


def content(x: ndarray, name: str) -> bytes:
    """A classic file with one variable, over the dimensions name_0, name_1 and so on."""
    from scipy.io import netcdf_file

    held = _Held()
    with netcdf_file(held, "w", version=2) as file:
        names = tuple(f"{name}_{axis}" for axis in range(x.ndim))
        for dimension, length in zip(names, x.shape, strict=True):
            file.createDimension(dimension, length)
        file.createVariable(name, x.dtype, names)[...] = x
    return held.content


class _Held(io.BytesIO):
    """Bytes that outlive the closing of the file."""

    content = b""

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
        super().close()


def read(file: BinaryIO, size: int, path: Path, name: str, shape: tuple[int, ...]) -> ndarray:
    """The variable, float64, with the shape that it must have in the file.

    Raises MemberFailed: TRUNCATED (cut), SHAPE, or MALFORMED (not netCDF, no such variable, not
    real numbers, or a link to another file).
    """
    magic = file.read(8)
    file.seek(0)
    if magic[:4] in (b"CDF\x01", b"CDF\x02"):
        parser = _classic
    elif magic == HDF5:
        parser = _hdf5
    elif magic[:4] == b"CDF\x05":
        fail(Cause.MALFORMED, path, "is CDF-5; write netCDF-4 or classic")
    elif len(magic) < 8 and (HDF5.startswith(magic) or b"CDF".startswith(magic[:3])):
        fail(Cause.TRUNCATED, path, f"ends after {size} bytes")
    else:
        fail(Cause.MALFORMED, path, "is not a netCDF file")
    try:
        return _decoded(*parser(file, size, path, name, shape))
    except MemberFailed:
        raise
    except Exception as error:  # from parsers of bytes that may be anything
        damage = f"{path.name} is cut or damaged: {one_line(error)}"
        raise MemberFailed(Cause.TRUNCATED, damage) from error


def real(dtype: np.dtype, path: Path) -> None:
    """Raises MALFORMED for anything but real numbers."""
    if dtype.hasobject:
        fail(Cause.MALFORMED, path, "holds pickled Python objects; expected numbers")
    if dtype.kind not in "fiu":
        fail(Cause.MALFORMED, path, f"holds {dtype}; expected real numbers")


def same_shape(shape: tuple[int, ...], expected: tuple[int, ...], path: Path) -> None:
    if shape != expected:
        fail(Cause.SHAPE, path, f"has shape {shape}; expected {expected}, as in the manifest")


def _none(name: str, names: list[str], path: Path) -> NoReturn:
    held = ", ".join(sorted(names)[:20]) or "none"
    fail(Cause.MALFORMED, path, f"has no variable {name!r}; it has {held}")


def _classic(
    file: BinaryIO, size: int, path: Path, name: str, shape: tuple[int, ...]
) -> tuple[ndarray, dict[str, Any]]:
    from scipy.io import netcdf_file

    if size > LIMIT + 16 * 8 * int(np.prod(shape)):
        fail(Cause.SHAPE, path, f"has {size} bytes; classic files are read up to {LIMIT} bytes")
    # Read whole so that no length in the header makes the parser reserve memory.
    with netcdf_file(io.BytesIO(read_all(file, size)), "r") as held:
        if name not in held.variables:
            _none(name, list(held.variables), path)
        found = held.variables[name]
        real(found.data.dtype, path)
        same_shape(found.data.shape, shape, path)
        attributes = {k: getattr(found, k) for k in ATTRIBUTES if hasattr(found, k)}
        return found.data.astype(found.data.dtype.newbyteorder("=")), attributes


def _hdf5(
    file: BinaryIO, size: int, path: Path, name: str, shape: tuple[int, ...]
) -> tuple[ndarray, dict[str, Any]]:
    import h5py

    with h5py.File(path, "r", locking=False) as held:
        found: Any = held
        for part in name.strip("/").split("/"):
            if not isinstance(found, h5py.Group) or part not in found:
                _none(name, list(held), path)
            if not isinstance(found.get(part, getlink=True), h5py.HardLink):
                fail(Cause.MALFORMED, path, f"has a link to elsewhere in place of {name!r}")
            found = found[part]
        if not isinstance(found, h5py.Dataset):
            _none(name, list(held), path)
        if found.external or found.is_virtual:
            fail(Cause.MALFORMED, path, f"keeps {name!r} in another file")
        real(found.dtype, path)
        same_shape(found.shape, shape, path)
        chunk = int(np.prod(found.chunks or (0,), dtype=float)) * found.dtype.itemsize
        if chunk > LIMIT:
            fail(Cause.MALFORMED, path, f"keeps {name!r} in chunks of {chunk} bytes")
        attributes = {k: found.attrs[k] for k in ATTRIBUTES if k in found.attrs}
        return np.asarray(found[()]), attributes


def _decoded(y: ndarray, attributes: dict[str, Any]) -> ndarray:
    """The numbers meant, float64: NaN where nothing was written, packed integers unpacked."""
    fills = [np.ravel(attributes[k])[0] for k in ATTRIBUTES[:2] if k in attributes]
    if not fills and y.dtype.kind == "f":
        fills = [FILL]
    blank = np.zeros(y.shape, bool)
    for value in fills:
        blank |= y == np.asarray(value).astype(y.dtype)
    y = y.astype(float)
    if "scale_factor" in attributes:
        y = y * float(np.ravel(attributes["scale_factor"])[0])
    if "add_offset" in attributes:
        y = y + float(np.ravel(attributes["add_offset"])[0])
    y[blank] = np.nan
    return y
