"""SCG: unguided sampling with one candidate, choices by the misfit, chains that do not meet."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.errors import InputError
from enkg.guidance import METHODS, SCG, State
from enkg.random import Stream
from enkg.sample import ancestral, start
from enkg.schedule import vp
from tests.enkg.problems import DOUBLE, LinearGaussian, follow, small_problem

PROBLEM = small_problem()
SHORT = SCG(members=6, levels=16, candidates=5)


def last(method: SCG, problem: LinearGaussian = PROBLEM, forward=None, **others) -> State:
    forward = forward or problem.forward
    return follow(method, problem.gaussian, forward, problem.observation, **others)[0][-1]


@pytest.mark.parametrize("select", ["argmin", "softmax"])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5])
def test_that_one_candidate_is_unguided_sampling_to_the_last_bit(select, threshold):
    method = replace(SHORT, candidates=1, select=select, threshold=threshold)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    sigmas = [state.sigma for state in states]
    x = start(PROBLEM.gaussian, 80.0, 0, range(6), DOUBLE)
    assert torch.equal(states[0].x, x)
    x = ancestral(PROBLEM.gaussian, x, sigmas, 0, range(6))
    assert torch.equal(states[-1].x, x)


def test_that_one_candidate_samples_the_prior_at_every_level():
    # The error of the reverse SDE on 150 levels is about 5 % of the variance.
    method = SCG(members=500, levels=150, candidates=1)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    for state in states[::50]:
        expected = float(PROBLEM.covariance.trace()) + 6 * state.sigma**2
        assert float(state.x.var(0).sum()) == pytest.approx(expected, rel=0.15)


def test_that_the_state_keeps_its_noise_where_guidance_sets_in():
    # The fault of public code: the state of step 250 was replaced by its denoised mean.
    method = replace(METHODS["scg-navier-stokes"], members=200, candidates=1)
    assert isinstance(method, SCG)
    assert method.guided == range(250, 999)
    step, sigmas = method.guided.start, [*vp(1000).tolist(), 0.0]
    observation, prior = PROBLEM.observation, PROBLEM.gaussian
    x = start(prior, sigmas[step - 3], 0, range(200), DOUBLE)
    state = State(x, tuple(range(200)), 0, step=step - 3, sigma=sigmas[step - 3])
    ratios = []
    for _ in range(6):
        state, info = method.step(state, prior, PROBLEM.forward, observation)
        assert bool(info.evaluated) == (info.step >= step)
        ratios.append(float(state.x.var(0).mean().sqrt()) / state.sigma)
    assert sigmas[step + 1] == pytest.approx(16.9, abs=0.1)
    for before, after in pairwise(ratios):
        assert after == pytest.approx(before, rel=0.1)
    assert ratios[-1] == pytest.approx(1, rel=0.1)


def test_that_the_best_candidate_is_taken_and_its_noise_is_that_of_its_number():
    # One guided step by hand: all candidates, their clean estimates, the smallest misfit.
    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    sigma, to = 2.0, 1.2
    method = SCG(members=3, levels=2, candidates=7, sigma_max=sigma, sigma_min=to, threshold=0.0)
    state = method.init(prior, 4, DOUBLE)
    after, info = method.step(state, prior, PROBLEM.forward, observation)
    noise = random.normal((7, 6), 4, Stream.SAMPLER, range(3), 0)
    clean = prior.denoise(state.x, sigma)
    up = to * math.sqrt(1 - (to / sigma) ** 2)
    ahead = clean + (to / sigma) ** 2 * (state.x - clean)
    ahead = ahead[:, None] + up * noise
    phi = torch.stack([observation.misfit(PROBLEM.forward(prior.denoise(c, to))) for c in ahead])
    best = phi.argmin(dim=1)
    torch.testing.assert_close(after.x, ahead[torch.arange(3), best], rtol=1e-12, atol=1e-12)
    assert info.misfit == pytest.approx(float(2 * phi.min(dim=1).values.mean()) / 3)
    assert len(info.evaluated) == 7
    assert len(set(best.tolist())) > 1


@pytest.mark.parametrize("monotone", [torch.log, lambda phi: phi**3, lambda phi: 5 * phi + 2])
def test_that_the_best_candidate_stays_best_for_any_increasing_function(monotone, monkeypatch):
    plain = last(SHORT)
    misfit = enkg.Observation.misfit
    monkeypatch.setattr(enkg.Observation, "misfit", lambda self, y: monotone(misfit(self, y)))
    assert torch.equal(last(SHORT).x, plain.x)


def test_that_softmax_draws_by_the_likelihood():
    # Two candidates with Phi = 0 and log 3: the first is taken three times in four.
    method = SCG(members=4000, candidates=2, select="softmax")
    state = State(torch.zeros(4000, 1), tuple(range(4000)), 0)
    y = torch.tensor([0.0, math.sqrt(2 * math.log(3))], dtype=torch.float64)
    y = y.repeat(4000)[:, None]
    observation = enkg.Observation(torch.zeros(1, dtype=torch.float64), std=1.0)
    which, _, lost = method._chosen(state, state.members, y, observation)
    assert float(which.double().mean()) == pytest.approx(0.25, abs=0.02)  # three sigma
    assert not lost


def test_that_softmax_at_no_information_is_the_prior_and_far_data_are_the_best():
    method = replace(SHORT, members=1000, select="softmax", levels=8, candidates=3)
    final = last(method, forward=lambda x: torch.zeros(len(x), 3, dtype=torch.float64))
    unguided = last(replace(method, candidates=1))
    gap = (final.x.mean(0) - unguided.x.mean(0)) / unguided.x.std(0)
    assert float(gap.abs().max()) < 0.17  # four sigma
    far = replace(PROBLEM, noise=1e-8 * PROBLEM.noise)
    assert torch.equal(last(replace(SHORT, select="softmax"), far).x, last(SHORT, far).x)


def test_that_more_candidates_fit_the_data_better():
    fits = []
    for candidates in (1, 4, 32):
        x = last(SCG(members=40, levels=40, candidates=candidates)).x
        fits.append(PROBLEM.observation.misfit_per_datum(PROBLEM.forward(x)))
    assert fits[1] < 0.5 * fits[0]
    assert fits[2] < 0.5 * fits[1]


@pytest.mark.parametrize("select", ["argmin", "softmax"])
def test_that_a_chain_does_not_know_the_others(select):
    method = replace(SHORT, select=select)

    def some(state: State) -> State:
        return replace(state, x=state.x[[4, 1]], members=(4, 1))

    torch.testing.assert_close(
        last(method, change=some).x, last(method).x[[4, 1]], rtol=1e-12, atol=1e-12
    )


def test_that_candidates_that_fail_are_never_taken():
    def forward(x: Tensor) -> Tensor:
        y = PROBLEM.y + 100.0 + 0 * PROBLEM.forward(x)
        y[::5] = torch.nan  # candidate 0 of each chain; it would be the best
        y[3::5] = PROBLEM.y
        return y

    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    method = replace(SHORT, threshold=0.0)
    for select in ("argmin", "softmax"):
        state = replace(method, select=select).init(prior, 0, DOUBLE)
        after, info = method.step(state, prior, forward, observation)
        clean = info.evaluated[3][0]
        torch.testing.assert_close(prior.denoise(after.x, after.sigma), clean)
        assert after.remarks == ()
        assert info.misfit == 0


@pytest.mark.parametrize("select", ["argmin", "softmax"])
def test_that_a_chain_whose_candidates_all_fail_goes_on_unguided_and_says_so(select):
    def forward(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[5:10] = torch.nan
        return y

    method = replace(SHORT, select=select)
    states, infos = follow(method, PROBLEM.gaussian, forward, PROBLEM.observation)
    unguided = last(replace(SHORT, candidates=1))
    assert torch.equal(states[-1].x[1], unguided.x[1])
    assert len(states[-1].remarks) == 1
    assert "failed" in states[-1].remarks[0]
    assert all(info.misfit is not None for info in infos if info.evaluated)


def test_that_nobody_is_dropped():
    state = SHORT.init(PROBLEM.gaussian, 0, DOUBLE)
    assert SHORT.drop(state, torch.zeros(6, dtype=torch.bool)) is state


def test_that_a_run_counts_calls_and_denoisings():
    experiment = enkg.Experiment(
        prior=PROBLEM.gaussian,
        simulator=PROBLEM.simulate,
        observation=PROBLEM.observation,
        guidance=SHORT,
        double=True,
        predict=1,
    )
    trace = enkg.run(experiment)["trace"].to_dataset()
    assert SHORT.sweeps == 5 * (16 - 4 - 1)
    assert int(trace["calls"][-1]) == 6 * SHORT.sweeps
    denoised = int(trace["denoiser_calls"][-1])
    assert 6 * (16 + SHORT.sweeps) <= denoised <= 6 * (16 + SHORT.sweeps + 2)


@pytest.mark.parametrize(
    ("name", "candidates", "calls"),
    [
        ("scg-navier-stokes", 512, 749 * 512),
        ("scg-black-hole", 1024, 749 * 1024),
        ("scg-ffhq", 256, 749 * 256),
    ],
)
def test_that_the_presets_have_the_published_constants(name, candidates, calls):
    method = METHODS[name]
    assert isinstance(method, SCG)
    assert (method.candidates, method.levels, method.threshold) == (candidates, 1000, 0.25)
    assert method.sweeps == calls
    assert method.posterior_law is None
    assert not method.begins_at_prior


def test_that_an_euler_maruyama_step_is_the_published_one():
    prior, sigma, to = PROBLEM.gaussian, 2.0, 1.5
    method = SCG(
        members=4,
        levels=2,
        candidates=1,
        sigma_max=2.0,
        sigma_min=1.5,
        sampler="euler-maruyama",
        threshold=0.0,
    )
    state = method.init(prior, 0, DOUBLE)
    after, _ = method.step(state, prior, PROBLEM.forward, PROBLEM.observation)
    noise = random.normal((6,), 0, Stream.SAMPLER, range(4), 0)
    factor = 2 * sigma * (sigma - to)
    score = (prior.denoise(state.x, sigma) - state.x) / sigma**2
    expected = state.x + factor * score + math.sqrt(factor) * noise
    torch.testing.assert_close(after.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": 0},
        {"levels": 1},
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"select": "best"},
        {"sampler": "heun"},
        {"schedule": "vp"},
        {"members": 1},
        {"sigma_max": 0.001},
    ],
)
def test_that_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        SCG(**options)


def test_that_the_seed_decides():
    assert torch.equal(last(SHORT, seed=3).x, last(SHORT, seed=3).x)
    assert not torch.equal(last(SHORT, seed=3).x, last(SHORT, seed=4).x)
