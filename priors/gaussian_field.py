"""Gaussian random field on the torus, with an exact denoiser at every noise level.

Covariance proportional to (-laplacian + tau^2)^(-alpha) on [0, 2 pi)^2, the usual prior of inverse
problems in fluid mechanics (Dashti and Stuart 2017, "The Bayesian approach to inverse problems").
"""

import torch

from enkg import Gaussian, RealFourier


def gaussian_field(size: int, alpha: float = 4.0, tau: float = 3.0, std: float = 1.0) -> Gaussian:
    """Periodic field of size x size points, zero mean, standard deviation `std` at every point.

    Variance of wavenumber k: proportional to (|k|^2 + tau^2)^(-alpha) inside the 2/3 rule (|k1|,
    |k2| < size / 3), zero at k = 0 and outside, so that the field has no mean and no energy where a
    dealiased solver has none.
    """
    k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    k1, k2 = torch.meshgrid(k, k, indexing="ij")
    variance = (k1**2 + k2**2 + tau**2) ** -alpha
    variance[(k1.abs() >= size / 3) | (k2.abs() >= size / 3)] = 0.0
    variance[0, 0] = 0.0
    variance *= (size * std) ** 2 / variance.sum()
    mean = torch.zeros(size, size, dtype=torch.float64)
    return Gaussian(mean, variance.flatten(), RealFourier((size, size)))
