"""Train the prior of digits that priors/digits holds.

    enkg train experiments/training/digits.py --out runs/priors/digits

The samples are draws of the kernel density of scikit-learn's digits, whose denoiser is known
exactly at every noise level: what the network lacks can be measured, and is on the card.
"""

from dataclasses import dataclass

from torch import Tensor

import enkg
from priors.digits import BANDWIDTH, digits


@dataclass(frozen=True)
class Draws:
    """Draws of the kernel density, keyed by (seed, index)."""

    bandwidth: float = BANDWIDTH

    def __call__(self, seed: int, indices: list[int]) -> Tensor:
        return digits(self.bandwidth).draw(seed, indices, 0)


def training(
    bandwidth: float = BANDWIDTH,
    samples: int = 49152,
    held_out: int = 2048,
    steps: int = 12_000,
    batch: int = 64,
    channels: tuple[int, ...] = (32, 64),
    layers: int = 2,
) -> enkg.Training:
    """Learns the kernel density of the digits from its own draws.

    Args:
        bandwidth: Width of the kernels.
        samples: Draws to learn from.
        held_out: Draws to measure with.
        steps: Steps of the optimiser.
        batch: Draws a step.
        channels: Of the network, at 8 x 8 and at 4 x 4 points.
        layers: Residual blocks at each resolution.
    """
    return enkg.Training(
        enkg.Generated(
            Draws(bandwidth), samples + held_out, seed=201, recipe=f"digits {bandwidth} 1"
        ),
        unknown=enkg.Field("digit", dims=("row", "column"), colour_map="gray"),
        units=enkg.Affine(),
        network=enkg.UNet(channels, layers),
        base="components",
        held_out=held_out,
        steps=steps,
        batch=batch,
        rate=2e-3,
        noise=enkg.LogNormal(-0.7, 1.1),
        sigma_max=40.0,
        exact=digits(bandwidth),
        half=True,
        about=(
            "Handwritten digits of 8 x 8 points in [-1, 1]: a kernel density of 1,600 images, "
            f"kernel width {bandwidth}, learnt from its draws."
        ),
        limits=(
            "The law it learns is known exactly (`priors.digits.digits`), which is better in every "
            "way; this network is there to measure what learning costs.",
        ),
        recipe="experiments/training/digits.py: priors.digits on scikit-learn's digits",
        licence="MIT; the images are from the UCI Machine Learning Repository, CC BY 4.0",
    )
