"""The compiled part: one jax program that advances a chunk of vorticity fields.

The equation and the time stepper are jax-cfd's, unchanged. Each stage of a step costs 5 real
FFTs (velocity and vorticity gradient, 4 inverse; advection, 1 forward), a step has 5 stages.

Number of steps and step size are per member and traced. Members with different time steps
therefore share a chunk and one compiled program serves them all: a member that has done its
own n steps goes on with a step of zero, which leaves it bit for bit as it is.

Importing this file does not import jax.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Advance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Step = Callable[[], Any]
"""Builds, inside a traced function, (w_hat, dt) -> w_hat of a chunk; dt is each member's own."""


def stepping(size: int, reynolds: float, forcing: int, amplitude: float) -> tuple[Any, Step]:
    """The scope in which jax works in 32 bits, and one time step of a chunk for use inside jit.

    The scope is that of one thread: a user who has switched jax to 64 bits keeps that.
    """
    try:
        import jax
        from jax_cfd.base import forcings, grids
        from jax_cfd.spectral import equations, time_stepping

        try:
            from jax import enable_x64
        except ImportError:  # older jax
            from jax.experimental import enable_x64  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            "the Navier-Stokes simulator needs jax and jax-cfd, and one of them is missing "
            f"({error}); install them with: pip install 'enkg[fluids]'"
        ) from error

    def kolmogorov(grid: Any) -> Any:
        return forcings.kolmogorov_forcing(
            grid, scale=amplitude, k=forcing, offsets=((0, 0), (0, 0))
        )

    def step() -> Any:
        grid = grids.Grid((size, size), domain=((0, 2 * np.pi), (0, 2 * np.pi)))
        equation = equations.NavierStokes2D(
            viscosity=1 / reynolds,
            grid=grid,
            drag=0.0,
            smooth=True,
            forcing_fn=kolmogorov if amplitude > 0 else None,
        )
        return jax.vmap(
            lambda one_hat, one_dt: time_stepping.crank_nicolson_rk4(equation, one_dt)(one_hat)
        )

    return (lambda: enable_x64(False)), step


@cache
def vorticity_program(size: int, reynolds: float, forcing: int, amplitude: float) -> Advance:
    """Build ``advance(w, n, dt)`` for one grid and one flow; compiled once per chunk width.

    w: vorticity, shape (width, size, size), float32.
    n: steps of each member, shape (width,), int32; 0 leaves the member alone.
    dt: step of each member in time units, shape (width,), float32.
    Returns the vorticity after n * dt, shape (width, size, size), float32.

    Cost: 25 * max(n) real FFTs of size x size for every member of the chunk, padding included.
    """
    single, stepper = stepping(size, reynolds, forcing, amplitude)
    import jax
    import jax.numpy as jnp

    def run_chunk(w: Any, n: Any, dt: Any) -> Any:
        step = stepper()
        w_hat = jnp.fft.rfftn(w, axes=(1, 2))
        w_hat = jax.lax.fori_loop(
            0, jnp.max(n), lambda i, w_hat: step(w_hat, jnp.where(i < n, dt, 0)), w_hat
        )
        return jnp.fft.irfftn(w_hat, axes=(1, 2))

    compiled = jax.jit(run_chunk)

    def advance(w: np.ndarray, n: np.ndarray, dt: np.ndarray) -> np.ndarray:
        with single():
            y = compiled(w.astype(np.float32), n.astype(np.int32), dt.astype(np.float32))
            return np.asarray(y)

    return advance
