"""The card: what it says, how exactly, and that it comes whole or not at all."""

import tomllib

import numpy as np
import pytest
import torch

import enkg
from enkg.learned import card

WHOLE = {
    "name": "a",
    "limits": [],
    "member": {"shape": [2], "name": "x", "dims": None},
    "units": {"kind": "Affine", "scale": 0.123456789012, "offset": [101325.25, 1.0]},
    "network": {"kind": "UNet"},
    "base": {"kind": "white"},
    "training": {"loss": 0.123456789, "loss_of_all": np.float32(0.5), "seen": 12_345_678},
    "merits": {"row": torch.tensor([1.0, 0.123456789]), "none": None},
    "files": {"weights": "0"},
}


def test_that_a_card_comes_back_as_it_was_written(tmp_path):
    card.write(tmp_path, WHOLE)
    found = card.read(tmp_path)
    assert found["format"] == card.FORMAT
    assert found["member"] == {"shape": [2], "name": "x"}  # None is left out
    assert found["training"] == {"loss": 0.123457, "loss_of_all": 0.5, "seen": 12_345_678}
    assert found["merits"] == {"row": [1.0, 0.123457]}


def test_that_units_are_kept_to_the_last_digit(tmp_path):
    card.write(tmp_path, WHOLE)
    assert card.read(tmp_path)["units"] == WHOLE["units"]


def test_that_a_card_that_cannot_be_written_leaves_the_old_one(tmp_path):
    card.write(tmp_path, WHOLE)
    before = (tmp_path / card.CARD).read_bytes()
    with pytest.raises(TypeError):
        card.write(tmp_path, WHOLE | {"name": object()})
    assert (tmp_path / card.CARD).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [card.CARD]


def test_that_weights_come_back_with_their_digest(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.float16)}
    digest = card.save_weights(tmp_path, tensors)
    assert digest == card.digest(tmp_path / card.WEIGHTS)
    found = card.load_weights(tmp_path, digest)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("section", card.SECTIONS)
def test_that_a_card_without_a_section_is_refused(tmp_path, section):
    card.write(tmp_path, {"units": {}} | {k: v for k, v in WHOLE.items() if k != section})
    if section == "units":
        text = (tmp_path / card.CARD).read_text()
        (tmp_path / card.CARD).write_text(text.replace("[units]", "[measures]"))
    with pytest.raises(enkg.StoreError, match=rf"has no \[{section}\]; it is not a whole card"):
        card.read(tmp_path)


def test_that_the_card_of_a_training_tells_what_a_reader_wants(folder):
    found = tomllib.loads((folder / card.CARD).read_text())
    assert found["name"] == "tiny"
    assert found["about"] == "A field on a torus."
    assert found["limits"] == ["Knows eight points a side."]
    assert found["licence"] == "CC0"
    assert found["member"]["unit"] == "1/s"
    assert found["network"]["channels"] == [4, 8]
    told = found["training"]
    assert (told["samples"], told["held_out"], told["steps"], told["seen"]) == (32, 8, 6, 48)
    assert told["recipe"] == "drawn from a Gaussian"
    assert told["finished"]
    assert told["versions"]["torch"] == torch.__version__
    merits = found["merits"]
    assert len(merits["denoising"]["learned"]) == len(merits["denoising"]["sigmas"])
    assert merits["held_out"] == 8
