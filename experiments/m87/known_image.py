"""A known image seen with the coverage and the noise of 11 April 2017: is the answer right?

    enkg run experiments/m87/known_image.py --truth 3

The truth is a procedural ring that is not among the prior's samples; its visibilities are corrupted
by thermal and systematic noise and by random station phases.
"""

from pathlib import Path

import enkg
from experiments.m87.imaging import FLUX, PriorName, imaging
from experiments.m87.synthetic import synthetic_data
from experiments.m87.uvfits import read_uvfits
from priors.ring_images import ring_images


def experiment(
    uvfits: Path | None = None,
    truth: int = 0,
    prior: PriorName = "gaussian",
    members: int | None = None,
    field_of_view: float = 128.0,
    folder: Path | None = None,
) -> enkg.Experiment:
    """Images a known source through a real array, and compares.

    Args:
        uvfits: The measurement whose coverage and noise are taken.
        truth: Which truth; each number is another ring image and another draw of the noise.
        prior: As in image.py.
        members: Ensemble size; if not given 512, and 192 with the learned prior, which is dearer.
        field_of_view: Side of the image in microarcseconds.
        folder: Of the learned prior, for another one than priors/rings.
    """
    image = FLUX * ring_images(1, seed=10_000 + truth, field_of_view_uas=field_of_view)[0]
    seen = synthetic_data(image, read_uvfits(uvfits), field_of_view, seed=truth)
    return imaging(seen, prior, members, field_of_view, truth=image, folder=folder)
