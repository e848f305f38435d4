"""Weighted EnKG: weights and kernels against closed forms, resampling, and the switch."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import enkg
from enkg import EnKG
from enkg.guidance import Polish, WeightedEnKG, weighted
from enkg.guidance.conditional import Sensitivity, Symmetric, gain
from enkg.guidance.particles import (
    effective_size,
    energy_coefficient,
    kernel,
    largest_power,
    systematic,
)
from enkg.guidance.weighted import WeightedState
from tests.enkg.problems import follow, normal, small_problem, whitened

PROBLEM = small_problem()
OBSERVATION = PROBLEM.observation


def exact_twist(state: WeightedState) -> Tensor:
    """log p(y | x_sigma), but for a constant."""
    c = PROBLEM.covariance
    noisy = c + state.sigma**2 * torch.eye(6, dtype=torch.float64)
    c = c - c @ torch.linalg.solve(noisy, c)
    values, vectors = torch.linalg.eigh(c)
    b = OBSERVATION.whiten(PROBLEM.matrix.T).T
    k = gain(Symmetric(vectors, values, 0.0), Sensitivity(b, torch.zeros(1, 3).double()))
    r = OBSERVATION.residual(PROBLEM.forward(PROBLEM.gaussian.denoise(state.x, state.sigma)))
    return k.log_density(r)


def test_that_weights_stay_what_they_are_for_a_gaussian_prior_and_a_linear_simulator():
    # The twisting function and the kernels are exact there, so no level changes the weights.
    method = WeightedEnKG(members=500, levels=3, effective=0.0, particles=1)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, OBSERVATION)
    first, *others = [
        state.log_weight[:, 0] + exact_twist(state)
        for state in states[:3]
        if isinstance(state, WeightedState)
    ]
    for other in others:
        assert float((other - first).std()) < 0.25


def test_that_the_kernel_and_its_density_are_the_gaussians_they_should_be():
    c = Symmetric(torch.linalg.qr(normal(6, 6, seed=1)).Q, torch.rand(6).double() + 0.1, 0.0)
    model = Sensitivity(PROBLEM.matrix, 0.3 * normal(50, 3, seed=2))
    k, levels, j = gain(c, model), (1.3, 0.8), 20_000
    x, denoised, r = normal(1, 6, seed=3), normal(1, 6, seed=4), normal(1, 3, seed=5)
    xs, ds, us = (v.expand(j, -1) for v in (x, denoised, k(r)))
    noise = [normal(j, 6, seed=6), normal(j, 6, seed=7), normal(j, 3, seed=8)]
    moved, increment = kernel(xs, ds, us, c, model.matrix, k, levels, noise)

    a = 1 - (0.8 / 1.3) ** 2
    eye = torch.eye(6, dtype=torch.float64)
    whole = c(eye)
    updated = whole - k(whole @ model.matrix.T)
    unguided = a * 0.8**2 * eye + a**2 * whole
    guided = a * 0.8**2 * eye + a**2 * 0.5 * (updated + updated.T)
    mean = x + a * (denoised - x)
    law = torch.distributions.MultivariateNormal
    target = law((mean + a * k(r))[0], guided)
    error, values = whitened(moved, target.mean, guided)
    assert error < 0.05
    assert values.min() > 0.95
    assert values.max() < 1.05
    exact = law(mean[0], unguided).log_prob(moved) - target.log_prob(moved)
    torch.testing.assert_close(increment, exact)


def test_that_resampling_keeps_every_expectation():
    weight = normal(50, seed=1)
    share = weight.softmax(0) * 50
    offsets = torch.linspace(0, 1, 401)[:-1]
    counts = torch.stack([systematic(weight, float(u)).bincount(minlength=50) for u in offsets])
    assert ((counts - share).abs() <= 1).all()
    torch.testing.assert_close(counts.double().mean(0), share, rtol=0, atol=0.01)
    everyone = systematic(torch.zeros(7).double(), 0.3)
    assert everyone.tolist() == list(range(7))
    assert systematic(torch.tensor([0.0, -1e9, 0.0]).double(), 0.3, 4).tolist() == [0, 0, 2, 2]


def test_that_the_largest_power_leaves_enough_members():
    weight = 30 * normal(100, seed=1)
    power = largest_power(weight, 20.0)
    assert effective_size(power * weight) >= 20 > effective_size(power / 0.8 * weight)
    assert largest_power(torch.zeros(9).double(), 8.0) == 1


def test_that_a_floor_delays_weights_and_loses_none(monkeypatch):
    # The power that a resampling takes and what it leaves to a member add up to the whole weight.
    taken, before = [], []
    original, twisted = weighted.systematic, weighted.kernel

    def draw(log_weight: Tensor, *rest):
        chosen = original(log_weight, *rest)
        taken.append((log_weight, chosen))
        return chosen

    def moved(*arguments):
        x, increment = twisted(*arguments)
        return x, torch.zeros_like(increment)

    def power(log_weight: Tensor, least: float) -> float:
        before.append(log_weight)
        return largest_power(log_weight, least)

    monkeypatch.setattr(weighted, "systematic", draw)
    monkeypatch.setattr(weighted, "kernel", moved)
    monkeypatch.setattr(weighted, "largest_power", power)
    method = WeightedEnKG(members=60, levels=2, particles=1, effective=1.0, floor=0.9)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, OBSERVATION)
    state = states[1]
    assert isinstance(state, WeightedState)
    (part, chosen), whole = taken[0], before[0]
    assert effective_size(whole) < 0.9 * 60 <= effective_size(part)
    left = whole[chosen] - part[chosen]
    torch.testing.assert_close(state.log_weight[:, 0], left - whole[chosen])


@pytest.mark.parametrize("particles", [1, 4])
def test_that_unseen_particles_get_the_answers_of_a_linear_simulator(particles, monkeypatch):
    # The innovations that are weighted are those of D itself, for every particle.
    asked = []
    original = weighted.kernel

    def spy(x, denoised, shift, c, b, k, *rest):
        r = OBSERVATION.residual(PROBLEM.forward(denoised))
        asked.append((shift, k(r)))
        return original(x, denoised, shift, c, b, k, *rest)

    monkeypatch.setattr(weighted, "kernel", spy)
    method = WeightedEnKG(members=80, levels=3, particles=particles, polish=Polish(1))
    follow(method, PROBLEM.gaussian, PROBLEM.forward, OBSERVATION)
    assert len(asked) == 2
    for found, exact in asked:
        assert len(found) == 80 * particles
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_that_particles_cost_denoiser_calls_alone_and_are_all_different():
    calls = []

    def forward(x: Tensor) -> Tensor:
        calls.append(len(x))
        return PROBLEM.forward(x)

    method = WeightedEnKG(members=20, levels=3, particles=5, polish=Polish(2))
    state = method.init(PROBLEM.gaussian, 0, torch.zeros(1).double())
    first = torch.cat([state.x[:, None], state.unseen], dim=1).flatten(0, 1)
    assert first.shape == (100, 6)
    assert len(first.unique(dim=0)) == 100
    states, infos = follow(method, PROBLEM.gaussian, forward, OBSERVATION)
    assert calls == [20] * 5
    assert len(infos) == method.sweeps
    assert states[-1].x.shape == (20, 6)


def test_that_a_failed_member_takes_its_particles_with_it():
    # Its answer is asked for by nobody: the other particles look to the nearest survivor.
    denoised = torch.tensor([[0.0], [0.9], [1.0], [2.1], [2.0], [0.1]]).double()
    living = torch.tensor([True, False, True])
    assert weighted._nearest(denoised, living, 2).tolist() == [0, 0, 1, 2, 2, 0]
    assert [g.tolist() for g in weighted._groups((4, 7, 2), living, 2, 1)] == [[4, 5, 0, 1]]
    assert weighted._nearest(denoised[::2], living, 1).tolist() == [0, 1, 2]


def test_that_particles_next_to_a_failed_member_have_no_weight():
    # The simulator fails for x_1 > 0: nobody may end there, however few can tell.
    def half(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[x[:, 0] > 0] = torch.nan
        return y

    method = WeightedEnKG(members=60, levels=6, particles=4, polish=Polish(0))
    states, infos = follow(method, PROBLEM.gaussian, half, OBSERVATION)
    assert states[-1].x.isfinite().all()
    failed = [float(info.evaluated[0][1].isnan().any(dim=1).double().mean()) for info in infos]
    assert failed[-1] < 0.3 * failed[0]


def test_that_the_effective_size_counts_members():
    assert effective_size(torch.zeros(9).double()) == pytest.approx(9)
    assert effective_size(torch.tensor([0.0, 0.0, -1e9]).double()) == pytest.approx(2)


def test_that_the_energy_coefficient_is_zero_for_equals_and_one_for_points_apart():
    halves = [torch.arange(400), torch.arange(400, 800)]
    same = normal(800, 5, seed=1)
    flat = torch.zeros(800, dtype=torch.float64)
    assert abs(energy_coefficient(same, flat, halves) or 0.0) < 0.02
    apart = torch.zeros(800, 5, dtype=torch.float64)
    apart[400:] = 1.0
    assert energy_coefficient(apart, flat, halves) == pytest.approx(1.0)
    # Weights count: all weight on members of one place makes the halves equal again.
    mixed = same.clone()
    mixed[:200] += 100.0
    weight = flat.clone()
    weight[:200] = -1e9
    assert abs(energy_coefficient(mixed, weight, halves) or 0.0) < 0.03
    assert energy_coefficient(same, flat, [torch.arange(1), torch.arange(1, 9)]) is None


def two_valleys() -> enkg.Mixture:
    """Two narrow modes of a mixture, 20 apart along the first of two unknowns."""
    centres = torch.tensor([[-10.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    kernel_variance = torch.full((2,), 0.25, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    return enkg.Mixture(centres, kernel_variance, zero, enkg.Identity((2,)))


def test_that_weights_give_the_modes_their_share():
    # y = x_1 / 20 + N(0, .5): exp(-(.5 - y)^2 / .5 + (.5 + y)^2 / .5) : 1 between the modes, about.
    y = torch.tensor([0.2], dtype=torch.float64)
    observation = enkg.Observation(y, std=0.5**0.5)
    forward = lambda x: x[:, :1].double() / 20  # noqa: E731
    method = WeightedEnKG(members=400)
    states, _ = follow(method, two_valleys(), forward, observation)
    odds = torch.exp(torch.tensor(((0.5 + 0.2) ** 2 - (0.5 - 0.2) ** 2) / (2 * 0.5)))
    right = float((states[-1].x[:, 0] > 0).double().mean())
    assert right == pytest.approx(float(odds / (1 + odds)), abs=0.1)


def run(agreement: float, forward=PROBLEM.forward, seed: int = 0):
    method = WeightedEnKG(
        members=40,
        levels=3,
        polish=Polish(2),
        agreement=agreement,
        tempered=EnKG(updates=2, polish=Polish(1)),
    )
    prior = PROBLEM.one_component
    return method, *follow(method, prior, forward, OBSERVATION, seed)


def test_that_halves_that_disagree_fall_back_to_the_tempered_enkg_and_say_so(monkeypatch):
    monkeypatch.setattr(weighted, "energy_coefficient", lambda *_: 0.7)
    method, states, infos = run(0.3, seed=1)
    states_of_tempered, _ = follow(
        replace(method.tempered, members=40),
        PROBLEM.one_component,
        PROBLEM.forward,
        OBSERVATION,
        seed=1,
    )
    torch.testing.assert_close(states[-1].x, states_of_tempered[-1].x)
    assert len(infos) == 3 + 2 + 1 == method.sweeps
    assert "disagree" in states[-1].remarks[0]
    assert [info.step for info in infos] == list(range(6))
    assert all(a.progress <= b.progress for a, b in pairwise(infos))


def test_that_halves_that_agree_say_how_well(monkeypatch):
    monkeypatch.setattr(weighted, "energy_coefficient", lambda *_: 0.2)
    method, states, infos = run(0.3)
    assert len(infos) == 3 + 2 < method.sweeps
    (said,) = states[-1].remarks
    assert said.endswith("agree (0.20 on a scale from 0 to 1, where 0.3 is allowed)")


def test_that_halves_that_agree_are_polished():
    method, states, infos = run(1.0)
    assert len(infos) == 3 + 2 == method.sweeps
    assert states[-1].remarks == ()
    assert isinstance(states[-1], WeightedState)
    assert states[-1].fallen is None


def test_that_few_survivors_are_enough():
    def few(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[5:] = torch.nan
        return y

    _, states, _ = run(1.0, few)
    assert all(state.x.isfinite().all() for state in states)


@pytest.mark.parametrize(
    "fields",
    [
        {"members": 3},
        {"levels": 0},
        {"effective": 2.0},
        {"particles": 0},
        {"floor": 1.0},
        {"agreement": 0.0},
        {"sigma_start": -1.0},
        {"sigma_end": 0.0},
    ],
)
def test_that_impossible_options_are_refused(fields):
    with pytest.raises(enkg.InputError):
        WeightedEnKG(**fields)
