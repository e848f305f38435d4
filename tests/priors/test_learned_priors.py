"""The priors that come with the project: their weights do what their cards say."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.learned import card, merits
from enkg.learned.sources import split
from priors.digits import digits

ROOT = Path(__file__).parents[2]
NAMES = ("vorticity", "digits", "rings")
LEVELS = (0.2, 1.0, 5.0)
ASKED = 48


def recipe(name: str) -> enkg.Training:
    return importlib.import_module(f"experiments.training.{name}").training()


def prior(name: str) -> enkg.Trained:
    return enkg.Trained(ROOT / "priors" / name)


def held_out(name: str, count: int) -> Tensor:
    """The first held-out samples, drawn anew, in the prior's numbers."""
    training = recipe(name)
    source: Any = training.samples
    _, indices = split(source.count, training.held_out, training.seed)
    drawn = torch.as_tensor(np.asarray(source.draw(source.seed, indices[:count].tolist())))
    return prior(name).units.to_prior(drawn.float())


@pytest.mark.parametrize("name", NAMES)
def test_that_the_weights_are_small_and_the_card_is_whole(name: str):
    found = card.read(ROOT / "priors" / name)
    assert (ROOT / "priors" / name / card.WEIGHTS).stat().st_size < 10e6
    assert found["training"]["finished"]
    assert found["limits"]
    assert found["licence"]
    assert found["about"]
    assert set(found["merits"]) >= {"denoising", "energy", "memory", "values"}


@pytest.mark.parametrize("name", NAMES)
def test_that_a_fresh_computation_finds_the_denoising_error_of_the_card(name: str):
    told = card.read(ROOT / "priors" / name)["merits"]["denoising"]
    ours = prior(name)
    with torch.no_grad():
        found = merits.denoising(ours, held_out(name, ASKED), LEVELS, ours.base.prior())
    for level, ratio, error in zip(LEVELS, found.ratio, found.ratio_error, strict=True):
        k = told["sigmas"].index(level)
        both = (error**2 + told["ratio_error"][k] ** 2) ** 0.5
        assert ratio == pytest.approx(told["ratio"][k], abs=4 * both)
        assert ratio < 1.02


@pytest.mark.parametrize("name", NAMES)
def test_that_the_network_beats_the_best_linear_denoiser_where_it_matters(name: str):
    told = card.read(ROOT / "priors" / name)["merits"]["denoising"]
    k = told["sigmas"].index(1.0)
    assert told["ratio"][k] + 4 * told["ratio_error"][k] < 0.95


def test_that_the_digits_are_close_to_the_exact_denoiser():
    told = card.read(ROOT / "priors" / "digits")["merits"]["denoising"]
    x, exact, ours = held_out("digits", 128), digits(), prior("digits")
    with torch.no_grad():
        found = merits.denoising(ours, x, LEVELS, ours.base.prior(), exact)
    assert found.excess is not None
    for level, excess in zip(LEVELS, found.excess, strict=True):
        assert excess == pytest.approx(told["excess"][told["sigmas"].index(level)], abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_that_samples_are_finite_and_have_the_spread_of_the_data(name: str):
    x = held_out(name, 32)
    drawn = merits.draw(prior(name), 16, seed=3, sigma_max=recipe(name).sigma_max, levels=12)
    assert bool(drawn.isfinite().all())
    assert float(drawn.std()) == pytest.approx(float(x.std()), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_that_the_whole_card_can_be_computed_again(name: str):
    told = card.read(ROOT / "priors" / name)["merits"]["denoising"]
    ours = prior(name)
    x = held_out(name, 256)
    with torch.no_grad():
        found = merits.denoising(ours, x, told["sigmas"], ours.base.prior())
    for k, ratio in enumerate(found.ratio):
        both = (found.ratio_error[k] ** 2 + told["ratio_error"][k] ** 2) ** 0.5
        assert ratio == pytest.approx(told["ratio"][k], abs=3 * both + 1e-3)
