"""The linear algebra of a simulator in prior units, with decoder, units and failures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.execute import opened
from enkg.forward import Forward
from tests.enkg.problems import DOUBLE, normal, small_problem

PROBLEM = small_problem()
A = PROBLEM.matrix


def forward_of(**changes) -> Forward:
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": PROBLEM.simulator,
        "observation": PROBLEM.observation,
        "guidance": enkg.EnKG(members=8),
        "double": True,
    }
    experiment = enkg.Experiment(**{**fields, **changes})
    with opened(experiment.simulator) as evaluator:
        return Forward(experiment, evaluator, lambda done, total: None)


def jacobian(f, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(f, x)  # pyright: ignore[reportReturnType]


def test_that_units_scale_the_whole_algebra():
    forward = forward_of(units=enkg.Affine(scale=-2.0, offset=0.5))
    op, x, v = forward.operator, normal(4, 6), normal(4, 3, seed=1)
    scaled = -2 * A
    torch.testing.assert_close(op.vjp(x, v), v @ scaled)
    torch.testing.assert_close(op.adjoint(v), v @ scaled)
    torch.testing.assert_close(op.linear(x), x @ scaled.T)
    torch.testing.assert_close(op.offset(), A @ torch.full((6,), 0.5).double())
    svd = op.svd
    torch.testing.assert_close(svd.u(svd.s * svd.vt(x)), x @ scaled.T)
    torch.testing.assert_close(svd.v(svd.s * svd.ut(v)), v @ scaled)
    y = x @ scaled.T + op.offset()
    torch.testing.assert_close(op(op.pinv(y)), y)


def test_that_calls_and_products_are_counted():
    forward = forward_of()
    op = forward.operator
    op.vjp(normal(4, 6), normal(4, 3))
    op.adjoint(normal(2, 3))
    assert (op.all_vjps, forward.count.calls) == (6, 0)
    op.linear(normal(5, 6))
    op.offset()
    assert (op.all_vjps, forward.count.calls) == (6, 6)  # the offset is asked for once
    op.pixel.vjp(normal(4, 6), normal(4, 3))
    assert op.all_vjps == 10


def test_that_log_units_and_decoder_are_in_the_gradient():
    prior = enkg.latent(PROBLEM.gaussian, lambda z: z.sinh(), (6,))
    forward = forward_of(prior=prior, units=enkg.Log(scale=0.3))
    op, z, v = forward.operator, normal(3, 6), normal(3, 3, seed=1)
    for j in range(3):
        exact = v[j] @ jacobian(lambda t: A @ (0.3 * t.sinh()).exp(), z[j])
        torch.testing.assert_close(op.vjp(z, v)[j], exact)
        outside = v[j] @ jacobian(lambda t: A @ (0.3 * t).exp(), z[j])
        torch.testing.assert_close(op.pixel.vjp(z, v)[j], outside)
    torch.testing.assert_close(op(z), op.pixel(z.sinh()))


def test_that_a_failed_gradient_is_a_row_of_nan():
    def vjp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 1e6).any():
            raise ArithmeticError("too steep")
        return v @ A.numpy()

    forward = forward_of(simulator=enkg.Function(PROBLEM.simulate, vjp=vjp))
    x, v = normal(4, 6), normal(4, 3)
    x[2, 0] = 1e9
    found = forward.operator.vjp(x, v)
    assert found[2].isnan().all()
    torch.testing.assert_close(found[[0, 1, 3]], (v @ A)[[0, 1, 3]])


def test_that_a_run_ends_where_no_member_has_a_gradient():
    simulator = enkg.Function(PROBLEM.simulate, vjp=lambda x, v: np.full_like(x, np.nan))
    with pytest.raises(enkg.EnsembleFailure, match="gradient of all 4 members failed"):
        forward_of(simulator=simulator).operator.vjp(normal(4, 6), normal(4, 3))


def test_that_what_is_missing_is_told():
    op = forward_of(simulator=PROBLEM.simulate).operator
    with pytest.raises(enkg.MissingCapability, match=r"EnKG needs a simulator with a gradient"):
        op.vjp(normal(2, 6), normal(2, 3))
    op = forward_of(observe=lambda y: y).operator
    with pytest.raises(enkg.MissingCapability, match="observe="):
        op.adjoint(normal(2, 3))
    op = forward_of(units=enkg.Affine(scale=torch.linspace(1, 2, 6))).operator
    with pytest.raises(enkg.InputError, match="units of one scale"):
        op.adjoint(normal(2, 3))
    op = forward_of(prior=enkg.latent(PROBLEM.gaussian, lambda z: z, (6,))).operator
    with pytest.raises(enkg.MissingCapability, match="decoder before it"):
        op.adjoint(normal(2, 3))


def test_that_an_adjoint_of_another_shape_is_refused():
    simulator = enkg.Function(PROBLEM.simulate, adjoint=lambda v: v)
    with pytest.raises(enkg.InputError, match=r"returned \(2, 3\); expected \(2, 6\)"):
        forward_of(simulator=simulator).operator.adjoint(normal(2, 3))


def test_that_the_gradient_of_the_misfit_is_that_of_autograd():
    mask = torch.tensor([True, False, True, True])
    y = torch.tensor([0.3, torch.nan, -1.0, 2.0], dtype=torch.float64)
    dense = torch.eye(4).double()
    dense[0, 2] = dense[2, 0] = 0.4
    std = torch.tensor([0.1, 1.0, 0.3, 2.0])
    for observation in (
        enkg.Observation(y, mask=mask, std=std),
        enkg.Observation(y, mask=mask, covariance=dense),
    ):
        at = normal(3, 4).requires_grad_()
        exact = torch.autograd.grad(observation.misfit(at).sum(), at)[0]
        torch.testing.assert_close(observation.gradient(at.detach()), exact)
    with pytest.raises(enkg.InputError, match="noise of one standard deviation"):
        _ = enkg.Observation(y, mask=mask, std=0.1).scale
    assert enkg.Observation(y[mask], std=0.1).scale == 0.1


def test_that_a_slope_is_zero_where_a_chain_fails():
    from enkg.guidance.chains import slope

    forward = forward_of(simulator=enkg.Function(_fails_beyond, vjp=lambda x, v: v @ A.numpy()))
    x = normal(3, 6)
    x[1, 0] = 50.0
    state = SimpleNamespace(own=lambda y: y)
    found = slope(state, x, forward, PROBLEM.observation)  # pyright: ignore[reportArgumentType]
    assert found.misfit[1].isnan()
    assert not found.gradient[1].any()
    exact = PROBLEM.observation.gradient(x @ A.T) @ A
    torch.testing.assert_close(found.gradient[[0, 2]], exact[[0, 2]])
    assert found.gradient.dtype == DOUBLE.dtype


def _fails_beyond(x: np.ndarray) -> np.ndarray:
    y = PROBLEM.simulate(x)
    y[np.abs(x[:, 0]) > 10] = np.nan
    return y
