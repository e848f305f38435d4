"""Trainings that are given other, bad or few samples."""

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.comm import ALONE
from enkg.learned import Trained
from enkg.learned.loop import LEVELS, Run, train
from enkg.learned.prepare import prepare
from tests.enkg.learned.fields import SMALL, Cut, Cutting, drawn, training


def test_that_a_training_does_not_go_on_with_other_samples(tmp_path):
    samples = drawn(40).numpy()
    np.save(tmp_path / "a.npy", samples)
    with pytest.raises(Cut):
        train(training(samples=tmp_path / "a.npy"), tmp_path / "out", watcher=Cutting(5))
    np.save(tmp_path / "a.npy", 7 * samples)
    with pytest.raises(enkg.StoreError, match="other samples than those given now; --force goes"):
        train(training(samples=tmp_path / "a.npy"), tmp_path / "out", resume=True)
    np.save(tmp_path / "a.npy", samples)
    train(training(samples=tmp_path / "a.npy"), tmp_path / "out", resume=True)
    np.save(tmp_path / "b.npy", 7 * samples)
    with pytest.raises(enkg.StoreError, match="learnt from other samples"):
        train(training(samples=tmp_path / "b.npy"), tmp_path / "out", resume=True)


def test_that_bad_samples_leave_the_prior_that_they_were_to_replace(tmp_path):
    x = drawn(2)
    before = train(training(network=SMALL), tmp_path).denoise(x, 0.5)
    with pytest.raises(enkg.InputError):
        train(training(samples=np.full((40, 8, 8), np.nan)), tmp_path, overwrite=True)
    assert torch.equal(Trained(tmp_path).denoise(x, 0.5), before)


@pytest.mark.parametrize("held_out", [1, 10])
def test_that_few_held_out_samples_are_asked_at_all_noise_levels(held_out: int, tmp_path):
    asked: list[Tensor] = []
    prepared = prepare(training(held_out=held_out), tmp_path)
    run = Run(training(held_out=held_out), prepared, torch.device("cpu"), ALONE)
    module = run.averaged()
    loss = module.loss
    module.loss = lambda x, sigma, noise: asked.append(sigma) or loss(x, sigma, noise)
    assert run.held_out() > 0
    wanted = training().noise.quantiles(LEVELS)
    torch.testing.assert_close(torch.cat(asked).sort().values, wanted)
