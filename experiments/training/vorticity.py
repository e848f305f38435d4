"""Train the prior of developed vorticity that priors/vorticity holds.

    enkg train experiments/training/vorticity.py --out runs/priors/vorticity

Random fields are evolved for five time units by the bundled solver: vortices and filaments, of
standard deviation 5. The equation has symmetries, and the prior is to have them: shifts along x,
shifts of a quarter period of the stirring -4 cos(4 y) along y, (x, y) -> (-x, -y), and
(x, y) -> (-x, y + pi / 4) with the sign of the vorticity turned. So each field counts as 1,024.
"""

from dataclasses import dataclass, replace

import numpy as np

import enkg
from experiments.navier_stokes.problem import vorticity
from priors.gaussian_field import gaussian_field
from simulators.navier_stokes import NavierStokes2D, burned_in


@dataclass(frozen=True)
class Developed:
    """Fields of the burned-in regime, keyed by (seed, index). Cost: five simulator calls each."""

    size: int = 64
    std: float = 0.154

    def __call__(self, seed: int, indices: list[int]) -> np.ndarray:
        start = gaussian_field(self.size, std=self.std).draw(seed, indices, 0)
        return burned_in(NavierStokes2D(size=self.size), start.float().numpy())


def training(
    size: int = 64,
    samples: int = 4096,
    held_out: int = 512,
    steps: int = 5200,
    batch: int = 16,
    channels: tuple[int, ...] = (32, 64, 128),
    layers: int = 1,
) -> enkg.Training:
    """Learns the law of developed vorticity from fields that the solver makes.

    Args:
        size: Grid points per side, a multiple of 16.
        samples: Fields to learn from, five calls of the simulator each.
        held_out: Fields to measure with.
        steps: Steps of the optimiser.
        batch: Fields a step.
        channels: Of the network, at each resolution; the finest has half the points of the field.
        layers: Residual blocks at each resolution.
    """
    return enkg.Training(
        enkg.Generated(
            Developed(size), samples + held_out, seed=101, recipe=f"developed vorticity {size} 1"
        ),
        unknown=replace(vorticity("vorticity", size), long_name="vorticity"),
        units=enkg.Affine(scale=5.14),
        network=enkg.UNet(channels, layers, patch=2, periodic=True),
        base="spectrum",
        symmetries=(
            enkg.Shift(0),
            enkg.Shift(1, step=size // 4),
            enkg.Reflect((0, 1), periodic=True),
            enkg.Reflect((0,), sign=-1.0, periodic=True, shift=(1, size // 8)),
        ),
        held_out=held_out,
        steps=steps,
        batch=batch,
        warmup=300,
        noise=enkg.LogNormal(-0.3, 1.3),
        precision="bfloat16",
        half=True,
        about=(
            "Developed two-dimensional turbulence on the torus, Reynolds number 200, stirred by "
            "-4 cos(4 y): Gaussian random fields after five time units of the bundled solver."
        ),
        limits=(
            f"{size} x {size} points do not resolve this flow: the prior is that of the solver "
            "with its 2/3 rule on this grid, not of the Navier-Stokes equation.",
            "One Reynolds number, one stirring, one age of the flow.",
        ),
        recipe="experiments/training/vorticity.py: priors.gaussian_field, simulators.navier_stokes",
        licence="MIT",
    )
