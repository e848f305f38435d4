"""Scores of images: by hand, against scikit-image, and blind to a single lucky member."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import enkg
from enkg import metrics
from tests.enkg.problems import normal

TRUTH = normal(24, 16, seed=1).clamp(-1, 1)
MEMBERS = TRUTH + 0.3 * normal(8, 24, 16, seed=2)
OFF = {"skimage": None, "skimage.metrics": None}


def test_that_the_peak_signal_to_noise_ratio_is_that_of_its_definition():
    x = TRUTH + 0.1
    assert metrics.psnr(x, TRUTH) == pytest.approx(10 * math.log10(4 / 0.01))
    assert metrics.psnr(x, TRUTH, data_range=1) == pytest.approx(20)
    assert metrics.psnr(TRUTH, TRUTH) == math.inf
    # Half of the points off by 0.2: the squared error is 0.02.
    x = TRUTH.clone()
    x[:12] += 0.2
    assert metrics.psnr(x, TRUTH, 2) == pytest.approx(10 * math.log10(200))
    with pytest.raises(enkg.InputError, match="data_range"):
        metrics.psnr(x, TRUTH, 0)


def test_that_structural_similarity_is_that_of_scikit_image_and_of_its_formula():
    # scikit-image leaves out a border of 5 points; in the middle the formula by its definition.
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x = MEMBERS[0]
    expected = similarity(  # pyright: ignore[reportCallIssue]
        x.numpy(), TRUTH.numpy(), win_size=11, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=2,
    )  # fmt: skip
    assert metrics.ssim(x, TRUTH) == pytest.approx(expected, rel=1e-12)
    assert metrics.ssim(TRUTH, TRUTH) == pytest.approx(1)
    assert metrics.ssim(x, TRUTH, data_range=200) > metrics.ssim(x, TRUTH)
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    a, b = x[:11, :11].numpy(), TRUTH[:11, :11].numpy()
    ma, mb = (weight * a).sum(), (weight * b).sum()
    va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
    both = (weight * (a - ma) * (b - mb)).sum()
    c, d = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    one = (2 * ma * mb + c) * (2 * both + d) / ((ma**2 + mb**2 + c) * (va + vb + d))
    assert metrics.ssim(x[:11, :11], TRUTH[:11, :11]) == pytest.approx(one, rel=1e-10)


def test_that_an_ensemble_is_scored_by_its_mean_and_by_all_members():
    pytest.importorskip("skimage")
    found = metrics.image_scores(MEMBERS, TRUTH)
    errors = (MEMBERS - TRUTH).square().mean(dim=(1, 2))
    expected = 10 * math.log10(4 / float(errors.mean()))
    assert found["psnr_over_members"] == pytest.approx(expected)
    assert found["psnr_of_mean"] == pytest.approx(metrics.psnr(MEMBERS.mean(0), TRUTH))
    assert found["psnr_of_mean"] - expected == pytest.approx(10 * math.log10(8), abs=1)
    each = [metrics.ssim(member, TRUTH) for member in MEMBERS]
    assert found["ssim_over_members"] == pytest.approx(np.mean(each))
    assert found["ssim_of_mean"] == pytest.approx(metrics.ssim(MEMBERS.mean(0), TRUTH))


@pytest.mark.parametrize("members", [10, 100])
def test_that_a_member_that_is_the_truth_moves_no_score_by_more_than_its_share(members):
    pytest.importorskip("skimage")
    x = TRUTH + 0.5 + 0.3 * normal(members, 24, 16, seed=3)  # an error that all members share
    before = metrics.image_scores(x, TRUTH)
    x[4] = TRUTH
    after = metrics.image_scores(x, TRUTH)
    for name in before:
        # PSNR: the error falls by (J - 1) / J, squared for the mean. SSIM lies in [-1, 1].
        largest = 20 * math.log10(members / (members - 1)) * 1.5 if "psnr" in name else 2 / members
        assert 0 < after[name] - before[name] < largest, name


def test_that_images_too_small_for_the_window_have_no_similarity():
    small = TRUTH[:8, :8]
    with pytest.raises(enkg.InputError, match=r"\(8, 8\).*at least 11"):
        metrics.ssim(small, small)
    with pytest.raises(enkg.InputError, match="one size"):
        metrics.ssim(TRUTH, TRUTH[:12])
    found = metrics.image_scores(MEMBERS[:, :8, :8], small)
    assert set(found) == {"psnr_of_mean", "psnr_over_members"}


def test_that_without_scikit_image_one_is_told_what_to_install(monkeypatch):
    for name in OFF:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(enkg.InputError, match=r"\[images\]"):
        metrics.ssim(TRUTH, TRUTH)


def test_that_without_package_or_weights_learned_metrics_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(enkg.MissingCapability, match=r"LPIPS needs .* lpips .*pip install"):
        metrics.lpips(TRUTH, TRUTH)
    with pytest.raises(enkg.MissingCapability, match="FID needs the package torchmetrics"):
        metrics.fid(MEMBERS, MEMBERS)

    def offline(**_):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    with pytest.raises(enkg.MissingCapability, match="no network"):
        metrics.lpips(TRUTH, TRUTH)


def test_that_learned_metrics_are_handed_colour_images_in_their_range(monkeypatch):
    handed = []

    def distance(a, b):
        handed.extend([a, b])
        return (a - b).square().mean(dim=(1, 2, 3))

    package = SimpleNamespace(LPIPS=lambda net, verbose: distance)
    monkeypatch.setitem(sys.modules, "lpips", package)
    found = metrics.lpips(MEMBERS, TRUTH)
    clipped = MEMBERS.clamp(-1, 1)
    assert found == pytest.approx(float((clipped - TRUTH).square().mean()), rel=1e-5)
    assert [tuple(x.shape) for x in handed] == [(8, 3, 24, 16), (1, 3, 24, 16)]
    assert float(handed[0].abs().max()) == 1
    updates = []
    frechet = SimpleNamespace(
        update=lambda x, real: updates.append((x, real)), compute=lambda: torch.tensor(3.0)
    )
    package = SimpleNamespace(FrechetInceptionDistance=lambda feature, normalize: frechet)
    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, package)
    assert metrics.fid(MEMBERS, TRUTH[None]) == 3
    assert [(tuple(x.shape), real) for x, real in updates] == [
        ((1, 3, 24, 16), True),
        ((8, 3, 24, 16), False),
    ]
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in updates)
