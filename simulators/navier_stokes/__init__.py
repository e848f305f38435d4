"""Two-dimensional Navier-Stokes flow on the torus, in vorticity form.

    from simulators.navier_stokes import NavierStokes2D, Subsampled

    flow = NavierStokes2D(size=64)          # vorticity now -> vorticity one time unit later
    y = flow(x)                             # (B, 64, 64) -> (B, 64, 64); a failed member is NaN
    seen = Subsampled(flow, every=2)(x)     # (B, 64, 64) -> (B, 32, 32)
    coarse = Coarse(NavierStokes2D(size=32))(x)  # about the same at an eighth of the cost
    gradient = flow.vjp(x, v)               # J(x)^T v, row by row, by reverse mode

It also runs as a program: ``python -m simulators.navier_stokes --help``.
Needs jax-cfd (``pip install 'enkg[fluids]'``), which is loaded at the first call, not at import.
"""

from simulators.navier_stokes.coarse import Coarse, resampled
from simulators.navier_stokes.solver import NavierStokes2D, Run, burned_in, peak_speed
from simulators.navier_stokes.subsampling import Subsampled, subsample

__all__ = [
    "Coarse",
    "NavierStokes2D",
    "Run",
    "Subsampled",
    "burned_in",
    "peak_speed",
    "resampled",
    "subsample",
]
