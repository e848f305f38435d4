"""DDRM by theory: its start, its three branches, its law, and the published rule's bias."""

import json
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.ddrm import DDRM
from enkg.guidance.restoration import components, drawn
from enkg.random import Stream
from enkg.sample import reverse_step
from tests.enkg.problems import LinearOperator, follow, values
from tests.enkg.restoring import (
    check_chains,
    commuting,
    first_state,
    measured,
    noisy,
    quality,
)

PUBLISHED = DDRM(noise="ddrm", eta=0.85)
rules = pytest.mark.parametrize("method", [DDRM(), PUBLISHED], ids=["ancestral", "ddrm"])


def test_that_data_along_the_singular_vectors_are_the_unknown_with_noise():
    problem = noisy(0.5)
    parts = components(problem.operator, measured(problem), problem.y)
    singular = torch.linalg.svdvals(problem.matrix)
    torch.testing.assert_close(parts.t, 0.5 / singular)
    x = torch.linalg.pinv(problem.matrix) @ problem.y
    torch.testing.assert_close(parts.of(x[None]), parts.y)
    torch.testing.assert_close(parts.data(x[None]), problem.forward(x[None]))


def test_that_an_offset_of_the_simulator_is_taken_off():
    problem = noisy(0.5)

    class Shifted(LinearOperator):
        def offset(self) -> torch.Tensor:
            return torch.full((3,), 7.0, dtype=torch.float64)

    shifted = enkg.Observation(problem.y + 7, std=0.5)
    one = components(Shifted(problem), shifted, problem.y)
    other = components(problem.operator, measured(problem), problem.y)
    torch.testing.assert_close(one.y, other.y)


def test_that_a_simulator_that_fails_at_zero_is_told():
    problem = noisy(0.5)

    class Failing(LinearOperator):
        def offset(self) -> torch.Tensor:
            return torch.full((3,), torch.nan, dtype=torch.float64)

    with pytest.raises(InputError, match="zero in the prior's numbers"):
        components(Failing(problem), measured(problem), problem.y)


def test_that_a_chain_starts_at_the_data_with_the_noise_that_is_left():
    # t = 1 / s = 2, 1, .5; the levels begin at 1.5, so that the first datum is too noisy to start.
    problem = commuting(1.0)
    method = DDRM(members=4000, sigma_max=1.5)
    state = first_state(method, problem)
    parts = components(problem.operator, measured(problem), state.x)
    x = method._begun(state, problem.gaussian, parts)
    assert torch.equal(x[:, 3:], state.x[:, 3:])
    torch.testing.assert_close(x[:, 0], state.x[:, 0])
    for i, t in ((1, 1.0), (2, 0.5)):
        exact = sqrt(1.5**2 - t**2)
        assert float(x[:, i].mean()) == pytest.approx(float(problem.y[i]) * t, abs=4 * exact / 63)
        assert float(x[:, i].std()) == pytest.approx(exact, rel=4 / sqrt(8000))


@rules
def test_that_a_step_is_the_formula_of_each_branch(method):
    """By hand, coordinate by coordinate: a datum above its noise, one below, and none."""
    problem, (sigma, to) = commuting(0.5), (1.0, 0.6)
    method = replace(method, members=3, levels=2, sigma_max=sigma, sigma_min=to, eta_b=0.7)
    state = replace(first_state(method, problem), step=0)
    operator, observation = problem.operator, measured(problem)
    parts = components(operator, observation, state.x)
    x = method._begun(state, problem.gaussian, parts)
    after, _ = method.step(state, problem.gaussian, operator, observation)
    d = problem.gaussian.denoise(x, sigma)
    z = drawn(state, problem.gaussian, Stream.SAMPLER)
    eta = sqrt(1 - 0.36) if method.noise == "ancestral" else 0.85
    kept = sqrt(1 - eta**2) * to
    free = d + kept * (x - d) / sigma + eta * to * z
    ybar, t = problem.y / torch.tensor([0.5, 1, 2]), torch.tensor([1.0, 0.5, 0.25]).double()
    low = free[:, :3]
    if method.noise == "ddrm":
        low = d[:, :3] + kept * (ybar - d[:, :3]) / t + eta * to * z[:, :3]
    torch.testing.assert_close(after.x[:, 3:], free[:, 3:])
    torch.testing.assert_close(after.x[:, 0], low[:, 0])
    high = 0.3 * d[:, :3] + 0.7 * ybar + (to**2 - 0.49 * t**2).clamp(min=0).sqrt() * z[:, :3]
    torch.testing.assert_close(after.x[:, 1:3], high[:, 1:])


def test_that_no_datum_means_the_ancestral_step():
    problem = commuting(0.5)
    method = DDRM(members=3, levels=5)
    operator, observation = problem.operator, measured(problem)
    states, _ = follow(method, problem.gaussian, operator, observation)
    for before, after in pairwise(states[1:]):
        d = problem.gaussian.denoise(before.x, before.sigma)
        moved, up = reverse_step(before.x, d, before.sigma, after.sigma)
        exact = moved + up * drawn(before, problem.gaussian)
        torch.testing.assert_close(after.x[:, 3:], exact[:, 3:])


def test_that_the_posterior_is_exact_where_prior_and_simulator_commute():
    """For noisy data. 400 chains: e .12, eigenvalues .77 to 1.26; and the levels' own narrowing."""
    error, eigenvalues = quality(DDRM(members=400, levels=120), commuting(0.5))
    assert error < 0.3
    assert eigenvalues.min() > 0.65
    assert eigenvalues.max() < 1.35


def test_that_the_published_rule_is_too_narrow():
    """The documented defect: the data's directions lose most of their spread, the others a part."""
    _, eigenvalues = quality(replace(PUBLISHED, members=400, levels=120), commuting(0.5))
    assert eigenvalues[:3].max() < 0.3
    assert eigenvalues[3:].max() < 0.95
    assert PUBLISHED.posterior_law is None
    assert DDRM().posterior_law is None


@rules
def test_that_chains_are_independent_to_the_last_bit(method):
    check_chains(replace(method, members=4, levels=6), noisy(0.5))


def test_that_the_simulator_is_asked_for_its_offset_alone():
    problem = noisy(0.5)
    seen = []

    def counting(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return problem.simulate(x)

    simulator = replace(problem.simulator, f=counting)
    tree = enkg.run(
        enkg.Experiment(
            prior=problem.gaussian,
            simulator=simulator,
            observation=measured(problem),
            guidance=DDRM(members=3, levels=5),
            double=True,
            predict=2,
        )
    )
    assert json.loads(tree.attrs["summary"])["calls"] == sum(seen) == 1 + 2
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 3
    assert int(values(tree, "trace", "vjps")[-1]) == 0
    assert values(tree, "trace", "misfit_per_datum")[-1] > 0


def test_that_what_is_missing_is_told():
    problem = noisy(0.5)
    bare = enkg.Experiment(
        prior=problem.gaussian,
        simulator=problem.simulate,
        observation=measured(problem),
        guidance=DDRM(),
    )
    with pytest.raises(MissingCapability, match="singular value decomposition"):
        enkg.run(bare)
    state = first_state(DDRM(), problem)
    uneven = enkg.Observation(problem.y, std=torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="one standard deviation"):
        DDRM().step(state, problem.gaussian, problem.operator, uneven)


@pytest.mark.parametrize("wrong", [{"eta": 1.1}, {"eta_b": -0.1}, {"noise": "both"}])
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        DDRM(**wrong)
