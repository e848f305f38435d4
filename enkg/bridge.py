"""Between simulators with a gradient and the libraries that differentiate.

`differentiable` puts a black box into a torch computation: its backward is the simulator's own
vjp, so any scalar of G(x) has a gradient,

    d L / d x  =  J_G(x)^T  d L / d y .

`torch_vjp` and `jax_vjp` go the other way and make a vjp of a function that torch or JAX can
differentiate:

    simulator = enkg.Function(f, to=torch.from_numpy, vjp=enkg.torch_vjp(f))

Their memory is that of f in reverse mode. A long rollout keeps every step unless f itself
recomputes them in segments: `torch.utils.checkpoint.checkpoint(segment, x, use_reentrant=False)`,
or `jax.checkpoint(segment)`, in segments of about the square root of the number of steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg import abilities
from enkg.errors import InputError
from enkg.execute import Function, as_evaluator

VJP = Callable[[ndarray, ndarray], ndarray]


def differentiable(simulator: Any) -> Callable[[Tensor], Tensor]:
    """The simulator as a torch function, (B, *X) to (B, *Y), in the dtype and on the device of x.

    simulator: a function of NumPy batches with `vjp(x, v)`, or an adapter such as `Function`. A
    member that fails is a row of NaN, in the answer and in the gradient, and leaves the others
    alone; EnsembleFailure is raised if all of them fail. There is no second derivative. Cost: one
    call, and one vjp for each backward. Raises MissingCapability for a simulator without gradient.
    """
    abilities.require(simulator, ("vjp",), "enkg.differentiable")
    evaluator = as_evaluator(simulator)
    gradient = evaluator
    if not isinstance(gradient, Function):  # an adapter around one, such as `Cached`
        gradient = Function(np.asarray, vjp=abilities.of(simulator).vjp)

    def call(x: ndarray) -> ndarray:
        return evaluator.evaluate(x).y

    return lambda x: _Simulated.apply(x, call, gradient.pull_back)  # pyright: ignore


def torch_vjp(
    f: Callable[[Tensor], Tensor], to: Callable[[ndarray], Tensor] = torch.from_numpy
) -> VJP:
    """vjp(x, v) on NumPy arrays of a function of torch batches, row i of which sees row i alone.

    to: makes the tensor that f wants, as for `Function`. Cost: one call of f, and its backward.
    """

    def vjp(x: ndarray, v: ndarray) -> ndarray:
        leaf = to(np.array(x)).detach().requires_grad_()
        with torch.enable_grad():
            y = f(leaf)
        if not isinstance(y, Tensor):
            raise InputError(f"torch_vjp: f returned a {type(y).__name__}; expected a tensor")
        _check(tuple(y.shape), v)
        found = None
        if y.requires_grad:
            cotangent = torch.from_numpy(np.array(v)).to(y)
            (found,) = torch.autograd.grad(y, leaf, cotangent, allow_unused=True)
        if found is None:
            raise InputError(
                "torch_vjp: torch finds no way from f's answer back to its input; f must not "
                "detach, go through NumPy, or run under no_grad"
            )
        return found.detach().cpu().numpy()

    return vjp


def jax_vjp(f: Callable[[Any], Any]) -> VJP:
    """vjp(x, v) on NumPy arrays of a function of JAX batches, row i of which sees row i alone.

    Compiled once for each shape. JAX computes in float32 unless `jax_enable_x64` is set. Cost: one
    call of f, and its backward.
    """
    import jax

    @jax.jit
    def pulled(x: Any, v: Any) -> Any:
        y, back = jax.vjp(f, x)
        _check(y.shape, v)
        return back(v.astype(y.dtype))[0]

    return lambda x, v: np.array(pulled(x, v))


def _check(shape: tuple[int, ...], v: Any) -> None:
    if shape != v.shape:
        raise InputError(f"vjp was given v of shape {tuple(v.shape)}; f returns shape {shape}")


class _Simulated(torch.autograd.Function):
    """y = G(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Any, pull_back: Any) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        ctx.pull_back = pull_back
        return torch.from_numpy(np.array(call(_array(x)))).to(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return _Pulled.apply(x, v, ctx.pull_back), None, None


class _Pulled(torch.autograd.Function):
    """J(x)^T v, which is the end of what can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, pull_back: Any) -> Tensor:  # pyright: ignore
        return torch.from_numpy(np.array(pull_back(_array(x), _array(v)))).to(x)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(
            "the gradient of a simulator was differentiated once more; vjp gives first "
            "derivatives only, so a method must not ask for a second one (create_graph)"
        )


def _array(x: Tensor) -> ndarray:
    return x.detach().cpu().numpy()
