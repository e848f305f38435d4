"""Digits in the space of their principal components: a latent prior with a decoder and an encoder.

    decode(z) = m + W z,  encode(x) = W^T (x - m)            decoder="linear"
    decode(z) = a tanh((m + W z) / a), and its inverse       decoder="curved", a = 1.5

W holds the first `components` of the principal directions of the 1,600 centres, orthonormal, and m
is their mean; z has the kernel density of the centres' coefficients. What the other components hold
is lost: `reconstruction_error` is the root-mean-square error a point of decode(encode(x)). For the
197 held-out digits, whose points are in [-1, 1], `python -m priors.digits.latent` gives

    components    8      16     24     32     48
    linear        0.309  0.212  0.150  0.104  0.023
    curved        0.298  0.197  0.137  0.093  0.022

`learned_latent` has an autoencoder of 32 latent numbers instead, which loses 0.086 of the same
images; of draws of the kernel density with h = 0.2, of whose noise no 32 numbers can tell, 0.153,
and 32 principal components 0.172.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import enkg
from enkg.latent import Latent
from priors import digits

COMPONENTS = 24
CURVE = 1.5
LEARNED = Path(__file__).parent / "autoencoder"
EDGE = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class Principal:
    """basis: W, (64, K). mean: m, (64,). curve: a, or None."""

    basis: Tensor
    mean: Tensor
    curve: float | None = None

    def decode(self, z: Tensor) -> Tensor:
        """(J, K) to (J, 8, 8)."""
        x = self.mean.to(z) + z @ self.basis.to(z).T
        if self.curve is not None:
            x = self.curve * torch.tanh(x / self.curve)
        return x.reshape(len(z), 8, 8)

    def encode(self, x: Tensor) -> Tensor:
        """(J, 8, 8) to (J, K)."""
        x = x.flatten(1)
        if self.curve is not None:
            x = self.curve * torch.atanh((x / self.curve).clamp(-EDGE, EDGE))
        return (x - self.mean.to(x)) @ self.basis.to(x)


@cache
def principal(components: int = COMPONENTS, curved: bool = False) -> Principal:
    """The decoder and encoder of so many components, 1 to 64."""
    if not 1 <= components <= 64:
        raise enkg.InputError(f"{components} components; expected 1 to 64")
    x = digits.centres().images.flatten(1)
    curve = CURVE if curved else None
    if curve is not None:
        x = curve * torch.atanh(x / curve)
    mean = x.mean(dim=0)
    _, _, right = torch.linalg.svd(x - mean, full_matrices=False)
    return Principal(right[:components].T.contiguous(), mean, curve)


def latent_digits(
    components: int = COMPONENTS, bandwidth: float = digits.BANDWIDTH, curved: bool = False
) -> Latent:
    """The latent prior. bandwidth: kernel width of the coefficients, in units of x."""
    coder = principal(components, curved)
    prior = enkg.Mixture.from_samples(coder.encode(digits.centres().images), bandwidth)
    return enkg.latent(prior, coder.decode, (8, 8), coder.encode)


def learned_latent() -> Latent:
    """The latent prior that was learnt: an autoencoder of 32 latent numbers on a grid of 4 x 4, and
    a diffusion prior over them.

    It is in float32 and needs diffusers and safetensors; experiments/training/digits_latent.py made
    it, and priors/digits/autoencoder/card.toml says what it loses.
    """
    from enkg.learned import trained_latent

    return trained_latent(LEARNED)


def reconstruction_error(components: int = COMPONENTS, curved: bool = False) -> float:
    """Root-mean-square error of decode(encode(x)), a point, over the held-out digits."""
    coder, x = principal(components, curved), digits.held_out().images
    return float((coder.decode(coder.encode(x)) - x).square().mean().sqrt())


if __name__ == "__main__":
    for name, curved in (("linear", False), ("curved", True)):
        errors = [f"{reconstruction_error(k, curved):.3f}" for k in (8, 16, 24, 32, 48)]
        print(name, *errors)
