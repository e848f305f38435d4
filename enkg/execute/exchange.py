"""Files that carry one member to a program and its answer back.

    npy     NumPy's own format, version 1.0
    raw     the numbers alone, in the byte order of the port
    text    decimal numbers and white space; written with one row of the last axis per line. Ends
            with a line end, without which nobody could tell whether its last number is complete
    netcdf  see `enkg.execute.netcdf`

A port of order F is for programs that store by columns. Its shape is the program's own, as Fortran
and Julia declare it, and so is that of what `read` returns. The numbers stand as such a program
keeps them: raw and text hold column after column (a line of text is a column), npy says
fortran_order, and netcdf has its dimensions reversed, as netCDF's Fortran interface does by itself:
a program finds and writes x(n1, n2), and `ncdump` shows x(n2, n1).

What a program wrote is not trusted: only regular files inside the run directory are read, no
symbolic link is followed, nothing is unpickled, and the size is compared with the expected one
before the numbers are read.
"""

import io
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy import ndarray
from numpy.lib import format as npy

from enkg.execute import netcdf
from enkg.execute.files import FULL, fail, no_room, one_line, open_below, read_all
from enkg.execute.manifest import Port
from enkg.failure import Cause, MemberFailed

NPY_HEADER = 4096
"""Longest header of an npy file, in bytes."""
TEXT_WIDTH = 64
"""Most bytes that one number and the white space after it may take in text, on average."""
TEXT_MARGIN = 4096
"""Bytes that a text file may hold beyond that."""


def write(path: Path, x: ndarray, port: Port) -> None:
    """Writes one member, x of port.shape, as port.dtype.

    Raises MemberFailed(DISK) if there is no room, OSError if the file cannot be written at all.
    """
    x = np.asarray(x, dtype=port.numpy)
    if x.shape != port.shape:
        raise ValueError(f"x has shape {x.shape}; the port has {port.shape}")
    try:
        path.write_bytes(_WRITERS[port.format](x, port))
    except OSError as error:
        if error.errno in FULL:
            raise MemberFailed(Cause.DISK, no_room(path)) from error
        raise


def read(path: Path, port: Port, root: Path | None = None) -> ndarray:
    """One answer, of port.shape and port.dtype, in C order; finite or not.

    root: the run directory, where it is not the file's own folder. Integers and floats of any size
    are taken as port.dtype. Raises MemberFailed: MISSING (no such file), TRUNCATED (it ends too
    early), SHAPE (complete, but with other or more numbers than expected), MALFORMED (not that
    format, not real numbers, not a regular file).
    """
    with open_below(path, root or path.parent) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size == 0:
            fail(Cause.TRUNCATED, path, "is empty")
        try:
            y = _READERS[port.format](file, size, path, port)
        except (MemoryError, OSError) as error:
            fail(Cause.MALFORMED, path, f"cannot be read: {one_line(error)}")
    with np.errstate(over="ignore"):  # infinities are found later
        return np.array(y, dtype=port.numpy, order="C")


def _in_file_order(x: ndarray, port: Port) -> ndarray:
    """The array whose C order is the order of the numbers in the file."""
    return x.T if port.order == "F" else x


def _raw_dtype(port: Port) -> np.dtype:
    return port.numpy.newbyteorder("<" if port.endian == "little" else ">")


def _write_npy(x: ndarray, port: Port) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, np.asarray(x, order=port.order), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _write_raw(x: ndarray, port: Port) -> bytes:
    return _in_file_order(x, port).astype(_raw_dtype(port), copy=False).tobytes()


def _write_text(x: ndarray, port: Port) -> bytes:
    x = np.atleast_1d(_in_file_order(x, port))
    # repr is the shortest text that reads back as the same number.
    rows = x.reshape(-1, x.shape[-1]).tolist()
    return "".join(" ".join(map(repr, row)) + "\n" for row in rows).encode()


def _write_netcdf(x: ndarray, port: Port) -> bytes:
    return netcdf.content(_in_file_order(x, port), port.variable or "x")


def _read_npy(file: BinaryIO, size: int, path: Path, port: Port) -> ndarray:
    start = io.BytesIO(read_all(file, min(size, 12 + NPY_HEADER)))
    magic = start.getvalue()[:6]
    if magic != npy.MAGIC_PREFIX[: len(magic)]:
        hint = "; it is an npz file: write it with numpy.save" if magic[:2] == b"PK" else ""
        fail(Cause.MALFORMED, path, f"is not an npy file{hint}")
    if size < 12:
        fail(Cause.TRUNCATED, path, f"ends inside its header, after {size} bytes")
    version = npy.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        fail(Cause.MALFORMED, path, f"has npy version {version}; expected 1.0 or 2.0")
    width = 2 if version == (1, 0) else 4
    begin = 8 + width + int.from_bytes(start.getvalue()[8 : 8 + width], "little")
    if begin > size and begin <= 12 + NPY_HEADER:
        fail(Cause.TRUNCATED, path, f"ends inside its header, after {size} bytes")
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, columns, dtype = reader(start, max_header_size=NPY_HEADER)
    except Exception as error:  # a parser of Python literals, on bytes that may be anything
        fail(Cause.MALFORMED, path, f"has a bad npy header: {one_line(error)}")
    netcdf.real(dtype, path)
    netcdf.same_shape(shape, port.shape, path)
    held, needed = size - begin, port.count * dtype.itemsize
    if held < needed:
        fail(Cause.TRUNCATED, path, f"ends after {held // dtype.itemsize} of {port.count} numbers")
    if held > needed:
        fail(Cause.MALFORMED, path, f"has {held - needed} bytes after the array")
    file.seek(begin)
    y = np.frombuffer(_exactly(file, needed, path), dtype)
    return y.reshape(shape, order="F" if columns else "C")


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = read_all(file, size)
    if len(data) < size:
        fail(Cause.TRUNCATED, path, "shrank while it was read")
    return data


def _read_raw(file: BinaryIO, size: int, path: Path, port: Port) -> ndarray:
    needed = port.count * port.numpy.itemsize
    told = f"has {size} bytes; {port.count} numbers of {port.dtype} take {needed}"
    if size < needed:
        half = port.dtype == "float64" and 2 * size == needed
        fail(Cause.TRUNCATED, path, told + ("; are they float32?" if half else ""))
    if size > needed:
        if size == needed + 8:
            told += '; a Fortran program has to open it with access="stream"'
        elif port.dtype == "float32" and size == 2 * needed:
            told += "; are they float64?"
        fail(Cause.SHAPE, path, told)
    y = np.frombuffer(_exactly(file, needed, path), _raw_dtype(port))
    return y.reshape(port.shape, order=port.order)


def _read_text(file: BinaryIO, size: int, path: Path, port: Port) -> ndarray:
    if size > TEXT_WIDTH * port.count + TEXT_MARGIN:
        fail(Cause.SHAPE, path, f"has {size} bytes, more than {port.count} numbers can take")
    data = read_all(file, size)
    words = data.split()
    try:
        if b"_" in data:
            raise ValueError("Python would take 1_000 for a number")
        y = np.fromiter(map(float, words), float, len(words))
    except ValueError:
        y = _by_word(words, data[-1:].isspace(), path)
    if len(y) < port.count:
        fail(Cause.TRUNCATED, path, f"ends after {len(y)} of {port.count} numbers")
    if len(y) > port.count:
        fail(Cause.SHAPE, path, f"has {len(y)} numbers; the manifest says {port.count}")
    if not data[-1:].isspace():
        fail(Cause.TRUNCATED, path, "has no line end after its last number, which may be cut")
    return y.reshape(port.shape, order=port.order)


_NUMBER = re.compile(rb"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eEdDqQ]([+-]?\d+)|([+-]\d{3,4}))?\Z")
_SPECIAL = re.compile(rb"[+-]?(?:nan|inf|infinity)\Z", re.IGNORECASE)


def _by_word(words: list[bytes], ended: bool, path: Path) -> ndarray:
    """Numbers with Fortran's exponents: 1.0D+00, and 0.1-100, which has no letter at all."""
    y = np.empty(len(words))
    for i, word in enumerate(words):
        if match := _NUMBER.match(word):
            digits, lettered, bare = match.groups()
            y[i] = float(digits + b"e" + (lettered or bare or b"0"))
        elif _SPECIAL.match(word):
            y[i] = float(word)
        elif i == len(words) - 1 and not ended:
            return y[:i]
        else:
            shown = word[:40].decode("ascii", "replace")
            stars = ", too wide for its Fortran format" if set(word) == {ord("*")} else ""
            fail(Cause.MALFORMED, path, f"has {shown!r} in place of number {i + 1}{stars}")
    return y


def _read_netcdf(file: BinaryIO, size: int, path: Path, port: Port) -> ndarray:
    shape = port.shape[::-1] if port.order == "F" else port.shape
    y = netcdf.read(file, size, path, port.variable or "y", shape)
    return y.T if port.order == "F" else y


_WRITERS = {"npy": _write_npy, "raw": _write_raw, "text": _write_text, "netcdf": _write_netcdf}
_READERS = {"npy": _read_npy, "raw": _read_raw, "text": _read_text, "netcdf": _read_netcdf}
