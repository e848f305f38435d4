"""What a training says of itself, and what it refuses."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import enkg
from enkg.learned import LogNormal, Training
from enkg.learned.sources import Samples
from tests.enkg.learned.fields import drawn, training


def test_that_the_learning_rate_is_a_trapezium():
    t = training(steps=100, warmup=10, cooling=0.3)
    scales = np.array([t.scale(step) for step in range(100)])
    np.testing.assert_allclose(scales[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(scales[10:71], 1)
    np.testing.assert_allclose(scales[70:], np.arange(30, 0, -1) / 30)
    assert scales[-1] > 0  # the last step still learns
    assert t.scale(100) == 0


def test_that_a_training_may_have_no_warmup():
    assert training(steps=10, warmup=0, cooling=0.1).scale(0) == 1


def test_that_levels_have_the_quantiles_of_a_log_normal_law():
    law, normal = LogNormal(-0.7, 1.3), NormalDist(-0.7, 1.3)
    expected = [normal.inv_cdf((k + 0.5) / 8) for k in range(8)]
    np.testing.assert_allclose(law.quantiles(8).log(), expected, rtol=1e-4)


def test_that_levels_are_drawn_from_a_log_normal_law():
    generator = torch.Generator().manual_seed(3)
    logs = LogNormal(-0.7, 1.3).draw(10_000, generator).log()
    assert float(logs.mean()) == pytest.approx(-0.7, abs=4.5 * 0.013)
    assert float(logs.std()) == pytest.approx(1.3, abs=4.5 * 0.0092)


def test_that_samples_are_opened_at_once(tmp_path):
    np.save(tmp_path / "a.npy", drawn(5).numpy())
    found = Training(tmp_path / "a.npy").samples
    assert isinstance(found, Samples)
    assert len(found) == 5
    assert found.shape == (8, 8)
    with pytest.raises(enkg.InputError, match=r"no\.npy"):
        Training(tmp_path / "no.npy")


def test_that_the_cost_is_a_sentence():
    said = training(steps=20_000, batch=64).cost((2, 32, 32))
    assert said == "20,000 steps of 64 samples of shape (2, 32, 32) (2,048 numbers)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"batch": -3}, "batch is -3; expected at least 1"),
        ({"looks": 0}, "looks is 0; expected at least 1"),
        ({"components": 0}, "components is 0; expected at least 1"),
        ({"drawn": 1}, "drawn is 1; expected at least 2"),
        ({"warmup": -1}, "warmup is -1; expected at least 0"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"rate": 0.0}, "rate is 0.0; expected a positive number"),
        ({"rate": float("nan")}, "rate is nan; expected a positive number"),
        ({"clip": -1.0}, "clip is -1.0; expected a positive number"),
        ({"sigma_max": 0.0}, "sigma_max is 0.0; expected a positive number"),
        ({"cooling": 1.5}, "cooling is 1.5; expected 0 < cooling <= 1"),
        ({"average": 0.0}, "average is 0.0; expected 0 < average <= 1"),
        ({"base": "pink"}, "base is 'pink'; expected one of white, spectrum, components"),
        ({"precision": "float16"}, "precision is 'float16'; expected one of float32, bfloat16"),
        ({"network": "unet"}, "the network is a str; expected enkg.UNet"),
        ({"samples": torch.ones(8)}, r"shape \(8,\); expected \(N, \*X\)"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_that_a_setting_that_cannot_be_is_refused(change, words):
    with pytest.raises(enkg.InputError, match=words):
        training(**change)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_that_noise_levels_without_width_are_refused(std):
    with pytest.raises(enkg.InputError, match=r"have std=.*; expected a positive number"):
        LogNormal(0.0, std)
