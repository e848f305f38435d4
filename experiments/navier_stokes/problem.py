"""The parts that the Navier-Stokes inversions share."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import enkg
from simulators.navier_stokes import NavierStokes2D, Subsampled

SWEEP = 64  # members between two signs of progress


@dataclass(frozen=True)
class Measured:
    """A synthetic measurement: the simulator that made it, and what it saw."""

    simulator: enkg.Function
    observation: enkg.Observation


def measure(initial: Tensor, subsampling: int, noise: float, seed: int) -> Measured:
    """Evolves one initial vorticity, (s, s), for one time unit and observes every q-th point.

    noise: standard deviation, vorticity units. The solver that makes the data is the solver that
    inverts them, so the errors below contain no model error.
    """
    size = len(initial)
    flow = Subsampled(NavierStokes2D(size=size), every=subsampling)
    final = torch.from_numpy(flow(initial[None].numpy().astype(np.float32)))[0]
    exact = enkg.Observation(final, std=noise)
    return Measured(
        simulator=enkg.Function(flow, chunk=SWEEP, pad=False),
        observation=enkg.Observation(exact.perturb(final, seed=seed), std=noise),
    )


def vorticity(name: str, size: int, every: int = 1) -> enkg.Field:
    """Names, axes and colours of a vorticity field."""
    place = np.arange(0, size, every) * 2 * np.pi / size
    when = "initial" if name == "vorticity" else "final"
    axes = ("x", "y") if every == 1 and when == "initial" else ("x_observed", "y_observed")
    return enkg.Field(
        name,
        unit="1",
        long_name=f"{when} vorticity",
        dims=axes,
        coords=dict.fromkeys(axes, place),
        colour_map="RdBu_r",
    )
