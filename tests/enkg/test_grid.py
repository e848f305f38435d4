"""Grids: which combinations, under which numbers, and which of them are still to be run."""

import json

import pytest

from enkg import grid
from enkg.errors import InputError, StoreError


def written(folder, *vary):
    grid.save(folder, grid.Grid(tuple(grid.grid(vary)), "file.py", ("--seed", "1")))
    return folder


def finish(folder, index):
    run = grid.folder(folder, index)
    run.mkdir()
    (run / "summary.json").write_text("{}")


def test_that_a_grid_is_the_product_of_the_values():
    assert grid.grid(["seed=0,1", "a.b=x,y,z"]) == [
        {"seed": seed, "a.b": value} for seed in "01" for value in "xyz"
    ]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["seed"], "expected NAME=V1,V2"),
        (["seed="], "expected NAME=V1,V2"),
        (["seed=1,,2"], "expected NAME=V1,V2"),
        (["=1,2"], "expected NAME=V1,V2"),
        (["a b=1"], "expected NAME=V1,V2"),
        (["$(rm)=1"], "expected NAME=V1,V2"),
        (["seed=1", "seed=2"], "names 'seed' twice"),
        (["seed=1,2,1"], "the value '1' twice"),
        (["name='half"], "No closing quotation"),
    ],
)
def test_that_a_grid_that_makes_no_sense_is_refused(vary, message):
    with pytest.raises(InputError, match=message):
        grid.grid(vary)


def test_that_a_negative_number_is_a_value_and_no_option():
    assert grid.arguments({"offset": "-1.5"}) == ["--offset=-1.5"]


def test_that_grid_json_has_the_form_that_others_read(tmp_path):
    content = json.loads((written(tmp_path, "seed=0,1") / "grid.json").read_text())
    assert content["format"] == 1
    assert content["configurations"] == [{"seed": "0"}, {"seed": "1"}]


def test_that_a_saved_grid_is_read_as_it_was(tmp_path):
    found = grid.load(written(tmp_path, "seed=0,1"))
    assert found == grid.Grid(({"seed": "0"}, {"seed": "1"}), "file.py", ("--seed", "1"))


def test_that_finished_runs_are_not_missing(tmp_path):
    written(tmp_path, "seed=0,1,2,3")
    finish(tmp_path, 1)
    finish(tmp_path, 3)
    grid.folder(tmp_path, 2).mkdir()  # begun, not finished
    assert grid.missing(tmp_path) == [0, 2]


def test_that_a_folder_without_a_grid_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"no grid in .*grid\.json"):
        grid.missing(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "reads format 1"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 1, "configurations": [3]}', "cannot be read"),
    ],
)
def test_that_a_broken_grid_is_an_error(tmp_path, text, message):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        grid.load(tmp_path)
