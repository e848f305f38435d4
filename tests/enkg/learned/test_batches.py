"""Batches: keyed by the seed and the step, shared among ranks."""

import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import xarray as xr

import enkg
from enkg.learned.batches import batches, order
from enkg.learned.sources import Samples, samples

NUMBERS = samples(np.arange(23.0)[:, None] * [1, 1])  # a sample says which it is


def drawn(first: int, last: int, batch: int = 6, source: Samples = NUMBERS, **more):
    indices = more.pop("indices", range(len(source)))
    return [b[:, 0].tolist() for b in batches(source, indices, batch, 5, first, last, **more)]


def test_that_a_resumed_run_sees_the_batches_of_an_uninterrupted_one():
    whole = drawn(0, 40)
    for cut in (0, 1, 17, 39, 40):
        assert drawn(0, cut) + drawn(cut, 40) == whole


def test_that_no_sample_comes_twice_in_a_pass_and_all_come():
    row = [*chain(*drawn(0, 23))]  # 23 batches of 6 are six passes over 23 samples
    passes = [row[k : k + 23] for k in range(0, len(row), 23)]
    assert all(sorted(each) == list(range(23)) for each in passes)
    assert len({tuple(each) for each in passes}) == 6


def test_that_a_batch_may_be_larger_than_all_samples():
    [first, *_] = drawn(0, 2, batch=50)
    assert set(Counter(first).values()) == {2, 3}


def test_that_only_the_given_samples_are_drawn():
    assert set(chain(*drawn(0, 10, indices=[3, 8, 21]))) == {3, 8, 21}


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_that_the_ranks_share_the_batch_out(size):
    parts = [drawn(2, 12, rank=rank, size=size) for rank in range(size)]
    assert [[*chain(*each)] for each in zip(*parts, strict=True)] == drawn(2, 12)
    assert all(len(b) == 6 // size for part in parts for b in part)


def test_that_the_seed_decides_the_order():
    one, other = (next(batches(NUMBERS, range(23), 23, s, 0, 1)) for s in (0, 1))
    assert not torch.equal(one, other)
    assert not np.array_equal(order(23, 23, 0, 0), order(23, 23, 0, 1))


def test_that_every_order_is_as_likely():
    firsts = np.concatenate([order(5, 5, seed, step) for seed in range(300) for step in range(5)])
    places = firsts.reshape(-1, 5)
    counts = np.stack([np.bincount(places[:, k], minlength=5) for k in range(5)])
    assert abs(counts - 300).max() < 65  # 4.2 sqrt(1500 x 0.2 x 0.8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [".npy", ".nc", ".zarr"])
def test_that_files_larger_than_the_memory_give_the_same_batches(
    workers, kind, tmp_path, monkeypatch
):
    rows, path = NUMBERS.rows(range(23)), tmp_path / f"a{kind}"
    fields = xr.Dataset({"w": (("sample", "x"), rows)})
    if kind == ".npy":
        np.save(path, rows)
    elif kind == ".nc":
        fields.to_netcdf(path, engine="h5netcdf")
    else:
        fields.to_zarr(path, consolidated=False)
    monkeypatch.setattr(sys.modules["enkg.learned.batches"], "MEMORY", 0)
    source = samples(path)
    assert source.rows([3]).tolist() == [[3, 3]]  # open here already, before the workers start
    found = drawn(3, 13, source=source, workers=workers)
    assert found == drawn(3, 13)


def test_that_samples_that_fit_are_read_once():
    class Counted:
        shape, reads = (2,), 0

        def __len__(self) -> int:
            return 23

        def rows(self, indices):
            self.reads += len(indices)
            return NUMBERS.rows(indices)

    source = Counted()
    assert drawn(0, 20, source=source) == drawn(0, 20)
    assert source.reads == 23


def test_that_batches_are_float32_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    [found] = batches(NUMBERS, range(23), 4, 0, 0, 1)
    assert torch.equal(torch.rand(3), expected)
    assert (found.shape, found.dtype, found.device.type) == ((4, 2), torch.float32, "cpu")
    found.zero_()  # a copy: the samples stay
    assert NUMBERS.rows([7]).tolist() == [[7, 7]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": []}, "0 indices were given .* between 0 and 22"),
        ({"indices": [23]}, "1 indices were given .* between 0 and 22"),
        ({"indices": [-1]}, "between 0 and 22"),
        ({"size": 4}, "a batch of 6 samples for 4 ranks; 4 must divide it.*: 4 would do"),
        ({"batch": 0}, "a batch of 0 samples for 1 ranks.*: 1 would do"),
        ({"rank": 2, "size": 2}, "rank 2 of 2 ranks; expected one from 0 to 1"),
        ({"first": 3}, "first_step is 3 of 2 steps; expected 0 to 2"),
    ],
)
def test_that_numbers_that_do_not_fit_are_refused_at_once(change, message):
    given = {"indices": range(23), "batch": 6, "first": 0, "rank": 0, "size": 1} | change
    with pytest.raises(enkg.InputError, match=message):
        batches(
            NUMBERS,
            given["indices"],
            given["batch"],
            0,
            given["first"],
            2,
            rank=given["rank"],
            size=given["size"],
        )
