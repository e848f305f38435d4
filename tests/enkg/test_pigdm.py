"""PiGDM by theory: exact for white priors and no others; its published step by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError
from enkg.guidance.guided import evaluated
from enkg.guidance.pigdm import PiGDM
from tests.enkg.affine import law
from tests.enkg.problems import DOUBLE, LinearOperator, follow, normal, small_problem

STD = 0.3
PROBLEM = replace(small_problem(), noise=STD**2 * torch.eye(3, dtype=torch.float64))
OBSERVATION = enkg.Observation(PROBLEM.y, std=STD)
WHITE = replace(PROBLEM, covariance=2 * torch.eye(6, dtype=torch.float64))


def shift(method: PiGDM, sigma: float = 1.0, operator=None) -> Tensor:
    """D_y - D of 4 chains at `x`."""
    state = replace(method, members=4).init(PROBLEM.gaussian, 0, DOUBLE)
    operator = operator or PROBLEM.operator
    at = evaluated(state, x(), sigma, PROBLEM.gaussian, operator, OBSERVATION)
    return method.shift(at)


def x() -> Tensor:
    return 2 * normal(4, 6, seed=9)


def by_hand(sigma: float, spread: float, std: float) -> Tensor:
    """sigma^2 J_D^T A^T (spread A A^T + std^2)^-1 (y - A D) in dense matrices."""
    matrix, eye = PROBLEM.matrix, torch.eye(6, dtype=torch.float64)
    jacobian = PROBLEM.covariance @ torch.linalg.inv(PROBLEM.covariance + sigma**2 * eye)
    residual = PROBLEM.y - PROBLEM.gaussian.denoise(x(), sigma) @ matrix.T
    system = spread * matrix @ matrix.T + std**2 * torch.eye(3, dtype=torch.float64)
    return sigma**2 * torch.linalg.solve(system, residual.T).T @ matrix @ jacobian


@pytest.mark.parametrize("inverse", ["svd", "cg"])
@pytest.mark.parametrize("variance", [1.0, 2.5])
def test_that_the_shift_is_the_formula(inverse, variance):
    method = PiGDM(inverse=inverse, prior_variance=variance, tolerance=1e-12)
    spread = variance * 0.49 / (variance + 0.49)
    exact = by_hand(0.7, spread, STD)
    assert torch.allclose(shift(method, 0.7), exact, atol=1e-8)


def test_that_without_noise_the_shift_is_that_of_the_pseudo_inverse():
    found = shift(PiGDM(noise_std=0.0), 0.7)
    assert torch.allclose(found, by_hand(0.7, 0.49 / 1.49, 0.0), atol=1e-8)
    surrogate = shift(PiGDM(inverse="pinv", noise_std=0.0), 0.7)
    assert torch.allclose(found, surrogate, atol=1e-8)


def test_that_the_surrogate_rule_takes_singular_values_of_one():
    turn = torch.linalg.qr(normal(6, 6, seed=4)).Q[:3]
    problem = replace(PROBLEM, matrix=turn)
    found = [shift(PiGDM(inverse=i), 0.7, problem.operator) for i in ("svd", "cg", "pinv")]
    assert torch.allclose(found[0], found[2], atol=1e-9)
    assert torch.allclose(found[0], found[1], atol=1e-2)


@pytest.mark.parametrize("inverse", ["svd", "cg"])
def test_that_a_white_prior_gives_the_posterior(inverse):
    method = PiGDM(inverse=inverse, prior_variance=2.0)
    distance, eigenvalues = law(method, WHITE, OBSERVATION)
    assert distance < 0.15
    assert eigenvalues.min() > 0.95
    assert eigenvalues.max() < 1.05


@pytest.mark.parametrize("problem", [PROBLEM, WHITE], ids=["other variances", "wrong variance"])
def test_that_any_other_prior_does_not(problem):
    distance, eigenvalues = law(PiGDM(), problem, OBSERVATION)
    assert eigenvalues.min() < 0.9 or eigenvalues.max() > 1.2 or distance > 0.2
    assert PiGDM.posterior_law is None


@pytest.mark.parametrize("noise", ["ancestral", "fixed"])
def test_that_the_published_step_is_the_one_by_hand(noise):
    method = PiGDM(members=4, form="published", eta=0.0, noise=noise, levels=3, sigma_max=2.0)
    states, _ = follow(
        method,
        PROBLEM.gaussian,
        PROBLEM.operator,
        OBSERVATION,
        change=lambda state: replace(state, x=x()),
    )
    sigma, to = method.sigmas[:2]
    clean = PROBLEM.gaussian.denoise(x(), sigma)
    spread = sigma**2 / (1 + sigma**2)
    guidance = by_hand(sigma, spread, STD) * spread / sigma**2
    exact = clean + to / sigma * (x() - clean) + guidance
    assert torch.allclose(states[1].x, exact, atol=1e-9)


def test_that_the_noise_of_a_published_step_has_its_variance():
    method = PiGDM(members=4000, form="published", eta=0.5, levels=3, sigma_max=2.0)
    fixed = replace(method, noise="fixed")
    sigma, to = method.sigmas[:2]
    plain = replace(method, eta=0.0)
    for one, up in ((method, 0.5 * to * (1 - (to / sigma) ** 2) ** 0.5), (fixed, 0.5 * to)):
        down = (to**2 - up**2) ** 0.5
        state = one.init(PROBLEM.gaussian, 0, DOUBLE)
        moved = one.step(state, PROBLEM.gaussian, PROBLEM.operator, OBSERVATION)[0].x
        still = plain.step(state, PROBLEM.gaussian, PROBLEM.operator, OBSERVATION)[0].x
        clean = PROBLEM.gaussian.denoise(state.x, sigma)
        fresh = moved - still + (to - down) / sigma * (state.x - clean)
        assert fresh.std() == pytest.approx(up, rel=4 / (2 * 24000) ** 0.5)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (PiGDM(levels=4), 7),
        (PiGDM(levels=4, sampler="ancestral"), 4),
        (PiGDM(levels=4, form="published"), 4),
        (PiGDM(levels=4, inverse="pinv"), 7),
        (PiGDM(levels=4, inverse="cg", iterations=2, tolerance=0), 14),
    ],
)
def test_that_the_cost_is_the_one_told(method, calls):
    operator = PROBLEM.operator
    follow(method, PROBLEM.gaussian, operator, OBSERVATION)
    assert operator.calls == calls * method.members == method.sweeps * method.members
    assert operator.vjps == (calls * method.members if method.inverse == "cg" else 0)
    assert method.needs == ({"cg": "adjoint"}.get(method.inverse, method.inverse),)


@pytest.mark.parametrize("inverse", ["svd", "cg", "pinv"])
def test_that_a_failed_chain_is_not_guided_and_harms_no_other(inverse):
    def fails(z: Tensor) -> Tensor:
        y = PROBLEM.forward(z)
        y[1] = torch.nan
        return y

    method = PiGDM(inverse=inverse)
    found = shift(method, operator=LinearOperator(PROBLEM, fails))
    whole = shift(method, operator=LinearOperator(PROBLEM, PROBLEM.forward))
    assert not found[1].any()
    assert torch.equal(found[[0, 2, 3]], whole[[0, 2, 3]])


def test_that_noise_of_many_sizes_needs_conjugate_gradients():
    observation = enkg.Observation(PROBLEM.y, std=torch.tensor([0.1, 0.2, 0.3]))
    operator = PROBLEM.operator
    with pytest.raises(InputError, match="one standard deviation"):
        follow(PiGDM(), PROBLEM.gaussian, operator, observation)
    assert operator.calls == 0
    follow(PiGDM(inverse="cg", levels=2), PROBLEM.gaussian, operator, observation)


@pytest.mark.parametrize(
    "wrong",
    [
        {"inverse": "qr"},
        {"form": "norm"},
        {"eta": 1.5},
        {"prior_variance": 0.0},
        {"noise_std": -1.0},
        {"noise_std": 0.1, "inverse": "cg"},
    ],
)
def test_that_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        PiGDM(**wrong)
