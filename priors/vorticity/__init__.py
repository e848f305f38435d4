"""Developed vorticity on the torus, 64 x 64: a learned prior, trained on fields of our own solver.

`enkg show priors/vorticity` prints its card; experiments/training/vorticity.py makes it anew.
"""

from pathlib import Path

from enkg import Trained

FOLDER = Path(__file__).parent


def vorticity_prior() -> Trained:
    """The prior; its units make vorticity of its numbers."""
    return Trained(FOLDER, precision="bfloat16")
