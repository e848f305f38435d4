"""The compiled part of the gradient: reverse mode through the same time steps.

With one leg of n steps w -> S(w) in the forward program, this gives J_S(w)^T v. Number and size of
the steps are held fixed: they follow from a member's field, but in jumps, so where they do not
jump they add nothing to the derivative.

Reverse mode needs every intermediate field. They are not all kept: the forward sweep keeps the
spectrum before every block of `BLOCK` steps, and the backward sweep goes through the blocks from
the last to the first, repeats each and differentiates it. A step leaves 25 to 29 times as much
behind as the spectrum of a field takes (XLA, size 64, blocks of 64 and of 4), so memory is least
for blocks of sqrt(n / 27) steps, 1 to 4 for n from 32 to 512. The blocks are a loop in Python
around two compiled programs, so that one compilation serves every number of steps, and checkpoints
are as many as are needed.

Reference:
    A. Griewank and A. Walther, Evaluating Derivatives, SIAM 2008, chapter 12 (checkpointing).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from simulators.navier_stokes.program import stepping

BLOCK = 4
"""Steps between two checkpoints."""

PullBack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Programs(NamedTuple):
    """What is compiled. Spectra are complex, of shape (width, size, size // 2 + 1)."""

    transform: Any  # fields to spectra
    advance: Any  # (spectra, first step, n, dt) to the spectra a block later
    retreat: Any  # the same and cotangents there, to cotangents before the block
    last: Any  # cotangents of fields to those of spectra
    initial: Any  # and back


def adjoint_programs(
    size: int, reynolds: float, forcing: int, amplitude: float, block: int
) -> tuple[Any, Programs]:
    """The scope in which jax works in 32 bits, and the programs of `adjoint_program`."""
    single, stepper = stepping(size, reynolds, forcing, amplitude)
    import jax
    import jax.numpy as jnp

    def forward(w_hat: Any, first: Any, n: Any, dt: Any) -> Any:
        step = stepper()

        def one(w_hat: Any, i: Any) -> tuple[Any, None]:
            return step(w_hat, jnp.where(i < n, dt, 0)), None

        return jax.lax.scan(one, w_hat, first + jnp.arange(block))[0]

    def backward(w_hat: Any, first: Any, n: Any, dt: Any, v_hat: Any) -> Any:
        return jax.vjp(lambda w_hat: forward(w_hat, first, n, dt), w_hat)[1](v_hat)[0]

    def into(w: Any) -> Any:
        return jnp.fft.rfftn(w, axes=(1, 2))

    def out(w_hat: Any) -> Any:
        return jnp.fft.irfftn(w_hat, axes=(1, 2))

    # Both transforms are linear: where their derivative is taken does not matter.
    last = jax.jit(lambda v: jax.vjp(out, into(v))[1](v)[0])
    initial = jax.jit(lambda v_hat: jax.vjp(into, out(v_hat))[1](v_hat)[0])
    return single, Programs(jax.jit(into), jax.jit(forward), jax.jit(backward), last, initial)


@cache
def adjoint_program(
    size: int, reynolds: float, forcing: int, amplitude: float, block: int = BLOCK
) -> PullBack:
    """Build ``pull_back(w, n, dt, v)`` for one grid and one flow; compiled once per chunk width.

    w, n, dt: as of `vorticity_program`. v: shape (width, size, size). Returns J^T v, float32.

    A member that has done its n steps passes its row of v on unchanged, bit for bit.
    Cost: about 4 calls of the forward program. Memory of a member: max(n) / block spectra, and what
    a block of steps leaves behind.
    """
    single, run = adjoint_programs(size, reynolds, forcing, amplitude, block)

    def pull_back(w: np.ndarray, n: np.ndarray, dt: np.ndarray, v: np.ndarray) -> np.ndarray:
        with single():
            count, size_of_step = n.astype(np.int32), dt.astype(np.float32)
            firsts = np.arange(0, n.max(initial=0), block, dtype=np.int32)
            kept = [run.transform(w.astype(np.float32))]
            for first in firsts[:-1]:
                kept.append(run.advance(kept[-1], first, count, size_of_step))
            v_hat = run.last(v.astype(np.float32))
            for first in firsts[::-1]:
                v_hat = run.retreat(kept.pop(), first, count, size_of_step, v_hat)
            return np.asarray(run.initial(v_hat))

    return pull_back
