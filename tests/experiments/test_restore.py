"""Restoration of pictures: every task is an experiment, and the closed form is that of Bayes."""

import json

import numpy as np
import pytest
import torch

import enkg
from enkg import metrics

pytest.importorskip("skimage")
from experiments.images import restore
from experiments.images.restore import TASKS, experiment
from experiments.images.views import as_image
from priors import pictures
from simulators import images
from tests.enkg.problems import normal

SIZE = 16


def test_that_the_tasks_are_all_operators_there_are():
    assert set(TASKS) == set(images.TASKS)
    assert restore.Picture.__args__ == (*pictures.split()[1], "draw")


@pytest.mark.parametrize("task", TASKS)
def test_that_every_task_is_an_experiment(task):
    given = experiment(task, size=SIZE, noise=0.1)
    operator, y = images.operator(task, (SIZE, SIZE)), given.observation.y
    clean = torch.from_numpy(operator(np.asarray(given.truth)[None]))
    # The misfit per datum of the truth is chi-square over m: standard deviation sqrt(2 / m).
    tolerance = 5 * (2 / y.numel()) ** 0.5
    assert given.observation.misfit_per_datum(clean) == pytest.approx(1, abs=tolerance)
    assert as_image(operator, y.numpy()).ndim == 2


@pytest.mark.parametrize("task", ["denoise", "random", "blur"])
def test_that_counts_are_whole_numbers_of_the_expected_mean(task):
    given = experiment(task, size=SIZE, counts=400.0)
    y, operator = given.observation.y, images.operator(task, (SIZE, SIZE))
    assert torch.equal(y, y.round())
    mean = 200 * (torch.from_numpy(operator(np.asarray(given.truth)[None]))[0] + 1).clamp(min=2e-3)
    deviation = ((y - mean) / mean.sqrt()).square().mean()
    assert float(deviation) == pytest.approx(1, abs=5 * (2 / y.numel()) ** 0.5)
    with pytest.raises(enkg.InputError, match="hdr is not linear"):
        experiment("hdr", size=SIZE, counts=10.0)


def test_that_a_draw_is_one_of_its_prior_and_numbers_give_others():
    gaussian = experiment(picture="draw", size=SIZE, truth=1)
    other = experiment(picture="draw", size=SIZE, truth=2)
    assert not torch.equal(gaussian.truth, other.truth)
    nearest = experiment(picture="draw", size=SIZE, prior="mixture").truth - pictures.patches(
        size=SIZE
    )
    # A draw is a centre and noise of the bandwidth at each of 256 points.
    gap = float(nearest.flatten(1).norm(dim=1).min())
    assert gap == pytest.approx(pictures.BANDWIDTH * SIZE, rel=0.15)


@pytest.mark.parametrize("task", ["box", "sr2", "circular"])
def test_that_the_exact_posterior_is_that_of_the_kalman_formula(task):
    spread = normal(40, 64, seed=2)
    prior = enkg.Gaussian.from_samples(spread.reshape(40, 8, 8))
    operator = images.operator(task, (8, 8))
    y = torch.from_numpy(operator(normal(1, 8, 8, seed=3).numpy()))[0]
    mean, std = restore.exact_posterior(prior, operator, enkg.Observation(y, std=0.3))  # type: ignore[arg-type]
    a = torch.from_numpy(operator(np.eye(64).reshape(64, 8, 8))).flatten(1).T
    covariance = torch.cov(spread.T)
    innovation = a @ covariance @ a.T + 0.09 * torch.eye(len(a)).double()
    gain = covariance @ a.T @ torch.linalg.inv(innovation)
    expected = prior.mean.flatten() + gain @ (y.flatten() - a @ prior.mean.flatten())
    assert float((mean.flatten() - expected).abs().max()) < 1e-9
    variance = (covariance - gain @ a @ covariance).diagonal()
    assert float((std.flatten().square() - variance).abs().max()) < 1e-9


def test_that_a_run_is_scored_and_drawn(tmp_path):
    import dataclasses

    given = experiment("sr2", picture="draw", size=SIZE)
    given = dataclasses.replace(given, guidance=enkg.ESMDA(members=64))
    tree = enkg.run(given, tmp_path / "run")
    found = json.loads(tree.attrs["summary"])["metrics"]
    members = torch.from_numpy(tree["posterior"].to_dataset()["image"].values)
    assert found["psnr_of_mean"] == pytest.approx(metrics.psnr(members.mean(0), given.truth))
    assert found["psnr_over_members"] < found["psnr_of_mean"] < found["psnr_of_exact_mean"] + 1
    assert found["ssim_of_mean"] <= 1
    assert found["error_in_exact_std"] > 0
    assert (tmp_path / "run" / "figures" / "restored.png").is_file()
