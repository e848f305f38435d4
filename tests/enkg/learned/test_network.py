"""The network: shapes, patches, the torus, and what it refuses."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import enkg
from enkg.learned.network import UNet, planes
from tests.enkg.problems import normal

TINY = {"channels": (4, 8), "groups": 4}


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((8, 8), UNet(**TINY)),
        ((8, 16), UNet(**TINY)),
        ((3, 8, 8), UNet(**TINY)),
        ((16, 16), UNet(**TINY, patch=4)),
        ((2, 16, 8), UNet(**TINY, patch=2, periodic=True)),
        ((8, 8), UNet((4, 8, 8), groups=4, layers=2)),
        ((8, 8), UNet((8, 8), groups=8, attention=True)),
    ],
    ids=str,
)
@pytest.mark.parametrize("inputs", [1, 2])
def test_that_a_network_answers_with_one_field_for_each(shape, network, inputs):
    channels, height, width = planes(shape)
    module = network.build(shape, inputs)
    x = normal(3, inputs * channels, height, width).float()
    assert module(x, torch.tensor([1.0, 60.0, 250.0])).shape == (3, channels, height, width)


def test_that_a_patch_is_cheaper_at_the_same_depth():
    def numbers(patch: int) -> int:
        seen = []
        module = UNet(**TINY, patch=patch).build((16, 16), 2)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _, x, y: seen.append(y[0, 0].numel()))
        module(normal(1, 2, 16, 16).float(), torch.ones(1))
        return sum(seen)

    assert numbers(2) * 4 == numbers(1)


def test_that_a_patch_keeps_every_point_in_its_place():
    module = UNet(**TINY, patch=2).build((8, 8), 1)
    inner: Any = module.network
    inner.forward = lambda x, time: type("Answer", (), {"sample": x})
    x = normal(2, 1, 8, 8).float()
    assert torch.equal(module(x, torch.ones(2)), x)


def test_that_the_time_matters():
    torch.manual_seed(0)
    module = UNet(**TINY).build((8, 8), 2)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.2)
    x = normal(1, 2, 8, 8).float()
    one, other = (module(x, torch.tensor([t])).detach() for t in (10.0, 200.0))
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (UNet(**TINY), (9, 8), r"9 x 8 points; .*patch=1 and 2 resolutions needs multiples of 2"),
        (UNet(**TINY, patch=4), (8, 12), "multiples of 8 points: choose another patch or fewer"),
        (UNet((4, 6), groups=4), (8, 8), r"\(4, 6\) are not all multiples of groups=4"),
        (UNet(**TINY), (8,), r"members of shape \(8,\); the U-Net takes \(H, W\) or \(C, H, W\)"),
        (UNet(**TINY), (2, 2, 8, 8), "Give a network of your own for others"),
    ],
)
def test_that_shapes_that_do_not_fit_are_refused(network, shape, words):
    with pytest.raises(enkg.InputError, match=words):
        network.build(shape, 2)


@pytest.mark.parametrize("change", [{"patch": 0}, {"layers": 0}, {"groups": 0}, {"channels": ()}])
def test_that_numbers_of_nothing_are_refused(change):
    with pytest.raises(enkg.InputError, match=f"{next(iter(change))} is .*expected"):
        UNet(**(TINY | change))


def test_that_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(enkg.InputError, match=r'pip install "enkg\[train\]"'):
        UNet(**TINY).build((8, 8), 2)
