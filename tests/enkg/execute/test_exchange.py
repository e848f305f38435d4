"""Files between enkg and programs: nothing is lost, and no damaged file passes as an answer."""

import contextlib
import os
import re
import socket
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from enkg.execute import exchange
from enkg.execute.manifest import SUFFIX, Port
from enkg.failure import Cause, MemberFailed

FORMATS = ("npy", "raw", "text", "netcdf")
SHAPES = [(1,), (5,), (3, 4), (2, 3, 4)]
every_format = pytest.mark.parametrize("format", FORMATS)


def sample(shape, dtype="float64"):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype) * 1e-7 + np.pi


def port_of(format, shape=(3, 4), **others):
    return Port(shape=shape, format=format, variable="y", **others)


def written(folder, port, x=None):
    path = folder / f"y{SUFFIX[port.format]}"
    exchange.write(path, sample(port.shape, port.dtype) if x is None else x, port)
    return path


def failure(path, port, root=None):
    with pytest.raises(MemberFailed) as raised:
        exchange.read(path, port, root)
    assert "\n" not in raised.value.failure.detail
    return raised.value.failure


@every_format
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_that_what_is_written_is_read_back_bit_for_bit(tmp_path, format, order, dtype, shape):
    port = port_of(format, shape, order=order, dtype=dtype)
    x = sample(shape, dtype)
    y = exchange.read(written(tmp_path, port, x), port)
    assert y.dtype == port.numpy
    assert y.flags.c_contiguous
    assert y.flags.writeable
    np.testing.assert_array_equal(y, x)


@every_format
def test_that_extreme_numbers_survive(tmp_path, format):
    x = np.array([0.0, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, np.nan, np.inf, -np.inf])
    port = port_of(format, (8,))
    y = exchange.read(written(tmp_path, port, x), port)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(np.signbit(y)[:5], np.signbit(x)[:5])


def test_that_raw_bytes_have_the_order_and_endianness_of_the_port(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    for order in ("C", "F"):
        for endian, mark in (("little", "<"), ("big", ">")):
            port = port_of("raw", (2, 3), order=order, endian=endian)
            content = written(tmp_path, port, x).read_bytes()
            np.testing.assert_array_equal(np.frombuffer(content, mark + "f8"), x.ravel(order))
            np.testing.assert_array_equal(exchange.read(tmp_path / "y.bin", port), x)


def test_that_text_has_one_row_per_line_or_one_column(tmp_path):
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 0.1]])
    assert written(tmp_path, port_of("text", (2, 3)), x).read_text() == "1.0 2.0 3.0\n4.0 5.0 0.1\n"
    by_columns = written(tmp_path, port_of("text", (2, 3), order="F"), x).read_text()
    assert by_columns == "1.0 4.0\n2.0 5.0\n3.0 0.1\n"


def test_that_npy_is_what_numpy_reads_and_tells_its_own_order(tmp_path):
    x = sample((3, 4))
    for order in ("C", "F"):
        loaded = np.load(written(tmp_path, port_of("npy", order=order), x))
        np.testing.assert_array_equal(loaded, x)
        assert loaded.flags.f_contiguous == (order == "F")
        for port in (port_of("npy"), port_of("npy", order="F")):
            np.testing.assert_array_equal(exchange.read(tmp_path / "y.npy", port), x)


def test_that_xarray_reads_the_netcdf_file(tmp_path):
    import xarray as xr

    x = sample((3, 4), "float32")
    with xr.open_dataset(written(tmp_path, port_of("netcdf", dtype="float32"), x)) as data:
        assert data["y"].dims == ("y_0", "y_1")
        assert data["y"].dtype == "float32"
        np.testing.assert_array_equal(data["y"], x)
    with xr.open_dataset(written(tmp_path, port_of("netcdf", order="F"), x)) as data:
        np.testing.assert_array_equal(data["y"], x.T)


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT"])
@pytest.mark.parametrize("unlimited", [False, True])
def test_that_netcdf_files_of_every_kind_are_read(tmp_path, kind, unlimited):
    import xarray as xr

    x, path = sample((3, 4)), tmp_path / "y.nc"
    data = xr.Dataset({"y": (("t", "s"), x), "other": (("t",), np.arange(3.0))})
    engine = "h5netcdf" if kind == "NETCDF4" else "scipy"
    data.to_netcdf(path, format=kind, engine=engine, unlimited_dims=["t"] if unlimited else [])
    np.testing.assert_array_equal(exchange.read(path, port_of("netcdf")), x)
    assert "it has other, " in failure(path, Port((3, 4), format="netcdf", variable="z")).detail


def test_that_what_a_netcdf_program_never_wrote_is_nan(tmp_path):
    import h5py
    from scipy.io import netcdf_file

    fill = 9.969209968386869e36  # NC_FILL_DOUBLE of netcdf.h
    x = np.array([1.0, fill, 3.0])
    for dtype in ("f4", "f8"):
        with netcdf_file(tmp_path / "y.nc", "w") as file:
            file.createDimension("s", 3)
            file.createVariable("y", dtype, ("s",))[:] = x
        y = exchange.read(tmp_path / "y.nc", port_of("netcdf", (3,)))
        np.testing.assert_array_equal(y, [1.0, np.nan, 3.0])
    with h5py.File(tmp_path / "y.nc", "w") as file:
        file["y"] = np.array([10, -1, 30], "i2")
        file["y"].attrs.update({"_FillValue": np.int16(-1), "scale_factor": 0.5, "add_offset": 1.0})
    y = exchange.read(tmp_path / "y.nc", port_of("netcdf", (3,)))
    np.testing.assert_array_equal(y, [6.0, np.nan, 16.0])


@every_format
def test_that_a_file_cut_anywhere_is_never_an_answer(tmp_path, format):
    port = port_of(format)
    path = written(tmp_path, port)
    whole, causes = path.read_bytes(), set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        causes.add(failure(path, port).cause)
    assert causes == {Cause.TRUNCATED}


def test_that_a_cut_netcdf4_file_is_never_an_answer(tmp_path):
    import h5netcdf

    path = tmp_path / "y.nc"
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"s": 12}
        file.create_variable("y", ("s",), data=np.arange(12.0))
    whole = path.read_bytes()
    for length in [*range(64), *range(64, len(whole), 97)]:
        path.write_bytes(whole[:length])
        assert failure(path, port_of("netcdf", (12,))).cause == Cause.TRUNCATED


@every_format
def test_that_damaged_files_end_in_a_failure_and_in_nothing_else(tmp_path, format):
    port = port_of(format)
    path = written(tmp_path, port)
    whole, draw = path.read_bytes(), np.random.default_rng(2)
    for _ in range(150):
        content = bytearray(whole)
        for place in draw.integers(0, len(content), draw.integers(1, 6)):
            content[place] = draw.integers(256)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(MemberFailed):
                assert exchange.read(path, port).shape == port.shape


@every_format
def test_that_a_missing_file_is_missing_and_an_empty_one_truncated(tmp_path, format):
    assert failure(tmp_path / "y", port_of(format)).cause == Cause.MISSING
    assert failure(tmp_path / "no" / "y", port_of(format), tmp_path).cause == Cause.MISSING
    (tmp_path / "y").touch()
    assert failure(tmp_path / "y", port_of(format)).cause == Cause.TRUNCATED


@every_format
def test_that_other_shapes_are_told(tmp_path, format):
    port = port_of(format, (3, 4))
    path = written(tmp_path, port_of(format, (5, 4)))
    assert failure(path, port).cause == Cause.SHAPE
    if format in ("npy", "netcdf"):  # the others know no shape
        transposed = failure(written(tmp_path, port_of(format, (4, 3))), port)
        assert (transposed.cause, "(4, 3)" in transposed.detail) == (Cause.SHAPE, True)


@pytest.mark.parametrize("dtype", ["i2", "u8", "<f4", ">f8", "f2", "longdouble", ">i4"])
def test_that_real_numbers_of_any_kind_are_taken(tmp_path, dtype):
    x = np.arange(12).astype(dtype).reshape(3, 4)
    np.save(tmp_path / "y.npy", x)
    y = exchange.read(tmp_path / "y.npy", port_of("npy"))
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("dtype", ["c16", "U4", "S4", "?", "O", "M8[s]", [("a", "f8")]], ids=str)
def test_that_anything_but_real_numbers_is_malformed(tmp_path, dtype):
    np.save(tmp_path / "y.npy", np.zeros((3, 4), dtype), allow_pickle=True)
    assert failure(tmp_path / "y.npy", port_of("npy")).cause == Cause.MALFORMED


def test_that_pickles_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "y.npy", np.array([Trap()] * 12).reshape(3, 4), allow_pickle=True)
    found = failure(tmp_path / "y.npy", port_of("npy"))
    assert (found.cause, "pickled" in found.detail) == (Cause.MALFORMED, True)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("format", "content", "hint"),
    [
        ("npy", b"1.0 2.0 3.0", "not an npy file"),
        ("npy", b"\x93NUMPY\x07\x00" + bytes(200), "version (7, 0)"),
        ("npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200), "bad npy header"),
        ("netcdf", b"1.0 2.0 3.0", "not a netCDF file"),
        ("netcdf", b"CDF\x05" + bytes(100), "CDF-5"),
        ("text", b"1.0 2.0 ****** 4.0\n", "too wide for its Fortran format"),
        ("text", b"1.0 2.0 3.0 4.0 done\n", "'done' in place of number 5"),
        ("text", b"# a comment\n1 2 3 4\n", "'#'"),
        ("text", b"1,2,3,4\n", "'1,2,3,4'"),
        ("text", b"1 2 3 4_0\n", "'4_0'"),
        ("text", b"(1.0,2.0) 2 3 4\n", "'(1.0,2.0)'"),
        ("text", b"1 2 3 \xd9\xa4\n", "in place of number 4"),
    ],
)
def test_that_other_formats_are_told(tmp_path, format, content, hint):
    (tmp_path / "y").write_bytes(content)
    found = failure(tmp_path / "y", port_of(format, (4,)))
    assert (found.cause, hint in found.detail) == (Cause.MALFORMED, True), found


def test_that_an_npz_file_is_told(tmp_path):
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    found = failure(tmp_path / "y.npz", port_of("npy", (3,)))
    assert (found.cause, "numpy.save" in found.detail) == (Cause.MALFORMED, True)


def test_that_bytes_after_an_npy_array_are_malformed(tmp_path):
    path = written(tmp_path, port_of("npy"))
    path.write_bytes(path.read_bytes() + b"12345678")
    found = failure(path, port_of("npy"))
    assert (found.cause, "8 bytes after" in found.detail) == (Cause.MALFORMED, True)


def test_that_fortran_numbers_are_read(tmp_path):
    path = tmp_path / "y.txt"
    path.write_text("  1.0D+00 -2.5d-3\n .5E1 1. 0.1-100 1.5+200\n+Infinity NaN 3q0 -inf -nan 7\n")
    np.testing.assert_array_equal(
        exchange.read(path, port_of("text", (12,))),
        [1.0, -2.5e-3, 5.0, 1.0, 0.1e-100, 1.5e200, np.inf, np.nan, 3.0, -np.inf, np.nan, 7.0],
    )


@pytest.mark.parametrize("tail", ["3.1", "3.1e", "3.1D+", "-", "infin"])
@pytest.mark.parametrize("count", [3, 4])
def test_that_text_without_a_line_end_is_truncated(tmp_path, tail, count):
    (tmp_path / "y.txt").write_text(f"1.0 2.0 {tail}")
    assert failure(tmp_path / "y.txt", port_of("text", (count,))).cause == Cause.TRUNCATED


def test_that_record_marks_and_single_precision_get_a_hint(tmp_path):
    path, port = tmp_path / "y.bin", port_of("raw", (4,))
    path.write_bytes(bytes(4 * 8 + 8))
    found = failure(path, port)
    assert (found.cause, 'access="stream"' in found.detail) == (Cause.SHAPE, True)
    path.write_bytes(bytes(4 * 4))
    found = failure(path, port)
    assert (found.cause, "float32?" in found.detail) == (Cause.TRUNCATED, True)


@every_format
def test_that_an_enormous_file_is_refused_unread(tmp_path, format):
    # Sparse: 10 TB could not be read, and nothing is.
    path, port = written(tmp_path, port_of(format)), port_of(format)
    os.truncate(path, 10**13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert failure(path, port).cause in (Cause.SHAPE, Cause.MALFORMED)


def test_that_a_header_cannot_make_the_reader_reserve_memory(tmp_path):
    import h5py

    path = tmp_path / "y"
    path.write_bytes(re.sub(rb"\(3, 4\), }       ", b"(3, 10**12), }", content_of_npy()))
    assert failure(path, port_of("npy")).cause == Cause.MALFORMED
    path.write_bytes(content_of_npy().replace(b"(3, 4), }         ", b"(3, 999999999999)}"))
    assert failure(path, port_of("npy")).cause == Cause.SHAPE
    with h5py.File(path, "w") as file:
        file.create_dataset("y", (12,), "f4", maxshape=(None,), chunks=(2**28,), compression="gzip")
    found = failure(path, port_of("netcdf", (12,)))
    assert (found.cause, "chunks" in found.detail) == (Cause.MALFORMED, True)


def content_of_npy():
    import io

    file = io.BytesIO()
    np.save(file, np.zeros((3, 4)))
    return file.getvalue()


@every_format
def test_that_links_are_not_followed(tmp_path, format):
    port = port_of(format)
    run = tmp_path / "run"
    run.mkdir()
    outside = written(tmp_path, port)
    (run / "y").symlink_to(outside)
    (run / "folder").symlink_to(tmp_path)
    for path in (run / "y", run / "folder" / outside.name):
        found = failure(path, port, run)
        assert (found.cause, "symbolic link" in found.detail) == (Cause.MALFORMED, True)
    for path in (outside, run / ".." / outside.name):
        assert "outside" in failure(path, port, run).detail


@every_format
def test_that_only_regular_files_are_opened(tmp_path, format):
    port = port_of(format)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("folder", "pipe", "socket"):
            assert failure(tmp_path / name, port).cause == Cause.MALFORMED


def test_that_netcdf_links_and_outside_storage_are_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "other.nc", "w") as file:
        file["y"] = np.zeros(4)
    (tmp_path / "numbers").write_bytes(bytes(32))
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.nc"), "y", (4,))
    path = tmp_path / "y.nc"
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink("other.nc", "y")
        file["soft"] = h5py.SoftLink("/real")
        file["real"] = np.zeros(4)
        file["inner/real"] = np.ones(4)
        file.create_dataset("raw", (4,), "f8", external=[(str(tmp_path / "numbers"), 0, 32)])
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "soft", "raw", "virtual", "inner"):
        found = failure(path, Port((4,), format="netcdf", variable=name))
        assert found.cause == Cause.MALFORMED, name
    inner = exchange.read(path, Port((4,), format="netcdf", variable="inner/real"))
    np.testing.assert_array_equal(inner, np.ones(4))


def test_that_no_descriptor_is_left_open(tmp_path):
    port = port_of("npy")
    good, pipe = written(tmp_path, port), tmp_path / "pipe"
    os.mkfifo(pipe)
    before = len(os.listdir("/dev/fd"))
    for path in [good, pipe, tmp_path / "no"] * 20:
        with contextlib.suppress(MemberFailed):
            exchange.read(path, port)
    assert len(os.listdir("/dev/fd")) == before


@pytest.fixture
def full(tmp_path):
    """A file system of 64 KiB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", where]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", where], check=True)


@every_format
def test_that_a_full_disk_is_told_with_the_free_space(full: Path, format):
    port = port_of(format, (200, 200))
    with pytest.raises(MemberFailed) as raised:
        exchange.write(full / "x", sample((200, 200)), port)
    assert raised.value.failure.cause == Cause.DISK
    assert str(full) in raised.value.failure.detail
    assert "KiB free" in raised.value.failure.detail
