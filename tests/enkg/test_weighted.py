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
from enkg.guidance.particles import effective_size, energy_coefficient, kernel, systematic
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
    method = WeightedEnKG(members=500, levels=3, effective=0.0)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, OBSERVATION)
    first, *others = [
        state.log_weight + exact_twist(state)
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
    many = [v.expand(j, -1) for v in (x, denoised, k(r))]
    noise = [normal(j, 6, seed=6), normal(j, 6, seed=7), normal(j, 3, seed=8)]
    moved, increment = kernel(*many, c, model.matrix, k, levels, noise)

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


def test_that_halves_that_agree_are_polished():
    method, states, infos = run(1.0)
    assert len(infos) == 3 + 2 == method.sweeps
    assert states[-1].remarks == ()
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
        {"agreement": 0.0},
        {"sigma_start": -1.0},
        {"sigma_end": 0.0},
    ],
)
def test_that_impossible_options_are_refused(fields):
    with pytest.raises(enkg.InputError):
        WeightedEnKG(**fields)
