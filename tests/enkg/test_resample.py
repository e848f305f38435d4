"""ReSample: its resampling, its guided step, where its optimiser stops, faults and counts."""

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import enkg
from enkg.guidance.chains import operator
from enkg.guidance.resample import ReSample, resampled
from tests.enkg import latent_problem as latent
from tests.enkg.problems import follow, normal

DOUBLE = torch.empty(0, dtype=torch.float64)
SMALL = ReSample(
    members=6, levels=9, every=2, pixel_iterations=5, latent_iterations=4, tolerance=1e-9
)


def run(method: ReSample, prior: Any = latent.PRIOR, simulator: Any = latent.SIMULATOR):
    forward = latent.forward_of(method, prior=prior, simulator=simulator)
    states, _ = follow(method, prior, forward, latent.OBSERVATION)
    return states, forward


def test_that_resampling_is_the_product_of_two_gaussians():
    sigma, to, n = 1.3, 0.8, 200_000
    one, other = torch.full((n, 1), 2.0).double(), torch.full((n, 1), -1.0).double()
    x = resampled(one, other, sigma, to, 40.0, normal(n, 1))
    b, b_to = 1 / (1 + sigma**2), 1 / (1 + to**2)
    t = 40 * (1 - b_to) / (1 - b) * (1 - b / b_to) / b_to
    precision = 1 / t + 1 / to**2
    mean = (2 / to**2 - 1 / t) / precision
    assert float(x.mean()) == pytest.approx(mean, abs=4 / (precision * n) ** 0.5)
    assert float(x.var()) == pytest.approx(1 / precision, rel=4 * (2 / n) ** 0.5)
    assert torch.equal(resampled(one, other, sigma, 0.0, 40.0, one), one)


def test_that_a_step_between_consistent_levels_is_guided_ddim():
    method = replace(SMALL, every=5)
    forward = latent.forward_of(method, prior=latent.CURVED)
    state = method.init(latent.CURVED, 0, DOUBLE)
    sigma, to = method.sigmas[:2]
    assert not method.consistent(0)
    after, _ = method.step(state, latent.CURVED, forward, latent.OBSERVATION)
    z = state.x.clone().requires_grad_()
    clean = latent.INNER.denoise(z, sigma)
    r = latent.DATA - latent.bent(clean) @ latent.A.T
    (gradient,) = torch.autograd.grad(r.norm(dim=1).sum(), z)
    clean = clean.detach()
    scale = 0.5 * ((1 + to**2) / (1 + sigma**2)) ** 0.5
    expected = clean + to / sigma * (state.x - clean) - scale * gradient
    torch.testing.assert_close(after.x, expected, rtol=1e-9, atol=1e-10)


def test_that_the_result_fits_the_data_to_the_noise_and_not_below():
    # The start is far from the data, and a step of the optimiser is short against the noise.
    method = ReSample(members=6, levels=6, every=3, latent_iterations=400, latent_rate=1e-2)
    states, _ = run(method)
    y = torch.from_numpy(latent.simulate(latent.decode(states[-1].x).numpy()))
    fit = 2 * latent.OBSERVATION.misfit(y) / 5
    assert float(fit.max()) <= 1.0


def test_that_a_chain_that_fits_already_is_left_alone():
    method = replace(SMALL, tolerance=1e9)
    forward = latent.forward_of(method)
    clean = normal(6, 4)
    state = method.init(latent.PRIOR, 0, DOUBLE)
    found = method._consistent(operator(forward), clean, latent.OBSERVATION, state, pixels=False)
    assert torch.equal(found, clean)
    assert forward.count.calls == 6


def test_that_levels_are_made_consistent_in_the_last_two_thirds_and_at_the_end():
    method = ReSample(levels=30, every=10)
    assert [i for i in range(30) if method.consistent(i)] == [19, 29]
    assert method.in_pixels(19)
    assert not method.in_pixels(29)


def test_that_a_dead_chain_leaves_the_others_as_they_are():
    healthy, _ = run(SMALL, latent.CURVED)
    harmed, _ = run(SMALL, latent.CURVED, latent.Failing(2))
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(healthy[-1].x[keep], harmed[-1].x[keep])
    assert bool(harmed[-1].x.isfinite().all())


def test_that_calls_are_counted_exactly():
    summary = json.loads(enkg.run(latent.experiment(SMALL)).attrs["summary"])
    made = sum(SMALL.consistent(i) for i in range(9))
    assert made == 3
    assert SMALL.sweeps == 9 + (5 + 1) + 2 * (4 + 1)
    assert summary["calls"] == 6 * SMALL.sweeps + 6  # and the data of the result
    assert summary["vjps"] == 6 * (9 + 5 + 2 * 4)  # none where the optimiser has ended
    assert summary["denoiser_calls"] == 6 * 9
    assert summary["denoiser_vjps"] == 6 * 9 + 1  # one before the start


def test_that_no_truth_enters_and_a_coder_is_needed():
    assert not any("truth" in name for name in inspect.signature(ReSample).parameters)
    bare = enkg.latent(latent.INNER, latent.decode, (8,))
    for prior in (latent.INNER, bare):
        with pytest.raises(enkg.MissingCapability, match="ReSample needs"):
            ReSample().init(prior, 0, DOUBLE)
    with pytest.raises(enkg.InputError, match="eta"):
        ReSample(eta=2.0)
