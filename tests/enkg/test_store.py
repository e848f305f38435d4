"""The run directory: who may write into it, what counts as finished, and its formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import enkg
from enkg import store


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "run"
    enkg.run(experiment(), folder)
    return folder


def experiment() -> enkg.Experiment:
    prior = enkg.Gaussian(torch.zeros(2, 3), torch.ones(6), enkg.Identity((2, 3)))
    mask = torch.tensor([True, True, False])
    return enkg.Experiment(
        prior=prior,
        simulator=lambda x: x[:, 0],
        observation=enkg.Observation(torch.where(mask, 0.5, torch.nan), std=0.5, mask=mask),
        guidance=enkg.ESMDA(members=16, updates=2),
        truth=torch.zeros(2, 3),
    )


def test_that_a_run_directory_holds_what_the_documentation_lists(run_directory):
    names = {path.name for path in run_directory.iterdir()}
    assert names == {"experiment.json", "log.txt", "posterior.zarr", "summary.json", "figures"}
    assert {path.name for path in (run_directory / "figures").iterdir()} == {
        "posterior.png",
        "data.png",
        "trace.png",
    }


def test_that_the_record_says_where_a_run_comes_from(run_directory):
    record = json.loads((run_directory / "experiment.json").read_text())
    assert record["seed"] == 0
    assert record["versions"]["enkg"] == enkg.__version__
    assert record["versions"]["torch"]
    guidance = record["experiment"]["guidance"]
    assert guidance["type"].endswith("ESMDA")
    assert guidance["members"] == 16
    assert record["experiment"]["observation"]["mask"]["values"] == [True, True, False]
    for key in ("command", "started", "host", "platform", "source", "git"):
        assert key in record


def test_that_a_run_opens_again_with_its_numbers(run_directory):
    assert store.summary(run_directory)["calls"] == 3 * 16
    tree = enkg.open(run_directory)
    assert tree["posterior"]["x"].shape == (16, 2, 3)
    assert json.loads(tree.attrs["summary"])["calls"] == 48


def test_that_netcdf_holds_the_whole_tree(run_directory, tmp_path):
    file = enkg.export_netcdf(run_directory, tmp_path / "run.nc")
    with xr.open_datatree(file, engine="h5netcdf") as opened:
        again = opened.load()
    tree = enkg.open(run_directory).load()
    assert set(again.children) == set(tree.children)
    for group in tree.children:
        xr.testing.assert_identical(again[group].to_dataset(), tree[group].to_dataset())
    assert again.attrs["method"] == "ESMDA"
    assert not list(tmp_path.glob("*.partial"))


def test_that_netcdf_replaces_no_file_unless_told(run_directory, tmp_path):
    file = tmp_path / "run.nc"
    file.write_text("precious")
    with pytest.raises(enkg.StoreError, match="exists"):
        enkg.export_netcdf(run_directory, file)
    assert file.read_text() == "precious"
    enkg.export_netcdf(run_directory, file, overwrite=True)
    assert file.read_bytes()[:4] == b"\x89HDF"


def test_that_netcdf_into_a_missing_folder_is_refused(run_directory, tmp_path):
    with pytest.raises(enkg.StoreError, match="cannot write"):
        enkg.export_netcdf(run_directory, tmp_path / "missing" / "run.nc")


# --- who may write --------------------------------------------------------------------------


def test_that_a_new_or_empty_directory_is_taken(tmp_path):
    assert store.create(tmp_path / "a" / "b", overwrite=False).is_dir()
    assert store.create(tmp_path / "a" / "b", overwrite=False).is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_that_a_folder_with_foreign_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "figures").mkdir()
    with pytest.raises(enkg.StoreError, match="no run of enkg wrote"):
        store.create(tmp_path, overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "thesis.tex"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_that_a_file_is_not_a_directory(tmp_path, overwrite):
    (tmp_path / "run").touch()
    with pytest.raises(enkg.StoreError, match="is a file"):
        store.create(tmp_path / "run", overwrite)


def test_that_a_directory_that_cannot_be_made_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(enkg.StoreError, match="cannot make the run directory"):
        store.create(tmp_path / "file" / "run", overwrite=False)


OURS = {"versions": {"enkg": "0.1.0"}}


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_that_results_are_replaced_only_when_told(tmp_path, state):
    store.write_json(tmp_path / store.RECORD, OURS)
    (tmp_path / store.TREE).mkdir()
    (tmp_path / store.FIGURES).mkdir()
    (tmp_path / store.LOG).touch()
    if state == "finished":
        store.write_json(tmp_path / store.SUMMARY, {})
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(enkg.StoreError, match=f"an? {state} run.*--overwrite"):
        store.create(tmp_path, overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    store.create(tmp_path, overwrite=True)
    assert not (tmp_path / store.SUMMARY).exists()
    assert not (tmp_path / store.TREE).exists()


def test_that_a_run_without_results_gives_way(tmp_path):
    store.write_json(tmp_path / store.RECORD, OURS)
    (tmp_path / store.LOG).write_text("an old story")
    store.create(tmp_path, overwrite=False)
    assert not (tmp_path / store.LOG).exists()


@pytest.mark.parametrize("record", ["{}", "not json", '{"versions": {"other": 1}}', "[1]"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_that_a_record_of_another_program_is_never_touched(tmp_path, record, overwrite):
    (tmp_path / store.RECORD).write_text(record)
    (tmp_path / store.FIGURES).mkdir()
    with pytest.raises(enkg.StoreError, match="no run of enkg wrote"):
        store.create(tmp_path, overwrite)
    assert (tmp_path / store.FIGURES).is_dir()


def test_that_an_unfinished_run_does_not_open(tmp_path):
    with pytest.raises(enkg.StoreError, match="not a run directory"):
        enkg.open(tmp_path)
    store.write_json(tmp_path / store.RECORD, {})
    (tmp_path / store.TREE).mkdir()
    for reader in (enkg.open, enkg.summary):
        with pytest.raises(enkg.StoreError, match="did not finish"):
            reader(tmp_path)
    with pytest.raises(enkg.StoreError, match="did not finish"):
        enkg.export_netcdf(tmp_path, tmp_path / "run.nc")
    assert not (tmp_path / "run.nc").exists()


# --- formats --------------------------------------------------------------------------------


def test_that_json_holds_no_nan_and_appears_whole(tmp_path):
    file = tmp_path / "numbers.json"
    value = {
        "nan": float("nan"),
        "many": (1.0, np.float32("inf"), np.int64(3)),
        "array": np.array([1.0, np.nan]),
        "tensor": torch.tensor(2.5),
        "deep": {1: {"yes": np.bool_(True), "none": None}},
    }
    store.write_json(file, value)
    assert json.loads(file.read_text()) == {
        "nan": None,
        "many": [1.0, None, 3],
        "array": [1.0, None],
        "tensor": 2.5,
        "deep": {"1": {"yes": True, "none": None}},
    }
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.json"]


def test_that_json_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "numbers.json"
    store.write_json(file, {"old": 1})
    with pytest.raises(TypeError):
        store.write_json(file, {"new": object()})
    assert json.loads(file.read_text()) == {"old": 1}


def named(x):
    return x


def test_that_anything_can_be_described():
    array = np.arange(40.0)
    described = store.describe(
        {
            "number": 3,
            "text": "a",
            "nothing": None,
            "few": torch.arange(3),
            "many": array,
            "method": enkg.ESMDA(members=4),
            "function": named,
            "lambda": lambda x: x,
            "class": enkg.EnKG,
            "object": Path("a"),
            "list": [1, (2.5, "b")],
        }
    )
    assert json.loads(json.dumps(described)) == described
    assert described["few"]["values"] == [0, 1, 2]
    assert described["many"]["shape"] == [40]
    assert "values" not in described["many"]
    assert described["method"]["members"] == 4
    assert described["function"].endswith("named")
    assert described["class"].endswith("EnKG")
    assert described["list"] == [1, [2.5, "b"]]


def test_that_the_checksum_tells_arrays_apart():
    one, other = np.arange(40.0), np.arange(40.0)
    assert store.describe(one)["sha256"] == store.describe(other)["sha256"]
    other[17] += 1e-12
    assert store.describe(one)["sha256"] != store.describe(other)["sha256"]
    assert store.describe(one[::2])["sha256"] == store.describe(one[::2].copy())["sha256"]
