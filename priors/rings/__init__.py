"""Log-images of rings around a black hole, 64 x 64: a learned prior, trained on our own recipe.

`enkg show priors/rings` prints its card; experiments/training/rings.py makes it anew.
"""

from pathlib import Path

from enkg import Trained

FOLDER = Path(__file__).parent


def rings_prior() -> Trained:
    """The prior; its units make brightness over its mean, and a floor, of its numbers."""
    return Trained(FOLDER, precision="bfloat16")
