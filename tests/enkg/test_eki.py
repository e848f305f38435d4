"""The flows of ensemble Kalman inversion against their closed forms."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from enkg import ESMDA
from enkg.ensemble import anomalies
from enkg.errors import InputError
from enkg.guidance import EKI, METHODS, EKIPublished, Guidance, Info, State
from tests.enkg.problems import LinearGaussian, follow, small_problem, smooth_problem, whitened

PROBLEM = small_problem()
EXACT_START = 2500


def flow(method: Guidance, problem: LinearGaussian = PROBLEM) -> tuple[list[State], list[Info]]:
    return follow(method, problem.gaussian, problem.forward, problem.observation)


def sample_moments(method: EKI) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample mean and covariance before and after a run."""
    states, _ = flow(method)
    first, last = states[0].x, states[-1].x
    return first.mean(0), torch.cov(first.T), last.mean(0), torch.cov(last.T)


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
@pytest.mark.parametrize("members", [5, 30])
def test_that_half_residual_is_kalman_of_the_sample_at_any_number_of_steps(steps, members):
    # Also with fewer members than unknowns: the flow of the sample moments is closed.
    mean, covariance, after, spread = sample_moments(EKI(members=members, most_steps=steps))
    a, gamma = PROBLEM.matrix, PROBLEM.noise
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + gamma)
    expected = mean + gain @ (PROBLEM.y - a @ mean)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(spread, covariance - gain @ a @ covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_that_own_residual_counts_the_precision_twice(steps):
    method = EKI(members=30, residual="own", most_steps=steps)
    assert method.posterior_law is None
    mean, covariance, after, spread = sample_moments(method)
    a, gamma = PROBLEM.matrix, PROBLEM.noise
    precision = torch.linalg.inv(covariance) + 2 * a.T @ torch.linalg.inv(gamma) @ a
    torch.testing.assert_close(spread, torch.linalg.inv(precision), rtol=1e-8, atol=1e-8)
    # The mean lags behind that of its covariance: (I + 2 M)^(-1/2) of the innovation is left.
    root = torch.linalg.cholesky(gamma)
    white = torch.linalg.solve_triangular(root, a, upper=False)
    v, q = torch.linalg.eigh(white @ covariance @ white.T)
    left = torch.linalg.solve_triangular(root, (PROBLEM.y - a @ mean)[:, None], upper=False)[:, 0]
    left = q @ ((1 + 2 * v).rsqrt() * (q.T @ left))
    found = torch.linalg.solve_triangular(root, (PROBLEM.y - a @ after)[:, None], upper=False)[:, 0]
    torch.testing.assert_close(found, left, rtol=1e-8, atol=1e-8)


def test_that_own_residual_misses_the_posterior():
    states, _ = flow(EKI(members=EXACT_START, residual="own"))
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert eigenvalues.min() == pytest.approx(0.5, abs=0.05)
    assert error > 0.3


@pytest.mark.parametrize("residual", ["half", "own"])
def test_that_euler_tends_to_the_closed_flow_at_first_order(residual):
    method = EKI(members=20, residual=residual, most_steps=5000)
    exact = flow(method)[0][-1].x
    gaps = [
        float((flow(replace(method, solver="euler", fraction=f))[0][-1].x - exact).norm())
        for f in (0.1, 0.05)
    ]
    assert gaps[0] < 0.1 * float(anomalies(exact).norm())
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.25)


@pytest.mark.parametrize("solver", ["linearised", "euler"])
def test_that_steps_keep_the_bound_and_end_at_one(solver):
    _, infos = flow(EKI(members=40, solver=solver, most_steps=1000))
    for info in infos:
        y = info.evaluated[0][1]
        trace = float(anomalies(PROBLEM.observation.residual(y)).square().sum()) / 39
        assert info.power <= 1 / trace * (1 + 1e-12)
    assert infos[-1].beta == 1.0
    assert sum(info.power for info in infos) == pytest.approx(1, abs=1e-12)


def test_that_too_few_steps_lengthen_geometrically_and_end_at_one():
    problem = smooth_problem()
    _, all_steps = flow(EKI(members=100), problem)
    states, infos = flow(EKI(members=100, most_steps=8), problem)
    assert len(all_steps) > 20
    assert len(infos) == 8
    assert infos[-1].beta == 1.0
    assert states[-1].remarks == ()
    times = [info.beta for info in infos]
    ratios = [b / a for a, b in pairwise(times)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.3)


def test_that_euler_with_too_few_steps_ends_early_and_says_so():
    states, infos = flow(EKI(members=100, solver="euler", most_steps=3))
    assert states[-1].finished
    assert infos[-1].beta < 0.5
    assert infos[-1].beta == pytest.approx(sum(info.power for info in infos))
    assert len(states[-1].remarks) == 1
    assert "most_steps" in states[-1].remarks[0]


def test_that_euler_has_its_law_for_small_steps():
    states, _ = flow(EKI(members=EXACT_START, solver="euler", fraction=0.05, most_steps=1000))
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.9
    assert eigenvalues.max() < 1.1


def test_that_the_number_of_steps_follows_the_estimate():
    # About m log(1 + tr / m) / fraction, to a factor of two.
    problem = smooth_problem()
    _, infos = flow(EKI(members=200), problem)
    r = problem.observation.residual(infos[0].evaluated[0][1])
    trace = float(anomalies(r).square().sum()) / 199
    expected = 16 * math.log(1 + trace / 16)
    assert 0.5 * expected < len(infos) < 2 * expected


@pytest.mark.parametrize("name", ["eki-one-step", "es-mda", "es-mda-16", "es-mda-geometric"])
def test_that_the_presets_of_es_mda_sample_the_posterior(name):
    method = METHODS[name]
    assert isinstance(method, ESMDA)
    assert method.sweeps == {"eki-one-step": 1, "es-mda": 4, "es-mda-16": 16}.get(name, 5)
    states, _ = flow(replace(method, members=EXACT_START))
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


def test_that_the_published_step_is_its_formula():
    method = EKIPublished(members=20, updates=1, step_size=1.5)
    states, infos = flow(method)
    x, y = infos[0].evaluated[0]
    error = y - PROBLEM.y
    c = error @ anomalies(y).T / 20
    expected = x - 1.5 / c.norm() * c @ anomalies(x)
    torch.testing.assert_close(states[-1].x, expected, rtol=1e-12, atol=1e-12)
    assert method.posterior_law is None


def test_that_the_published_scheme_stays_in_the_span_and_collapses():
    states, _ = flow(replace(METHODS["eki-published"], members=5))
    assert METHODS["eki-published"].sweeps == 500
    first, last = states[0].x, states[-1].x
    _, _, span = torch.linalg.svd(anomalies(first), full_matrices=False)
    shift = last - first.mean(0)
    outside = shift - shift @ span[:4].T @ span[:4]
    assert float(outside.abs().max()) < 1e-8 * float(shift.abs().max())
    seen = torch.cov((last @ PROBLEM.matrix.T).T).trace()
    assert float(seen) < 0.01 * float(torch.cov((first @ PROBLEM.matrix.T).T).trace())


def test_that_a_member_that_blew_up_does_not_stop_the_flow():
    def forward(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[3] = torch.nan
        return y

    states, _ = follow(EKI(members=20), PROBLEM.gaussian, forward, PROBLEM.observation)
    assert states[-1].beta == 1.0
    assert bool(states[-1].x.isfinite().all())


@pytest.mark.parametrize(
    "options",
    [
        {"residual": "third"},
        {"solver": "magic"},
        {"fraction": 0},
        {"fraction": 2},
        {"most_steps": 0},
    ],
)
def test_that_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        EKI(**options)
    with pytest.raises(InputError):
        EKIPublished(updates=0)


def test_that_noise_decides_the_flow_but_not_the_published_scheme():
    noisier = replace(PROBLEM, noise=9 * PROBLEM.noise)
    x, other = (flow(EKI(members=30), p)[0][-1].x for p in (PROBLEM, noisier))
    assert float(other.var(0).sum()) > 1.1 * float(x.var(0).sum())
    method = EKIPublished(members=30, updates=3)
    x, other = (flow(method, p)[0][-1].x for p in (PROBLEM, noisier))
    assert torch.equal(x, other)
