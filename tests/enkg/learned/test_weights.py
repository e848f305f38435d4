"""Weights come from safetensors; a pickle is not even opened unless it is asked for."""

import os
import pickle

import pytest
import torch

import enkg
from enkg.learned.hub import from_diffusers, load_weights
from tests.enkg.learned.tiny import SCHEDULERS, members, save, save_file, unet


def test_that_weights_come_from_safetensors(tmp_path):
    weights = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    save_file(weights, tmp_path / "w.safetensors")
    found = load_weights(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


class Trap:
    """What a malicious pickle does: it calls a function when it is loaded."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".PT"])
def test_that_a_pickle_is_refused_unread_unless_it_is_asked_for(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(enkg.InputError, match=r"is a pickle, and loading one can run code"):
        load_weights(path)
    assert torch.equal(load_weights(path, allow_pickle=True)["a"], torch.ones(2))
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    for allow in (False, True):  # torch's restricted unpickler does not run it either
        with pytest.raises(enkg.InputError):
            load_weights(path, allow_pickle=allow)
    assert not (tmp_path / "sprung").exists()


def test_that_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(enkg.InputError, match="there is no file of weights"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(enkg.InputError, match="is damaged, or no safetensors file"):
        load_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(enkg.InputError, match=r"w\.npz is none"):
        load_weights(tmp_path / "w.npz")
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(enkg.InputError, match=r"a dict with state_dict, epoch; expected tensors"):
        load_weights(tmp_path / "w.pt", allow_pickle=True)


def test_that_a_network_saved_as_a_pickle_needs_consent(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path / "unet", safe_serialization=False)
    SCHEDULERS["ddpm"].save_pretrained(tmp_path / "scheduler")
    with pytest.raises(enkg.InputError, match="is a pickle, and loading one can run code"):
        from_diffusers(tmp_path)
    prior = from_diffusers(tmp_path, allow_pickle=True)
    safe = from_diffusers(save(tmp_path / "safe", network, SCHEDULERS["ddpm"]))
    x = members()
    assert torch.equal(prior.denoise(x, 0.7), safe.denoise(x, 0.7))


def test_that_weights_of_another_network_are_refused(tmp_path):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_weights(path)
    weights.pop("conv_in.weight")
    save_file(weights, path)
    with pytest.raises(enkg.InputError, match=r"lack 1 of the network's tensors, conv_in\.weight"):
        from_diffusers(source)
    path.unlink()
    with pytest.raises(enkg.InputError, match="holds no weights"):
        from_diffusers(source)
