"""Priors that are learnt from samples, and networks that exist already, as priors.

sources, generated, batches, files, symmetry    what to learn from
network, base, denoiser                         what learns
training, prepare, loop, keep, card             learning it
trained                                         using it
autoencoder, autoencoder_training, latent_prior fewer numbers, for priors over latents
merits, compare, figures                        how good it is
adapters, rescale, hub, repository, weights     networks that others have trained
"""

from enkg.learned.adapters import EDM, Denoiser, FlowMatching, VariancePreserving
from enkg.learned.autoencoder import Autoencoder
from enkg.learned.autoencoder_training import train_autoencoder
from enkg.learned.generated import Generated
from enkg.learned.hub import from_diffusers, latent_from_diffusers
from enkg.learned.latent_prior import TrainedAutoencoder, latent_training, trained_latent
from enkg.learned.loop import train
from enkg.learned.network import UNet
from enkg.learned.rescale import rescaled
from enkg.learned.sources import samples
from enkg.learned.symmetry import Reflect, Rotate, Shift
from enkg.learned.trained import Trained
from enkg.learned.training import LogNormal, Training

__all__ = [
    "EDM",
    "Autoencoder",
    "Denoiser",
    "FlowMatching",
    "Generated",
    "LogNormal",
    "Reflect",
    "Rotate",
    "Shift",
    "Trained",
    "TrainedAutoencoder",
    "Training",
    "UNet",
    "VariancePreserving",
    "from_diffusers",
    "latent_from_diffusers",
    "latent_training",
    "rescaled",
    "samples",
    "train",
    "train_autoencoder",
    "trained_latent",
]
