"""The black hole M87* from the Event Horizon Telescope measurement of 11 April 2017.

enkg run experiments/m87/image.py
enkg run experiments/m87/image.py --prior control
enkg run experiments/m87/image.py --prior learned
enkg run experiments/m87/image.py --uvfits other.uvfits

All priors side by side: experiments/m87/compare.py.
"""

from pathlib import Path

import enkg
from experiments.m87.imaging import PriorName, imaging
from experiments.m87.uvfits import read_uvfits


def experiment(
    uvfits: Path | None = None,
    prior: PriorName = "gaussian",
    members: int | None = None,
    field_of_view: float = 128.0,
    folder: Path | None = None,
) -> enkg.Experiment:
    """Images a source from its closure phases and log closure amplitudes.

    Args:
        uvfits: The measurement; if not given, M87 on 11 April 2017, low band, which is fetched and
            checked (or found in the folder ENKG_DATA).
        prior: Log-images of procedural rings with a wide range of sizes, as a Gaussian, as a
            mixture of samples, or as a network learned from them; or a control without rings.
        members: Ensemble size; if not given 512, and 192 with the learned prior, which is dearer.
        field_of_view: Side of the image in microarcseconds.
        folder: Of the learned prior, for another one than priors/rings.
    """
    return imaging(read_uvfits(uvfits), prior, members, field_of_view, folder=folder)
