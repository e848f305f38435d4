"""Generated samples: drawn once, kept block by block, of one recipe to a folder."""

import functools
import json
import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import StoreError
from enkg.learned.generated import RECORD, Generated
from enkg.learned.recipe import described
from enkg.learned.sources import samples
from enkg.sketch import differences
from tests.enkg.problems import normal

SIZE = 3


def numbers(seed: int, indices: list[int]) -> np.ndarray:
    """Sample number i is (seed + i, ...)."""
    return seed + np.array(indices, float)[:, None] * np.ones(SIZE)


def twice(seed: int, indices: list[int]) -> np.ndarray:
    return 2 * numbers(seed, indices)


class Counted:
    """A draw that notes what is asked of it, and is cut off at a sample."""

    def __init__(self, cut: int = 10**9, failing=()) -> None:
        self.cut, self.failing, self.drawn = cut, failing, []

    def __call__(self, seed: int, indices: list[int]) -> np.ndarray:
        if self.cut in indices:
            raise RuntimeError("the machine went down")
        self.drawn += indices
        x = numbers(seed, indices)
        x[[i in self.failing for i in indices], 1] = np.nan
        return x


def rows(found) -> list[float]:
    return found.rows(range(len(found)))[:, 0].tolist()


def test_that_samples_are_drawn_once_in_blocks(tmp_path):
    draw, seen = Counted(), []
    recipe = Generated(draw, 10, seed=5, block=4)
    found = recipe.materialised(tmp_path / "a", lambda done, total: seen.append((done, total)))
    assert rows(found) == [5 + i for i in range(10)]
    assert (len(found), found.shape) == (10, (SIZE,))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert rows(recipe.materialised(tmp_path / "a")) == rows(found)
    assert draw.drawn == list(range(10))
    assert rows(samples(tmp_path / "a", stacked=True)) == rows(found)


def test_that_it_goes_on_after_a_cut(tmp_path):
    with pytest.raises(RuntimeError, match="the machine went down") as error:
        Generated(Counted(cut=9), 10, block=4).materialised(tmp_path)
    assert error.value.__notes__ == [f"8 of 10 samples are kept in {tmp_path}"]
    draw = Counted()
    assert rows(Generated(draw, 10, block=4).materialised(tmp_path)) == list(range(10))
    assert draw.drawn == [8, 9]


def test_that_a_damaged_block_is_drawn_anew_and_half_a_file_is_no_block(tmp_path, caplog):
    Generated(Counted(), 10, block=4).materialised(tmp_path)
    block = tmp_path / "00000004-00000008.npy"
    block.write_bytes(block.read_bytes()[:-8])
    (tmp_path / "00000008-00000010.npy").rename(tmp_path / "00000008-00000010.npy.9.partial")
    draw = Counted()
    assert rows(Generated(draw, 10, block=4).materialised(tmp_path)) == list(range(10))
    assert draw.drawn == [4, 5, 6, 7, 8, 9]
    assert "00000004-00000008.npy is damaged and drawn anew" in caplog.text


@pytest.mark.parametrize("count", [6, 8, 13])
def test_that_more_or_fewer_samples_use_the_blocks_that_are_there(count, tmp_path):
    Generated(Counted(), 10, block=4).materialised(tmp_path)
    draw = Counted()
    assert rows(Generated(draw, count, block=4).materialised(tmp_path)) == list(range(count))
    assert set(draw.drawn) == {6: {4, 5}, 8: set(), 13: {8, 9, 10, 11, 12}}[count]


def test_that_failed_samples_are_left_out_and_counted(tmp_path, caplog):
    failing = (1, 4, 5, 6, 7)  # the whole of the second block
    with caplog.at_level(logging.WARNING, "enkg"):
        found = Generated(Counted(failing=failing), 12, block=4).materialised(tmp_path)
    assert rows(found) == [0, 2, 3, 8, 9, 10, 11]
    assert "5 of 12 generated samples failed and are left out" in caplog.text
    assert rows(Generated(Counted(), 12, block=4).materialised(tmp_path)) == rows(found)


def test_that_a_full_disk_is_told_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(file, arr):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(StoreError, match=r"cannot write .*00000000-00000004.npy: .*No space"):
            Generated(Counted(), 10, block=4).materialised(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [RECORD]
    assert rows(Generated(Counted(), 10, block=4).materialised(tmp_path)) == list(range(10))


def test_that_more_than_half_failed_is_an_error_before_all_are_paid_for(tmp_path):
    draw = Counted(failing=range(0, 1000, 3))
    Generated(draw, 60, block=20).materialised(tmp_path / "third")
    draw = Counted(failing={i for i in range(1000) if i % 3})
    message = "26 of the first 40 samples of .*Counted failed .*; mend it, and delete .*most"
    with pytest.raises(enkg.InputError, match=message):
        Generated(draw, 1000, block=20).materialised(tmp_path / "most")
    with pytest.raises(enkg.InputError, match="3 of the first 4 samples"):
        Generated(Counted(failing=(0, 1, 2)), 4).materialised(tmp_path / "few")


def test_that_tensors_of_any_kind_may_be_drawn(tmp_path):
    def draw(seed, indices):
        return torch.tensor(indices, dtype=torch.bfloat16)[:, None, None].requires_grad_()

    found = Generated(draw, 5).materialised(tmp_path)
    assert (rows(found), found.shape) == ([[0], [1], [2], [3], [4]], (1, 1))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda seed, i: np.zeros((len(i) + 1, 2)), r"gave shape \(5, 2\) for 4 indices; .*'\*X'"),
        (lambda seed, i: np.zeros((4, 2 + i[0])), r"gave shape \(4, 6\) .* expected \(4, 2\)"),
        (lambda seed, i: np.zeros(len(i)), r"have shape \(2,\); expected \(N, \*X\)"),
        (lambda seed, i: np.zeros((len(i), 2), complex), "complex128; expected real ones"),
        (lambda seed, i: None, r"gave shape \(\) for 4 indices"),
    ],
)
def test_that_a_wrong_answer_is_told(draw, message, tmp_path):
    with pytest.raises(enkg.InputError, match=message):
        Generated(draw, 8, block=4).materialised(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"block": 5}, "block"),
        ({"draw": twice}, r"recipe.draw.name, recipe.draw.text"),
        ({"recipe": "mine"}, "recipe.draw, recipe.name"),
    ],
)
def test_that_a_folder_of_another_recipe_is_refused(change, what, tmp_path):
    given = {"draw": numbers, "count": 8, "block": 4}
    Generated(**given).materialised(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(enkg.InputError, match=f"another recipe: {what}.* changed since. Give an"):
        Generated(**given | change).materialised(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_that_a_name_for_the_recipe_takes_the_place_of_its_text(tmp_path):
    Generated(numbers, 8, recipe="a").materialised(tmp_path)
    Generated(twice, 8, recipe="a").materialised(tmp_path)
    with pytest.raises(enkg.InputError, match=r"recipe\.name changed since"):
        Generated(numbers, 8, recipe="b").materialised(tmp_path)
    (tmp_path / RECORD).unlink()
    Generated(numbers, 8, recipe="b").materialised(tmp_path)
    assert json.loads((tmp_path / RECORD).read_text())["recipe"] == {"name": "b"}


def test_that_a_damaged_record_and_a_folder_that_cannot_be_made_are_told(tmp_path):
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(enkg.InputError, match=r"recipe.json is damaged .*; delete "):
        Generated(numbers, 8).materialised(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot keep samples in .*; give another"):
        Generated(numbers, 8).materialised(tmp_path / "file" / "inside")


@pytest.mark.parametrize("change", [{"count": 1}, {"block": 0}, {"seed": -1}])
def test_that_numbers_of_samples_are_checked_at_once(change):
    with pytest.raises(enkg.InputError, match="expected at least 2, at least 1, and a seed that"):
        Generated(**{"draw": numbers, "count": 8} | change)


@dataclass(frozen=True)
class Solver:
    field: np.ndarray
    prior: enkg.Gaussian
    steps: int = 3

    def __call__(self, seed: int, indices: list[int]) -> np.ndarray:
        return numbers(seed, indices) * self.steps


def solver(scale: float = 1.0, steps: int = 3) -> Solver:
    prior = enkg.Gaussian(torch.zeros(4), scale * torch.ones(4), enkg.Identity((4,)))
    return Solver(np.linspace(0, 1, 5), prior, steps)


def closed_over(value, factor=1):
    def draw(seed, indices):
        return numbers(seed, indices) * value * factor

    return draw


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (numbers, twice),
        (solver(), solver(scale=2.0)),
        (solver(), solver(steps=4)),
        (solver().__call__, solver(steps=4).__call__),
        (closed_over(2), closed_over(3)),
        (closed_over(np.ones(5)), closed_over(np.arange(5.0))),
        (closed_over({"a": [1, (2, 3)]}), closed_over({"a": [1, (2, 4)]})),
        (functools.partial(numbers, SIZE), functools.partial(numbers, 4)),
        (lambda seed, i: numbers(seed, i) + 1, lambda seed, i: numbers(seed + 1, i)),
        (closed_over(network(0)), closed_over(network(1))),
        (np.sin, np.cos),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_that_a_recipe_tells_what_the_samples_depend_on(one, other):
    one, again, other = (json.loads(json.dumps(described(v))) for v in (one, one, other))
    assert differences(one, again) == []
    assert differences(one, other) != []


def test_that_rounding_comments_and_other_functions_are_not_the_recipe():
    nearly = closed_over(np.linspace(0.1, 1, 99) * (1 + 1e-15))
    assert not differences(described(closed_over(np.linspace(0.1, 1, 99))), described(nearly))

    def version(text: str):
        space = {"np": np, "OTHER": 4, "__name__": "a"}
        exec(text, space)
        return described(space["draw"])

    first = version("def draw(seed, i): return np.ones(i)")
    assert first == version("unused = 3\ndef draw(seed, i):\n    # all ones\n    return np.ones(i)")
    assert first != version("def draw(seed, i): return np.zeros(i)")


def test_that_functions_of_other_files_are_known_by_name():
    def draw(seed, indices):
        return normal(len(indices), SIZE, seed=seed)

    assert described(draw)["variables"]["normal"] == "tests.enkg.problems.normal"


def test_that_global_variables_that_a_draw_uses_belong_to_its_recipe(monkeypatch):
    before = described(twice)
    monkeypatch.setitem(globals(), "SIZE", 4)  # which numbers uses, which twice calls
    assert differences(before, described(twice)) == ["variables.numbers.variables.SIZE"]
