"""Pictures and their patches: all from the wheel, split once, and priors with their moments."""

import math
import sys
from pathlib import Path

import pytest
import torch

import enkg

pytest.importorskip("skimage")
import skimage.data

from priors import pictures

PATCHES = pictures.patches(300, 16)


def test_that_the_split_is_that_of_its_seed_and_covers_all_pictures_once():
    training, held_out = pictures.split()
    assert held_out == ("camera", "chelsea", "moon", "motorcycle")
    assert sorted((*training, *held_out)) == sorted(pictures.NAMES)


def test_that_every_picture_is_in_the_wheel():
    folder = Path(str(skimage.__file__)).parent / "data"
    there = " ".join(file.name for file in folder.iterdir())
    for name in pictures.NAMES:
        assert name in there
        image = pictures.picture(name, 16)
        assert image.shape == (16, 16)
        assert image.dtype == torch.float64
        assert -1 <= float(image.min()) < float(image.max()) <= 1


def test_that_a_picture_is_the_mean_of_its_square_and_coarser_is_smoother():
    image = torch.from_numpy(skimage.data.camera() / 127.5 - 1)
    blocks = image.reshape(64, 8, 64, 8).mean(dim=(1, 3))
    found = pictures.picture("camera", 64)
    assert float((found - blocks).square().mean().sqrt()) < 0.07  # cubic, not means of blocks
    assert float(found.mean() - image.mean()) == pytest.approx(0, abs=0.01)


def test_that_patches_are_of_the_training_pictures_alone(monkeypatch):
    asked = set()
    resized = pictures._resized
    monkeypatch.setattr(pictures, "_resized", lambda name, *a: asked.add(name) or resized(name, *a))
    pictures.patches.__wrapped__(200, 8, 5)
    assert asked == set(pictures.split()[0])


def test_that_a_patch_depends_on_its_number_and_seed_alone():
    assert torch.equal(pictures.patches(20, 16), PATCHES[:20])
    assert not torch.equal(pictures.patches(20, 16, 1), PATCHES[:20])


def test_that_the_gaussian_has_the_moments_of_the_patches():
    prior = pictures.patch_gaussian(16, count=300)
    assert float((prior.mean - PATCHES.mean(dim=0)).abs().max()) < 1e-12
    total = float(PATCHES.var(dim=0).sum())
    assert float(prior.variance.sum()) == pytest.approx(total)
    few = pictures.patch_gaussian(16, 20, 300)
    assert 0.8 * total < float(few.variance.sum()) < total  # pictures are smooth


def test_that_the_kernel_density_is_that_of_the_patches():
    prior, sigma = pictures.patch_mixture(16, 0.25, 300), 0.5
    x = (PATCHES[:4] + 0.4).requires_grad_()
    gap = (x[:, None] - PATCHES).flatten(2).square().sum(dim=2)
    density = torch.logsumexp(-gap / (2 * (0.25**2 + sigma**2)), dim=1).sum()
    (score,) = torch.autograd.grad(density, x)
    x = x.detach()
    assert float((prior.denoise(x, sigma) - x - sigma**2 * score).abs().max()) < 1e-9


@pytest.mark.slow
def test_that_the_bandwidth_is_the_likeliest_for_held_out_patches(monkeypatch):
    training, held_out = pictures.split()
    centres = pictures.patches().flatten(1)
    monkeypatch.setattr(pictures, "split", lambda: (held_out, training))
    x = pictures.patches.__wrapped__(300, 32, 1).flatten(1)
    gap = torch.cdist(x, centres).square()

    def log_density(h):
        kernels = torch.logsumexp(-gap / (2 * h**2), dim=1)
        return float(kernels.mean()) - 512 * math.log(2 * math.pi * h**2)

    likeliest = max((0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4), key=log_density)
    assert likeliest == pictures.BANDWIDTH


def test_that_mistakes_are_told(monkeypatch):
    with pytest.raises(enkg.InputError, match="astronaut"):
        pictures.picture("lena", 32)
    with pytest.raises(enkg.InputError, match="4 to 128"):
        pictures.patches(10, 256)
    monkeypatch.setitem(sys.modules, "skimage", None)
    pictures._whole.cache_clear()
    with pytest.raises(enkg.InputError, match=r"\[images\]"):
        pictures.picture("camera", 32)
