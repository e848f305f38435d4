"""DAPS: stationary variances, the affine recursion, the exact posterior, faults and counts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.guidance.daps import DAPS, WalkState
from enkg.random import Stream
from tests.enkg.problems import (
    LinearGaussian,
    LinearOperator,
    follow,
    small_problem,
    whitened,
)

PROBLEM = small_problem()
INDEPENDENT = enkg.Observation(PROBLEM.y, std=torch.tensor([0.3, 0.5, 0.7]).double())
MOVES = {
    "langevin": DAPS(move="langevin", steps=60),
    "hmc": DAPS(move="hmc", steps=50),
    "metropolis": DAPS(move="metropolis", steps=150),
}
SMALL = {
    "langevin": DAPS(members=6, levels=3, steps=7),
    "langevin-none": DAPS(members=6, levels=3, steps=7, correction="none"),
    "langevin-published": DAPS(
        members=6, levels=3, steps=7, correction="none", step_size=1e-3, decay=0.01, start="clean"
    ),
    "hmc": DAPS(members=6, levels=3, steps=7, move="hmc", leapfrog=3),
    "hmc-none": DAPS(members=6, levels=3, steps=7, move="hmc", correction="none", step_size=1e-3),
    "metropolis": DAPS(members=6, levels=3, steps=7, move="metropolis"),
    "local": DAPS(members=6, levels=3, steps=7, radius="local", estimate="flow"),
}
every_move = pytest.mark.parametrize("move", MOVES)
every_small = pytest.mark.parametrize("name", SMALL)


def line(variance: float, tau: float) -> LinearGaussian:
    """One unknown that is measured itself: y = x + tau n = .3."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return LinearGaussian(torch.zeros(1).double(), variance * one, one, tau**2 * one, 0.3 * one[0])


def isotropic(variance: float) -> LinearGaussian:
    covariance = variance * torch.eye(6, dtype=torch.float64)
    return replace(PROBLEM, covariance=covariance)


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
def test_that_langevin_without_a_prior_has_the_variance_of_its_step(c):
    # tau^2 / (1 - c / 2), c = h / tau^2; with |y - G|^2 over tau^2, not 2 tau^2, it is half of it.
    tau, problem = 0.1, line(1e12, 0.1)
    method = DAPS(
        members=8000, levels=1, steps=60, sigma_max=1e5, sigma_min=1e5, correction="none",
        step_size=c * tau**2, radius="sigma", start="clean",
    )  # fmt: skip
    near = replace(problem, covariance=0.0 * problem.covariance)  # the clean estimate is 0
    states, _ = follow(method, near.gaussian, problem.operator, problem.observation)
    x = states[-1].x
    # Eight thousand draws: standard error of a variance 1.6 per cent.
    assert float(x.var()) == pytest.approx(tau**2 / (1 - c / 2), rel=0.05)
    assert float(x.mean()) == pytest.approx(0.3, abs=4 * tau / 8000**0.5 / (1 - c / 2) ** 0.5)


@every_move
def test_that_corrected_chains_have_the_law_of_the_potential(move):
    # Prior N(0, .04) around D and r = s: variance 1 / (1 / tau^2 + 1 / s^2), with s = .2.
    problem = line(0.0, 0.1)
    method = replace(
        MOVES[move], members=4000, levels=1, steps=60, sigma_max=0.2, sigma_min=0.2, radius="sigma"
    )
    states, _ = follow(method, problem.gaussian, problem.operator, problem.observation)
    exact = 1 / (1 / 0.1**2 + 1 / 0.2**2)
    x = states[-1].x
    assert float(x.var()) == pytest.approx(exact, rel=4 * (2 / 4000) ** 0.5)
    assert float(x.mean()) == pytest.approx(0.3 * exact / 0.01, abs=4 * (exact / 4000) ** 0.5)


@every_move
def test_that_the_posterior_of_an_isotropic_prior_is_exact(move):
    problem = isotropic(0.7)
    method = replace(MOVES[move], members=400, levels=10, sigma_max=8.0)
    states, _ = follow(method, problem.gaussian, problem.operator, problem.observation)
    error, eigenvalues = whitened(states[-1].x, *problem.posterior)
    # An exact ensemble has sqrt(6 / 400) = .12 and (1 +- .12)^2 = .77 to 1.26.
    assert error < 0.27
    assert eigenvalues.min() > 0.68
    assert eigenvalues.max() < 1.4


@pytest.mark.parametrize(("radius", "estimate"), [("sigma", "flow"), ("matched", "denoiser")])
def test_that_the_covariance_obeys_the_affine_recursion(radius, estimate):
    method = DAPS(
        members=600, levels=4, move="hmc", steps=120, radius=radius, estimate=estimate,
        sigma_max=3.0, sigma_min=0.3, variance=0.8, leapfrog=10,
    )  # fmt: skip
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    mean, covariance = _recursion(method)
    error, eigenvalues = whitened(states[-1].x, mean, covariance)
    assert error < 0.2
    assert eigenvalues.min() > 0.78
    assert eigenvalues.max() < 1.3


def _recursion(method: DAPS) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the result, from the docstring's law."""
    eye, a = torch.eye(6, dtype=torch.float64), PROBLEM.matrix
    gamma = torch.linalg.inv(PROBLEM.noise)
    mean = PROBLEM.mean
    covariance = PROBLEM.covariance + method.sigmas[0] ** 2 * eye
    for sigma, to in zip(method.sigmas, method.sigmas[1:], strict=False):
        images = method._clean(PROBLEM.gaussian, torch.cat([0 * eye[:1], eye]), sigma)
        m, b = (images[1:] - images[0]).T, images[0]
        s2 = 0.8
        squared = sigma**2 if method.radius == "sigma" else s2 * sigma**2 / (s2 + sigma**2)
        q = torch.linalg.inv(a.T @ gamma @ a + eye / squared)
        mean = q @ (a.T @ gamma @ PROBLEM.y + (m @ mean + b) / squared)
        covariance = q @ m @ covariance @ m.T @ q / squared**2 + q + to**2 * eye
    return mean, covariance


def test_that_the_published_radius_and_flow_inflate_what_the_data_do_not_see():
    method = DAPS(members=400, levels=8, steps=50, radius="sigma", estimate="flow", move="hmc")
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    _, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert eigenvalues.max() > 1.5


def test_that_local_radius_is_the_mean_variance_of_what_the_denoiser_leaves():
    method = DAPS(radius="local", probes=400)
    prior, sigma = PROBLEM.gaussian, 0.6
    state = replace(method.init(prior, 0, torch.empty(0).double()), sigma=sigma)
    s = PROBLEM.covariance
    exact = sigma**2 * float((s @ torch.linalg.inv(s + sigma**2 * torch.eye(6))).trace()) / 6
    found = method._squared(state, prior, sigma)
    assert found.numpy() == pytest.approx(exact, rel=4 * (2 / 6 / 400) ** 0.5)


def test_that_metropolis_needs_nothing_but_answers():
    assert DAPS(move="metropolis").needs == ()
    assert DAPS().needs == DAPS(move="hmc").needs == ("vjp",)
    method = DAPS(members=4, levels=2, steps=3, move="metropolis")
    follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)


@every_small
def test_that_calls_are_counted_exactly(name):
    method, op = SMALL[name], PROBLEM.operator
    follow(method, PROBLEM.gaussian, op, INDEPENDENT)
    assert op.calls == 6 * method.sweeps
    assert op.vjps == (0 if name == "metropolis" else op.calls)


@pytest.mark.parametrize("move", ["langevin", "hmc"])
def test_that_the_step_is_measured_once_and_carried_on(move):
    method = DAPS(members=6, levels=30, steps=5, move=move, sigma_max=8.0)
    op = PROBLEM.operator
    states, _ = follow(method, PROBLEM.gaussian, op, INDEPENDENT)
    assert op.calls == 6 * (30 * (5 + 1) + method.power_iterations)
    ends = [state for state in states[1:-1] if isinstance(state, WalkState)]
    assert len(ends) == 29
    # Near the stability limit 2 / L of its level, at every level, give or take what the
    # acceptance of five proposals says.
    precision = PROBLEM.matrix.T @ torch.diag(INDEPENDENT.std.double() ** -2) @ PROBLEM.matrix
    largest = float(torch.linalg.eigvalsh(precision).max())
    for state, sigma in zip(ends, method.sigmas, strict=False):
        assert state.scale is not None
        s2 = state.variance
        limit = 2 / (largest + 1 / (s2 * sigma**2 / (s2 + sigma**2)))
        assert 0.05 < float(state.scale.median()) / limit < 5.0


@every_small
def test_that_a_chain_is_the_same_alone_and_among_others(name):
    whole, _ = follow(SMALL[name], PROBLEM.gaussian, PROBLEM.operator, INDEPENDENT)
    more = replace(SMALL[name], members=9)
    others, _ = follow(more, _RowByRow(PROBLEM.gaussian), PROBLEM.operator, INDEPENDENT)
    by_row, _ = follow(SMALL[name], _RowByRow(PROBLEM.gaussian), PROBLEM.operator, INDEPENDENT)
    assert torch.equal(others[-1].x[:6], by_row[-1].x)
    assert torch.allclose(whole[-1].x, by_row[-1].x, rtol=1e-6)


@every_small
def test_that_a_dead_chain_leaves_the_others_as_they_are_and_goes_on(name):
    def failing(x: Tensor) -> Tensor:
        y = torch.from_numpy(PROBLEM.simulate(x.numpy()))
        y[2] = torch.nan
        return y

    prior = _RowByRow(PROBLEM.gaussian)
    healthy, _ = follow(SMALL[name], prior, PROBLEM.operator, INDEPENDENT)
    harmed, infos = follow(SMALL[name], prior, LinearOperator(PROBLEM, failing), INDEPENDENT)
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(harmed[-1].x[keep], healthy[-1].x[keep])
    assert bool(harmed[-1].x.isfinite().all())
    assert all(info.misfit is not None for info in infos)


def test_that_a_step_that_is_much_too_long_loses_no_chain():
    method = DAPS(members=4, levels=3, steps=200, correction="none", step_size=1e3)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    assert bool(states[-1].x.isfinite().all())


def test_that_step_and_noise_of_the_options_are_used_as_published():
    # One level and one step from c: x = c - h (A^T (A c - y) / tau^2) + sqrt(2 h) n.
    method = DAPS(
        members=2, levels=2, steps=1, sigma_max=2.0, sigma_min=1.0, correction="none",
        step_size=1e-4, decay=0.01, radius="sigma", start="clean", noise=0.05,
    )  # fmt: skip
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    first, last = states[1], states[2]
    clean = PROBLEM.gaussian.denoise(first.x, 1.0)
    h = 1e-4 * (1 + 0.5 * (0.01 - 1))
    misfit = (clean @ PROBLEM.matrix.T - PROBLEM.y) @ PROBLEM.matrix / 0.05**2
    n = random.normal((6,), 0, Stream.LANGEVIN, [0, 1], 1)
    assert torch.allclose(last.x, clean - h * misfit + (2 * h) ** 0.5 * n, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"move": "gibbs"},
        {"radius": "exact"},
        {"steps": 0},
        {"step_size": -1.0},
        {"momentum": 1.0},
        {"move": "hmc", "steps": 2},
    ],
)
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(enkg.InputError):
        DAPS(**wrong)


class _RowByRow:
    """A prior whose last bits do not depend on who shares the batch."""

    def __init__(self, prior: enkg.Gaussian) -> None:
        self.prior, self.shape = prior, prior.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return torch.cat([self.prior.denoise(row[None], sigma) for row in x])

    def draw(self, seed: int, members: object, step: int) -> Tensor:
        return torch.cat([self.prior.draw(seed, [j], step) for j in members])  # type: ignore


def test_that_a_published_noise_takes_no_counts():
    counts = enkg.Poisson(torch.tensor([3.0, 0.0, 7.0]))
    method = replace(enkg.METHODS["daps-paper-hdr"], members=2)
    with pytest.raises(enkg.InputError, match="observation is a Poisson; give noise=None"):
        follow(method, PROBLEM.gaussian, PROBLEM.operator, counts)
