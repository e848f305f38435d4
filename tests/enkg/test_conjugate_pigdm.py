"""C-PiGDM by theory: its coefficients, its flow, its few steps."""

from dataclasses import replace
from itertools import pairwise
from math import exp, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError
from enkg.guidance.conjugate_pigdm import ConjugatePiGDM, _coefficients, logarithm
from tests.enkg.problems import LinearGaussian, LinearOperator, follow, normal, small_problem

STD = 0.3
EYE = torch.eye(3, dtype=torch.float64)
PROBLEM = replace(small_problem(), noise=STD**2 * EYE)
OBSERVATION = enkg.Observation(PROBLEM.y, std=STD)


def integrand(sigma: Tensor, s: float, std: float, weight: float) -> Tensor:
    """q k of the linear term."""
    q = weight * sigma / (1 + sigma**2)
    return q * sigma**2 * s**2 / (sigma**2 * s**2 + std**2 * (1 + sigma**2))


def by_euler(
    problem: LinearGaussian, x: np.ndarray, levels: list[float], weight: float, std: float
) -> np.ndarray:
    """Euler's rule for the flow of the method, in dense matrices; x: (J, d)."""
    matrix, mean = problem.matrix.numpy(), problem.mean.numpy()
    _, s, right = np.linalg.svd(matrix, full_matrices=False)
    inverted = np.linalg.pinv(matrix) @ problem.y.numpy()
    variance, basis = np.linalg.eigh(problem.covariance.numpy())
    for sigma, to in pairwise(levels):
        jacobian = (basis * (variance / (variance + sigma**2))) @ basis.T
        clean = mean + (x - mean) @ jacobian
        gain = s**2 * sigma**2 / (s**2 * sigma**2 + std**2 * (1 + sigma**2))
        pull = (inverted - clean) @ (right.T * gain) @ right @ jacobian
        x = x + (to - sigma) * ((x - clean) / sigma - weight * sigma / (1 + sigma**2) * pull)
    return x


def by_method(method: ConjugatePiGDM) -> tuple[np.ndarray, np.ndarray]:
    """The start, A^+ y included, and the result."""
    operator = PROBLEM.operator
    states, _ = follow(method, PROBLEM.gaussian, operator, OBSERVATION)
    start = states[0].x + operator.pinv(PROBLEM.y[None])
    return start.numpy(), states[-1].x.numpy()


def distance(steps: int, fine: int, **fields) -> float:
    """Largest difference to Euler's rule."""
    method = ConjugatePiGDM(members=3, levels=steps, **fields)
    start, found = by_method(method)
    levels = replace(method, levels=fine).sigmas
    std = STD if method.noise_std is None else method.noise_std
    return float(np.abs(found - by_euler(PROBLEM, start, levels, method.weight, std)).max())


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_that_the_new_coordinates_take_the_linear_term_out(std, s):
    weight, singular = 4.0, torch.tensor([s], dtype=torch.float64)
    u = torch.linspace(0, 3, 20001, dtype=torch.float64)[1:]
    values = logarithm(u, singular, std, weight)[:, 0]
    exact = -torch.cumulative_trapezoid(integrand(u, s, std, weight), u)
    assert torch.allclose(values[1:] - values[0], exact, atol=1e-6)
    assert abs(float(logarithm(u[:1] * 0, singular, std, weight))) < 1e-12


def test_that_without_noise_the_coordinates_are_a_power():
    s, sigma = torch.tensor([0.5, 0.0]).double(), torch.tensor([2.0]).double()
    found = logarithm(sigma, s, 0.0, 3.0).exp()[0]
    assert torch.allclose(found, torch.tensor([5.0**-1.5, 1.0]).double())


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_that_without_a_shift_the_closed_form_is_the_integral(std):
    s = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)
    closed = _coefficients(1.0, 0.7, s, std, 4.0, 0.0)
    integrals = _coefficients(1.0, 0.7, s, std, 4.0, 1e-9)
    for a, b in zip(closed.four, integrals.four, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_that_one_step_is_the_formula_by_hand():
    """One datum of one unknown, without noise: prior N(0, 1), G(x) = 2 x, y = 3, w = 4."""
    one = torch.eye(1, dtype=torch.float64)
    problem = LinearGaussian(
        torch.zeros(1).double(), one, 2 * one, one, torch.tensor([3.0]).double()
    )
    method = ConjugatePiGDM(members=2, levels=2, noise_std=0.0)
    states, _ = follow(method, problem.gaussian, problem.operator, enkg.Observation([3.0], std=1.0))
    sigma, to = method.sigmas[:2]
    x = states[0].x + 1.5
    clean, jacobian = x / (1 + sigma**2), 1 / (1 + sigma**2)
    here, there = (1 + sigma**2) ** -2, (1 + to**2) ** -2
    u = np.linspace(sigma, to, 200001)
    curved = float(np.trapezoid((1 + u**2) ** -2 * 4 * u**2 / (1 + u**2), u))
    pull = (1 - jacobian) / sigma * (1.5 - clean)
    noise = (x - clean) / sigma
    moved = here * x + (to * there - sigma * here) * noise + (there - here) * 1.5 + curved * pull
    assert torch.allclose(states[1].x, moved / there, atol=1e-4)


def test_that_the_levels_are_equal_steps_of_forward_time():
    levels = ConjugatePiGDM(levels=4, sigma_max=sqrt(exp(9.95 * 0.16 + 0.04) - 1)).sigmas
    exact = [sqrt(exp(9.95 * t**2 + 0.1 * t) - 1) for t in (0.4, 0.3, 0.2, 0.1, 0.0)]
    assert levels == pytest.approx(exact)


@pytest.mark.parametrize("weight", [4.0, 15.0])
def test_that_fine_steps_follow_the_flow(weight):
    """First order in the step: 400 steps are ten times as far as 4,000."""
    assert distance(400, 8000, weight=weight) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("noise_std", [None, 0.0])
@pytest.mark.parametrize("weight", [4.0, 15.0])
def test_that_finer_steps_follow_the_flow_to_a_thousandth(weight, noise_std):
    assert distance(4000, 40_000, weight=weight, noise_std=noise_std) < 1e-3


@pytest.mark.parametrize("fields", [{"noise_std": 0.0}, {"shift": -0.15}, {"weight": 15.0}])
def test_that_the_error_falls_as_the_step(fields):
    coarse, fine = (distance(n, 4000, **fields) for n in (20, 80))
    assert 2.5 < coarse / fine < 6


def test_that_on_few_karras_levels_the_conjugate_step_is_the_better_one():
    method = ConjugatePiGDM(members=3, levels=5, schedule="karras", sigma_min=0.01)
    start, found = by_method(method)
    fine = by_euler(PROBLEM, start, replace(method, levels=4000).sigmas, method.weight, STD)
    plain = by_euler(PROBLEM, start, method.sigmas, method.weight, STD)
    assert np.abs(found - fine).mean() < np.abs(plain - fine).mean()


def test_that_a_surrogate_that_is_the_inverse_takes_the_same_steps():
    """A permutation has singular values one, and its inverse is no surrogate."""
    turn = torch.eye(6, dtype=torch.float64)[[3, 0, 5, 1, 4, 2]]
    y = turn @ normal(6, seed=5)
    problem = replace(PROBLEM, matrix=turn, y=y, noise=STD**2 * torch.eye(6).double())
    observation = enkg.Observation(y, std=STD)
    found = []
    by_svd = ConjugatePiGDM(members=4, levels=6, shift=-0.2)
    for method, sweeps in ((by_svd, 1), (replace(by_svd, inverse="pinv"), 3)):
        operator = problem.operator
        states, _ = follow(method, problem.gaussian, operator, observation)
        found.append(states[-1].x)
        assert operator.calls == method.sweeps * 4 == sweeps * 6 * 4
        assert method.needs == (method.inverse,)
        assert operator.vjps == 0
        assert len(states[0].remarks) == (method.inverse == "pinv")
    assert torch.allclose(*found, atol=1e-9)


class Recorded:
    """A prior that keeps what its denoiser is asked."""

    def __init__(self, prior) -> None:
        self.prior, self.shape, self.asked = prior, prior.shape, []

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.asked.append(x)
        return self.prior.denoise(x, sigma)

    def __getattr__(self, name: str):
        return getattr(self.prior, name)


def sloping(*s: float) -> LinearGaussian:
    """Prior N(0, I), three data with these singular values, of three of six unknowns."""
    matrix = torch.zeros(3, 6, dtype=torch.float64)
    matrix[range(3), range(3)] = torch.tensor(s, dtype=torch.float64)
    y = torch.tensor([1.0, -0.6, 0.9], dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)
    return LinearGaussian(torch.zeros(6).double(), eye, matrix, STD**2 * EYE, y)


def started(method: ConjugatePiGDM, problem: LinearGaussian) -> tuple[Tensor, Tensor]:
    """What the start adds to the noise, and the result, of each chain."""
    prior = Recorded(problem.gaussian)
    states, _ = follow(method, prior, problem.operator, enkg.Observation(problem.y, std=STD))
    first = prior.asked[-method.levels] - states[0].x
    return first, states[-1].x


def test_that_what_noise_hides_starts_as_what_the_simulator_does_not_see():
    edge = STD / 2.03  # noise of the inverse at the level of the start
    problem = sloping(1.0, 1.01 * edge, 0.99 * edge)
    whole = torch.linalg.pinv(problem.matrix) @ problem.y
    method = ConjugatePiGDM(members=2, levels=3)
    found, _ = started(method, problem)
    seen = torch.where(torch.arange(6) < 2, whole, 0.0)
    assert whole[2].abs() > 1
    torch.testing.assert_close(found, seen.expand(2, 6), rtol=1e-10, atol=1e-10)
    for fields in ({"start": "published"}, {"noise_std": 0.0}):
        found, _ = started(replace(method, **fields), problem)
        torch.testing.assert_close(found, whole.expand(2, 6), rtol=1e-10, atol=1e-10)


def test_that_a_surrogate_hidden_by_its_noise_is_not_where_the_chains_start():
    problem = sloping(1.0, 1.0, 1.0)
    method = ConjugatePiGDM(members=2, levels=3, inverse="pinv", noise_std=2.0)
    seen = torch.linalg.pinv(problem.matrix) @ problem.y
    torch.testing.assert_close(started(method, problem)[0], seen.expand(2, 6))
    assert not started(replace(method, noise_std=2.1), problem)[0].any()


def test_that_small_singular_values_do_not_throw_the_result_off():
    """Unguided, the flow of N(0, 1) shrinks any start by sqrt(1 + sigma_max^2)."""
    problem, method = sloping(1.0, 1e-2, 1e-3), ConjugatePiGDM(members=64, levels=40)
    shrinks = sqrt(1 + 2.03**2)
    _, published = started(replace(method, start="published"), problem)
    _, found = started(method, problem)
    far = problem.y[1:] / torch.tensor([1e-2, 1e-3]).double() / shrinks
    torch.testing.assert_close(published[:, 1:3].mean(0), far, rtol=0.1, atol=0.5)
    assert found[:, 1:3].mean(0).abs().max() < 4 / 8
    torch.testing.assert_close(found[:, 0], published[:, 0])


@pytest.mark.parametrize("inverse", ["svd", "pinv"])
def test_that_a_chain_whose_simulator_fails_follows_the_prior(inverse):
    def fails(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y[1] = torch.nan
        return y

    method = ConjugatePiGDM(members=3, levels=4, inverse=inverse)
    prior, operator = PROBLEM.gaussian, LinearOperator(PROBLEM, fails)
    states, _ = follow(method, prior, operator, OBSERVATION)
    x = states[0].x + operator.pinv(PROBLEM.y[None])
    for sigma, to in pairwise(method.sigmas):
        x = x + (to - sigma) / sigma * (x - prior.denoise(x, sigma))
    assert torch.allclose(states[-1].x[1], x[1], atol=1e-12)
    whole, _ = follow(method, prior, LinearOperator(PROBLEM, PROBLEM.forward), OBSERVATION)
    assert torch.equal(states[-1].x[[0, 2]], whole[-1].x[[0, 2]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 0.0},
        {"shift": float("inf")},
        {"inverse": "cg"},
        {"start": "all"},
        {"noise_std": -1.0},
    ],
)
def test_that_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        ConjugatePiGDM(**wrong)


def test_that_noise_of_many_sizes_is_refused():
    observation = enkg.Observation(PROBLEM.y, std=torch.tensor([0.1, 0.2, 0.3]))
    operator = PROBLEM.operator
    with pytest.raises(InputError, match="one standard deviation"):
        follow(ConjugatePiGDM(), PROBLEM.gaussian, operator, observation)
    assert operator.calls == 0
