"""Simulators with a gradient in torch, and vjps from torch and JAX."""

import numpy as np
import pytest
import torch

import enkg

MATRIX = np.random.default_rng(0).standard_normal((3, 4))
X = np.random.default_rng(1).standard_normal((5, 4))
V = np.random.default_rng(2).standard_normal((5, 3))


class Quadratic:
    """y = A x + (A x)^2, row by row, with its gradient; a row with NaN fails."""

    calls = vjps = 0

    def __call__(self, x):
        self.calls += len(x)
        y = x @ MATRIX.astype(x.dtype).T
        return y + y**2

    def vjp(self, x, v):
        self.vjps += len(x)
        y = x @ MATRIX.astype(x.dtype).T
        return (v * (1 + 2 * y)) @ MATRIX.astype(x.dtype)


def in_torch(x):
    y = x @ torch.from_numpy(MATRIX).to(x).T
    return y + y**2


def test_that_torch_finds_the_gradient_to_be_that_of_finite_differences():
    g = enkg.differentiable(Quadratic())
    x = torch.from_numpy(X).requires_grad_()
    assert torch.autograd.gradcheck(g, (x,))


def test_that_any_scalar_of_the_answer_has_the_gradient_of_the_chain_rule():
    x = torch.from_numpy(X).requires_grad_()
    scalars = (lambda y: y.sin().sum(), lambda y: y.square().sum().sqrt(), lambda y: y[2, 1])
    for scalar in scalars:
        for g in (Quadratic(), enkg.Function(Quadratic(), chunk=2)):
            (found,) = torch.autograd.grad(scalar(enkg.differentiable(g)(2 * x)), x)
            (expected,) = torch.autograd.grad(scalar(in_torch(2 * x)), x)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_that_the_dtype_is_kept(dtype):
    x = torch.from_numpy(X).to(dtype).requires_grad_()
    y = enkg.differentiable(Quadratic())(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == gradient.dtype == dtype


def test_that_no_gradient_is_computed_that_nobody_asks_for():
    simulator = Quadratic()
    g = enkg.differentiable(simulator)
    assert not g(torch.from_numpy(X)).requires_grad
    g(torch.from_numpy(X).requires_grad_())
    assert (simulator.calls, simulator.vjps) == (10, 0)
    g(torch.from_numpy(X).requires_grad_()).sum().backward()
    assert (simulator.calls, simulator.vjps) == (15, 5)


def test_that_a_failed_member_is_a_row_of_nan_and_leaves_the_others_alone():
    def stubborn(x):
        if np.isnan(x).any():
            raise RuntimeError("no")
        return Quadratic()(x)

    x = X.copy()
    x[2, 1] = np.nan
    for simulator in (Quadratic(), enkg.Function(stubborn, vjp=Quadratic().vjp)):
        leaf = torch.from_numpy(x).requires_grad_()
        y = enkg.differentiable(simulator)(leaf)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert y[2].isnan().all()
        assert gradient[2].isnan().all()
        good = [0, 1, 3, 4]
        expected = Quadratic().vjp(X, np.ones_like(V))
        np.testing.assert_allclose(gradient[good].numpy(), expected[good], rtol=1e-12)


def test_that_a_second_derivative_is_refused_in_words():
    x = torch.from_numpy(X).requires_grad_()
    y = enkg.differentiable(Quadratic())(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(enkg.InputError, match="first derivatives only"):
        torch.autograd.grad(first.sum(), x)


def test_that_a_simulator_without_gradient_is_refused_before_it_is_called():
    with pytest.raises(enkg.MissingCapability, match=r"differentiable needs .*vjp\(x, v\)"):
        enkg.differentiable(lambda x: x)


def test_that_a_linear_simulator_is_differentiated_by_its_adjoint():
    class Linear:
        def __call__(self, x):
            return x @ MATRIX.T

        def adjoint(self, v):
            return v @ MATRIX

    x = torch.from_numpy(X).requires_grad_()
    assert torch.autograd.gradcheck(enkg.differentiable(Linear()), (x,))


# --- vjps of functions that torch or JAX can differentiate ------------------------------------


def test_that_torch_and_the_hand_give_the_same_vjp():
    np.testing.assert_allclose(enkg.torch_vjp(in_torch)(X, V), Quadratic().vjp(X, V), rtol=1e-12)
    single = enkg.torch_vjp(in_torch)(X.astype(np.float32), V)
    assert single.dtype == np.float32


def test_that_jax_and_the_hand_give_the_same_vjp():
    jnp = pytest.importorskip("jax.numpy")

    def in_jax(x):
        y = x @ jnp.asarray(MATRIX, x.dtype).T
        return y + y**2

    found = enkg.jax_vjp(in_jax)(X.astype(np.float32), V)
    expected = Quadratic().vjp(X, V)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(enkg.InputError, match=r"v of shape \(5, 2\); f returns shape \(5, 3\)"):
        enkg.jax_vjp(in_jax)(X, V[:, :2])


def test_that_both_ways_through_the_bridge_lead_home():
    g = enkg.differentiable(
        enkg.Function(in_torch, to=torch.from_numpy, chunk=3, vjp=enkg.torch_vjp(in_torch))
    )
    x = torch.from_numpy(X).requires_grad_()
    assert torch.autograd.gradcheck(g, (x,))


def test_that_a_rollout_in_checkpoints_has_the_same_gradient():
    from torch.utils.checkpoint import checkpoint

    def segment(x):
        for _ in range(4):
            x = x + 0.1 * torch.sin(x)
        return x

    def plain(x):
        return segment(segment(segment(x)))

    def frugal(x):
        for _ in range(3):
            x = checkpoint(segment, x, use_reentrant=False)
        return x

    v = np.ones_like(X)
    np.testing.assert_array_equal(enkg.torch_vjp(frugal)(X, v), enkg.torch_vjp(plain)(X, v))


def test_that_a_member_of_nan_stays_a_row_of_nan():
    x = X.copy()
    x[1] = np.nan
    gradient = enkg.torch_vjp(in_torch)(x, V)
    assert np.isnan(gradient[1]).all()
    others = [0, 2, 3, 4]
    np.testing.assert_allclose(gradient[others], Quadratic().vjp(X, V)[others], rtol=1e-12)


def test_that_a_function_torch_cannot_follow_is_named():
    for f in (
        lambda x: in_torch(x).detach(),
        lambda x: torch.from_numpy(Quadratic()(x.detach().numpy())),
        lambda x: torch.ones(5, 3, requires_grad=True) * 2,
    ):
        with pytest.raises(enkg.InputError, match="no way from f's answer back"):
            enkg.torch_vjp(f)(X, V)
    with pytest.raises(enkg.InputError, match="expected a tensor"):
        enkg.torch_vjp(lambda x: x.detach().numpy())(X, V)  # pyright: ignore
    with pytest.raises(enkg.InputError, match=r"v of shape \(5, 2\)"):
        enkg.torch_vjp(in_torch)(X, V[:, :2])


def test_that_inputs_are_left_alone_and_may_be_read_only():
    x, v = X.copy(), V.copy()
    x.setflags(write=False)
    v.setflags(write=False)

    def greedy(x):
        y = in_torch(x)
        with torch.no_grad():
            x.zero_()
        return y

    enkg.torch_vjp(greedy)(x, v)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(v, V)
