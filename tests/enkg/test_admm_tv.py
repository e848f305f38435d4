"""ADMM-TV against closed forms and against another algorithm for the same problem."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import enkg
from enkg.guidance.admm_tv import ADMMTV, divergence, gradient, shrink, total_variation
from enkg.prior import Gaussian
from enkg.transform import Identity
from tests.enkg.problems import LinearGaussian, LinearOperator, follow, normal, values

SIDE = 4
STD = 0.2
SHAPE = (SIDE, SIDE)
D = SIDE * SIDE


class Grid(LinearOperator):
    """A linear problem whose unknown is a grid."""

    def __call__(self, x0: Tensor) -> Tensor:
        return super().__call__(x0.flatten(1))

    def linear(self, v: Tensor) -> Tensor:
        return super().linear(v.flatten(1))

    def adjoint(self, v: Tensor) -> Tensor:
        return super().adjoint(v).unflatten(1, SHAPE)


def problem(data: int = 20, seed: int = 0) -> LinearGaussian:
    one, mean = torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    matrix = normal(data, D, seed=seed) / 4
    truth = torch.zeros(SHAPE, dtype=torch.float64)
    truth[:, 2:] = 1.0
    y = matrix @ truth.flatten() + STD * normal(data, seed=seed + 1)
    return LinearGaussian(mean, one, matrix, STD**2 * torch.eye(data, dtype=torch.float64), y)


def prior(*shape: int) -> Gaussian:
    zero = torch.zeros(shape, dtype=torch.float64)
    return Gaussian(zero, torch.ones(zero.numel(), dtype=torch.float64), Identity(shape))


def ended(method: ADMMTV, p: LinearGaussian, operator: Grid | None = None) -> Tensor:
    observation = enkg.Observation(p.y, covariance=p.noise)
    return follow(method, prior(*SHAPE), operator or Grid(p), observation)[0][-1].x


def objective(x: Tensor, p: LinearGaussian, strength: float) -> Tensor:
    misfit = 0.5 * ((p.y - x.flatten(1) @ p.matrix.T) / STD).square().sum(dim=1)
    return misfit + strength * total_variation(x)


STRENGTH = 3.0


@cache
def reference() -> Tensor:
    """The minimiser by Chambolle and Pock 2011 (algorithm 1), with the exact proximal map of the
    misfit; it shares no step with ADMM."""
    p, strength = problem(), STRENGTH
    a = p.matrix / STD
    tau = theta = 8.0**-0.5 * 0.99  # tau theta |grad|^2 < 1, as |grad|^2 <= 8
    inverse = torch.linalg.inv(torch.eye(D, dtype=torch.float64) + tau * a.T @ a)
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    ahead, dual = x, gradient(x)
    for _ in range(1500):
        dual = dual + theta * gradient(ahead)
        dual = strength * dual / dual.square().sum(dim=1, keepdim=True).sqrt().clamp(min=strength)
        to = (x - tau * divergence(dual)).flatten(1) + tau * (p.y / STD) @ a
        new = (to @ inverse).unflatten(1, SHAPE)
        x, ahead = new, 2 * new - x
    return x


def test_that_the_minimum_is_that_of_another_algorithm():
    p = problem()
    found = ended(ADMMTV(iterations=100, inner=8, strength=STRENGTH, penalty=10.0), p)
    floor = float(objective(reference(), p, STRENGTH))
    assert float(objective(found, p, STRENGTH)[0]) == pytest.approx(floor, rel=1e-8)
    torch.testing.assert_close(found[:1], reference(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("penalty", [3.0, 60.0])
def test_that_the_penalty_and_inexact_inner_solves_change_the_way_and_not_the_end(penalty):
    p = problem()
    floor = float(objective(reference(), p, STRENGTH))
    method = ADMMTV(iterations=150, inner=4, strength=STRENGTH, penalty=penalty)
    assert float(objective(ended(method, p), p, STRENGTH)[0]) == pytest.approx(floor, rel=1e-6)


def test_that_the_objective_falls_to_its_minimum():
    p, strength = problem(), STRENGTH
    floor = float(objective(reference(), p, strength))
    method = ADMMTV(iterations=60, inner=8, strength=strength, penalty=10.0)
    observation = enkg.Observation(p.y, covariance=p.noise)
    states, _ = follow(method, prior(*SHAPE), Grid(p), observation)
    excess = [float(objective(state.x, p, strength)[0]) - floor for state in states]
    assert min(excess) > -1e-8 * floor
    for early, late in [(0, 5), (5, 20), (20, 60)]:
        assert excess[late] < 0.2 * excess[early]


def test_that_a_step_image_loses_the_contrast_that_theory_says():
    # A = I: with k columns on a side, each side moves by lambda sigma^2 / k toward the other.
    one = torch.eye(D, dtype=torch.float64)
    y = torch.zeros(SHAPE, dtype=torch.float64)
    y[:, 1:] = 1.0
    p = LinearGaussian(torch.zeros(D, dtype=torch.float64), one, one, STD**2 * one, y.flatten())
    found = ended(ADMMTV(iterations=100, inner=6, strength=5.0, penalty=25.0), p)[0]
    move = 5.0 * STD**2
    torch.testing.assert_close(found[:, :1], y[:, :1] + move, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 1:], y[:, 1:] - move / 3, rtol=0, atol=1e-6)


def test_that_without_total_variation_it_is_least_squares():
    p = problem()
    method = ADMMTV(iterations=60, inner=12, strength=0.0, penalty=0.5)
    exact = torch.linalg.lstsq(p.matrix, p.y).solution
    torch.testing.assert_close(ended(method, p)[0].flatten(), exact, rtol=0, atol=1e-6)


def test_that_the_plain_metric_scales_both_constants():
    p = problem()
    noise = ADMMTV(iterations=20, strength=10.0, penalty=50.0)
    plain = replace(noise, metric="plain", strength=10 * STD**2, penalty=50 * STD**2)
    torch.testing.assert_close(ended(noise, p), ended(plain, p), rtol=0, atol=1e-10)


def test_that_the_divergence_is_the_transpose_of_the_gradient():
    x, v = normal(3, 2, 5, 4), normal(3, 2, 2, 5, 4, seed=1)
    left, right = (gradient(x) * v).sum(), (x * divergence(v)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)


def test_that_the_shrinkage_is_the_proximal_map_of_the_length():
    v = torch.tensor([3.0, 4.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    torch.testing.assert_close(shrink(v, 1.0), 0.8 * v)
    assert not shrink(v, 5.0).any()
    assert torch.equal(shrink(0 * v, 0.0), 0 * v)


@pytest.mark.parametrize("when", [2, 3])
def test_that_a_failed_chain_repeats_its_step_and_leaves_the_others_alone(when):
    p = problem()
    method = ADMMTV(members=3, iterations=4, inner=3)
    plain = ended(method, p)
    operator, answers, sweeps = Grid(p), Grid(p).forward, [0]

    def fails(x: Tensor) -> Tensor:
        y = answers(x).clone()
        if sweeps[0] == when:
            y[1] = torch.nan
        sweeps[0] += 1
        return y

    operator.forward = fails
    observation = enkg.Observation(p.y, covariance=p.noise)
    states, _ = follow(method, prior(*SHAPE), operator, observation)
    assert torch.equal(states[-1].x[[0, 2]], plain[[0, 2]])
    assert torch.equal(states[when + 1].x[1], states[when].x[1])
    before = follow(method, prior(*SHAPE), Grid(p), observation)[0]
    assert torch.equal(states[-1].x[1], before[3].x[1])  # one step behind


def test_that_a_chain_alone_is_the_chain_in_company():
    method, p = ADMMTV(members=5, iterations=3), problem()
    observation = enkg.Observation(p.y, covariance=p.noise)

    def alone(state):
        rows = {name: getattr(state, name)[4:] for name in ("x", "members", "z", "u")}
        return replace(state, **rows)

    found = follow(method, prior(*SHAPE), Grid(p), observation, change=alone)[0][-1].x
    assert torch.equal(found[0], ended(method, p)[4])


def test_that_calls_are_counted():
    p, method = problem(), ADMMTV(members=3, iterations=5, inner=4)
    operator = Grid(p)
    ended(method, p, operator)
    assert operator.calls == operator.vjps == method.sweeps * 3 == 5 * 5 * 3


def test_that_a_run_with_an_imaging_operator_recovers_a_square():
    from simulators import images

    box = images.box_inpainting((16, 16))
    truth = -torch.ones(16, 16, dtype=torch.float64)
    truth[5:12, 3:9] = 1.0
    experiment = enkg.Experiment(
        prior=prior(16, 16),
        simulator=box,
        observation=enkg.Observation(box(truth.numpy()[None])[0], std=0.05),
        guidance=ADMMTV(iterations=100),
        double=True,
    )
    found = values(enkg.run(experiment), "posterior", "x")
    seen = abs(box(found[:1]) - box(truth.numpy()[None]))
    # At the minimum the residual is lambda sigma^2 times the transposed gradient of a field of
    # vectors no longer than one, which is 2 + sqrt(2) at most.
    assert 0.005 < seen.max() < (2 + 2**0.5) * 10 * 0.05**2 + 1e-3


@pytest.mark.parametrize(
    "fields", [{"strength": -1.0}, {"penalty": 0.0}, {"iterations": 0}, {"metric": "other"}]
)
def test_that_impossible_settings_are_refused(fields):
    with pytest.raises(enkg.InputError):
        ADMMTV(**fields)


def test_that_an_unknown_without_a_grid_is_refused():
    with pytest.raises(enkg.InputError, match="grid of two"):
        ADMMTV().init(prior(5), 0, torch.empty(0))
