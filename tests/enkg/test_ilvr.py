"""Replacement by theory: the noisy data in the state, the law without noise, filters."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.ilvr import ILVR, lowpass
from enkg.guidance.restoration import drawn
from enkg.guidance.reverse import ancestral_step
from enkg.random import Stream
from tests.enkg.problems import follow, normal, values
from tests.enkg.restoring import (
    check_chains,
    check_failure,
    commuting,
    first_state,
    measured,
    noisy,
    quality,
    result,
    unguided,
)

EXACT = 1e-3
"""Noise that stands for none."""


def test_that_a_step_is_the_projection_of_the_paper():
    problem = noisy(0.5)
    method = ILVR(members=3, levels=4)
    operator, observation = problem.operator, measured(problem)
    states, _ = follow(method, problem.gaussian, operator, observation)
    inverse = torch.linalg.pinv(problem.matrix)
    onto = inverse @ problem.matrix
    for before, after in pairwise(states):
        d = problem.gaussian.denoise(before.x, before.sigma)
        z, n = (drawn(before, problem.gaussian, s) for s in (Stream.SAMPLER, Stream.RENOISE))
        free = ancestral_step(before.x, d, before.sigma, after.sigma, z)
        exact = free + (inverse @ problem.y + (after.sigma * n - free) @ onto.T)
        torch.testing.assert_close(after.x, exact)


def test_that_the_result_fits_the_data_to_rounding():
    problem = noisy(0.5)
    x = result(ILVR(members=6, levels=7), problem)
    assert (problem.forward(x) - problem.y).abs().max() < 1e-12
    assert x.std(0).max() > 0.1


def test_that_without_noise_the_posterior_is_exact_where_prior_and_simulator_commute():
    """What is seen is the data, what is not keeps the prior; 400 chains: variances within .28."""
    problem = commuting(EXACT)
    x = result(ILVR(members=400, levels=120), problem)
    exact = problem.y / torch.tensor([0.5, 1.0, 2.0])
    assert (x[:, :3] - exact).abs().max() < 1e-12
    variance = problem.covariance.diag()[3:]
    assert ((x[:, 3:].mean(0) - problem.mean[3:]) / variance.sqrt()).abs().max() < 4 / 20
    # 4 sqrt(2 / 400) = .28, and some .04 of narrowing by the levels.
    assert (x[:, 3:].var(0) / variance - 1).abs().max() < 0.32


def test_that_noisy_data_get_no_spread():
    """The documented defect: their noise is taken for signal."""
    error, eigenvalues = quality(ILVR(members=200, levels=40), commuting(0.5))
    assert eigenvalues[:3].abs().max() < 1e-10
    assert error > 0.9  # sampling alone gives .17
    assert ILVR().posterior_law is None


def test_that_fewer_guided_levels_leave_the_end_to_the_prior():
    problem = noisy(0.5)
    method = ILVR(members=6, levels=8, until=0.5)
    assert method.guided == method.sweeps == 4
    x = result(method, problem)
    assert (problem.forward(x) - problem.y).abs().max() > 1e-3


def test_that_the_filter_keeps_constants_and_forgets_the_finest_pattern():
    flat = torch.full((2, 8, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(lowpass(flat, 4), flat)
    grid = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert lowpass(grid.double()[None], 4).abs().max() < 0.05
    x = normal(5, 1, 8, 8, seed=3)
    torch.testing.assert_close(lowpass(2 * x + 1, 2), 2 * lowpass(x, 2) + 1)
    assert torch.equal(lowpass(x[3:4], 4)[0], lowpass(x, 4)[3])


class Blocks:
    """Means of blocks of 4 x 4 points of an 8 x 8 image, with its pseudo-inverse."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4))

    def pinv(self, y: np.ndarray) -> np.ndarray:
        return y.repeat(4, axis=1).repeat(4, axis=2)


def picture(method: ILVR) -> enkg.Experiment:
    prior = enkg.Gaussian(torch.zeros(8, 8), torch.ones(64), enkg.Identity((8, 8)))
    y = normal(2, 2, seed=4)
    return enkg.Experiment(
        prior=prior,
        simulator=Blocks(),
        observation=enkg.Observation(y, std=0.01),
        guidance=method,
        double=True,
        predict=2,
    )


@pytest.mark.parametrize(("form", "calls"), [("projection", 3 * 5), ("lowpass", 0)])
def test_that_calls_are_counted_exactly(form, calls):
    tree = enkg.run(picture(ILVR(members=3, levels=5, form=form)))
    assert int(values(tree, "trace", "calls")[-1]) == calls
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 3 * 5
    assert f'"calls": {calls + 2}' in tree.attrs["summary"]


def test_that_low_frequencies_come_from_the_reference():
    """The resize is no projection, so that the last step leaves what it keeps of the rest."""
    tree = enkg.run(picture(ILVR(members=3, levels=30, form="lowpass")))
    x = torch.from_numpy(values(tree, "posterior", "x"))
    reference = torch.from_numpy(Blocks().pinv(normal(2, 2, seed=4)[None].numpy()))
    kept, given = lowpass(x, 4), lowpass(reference, 4)
    assert (kept - given).square().mean().sqrt() < 0.3 * given.square().mean().sqrt()
    assert (x - kept).std(0).mean() > 0.5  # the fine structure is the prior's


def test_that_chains_are_independent_to_the_last_bit():
    check_chains(ILVR(members=4, levels=6, until=0.7), noisy(0.5))


def test_that_a_failed_chain_goes_on_unguided_and_harms_no_other():
    method = ILVR(members=4, levels=6)
    failed = check_failure(method, noisy(0.5))
    assert torch.equal(failed, unguided(method, noisy(0.5), 2))


def test_that_what_is_missing_is_told():
    problem = noisy(0.5)
    bare = replace(picture(ILVR()), simulator=Blocks().__call__)
    with pytest.raises(MissingCapability, match="pseudo-inverse"):
        enkg.run(bare)
    missing = enkg.Observation(problem.y, std=0.5, mask=torch.tensor([True, False, True]))
    with pytest.raises(InputError, match="some are missing"):
        ILVR().step(first_state(ILVR(), problem), problem.gaussian, problem.operator, missing)
    with pytest.raises(InputError, match="multiples of the factor"):
        lowpass(torch.zeros(2, 9, 8), 4)
    with pytest.raises(InputError, match="multiples of the factor"):
        lowpass(torch.zeros(2, 8), 4)


@pytest.mark.parametrize("wrong", [{"form": "x"}, {"factor": 1}, {"until": 0.0}, {"until": 1.1}])
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        ILVR(**wrong)


def test_that_single_precision_is_kept():
    problem = noisy(0.5)
    like = torch.empty(0, dtype=torch.float32)
    states, _ = follow(
        ILVR(members=2, levels=3), problem.gaussian, problem.operator, measured(problem), like=like
    )
    assert states[-1].x.dtype == torch.float32
