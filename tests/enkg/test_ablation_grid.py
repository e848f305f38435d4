"""Grids of ablations: what they hold, in which order, and what makes no sense."""

import re

import numpy as np
import pytest

import enkg
from enkg import ablation_cells as cells
from enkg.ablation_grid import only
from enkg.errors import InputError, StoreError

GRID = {"method": {"a": 1, "b": 2}, "noise": (0.2, 1.0), "seed": range(3)}


def build(method, noise, seed):
    raise AssertionError("not asked for here")


def plan(grid=None, **more):
    return enkg.Ablation(build, grid or GRID, **more).plan()


def labels(found):
    return [tuple(entry.labels.values()) for entry in found.cells]


def test_that_cells_are_the_product_and_the_last_axis_varies_fastest():
    found = plan()
    assert labels(found) == [(m, n, s) for m in "ab" for n in ("0.2", "1") for s in "012"]
    assert [entry.number for entry in found.cells] == list(range(12))
    assert found.axes == {"method": ("a", "b"), "noise": (0.2, 1.0), "seed": (0, 1, 2)}
    assert found.over == ("seed",)


def test_that_arrays_are_axes_of_plain_numbers():
    found = plan({**GRID, "noise": np.array([0.5, 2.0])})
    assert found.axes["noise"] == (0.5, 2.0)
    assert all(type(value) is float for value in found.axes["noise"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "no axes"),
        ([], "no axes"),
        ({"noise": ()}, "'noise' has no values"),
        ({"noise": "0.2"}, "'noise' is a str; expected a list"),
        ({"noise": 0.2}, "'noise' is a float; expected a list"),
        ({"noise": (0.2, 0.4, 0.2)}, "'noise' has the value '0.2' twice"),
        ({"noise": (1, 1.0)}, "'noise' has the value '1' twice"),
        ({"noise": {1: 1, "1": 2}}, "'noise' has the value '1' twice"),
        ({"my noise": (1,)}, "'my noise' is no name"),
        ({3: (1,)}, "3 is no name"),
        ({"state": (1,)}, "no axis can be called 'state'"),
        ({"calls": (1,)}, "axis 'calls' has the name of a measure"),
        ({"method": [enkg.EnKG()]}, "has a EnKG among its values, which has no label"),
        ({"method": {"a\nb": 1}}, "expected printed words"),
        ({"method": ["", "b"]}, "expected printed words"),
    ],
)
def test_that_a_grid_that_makes_no_sense_is_refused(grid, message):
    with pytest.raises(InputError, match=re.escape(message)):
        enkg.Ablation(lambda **values: build(0, 0, 0), grid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": "truth"}, "no axis 'truth'; the grid has method, noise, seed"),
        ({"over": ("seed", "method")}, "'method' is the first axis"),
        ({"along": "members"}, "no axis 'members'"),
        ({"along": "seed"}, "'seed' is averaged over"),
        ({"measures": "calls"}, "expected a list of names"),
        ({"measures": ()}, "expected a list of names"),
        ({"skip": lambda method: None}, "called with the axes of the grid, method, noise, seed"),
    ],
)
def test_that_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        enkg.Ablation(build, GRID, **options)


def test_that_a_builder_that_does_not_take_the_axes_is_refused():
    with pytest.raises(InputError, match=r"build is called with the axes.*'seed'"):
        enkg.Ablation(build, {"method": (1,), "noise": (1,)})
    with pytest.raises(InputError, match="unexpected keyword argument 'members'"):
        enkg.Ablation(build, {**GRID, "members": (1,)})


def test_that_without_a_seed_nothing_is_averaged():
    assert enkg.Ablation(lambda noise: build(1, noise, 0), {"noise": (1, 2)}).plan().over == ()


def test_that_a_combination_without_sense_is_skipped_and_has_no_number():
    found = plan(skip=lambda method, noise, seed: "no gradient" if method == 2 else None)
    assert [entry.skipped for entry in found.cells] == [""] * 6 + ["no gradient"] * 6
    assert [entry.number for entry in found.cells] == [*range(6), *[None] * 6]


# --- numbers in a folder ----------------------------------------------------------------------


def test_that_a_grown_grid_keeps_the_numbers_of_its_cells(tmp_path):
    cells.save(tmp_path, plan())
    grown = cells.merged(tmp_path, plan({**GRID, "seed": range(4)}))
    numbers = {tuple(e.labels.values()): e.number for e in grown.cells}
    for entry in plan().cells:
        assert numbers[tuple(entry.labels.values())] == entry.number
    assert sorted(n for n in numbers.values() if n is not None) == list(range(16))
    assert len({folder for folder in numbers.values()}) == 16


def test_that_a_shrunken_grid_does_not_give_its_numbers_to_others(tmp_path):
    cells.save(tmp_path, plan())
    cells.save(tmp_path, cells.merged(tmp_path, plan({**GRID, "method": {"b": 2}})))
    found = cells.merged(tmp_path, plan({**GRID, "method": {"c": 3, "b": 2, "a": 1}}))
    numbers = {tuple(e.labels.values()): e.number for e in found.cells}
    assert [numbers[tuple(e.labels.values())] for e in plan().cells] == list(range(12))
    assert sorted(numbers[("c", n, s)] or 0 for n in ("0.2", "1") for s in "012") == [
        *range(12, 18)
    ]


def test_that_the_plan_of_a_folder_is_read_as_it_was(tmp_path):
    wanted = plan(title="T", skip=lambda **values: "why" if values["seed"] == 1 else None)
    cells.save(tmp_path, wanted)
    found = cells.load(tmp_path)
    assert found == wanted
    assert cells.merged(tmp_path, wanted) == wanted


def test_that_an_ablation_over_other_axes_is_refused(tmp_path):
    cells.save(tmp_path, plan())
    other = enkg.Ablation(
        lambda method, seed: build(method, 0, seed), {"method": (1,), "seed": (1,)}
    )
    with pytest.raises(StoreError, match="over method, noise, seed, and this one is over method,"):
        cells.merged(tmp_path, other.plan())


def test_that_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match="no ablation wrote"):
        cells.merged(tmp_path, plan())
    with pytest.raises(StoreError, match="is a file"):
        cells.merged(tmp_path / "thesis.tex", plan())


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1}'])
def test_that_a_plan_that_cannot_be_read_is_told_so(tmp_path, text):
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(StoreError, match=r"ablation\.json"):
        cells.load(tmp_path)


# --- some of the cells ------------------------------------------------------------------------


def test_that_labels_are_chosen_by_name_also_with_commas_in_them():
    grid = {"method": {"EnKG": 1, "EnKG, 80 members": 2, "DPS": 3}, "noise": (0.2, 0.4)}
    assert only(["method=EnKG,DPS"], grid) == {"method": ["EnKG", "DPS"]}
    assert only(["method=EnKG, 80 members", "method=DPS", "noise=0.4"], grid) == {
        "method": ["EnKG, 80 members", "DPS"],
        "noise": ["0.4"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method", "expected AXIS=LABEL"),
        ("method=", "expected AXIS=LABEL"),
        ("methods=a", "no axis 'methods'; the grid has method, noise, seed"),
        ("method=a,c", "no value 'c'; it has a, b"),
        ("noise=0.3", "no value '0.3'; it has 0.2, 1"),
    ],
)
def test_that_labels_that_are_not_there_are_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        only([text], GRID)
