"""Samples of arrays and files: the same rows whatever holds them, and what is refused."""

import pickle
import sys

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from scipy.io import netcdf_file

import enkg
from enkg.learned.sources import Samples, blocks, check, held, samples, split

FIELDS = np.random.default_rng(0).normal(size=(20, 3, 4))
DATASET = xr.Dataset({"w": (("sample", "x", "y"), FIELDS), "time": ("sample", np.arange(20.0))})


def numpy_file(folder):
    np.save(folder / "a.npy", FIELDS)
    return samples(folder / "a.npy")


def fortran_file(folder):
    np.save(folder / "a.npy", np.asfortranarray(FIELDS))
    return samples(str(folder / "a.npy"))


def netcdf(folder):
    DATASET.to_netcdf(folder / "a.nc", engine="h5netcdf")
    return samples(folder / "a.nc")


def netcdf_3(folder):
    with netcdf_file(folder / "a.nc", "w") as file:
        for name, size in DATASET.sizes.items():
            file.createDimension(name, size)
        file.createVariable("w", "d", ("sample", "x", "y"))[:] = FIELDS
    return samples(folder / "a.nc")


def in_a_group(folder):
    DATASET.to_netcdf(folder / "a.nc", engine="h5netcdf", group="deep/run")
    return samples(folder / "a.nc", "deep/run/w")


def plain_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["w"], file["other"] = FIELDS, FIELDS + 1
    return samples(folder / "a.h5", "w")


def samples_last(folder):
    DATASET.transpose("y", "x", "sample").to_zarr(folder / "a.zarr", consolidated=False)
    swapped = samples(folder / "a.zarr", sample_dim="sample")
    assert swapped.shape == (4, 3)
    DATASET.transpose("x", "y", "sample").to_zarr(folder / "b.zarr", zarr_format=2)
    return samples(folder / "b.zarr", sample_dim="sample")


def zarr_group(folder):
    xr.DataTree.from_dict({"/run": DATASET}).to_zarr(folder / "a.zarr", consolidated=False)
    return samples(folder / "a.zarr", "run/w")


def zarr_array(folder):
    zarr.create_array(folder / "a.zarr", data=FIELDS)
    return samples(folder / "a.zarr")


def a_file_each(folder):
    for k, field in enumerate(FIELDS):
        np.save(folder / f"{k:03d}.npy", field)
    return samples(folder)


def several_in_a_file(folder):
    for k, part in enumerate(np.split(FIELDS, [7, 7, 8])):
        np.save(folder / f"{k}.npy", part)
    return samples(folder, stacked=True)


KINDS = [
    lambda folder: samples(FIELDS),
    lambda folder: samples(torch.from_numpy(FIELDS).requires_grad_()),
    lambda folder: samples(FIELDS.tolist()),
    lambda folder: samples(samples(FIELDS)),
    numpy_file,
    fortran_file,
    netcdf,
    netcdf_3,
    in_a_group,
    plain_hdf5,
    samples_last,
    zarr_group,
    zarr_array,
    a_file_each,
    several_in_a_file,
]


@pytest.mark.parametrize("kind", KINDS)
def test_that_the_rows_are_the_same_whatever_holds_them(kind, tmp_path):
    found = kind(tmp_path)
    assert isinstance(found, Samples)
    assert (len(found), found.shape) == (20, (3, 4))
    for again in (found, pickle.loads(pickle.dumps(found))):
        for indices in ([3], [19, 0, 7, 7, 8], np.arange(20), []):
            rows = again.rows(indices)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, FIELDS[np.array(indices, int)].astype(np.float32))
    np.testing.assert_array_equal(held(found).array, FIELDS.astype(held(found).array.dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.bool])
def test_that_any_real_numbers_become_float32(dtype):
    x = (torch.arange(24).reshape(4, 6) % 2).to(dtype)
    np.testing.assert_array_equal(samples(x).rows(range(4)), x.float().numpy())


def test_that_an_array_is_read_from_its_file_and_not_into_the_memory(tmp_path):
    found = numpy_file(tmp_path)
    np.save(tmp_path / "a.npy", FIELDS + 1)  # the same place, so a reader sees it
    np.testing.assert_array_equal(found.rows([5]), (FIELDS[5:6] + 1).astype(np.float32))


def test_that_a_packed_variable_is_unpacked_and_a_missing_value_is_found(tmp_path):
    packing = {"w": {"dtype": "int16", "scale_factor": 0.001, "_FillValue": -32768}}
    gaps = DATASET.copy(deep=True)
    gaps["w"][4, 0, 0] = np.nan
    gaps.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=packing)
    found = samples(tmp_path / "a.nc")
    np.testing.assert_allclose(found.rows([3]), FIELDS[3:4], atol=6e-4)
    with pytest.raises(enkg.InputError, match=r"1 of 20 samples hold NaN .* first is sample 4"):
        check(found)


def test_that_all_blocks_make_up_all_samples(monkeypatch):
    # enkg.learned.sources is also the name of the function
    monkeypatch.setattr(sys.modules["enkg.learned.sources"], "BLOCK", 7 * 48)
    found = list(blocks(samples(FIELDS)))
    assert [start for start, _ in found] == [0, 7, 14]
    np.testing.assert_array_equal(np.concatenate([b for _, b in found]), np.float32(FIELDS))
    seen = []
    check(samples(FIELDS), lambda done, total: seen.append((done, total)))
    assert seen == [(7, 20), (14, 20), (20, 20)]
    bad = FIELDS.copy()
    bad[8, 0], bad[15, 1, 1] = np.nan, 1e39  # beyond float32
    with pytest.raises(enkg.InputError, match=r"2 of 20 samples .* 5 numbers .* sample 8\."):
        check(samples(bad))


def test_that_samples_that_do_not_vary_are_refused(monkeypatch):
    with pytest.raises(enkg.InputError, match="all 20 samples are the same"):
        check(samples(np.broadcast_to(FIELDS[0], FIELDS.shape)))
    monkeypatch.setattr(sys.modules["enkg.learned.sources"], "BLOCK", 48)  # one at a time
    check(samples(FIELDS[[0, 0, 1, 0]]))


def test_that_an_object_whose_rows_are_wrong_is_told_so():
    class Wrong:
        shape = (3, 4)

        def __len__(self) -> int:
            return 20

        def rows(self, indices):
            return FIELDS[np.array(indices)]

    message = r"of Wrong gave shape \(20, 3, 4\), type float64; expected \(20, 3, 4\), float32"
    with pytest.raises(enkg.InputError, match=message):
        check(samples(Wrong()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(5), r"shape \(5,\); expected \(N, \*X\)"),
        (np.zeros((1, 4, 4)), r"there is one alone, and one tells nothing"),
        (np.zeros((0, 4)), "there are no numbers in them"),
        (np.zeros((4, 0)), "there are no numbers in them"),
        (np.zeros((4, 4), complex), "numbers of type complex128; expected real ones"),
        (object(), "given as object; expected an array"),
    ],
)
def test_that_what_cannot_be_samples_is_refused(source, message):
    with pytest.raises(enkg.InputError, match=message):
        samples(source)


def test_that_names_of_files_are_refused_for_arrays():
    with pytest.raises(enkg.InputError, match="given as ndarray, whose first axis counts them"):
        samples(FIELDS, "w")


def written(folder):
    """A folder with one of everything."""
    DATASET.assign(v=DATASET["w"]).to_netcdf(folder / "two.nc", engine="h5netcdf")
    DATASET.drop_vars("w").to_netcdf(folder / "none.nc", engine="h5netcdf")
    DATASET.to_netcdf(folder / "one.nc", engine="h5netcdf")
    (folder / "bad.nc").write_bytes(b"nothing")
    (folder / "cut.nc").write_bytes((folder / "one.nc").read_bytes()[:900])
    zarr.create_array(folder / "array.zarr", data=FIELDS)
    np.save(folder / "flat.npy", np.zeros(5))
    np.save(folder / "words.npy", np.array([["a", "b"], ["c", "d"]]))
    np.save(folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(folder / "whole.npy", FIELDS)
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:500])
    (folder / "a.csv").write_text("1,2\n")
    for name in ("empty", "uneven", "group.zarr"):
        (folder / name).mkdir()
    (folder / "empty" / "a.nc").write_bytes(b"")
    for k in (2, 3):
        np.save(folder / "uneven" / f"{k}.npy", np.zeros((k, 2)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("missing.npy", {}, r"there is no .*missing.npy; samples come from .npy"),
        ("a.csv", {}, r"a.csv is of a kind that is not read; expected .npy"),
        ("flat.npy", {}, r"samples in .*flat.npy have shape \(5,\); expected \(N, \*X\)"),
        ("words.npy", {}, "hold numbers of type <U1; expected real ones"),
        ("objects.npy", {}, "objects.npy cannot be read as a .npy file of numbers"),
        ("cut.npy", {}, "cut.npy cannot be read as a .npy file of numbers"),
        ("whole.npy", {"variable": "w"}, "whole.npy has no names, and its first axis counts"),
        ("whole.npy", {"stacked": True}, "stacked is for a folder of .npy files"),
        ("two.nc", {}, "two.nc holds the variables w, v; name one as `variable`"),
        ("two.nc", {"variable": "u"}, "two.nc has no variable 'u'; it has w, time, v"),
        ("two.nc", {"variable": "deep/w"}, "two.nc, group deep, cannot be read by xarray"),
        ("one.nc", {"sample_dim": "member"}, r"\('sample', 'x', 'y'\), and sample_dim is 'member'"),
        ("none.nc", {}, "holds no variable with a dimension for the samples and another; it has"),
        ("bad.nc", {}, "bad.nc is no NetCDF or HDF5 file, or it is damaged"),
        ("cut.nc", {}, "cut.nc cannot be read by xarray"),
        ("group.zarr", {}, "group.zarr cannot be read by xarray"),
        ("array.zarr", {"variable": "w"}, "array.zarr is one Zarr array; leave out variable"),
        ("empty", {}, r"empty holds no .npy files; it holds .nc. Several NetCDF files become"),
        ("uneven", {}, r"3.npy has shape \(3, 2\), 2.npy beside it \(2, 2\).*give stacked=True"),
        (".", {"stacked": True}, "cannot be read as a .npy file"),
    ],
)
def test_that_a_file_without_samples_is_refused(name, arguments, message, tmp_path):
    written(tmp_path)
    with pytest.raises(enkg.InputError, match=message):
        check(samples(tmp_path / name, **arguments))


def test_that_stacked_files_of_several_shapes_are_refused(tmp_path):
    for k in (2, 3):
        np.save(tmp_path / f"{k}.npy", np.zeros((5, k)))
    with pytest.raises(enkg.InputError, match=r"3.npy has shape \(5, 3\), 2.npy .*leave out"):
        samples(tmp_path, stacked=True)


@pytest.mark.parametrize(
    ("share", "number"), [(0.1, 10), (7, 7), (7.0, 7), (0, 0), (0.0, 0), (0.001, 1)]
)
def test_that_the_two_parts_of_a_split_make_up_all(share, number):
    train, out = split(100, share, seed=3)
    assert len(out) == number
    assert sorted([*train, *out]) == list(range(100))
    again = split(100, share, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip((train, out), again, strict=True))


def test_that_the_seed_decides_who_is_held_out():
    assert not np.array_equal(split(100, 10, seed=0)[1], split(100, 10, seed=1)[1])
    often = np.concatenate([split(20, 0.25, seed)[1] for seed in range(2000)])
    counts = np.bincount(often, minlength=20)
    assert abs(counts - 500).max() < 80  # 4.1 sqrt(2000 x 0.25 x 0.75)


@pytest.mark.parametrize("share", [-1, -0.1, 1.0, 1.5, 99, float("nan")])
def test_that_a_split_that_leaves_nothing_to_learn_from_is_refused(share):
    with pytest.raises(enkg.InputError, match=f"held_out is {share} of 100 samples; expected"):
        split(100, share)
