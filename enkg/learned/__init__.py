"""Priors that are learnt from samples, and networks that exist already, as priors.

sources, generated, batches, files, symmetry    what to learn from
network, base, denoiser                         what learns
training, prepare, loop, keep, card             learning it
trained                                         using it
merits, compare, figures                        how good it is
adapters, rescale, hub, repository, weights     networks that others have trained
"""

from enkg.learned.generated import Generated
from enkg.learned.loop import train
from enkg.learned.network import UNet
from enkg.learned.sources import samples
from enkg.learned.symmetry import Reflect, Rotate, Shift
from enkg.learned.trained import Trained
from enkg.learned.training import LogNormal, Training

__all__ = [
    "Generated",
    "LogNormal",
    "Reflect",
    "Rotate",
    "Shift",
    "Trained",
    "Training",
    "UNet",
    "samples",
    "train",
]
