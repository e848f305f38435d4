"""LatentDAPS: DAPS through a decoder, and chains in decoded space."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import enkg
from enkg.guidance.daps import DAPS
from enkg.guidance.latent_daps import LatentDAPS
from tests.enkg import latent_problem as latent
from tests.enkg.problems import follow, values, whitened

DOUBLE = torch.empty(0, dtype=torch.float64)
SMALL = {
    "latent": LatentDAPS(members=6, levels=3, steps=5),
    "pixel": LatentDAPS(members=6, levels=3, steps=5, space="pixel"),
    "pixel-hmc": LatentDAPS(members=6, levels=3, steps=5, space="pixel", move="hmc"),
    "pixel-metropolis": LatentDAPS(
        members=6, levels=3, steps=5, space="pixel", move="metropolis"
    ),
}  # fmt: skip
every_small = pytest.mark.parametrize("name", SMALL)


def test_that_in_latent_space_it_is_daps():
    one = enkg.run(latent.experiment(LatentDAPS(members=5, levels=3, steps=6)))
    other = enkg.run(latent.experiment(DAPS(members=5, levels=3, steps=6)))
    np.testing.assert_array_equal(
        values(one, "posterior", "x"), values(other, "posterior", "x")
    )  # fmt: skip


def test_that_the_posterior_through_a_linear_decoder_is_exact():
    # The latent prior is N(0, I): the matched radius is the covariance of z given its noisy state.
    method = LatentDAPS(members=500, levels=12, steps=60, move="hmc", sigma_max=8.0, variance=1.0)
    forward = latent.forward_of(method, chunk=1000)
    states, _ = follow(method, latent.PRIOR, forward, latent.OBSERVATION)
    error, eigenvalues = whitened(states[-1].x, *latent.POSTERIOR)
    # An exact ensemble has sqrt(4 / 500) = .09 and (1 +- .09)^2 = .83 to 1.19.
    assert error < 0.25
    assert eigenvalues.min() > 0.75
    assert eigenvalues.max() < 1.35


def test_that_a_chain_in_pixels_has_the_law_of_its_potential_encoded():
    # One level: x ~ N(Q^-1 (A^T y / tau^2 + W c / r^2), Q^-1), z = W^T x.
    method = LatentDAPS(
        members=1000, levels=1, steps=100, move="hmc", space="pixel", radius="sigma",
        sigma_max=0.4, sigma_min=0.4,
    )  # fmt: skip
    forward = latent.forward_of(method, chunk=1000)
    first = method.init(latent.PRIOR, 0, DOUBLE)
    noisy = torch.full_like(first.x, 0.7)
    states, _ = follow(
        method, latent.PRIOR, forward, latent.OBSERVATION, change=lambda _: replace(first, x=noisy)
    )
    a, w = latent.A, latent.BASIS
    clean = latent.INNER.denoise(noisy, 0.4)[0]
    q = torch.linalg.inv(a.T @ a / latent.TAU**2 + torch.eye(8) / 0.16)
    mean = w.T @ q @ (a.T @ latent.DATA / latent.TAU**2 + w @ clean / 0.16)
    error, eigenvalues = whitened(states[-1].x, mean, w.T @ q @ w)
    # sqrt(4 / 1000) = .06 and (1 +- .06)^2 = .88 to 1.13.
    assert error < 0.2
    assert eigenvalues.min() > 0.8
    assert eigenvalues.max() < 1.25


@every_small
def test_that_calls_are_counted_exactly(name):
    method = SMALL[name]
    summary = json.loads(enkg.run(latent.experiment(method)).attrs["summary"])
    assert summary["calls"] == 6 * method.sweeps + 6  # and the data of the result
    gradient = method.move != "metropolis"
    assert summary["vjps"] == (6 * method.sweeps if gradient else 0)
    assert summary["denoiser_calls"] == 6 * 3
    assert summary["denoiser_vjps"] == 0


@every_small
def test_that_a_dead_chain_leaves_the_others_as_they_are(name):
    method = SMALL[name]
    healthy, harmed = (
        follow(
            method,
            latent.CURVED,
            latent.forward_of(method, prior=latent.CURVED, simulator=simulator),
            latent.OBSERVATION,
        )[0][-1].x
        for simulator in (latent.SIMULATOR, latent.Failing(2))
    )
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(healthy[keep], harmed[keep])
    assert bool(harmed.isfinite().all())
    assert not torch.equal(healthy[2], harmed[2])


def test_that_a_prior_without_decoder_or_encoder_is_refused_before_anything_runs():
    with pytest.raises(enkg.MissingCapability, match="decodes"):
        LatentDAPS().init(latent.INNER, 0, DOUBLE)
    bare = enkg.latent(latent.INNER, latent.decode, (8,))
    with pytest.raises(enkg.MissingCapability, match="encodes"):
        LatentDAPS(space="pixel").init(bare, 0, DOUBLE)
    LatentDAPS().init(bare, 0, DOUBLE)
    with pytest.raises(enkg.InputError, match="space"):
        LatentDAPS(space="image")  # type: ignore
