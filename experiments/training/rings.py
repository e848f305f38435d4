"""Train the prior of ring images that priors/rings holds.

    enkg train experiments/training/rings.py --out runs/priors/rings

Images of the procedural recipe in priors/ring_images.py, with a wide range of sizes, in the
logarithm of brightness. The recipe has no preferred direction, so an image counts as eight: turned
by quarters, and mirrored.
"""

from dataclasses import dataclass

import numpy as np

import enkg
from priors.ring_images import VERSION, ring_images

FLOOR = 0.01
"""Light below this share of the mean is not told from darkness."""
BLOCK = 256


@dataclass(frozen=True)
class Rings:
    """Brightness over its mean, plus the floor, keyed by (seed, index). Cost: 5 ms each."""

    pixels: int = 64
    field_of_view: float = 128.0

    def __call__(self, seed: int, indices: list[int]) -> np.ndarray:
        blocks, places = np.divmod(indices, BLOCK)
        out = np.empty((len(indices), self.pixels, self.pixels), np.float32)
        for block in np.unique(blocks):  # drawn whole, so that a sample does not depend on others
            images = ring_images(
                BLOCK, seed + int(block), pixels=self.pixels, field_of_view_uas=self.field_of_view
            )
            out[blocks == block] = images[places[blocks == block]]
        return out / out.mean(axis=(1, 2), keepdims=True) + FLOOR


def training(
    pixels: int = 64,
    samples: int = 12288,
    held_out: int = 1024,
    steps: int = 5400,
    batch: int = 64,
    channels: tuple[int, ...] = (64, 96, 128),
    layers: int = 1,
) -> enkg.Training:
    """Learns the law of log-images of rings from images that the recipe draws.

    Args:
        pixels: Pixels per side, a multiple of 16; the field of view is 128 microarcseconds.
        samples: Images to learn from.
        held_out: Images to measure with.
        steps: Steps of the optimiser.
        batch: Images a step.
        channels: Of the network, at each resolution; the finest has a quarter of the
            image's pixels per side.
        layers: Residual blocks at each resolution.
    """
    return enkg.Training(
        enkg.Generated(
            Rings(pixels),
            samples + held_out,
            seed=7_000_000,
            block=BLOCK,
            recipe=f"rings {pixels} {VERSION} 1",
        ),
        unknown=enkg.Field(
            "brightness",
            long_name="brightness over its mean, and 0.01",
            dims=("north", "east"),
            colour_map="afmhot",
        ),
        units=enkg.Log(scale=2.07, offset=-1.58, lowest=-6.0, highest=5.0),
        network=enkg.UNet(channels, layers, patch=4, attention=True),
        base="components",
        components=200,
        symmetries=(enkg.Rotate(), enkg.Reflect((-1,))),
        held_out=held_out,
        steps=steps,
        batch=batch,
        warmup=300,
        noise=enkg.LogNormal(0.3, 1.4),
        precision="bfloat16",
        half=True,
        about=(
            "Images of a thin glowing disc around a black hole by an analytic recipe, ring mass "
            "scale 3.8 microarcseconds with 35 % scatter, in a field of 128 microarcseconds."
        ),
        limits=(
            "It always contains a ring of about the size of M87's own: finding one is no "
            "detection. Compare with the control prior, which has none.",
            "The recipe is analytic; it is not a simulation of the plasma (GRMHD).",
            "Brightness below 1 % of the mean is not told from darkness, and total flux is free.",
        ),
        recipe="experiments/training/rings.py: priors.ring_images",
        licence="MIT",
    )
