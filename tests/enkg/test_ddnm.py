"""DDNM and DDNM+ by theory: consistency, the law without noise, the budget, time travel."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
import torch

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.ddnm import DDNM
from enkg.guidance.ddrm import DDRM
from enkg.guidance.restoration import components, drawn
from enkg.sample import reverse_step
from tests.enkg.problems import follow, values
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
kinds = pytest.mark.parametrize(
    "method",
    [
        DDNM(),
        DDNM(noise="ddrm", eta=0.85),
        DDNM(plus=True),
        DDNM(plus=True, noise="ddrm", eta=0.85),
    ],
    ids=["plain", "plain-ddrm", "plus", "plus-ddrm"],
)


@pytest.mark.parametrize("noise", ["ancestral", "ddrm"])
def test_that_the_result_fits_the_data_to_rounding(noise):
    problem = noisy(0.5)
    x = result(DDNM(members=6, levels=7, noise=noise), problem)
    assert (problem.forward(x) - problem.y).abs().max() < 1e-12
    assert x.std(0).max() > 0.1


def unseen(problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the last three unknowns; the data say nothing of them."""
    return problem.mean[3:], problem.covariance[3:, 3:]


def test_that_without_noise_the_posterior_is_exact_where_prior_and_simulator_commute():
    """What is seen is the data, what is not keeps the prior; 400 chains: variances within .2."""
    problem = commuting(EXACT)
    x = result(DDNM(members=400, levels=120), problem)
    exact = problem.y / torch.tensor([0.5, 1.0, 2.0])
    assert (x[:, :3] - exact).abs().max() < 1e-12
    mean, covariance = unseen(problem)
    deviation = covariance.diag().sqrt()
    assert ((x[:, 3:].mean(0) - mean) / deviation).abs().max() < 4 / 20
    ratio = x[:, 3:].var(0) / covariance.diag()
    # 4 sqrt(2 / 400) = .28, and some .04 of narrowing by the levels.
    assert (ratio - 1).abs().max() < 0.32


def test_that_noisy_data_get_no_spread():
    """The documented defect of plain DDNM, and of DDNM+ to a smaller part."""
    problem = noisy(0.5)
    _, plain = quality(DDNM(members=200, levels=40), problem)
    _, plus = quality(DDNM(members=200, levels=40, plus=True), problem)
    assert plain[:3].abs().max() < 1e-10
    assert 1e-4 < plus[0] < plus[2] < 0.05
    assert DDNM().posterior_law is None


def test_that_the_budget_of_noise_is_kept():
    """One step of DDNM+ from data with their noise: the spread over both is that of the step."""
    problem, (sigma, to) = commuting(0.5), (1.0, 0.6)
    method = DDNM(members=3, levels=2, plus=True, sigma_max=sigma, sigma_min=to)
    state = first_state(method, problem)
    operator, observation = problem.operator, measured(problem)
    after, _ = method.step(state, problem.gaussian, operator, observation)
    parts = components(operator, observation, state.x)
    d = problem.gaussian.denoise(state.x, sigma)
    z = drawn(state, problem.gaussian)
    moved, up = reverse_step(state.x, d, sigma, to)
    a, t = 1 - to**2, torch.tensor([1.0, 0.5, 0.25]).double()
    share = (up / (a * t)).clamp(max=1)
    assert share[0] < 1  # a datum that is weighed
    assert share[2] == 1
    ybar = problem.y / torch.tensor([0.5, 1.0, 2.0])
    left = (up**2 - (a * share * t) ** 2).clamp(min=0).sqrt()
    exact = moved[:, :3] + a * share * (ybar - d[:, :3]) + left * z[:, :3]
    torch.testing.assert_close(after.x[:, :3], exact)
    torch.testing.assert_close(after.x[:, 3:], (moved + up * z)[:, 3:])
    torch.testing.assert_close((a * share * t) ** 2 + left**2, torch.full((3,), up**2).double())
    assert parts.t.tolist() == sorted(parts.t.tolist())


def test_that_the_published_plus_rule_is_that_of_ddrm():
    problem = noisy(0.5)
    plus = DDNM(members=4, levels=6, plus=True, noise="ddrm", eta=0.85)
    other = DDRM(members=4, levels=6, noise="ddrm", eta=0.85)
    operator, observation = problem.operator, measured(problem)
    states, _ = follow(plus, problem.gaussian, operator, observation)
    for before, after in pairwise(states[1:]):
        same, _ = other.step(before, problem.gaussian, operator, observation)
        assert torch.equal(same.x, after.x)


def test_that_time_travel_repeats_each_stretch():
    method = DDNM(levels=5, travel=2, repeats=3)
    places = [i for i, _ in method.path]
    assert places == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 4, 4, 4]
    ups = [up for _, up in method.path]
    assert ups == [None, 0, None, 0, None, None, None, 2, None, 2, None, None, 4, 4, None]
    assert method.sweeps == 15


def test_that_a_travelled_chain_has_the_noise_of_its_level():
    """A simulator that says nothing, so that what a step adds is the sampler's noise alone."""
    problem = replace(commuting(0.5), matrix=torch.zeros(3, 6).double())
    method = DDNM(members=2000, levels=4, travel=2, repeats=2, sigma_max=2.0, sigma_min=0.5)

    class Nothing(type(problem.operator)):
        def pinv(self, y: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(y), 6, dtype=torch.float64)

    state = replace(first_state(method, problem), step=1, sigma=method.sigmas[1])
    x = state.x
    after, _ = method.step(state, problem.gaussian, Nothing(problem), measured(problem))
    assert after.sigma == method.sigmas[0]
    d = problem.gaussian.denoise(x, state.sigma)
    before, up = reverse_step(x, d, state.sigma, method.sigmas[2])
    added = sqrt(method.sigmas[0] ** 2 - method.sigmas[2] ** 2 + up**2)
    assert float((after.x - before).std()) == pytest.approx(added, rel=4 / sqrt(2 * 12000))


@kinds
def test_that_chains_are_independent_to_the_last_bit(method):
    check_chains(replace(method, members=4, levels=6, travel=3, repeats=2), noisy(0.5))


def test_that_a_failed_chain_goes_on_unguided_and_harms_no_other():
    method = DDNM(members=4, levels=6)
    failed = check_failure(method, noisy(0.5))
    assert torch.equal(failed, unguided(method, noisy(0.5), 2))


@pytest.mark.parametrize(("plus", "calls"), [(False, 3 * 5 * 2 + 2), (True, 1 + 2)])
def test_that_calls_are_counted_exactly(plus, calls):
    problem = noisy(0.5)
    tree = enkg.run(
        enkg.Experiment(
            prior=problem.gaussian,
            simulator=problem.simulator,
            observation=measured(problem),
            guidance=DDNM(members=3, levels=5, travel=2, repeats=2, plus=plus),
            double=True,
            predict=2,
        )
    )
    assert int(values(tree, "trace", "calls")[-1]) == calls - 2
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 3 * 5 * 2
    assert f'"calls": {calls}' in tree.attrs["summary"]


def test_that_what_is_missing_is_told():
    problem, state = noisy(0.5), first_state(DDNM(), noisy(0.5))
    for method, word in ((DDNM(), "pseudo-inverse"), (DDNM(plus=True), "singular value")):
        with pytest.raises(MissingCapability, match=word):
            enkg.run(
                enkg.Experiment(
                    prior=problem.gaussian,
                    simulator=problem.simulate,
                    observation=measured(problem),
                    guidance=method,
                )
            )
    mask = torch.tensor([True, False, True])
    missing = enkg.Observation(problem.y, std=0.5, mask=mask)
    with pytest.raises(InputError, match="some are missing"):
        DDNM().step(state, problem.gaussian, problem.operator, missing)
    uneven = enkg.Observation(problem.y, std=torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="one standard deviation"):
        DDNM(plus=True).step(state, problem.gaussian, problem.operator, uneven)


@pytest.mark.parametrize("wrong", [{"eta": 0.5}, {"noise": "x"}, {"travel": 0}, {"repeats": 0}])
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        DDNM(**wrong)
