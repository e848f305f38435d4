"""PSLD: one step against autograd of its objective, faults and counts."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.guidance.psld import PSLD
from enkg.guidance.reverse import ancestral_step
from enkg.random import Stream
from tests.enkg import latent_problem as latent
from tests.enkg.problems import follow

DOUBLE = torch.empty(0, dtype=torch.float64)
SMALL = PSLD(members=6, levels=4)


def objective(z: Tensor, sigma: float, omega: float, gamma: float) -> Tensor:
    """R of the docstring, summed over the chains."""
    clean = latent.INNER.denoise(z, sigma)
    x = latent.bent(clean)
    r = latent.DATA - x @ latent.A.T
    filled = x + r @ torch.linalg.pinv(latent.A).T
    e = clean - latent.bent_back(filled)
    return (omega * r.norm(dim=1) + gamma * e.norm(dim=1)).sum()


@pytest.mark.parametrize("schedule", ["karras", "variance-preserving"])
def test_that_a_step_is_the_gradient_of_its_objective(schedule):
    method = replace(SMALL, levels=20, schedule=schedule, data_scale=0.3, gluing_scale=0.7)
    forward = latent.forward_of(method, prior=latent.CURVED)
    state = method.init(latent.CURVED, 0, DOUBLE)
    sigma, to = method.sigmas[4:6]
    state = replace(state, step=4, sigma=sigma)
    after, _ = method.step(state, latent.CURVED, forward, latent.OBSERVATION)
    z = state.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(z, sigma, 0.3, 0.7), z)
    scale = 1.0 if schedule == "karras" else ((1 + sigma**2) * (1 + to**2)) ** 0.5
    noise = random.normal((4,), 0, Stream.SAMPLER, range(6), 4)
    clean = latent.INNER.denoise(state.x, sigma)
    expected = ancestral_step(state.x, clean, sigma, to, noise) - scale * gradient
    torch.testing.assert_close(after.x, expected, rtol=1e-9, atol=1e-10)


def test_that_without_scales_it_samples_the_prior():
    method = replace(SMALL, members=500, levels=25, data_scale=0.0, gluing_scale=0.0)
    forward = latent.forward_of(method, chunk=1000)
    states, _ = follow(method, latent.PRIOR, forward, latent.OBSERVATION)
    # Four coordinates of 500 draws; the steps leave some per cent.
    assert states[-1].x.var(dim=0).numpy() == pytest.approx(1.0, abs=0.25)


def test_that_the_scale_of_the_data_lowers_the_misfit():
    prior, fit = latent.PRIOR, []
    for omega in (0.0, 0.02, 0.1):
        method = PSLD(members=32, levels=25, data_scale=omega, gluing_scale=0.0)
        forward = latent.forward_of(method, chunk=32)
        states, _ = follow(method, prior, forward, latent.OBSERVATION)
        y = torch.from_numpy(latent.simulate(latent.decode(states[-1].x).numpy()))
        fit.append(latent.OBSERVATION.misfit_per_datum(y))
    assert fit[0] > 2 * fit[1] > 2 * fit[2]


def test_that_a_dead_chain_leaves_the_others_as_they_are():
    healthy, harmed = (
        follow(
            SMALL,
            latent.CURVED,
            latent.forward_of(SMALL, prior=latent.CURVED, simulator=simulator),
            latent.OBSERVATION,
        )[0][-1].x
        for simulator in (latent.SIMULATOR, latent.Failing(2))
    )
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(healthy[keep], harmed[keep])
    assert bool(harmed.isfinite().all())


def test_that_calls_are_counted_exactly():
    summary = json.loads(enkg.run(latent.experiment(SMALL)).attrs["summary"])
    assert summary["calls"] == 6 * SMALL.sweeps + 6  # and the data of the result
    assert summary["vjps"] == 6 * SMALL.sweeps
    assert summary["denoiser_calls"] == 6 * 4
    assert summary["denoiser_vjps"] == 6 * 4 + 1  # one before the start, whether it can be had


def test_that_it_asks_for_what_it_needs():
    assert SMALL.needs == ("svd",)
    bare = enkg.latent(latent.INNER, latent.decode, (8,))
    with pytest.raises(enkg.MissingCapability, match="encodes"):
        SMALL.init(bare, 0, DOUBLE)
    with pytest.raises(enkg.MissingCapability, match="decodes"):
        SMALL.init(latent.INNER, 0, DOUBLE)
    with pytest.raises(enkg.MissingCapability, match="PSLD needs"):
        enkg.run(latent.experiment(SMALL, simulator=latent.simulate))
    with pytest.raises(enkg.InputError, match="data_scale"):
        PSLD(data_scale=-1.0)
