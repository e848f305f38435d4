"""Gaussian with the mean and the spectrum of sample fields on the torus.

For flows that are statistically the same at every place along an axis but have a mean profile
across it, such as Kolmogorov flow.
"""

import torch
from torch import Tensor

from enkg import Gaussian, InputError, RealFourier


def stationary_field(samples: Tensor) -> Gaussian:
    """Fitted to samples of shape (N, s, s), N >= 2, in whatever unit they are in.

    The mean is that over samples and axis 0. The variance of wavenumber k is the mean square of the
    Fourier coefficients of the rest at k and -k; correlations between wavenumbers are dropped, and
    so is everything beyond second moments.
    """
    if samples.dim() != 3 or samples.shape[1] != samples.shape[2] or len(samples) < 2:
        raise InputError(f"samples of shape {tuple(samples.shape)}; expected (N, s, s), N >= 2")
    fields = samples.double()
    size = fields.shape[1]
    mean = fields.mean(dim=(0, 1), keepdim=True).expand(1, size, size)[0].contiguous()
    power = torch.fft.fft2(fields - mean, norm="ortho").abs().square().mean(dim=0)
    return Gaussian(mean, power.flatten(), RealFourier((size, size)))
