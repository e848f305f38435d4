"""Gaussian random field on a square with walls, as a sum of cosines.

The covariance is that of the Whittle-Matern field with zero slope at the walls, cut off after the
first modes (Lindgren, Rue and Lindstrom 2011, "An explicit link between Gaussian fields and
Gaussian Markov random fields", Journal of the Royal Statistical Society B 73).
"""

import math

import torch

from enkg import Eigenbasis, Gaussian


def cosine_field(
    size: int, length: float, std: float = 1.0, smoothness: float = 1.5, modes: int = 8
) -> Gaussian:
    """Field of size x size cells on the unit square: zero mean, modes x modes cosines.

    length: distance, in sides of the square, over which the field loses its memory. std: root mean
    square over the square; near the walls the standard deviation is larger, in the corners about
    twice that of the middle. smoothness: nu of the Matern covariance.

    Mode (k1, k2), k < modes, is cos(pi k1 y) cos(pi k2 x) at the centres of the cells, of variance
    proportional to (2 nu / length^2 + pi^2 (k1^2 + k2^2))^-(nu + 1). The constant is among them.
    """
    if not 1 <= modes <= size:
        raise ValueError(f"{modes} modes a side; expected 1 to the {size} cells a side")
    k = torch.arange(modes, dtype=torch.float64)
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    wave = torch.cos(math.pi * place[:, None] * k)
    wave /= wave.norm(dim=0)
    basis = torch.kron(wave, wave)
    square = (math.pi * k) ** 2
    variance = (2 * smoothness / length**2 + square[:, None] + square) ** -(smoothness + 1)
    variance *= (size * std) ** 2 / variance.sum()
    mean = torch.zeros(size, size, dtype=torch.float64)
    return Gaussian(mean, variance.flatten(), Eigenbasis(basis, (size, size)))
