"""Handwritten digits of 8 x 8 points: a kernel-density prior, exact at every noise level.

    p(x) = 1/N sum_i N(x; x_i, h^2 I),   x = pixel / 8 - 1,   pixel = 0, ..., 16

The images are those of the Optical Recognition of Handwritten Digits data set (Alpaydin and Kaynak
1998, UCI Machine Learning Repository), which come with scikit-learn (extra `digits`): 1,797 images,
split by a fixed seed into the 1,600 centres x_i and 197 held-out images. Denoiser, Jacobian and
draws are exact (`enkg.Mixture`). The kernel width h belongs in every report: below .15 the prior is
nearly discrete. Draws of the prior serve for calibration; held-out images are off the prior, by
about the distance to their nearest centre.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

import enkg

BANDWIDTH = 0.2
CENTRES = 1600
SPLIT_SEED = 0
CLASSES = 10


@dataclass(frozen=True, eq=False)
class Images:
    """images: (N, 8, 8), float64, in [-1, 1]. labels: (N,), 0 to 9."""

    images: Tensor
    labels: Tensor


@cache
def _split() -> tuple[Images, Images]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise enkg.InputError(
            "the digits come with scikit-learn, which is not installed; give "
            'pip install -e ".[digits]" -c constraints.txt'
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images.reshape(-1, 8, 8) / 8 - 1)
    labels = torch.from_numpy(labels.astype(np.int64))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    parts = (torch.from_numpy(np.sort(part)) for part in (order[:CENTRES], order[CENTRES:]))
    centres, held_out = (Images(images[part], labels[part]) for part in parts)
    return centres, held_out


def centres() -> Images:
    """The 1,600 images that are the centres of the prior, in the order of its components.

    Raises enkg.InputError where scikit-learn is not installed; so do all functions of this module.
    """
    return _split()[0]


def held_out() -> Images:
    """The 197 images that no prior of this module has seen."""
    return _split()[1]


def digits(bandwidth: float = BANDWIDTH) -> enkg.Mixture:
    """Kernel density of the 1,600 centres; bandwidth: the width h, in units of x."""
    return enkg.Mixture.from_samples(centres().images, bandwidth)


def digits_gaussian(bandwidth: float = BANDWIDTH) -> enkg.Gaussian:
    """The Gaussian with mean and covariance of `digits`: closed forms, and no classes."""
    x = centres().images.flatten(1)
    covariance = torch.cov(x.T, correction=0) + bandwidth**2 * torch.eye(x.shape[1]).double()
    return enkg.Gaussian.from_covariance(x.mean(dim=0).reshape(8, 8), covariance)


def class_shares(x: Tensor, bandwidth: float = BANDWIDTH) -> Tensor:
    """Share of each class in an ensemble, (J, 8, 8) to (10,), float64.

    Mean over the members of P(class | x), which follows from the prior.
    """
    prior = digits(bandwidth)
    weights = prior.weights(prior.transform.forward(x.double() - prior.mean), 0.0)
    return torch.zeros(CLASSES).double().index_add_(0, centres().labels, weights.mean(dim=0))
