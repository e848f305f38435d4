"""A small autoencoder: fewer numbers that stand for a field, for priors over latent variables.

    coder = train_autoencoder(Autoencoder(latent=2), samples, units, "priors/mine")
    train(latent_training("priors/mine", samples), "priors/mine/latent")
    prior = trained_latent("priors/mine")            # an enkg.latent prior: psld, resample, ...

diffusers' AutoencoderKL, beside principal components W, orthonormal, as many as latent numbers:

    mean of z = W^T (x - m) + E(x),    decode(z) = m + W z + F(z)

E and F begin as zero, so that it begins as the best linear coder and learns what that misses. Of a
periodic field W would spoil what the convolutions keep, that a shifted field has shifted latents;
there E and F are alone. The loss of a sample, with z drawn from the encoder's Gaussian q, and d
points:

    1/d |x - decode(z)|^2 + kl / d KL(q | N(0, 1))

In use the encoder gives its mean, and latents are shifted and scaled to mean 0 and standard
deviation 1 in each channel.

References: Kingma and Welling 2014, arXiv 1312.6114; Rombach et al. 2022, arXiv 2112.10752 (the
network, and diffusion over its latents).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from enkg.arrays import rows
from enkg.errors import InputError, StoreError
from enkg.learned.network import NEEDED, around_the_torus, planes

NARROW = -5.0
"""The logarithm of the encoder's variance, to begin with."""


@dataclass(frozen=True)
class Autoencoder:
    """The network and its training. Fields of (H, W) or (C, H, W) become latents (latent, H / f,
    W / f) with f = 2^(resolutions - 1)."""

    channels: tuple[int, ...] = (32, 64)
    """Channels at each resolution; the grid is halved between them."""
    latent: int = 4
    """Channels of the latents."""
    layers: int = 1
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    groups: int = 8
    """Groups of the group normalisation; divides all channels."""
    periodic: bool = False
    """The field lives on a torus."""
    attention: bool = False
    """Attention between all points at the lowest resolution."""
    linear: bool | None = None
    """Learn what principal components miss; None: where the field is not periodic."""
    kl: float = 1e-4
    """Weight of the divergence from N(0, 1): how smooth the decoder has to be."""
    held_out: float | int = 0.1
    """Share or number of the samples that are not learnt from but measured with."""
    steps: int = 5000
    """Steps of the optimiser; each sees `batch` samples."""
    batch: int = 64
    """Samples a step."""
    rate: float = 1e-3
    """Learning rate, falling to zero over the last half of the training."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    looks: int = 10
    """How often the held-out error is measured on the way."""
    half: bool = False
    """Store the weights in float16, which makes the file half as large."""
    seed: int = 0
    """Same seed, same weights at the start, batches and noise."""
    device: str = "cpu"
    """cpu, cuda, ..."""

    def __post_init__(self) -> None:
        for name in ("latent", "layers", "groups", "steps", "batch", "looks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not (self.rate > 0 and self.clip > 0 and self.kl >= 0):
            raise InputError(
                f"rate is {self.rate}, clip {self.clip} and kl {self.kl}; expected positive "
                "numbers, and a kl that is not negative"
            )
        if not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise InputError(
                f"channels {self.channels} are not all multiples of groups={self.groups}"
            )
        if self.linear and self.periodic:
            raise InputError(
                "linear=True and periodic=True; principal components have a place on the torus, "
                "latents of a periodic field shift with it. Leave one of the two"
            )

    @property
    def factor(self) -> int:
        """f: points of the field to one of the latents, along each axis."""
        return 2 ** (len(self.channels) - 1)

    @property
    def learns_the_rest(self) -> bool:
        """Whether there are principal components beside the network."""
        return not self.periodic if self.linear is None else self.linear

    def shape(self, member: Sequence[int]) -> tuple[int, int, int]:
        """Shape Z of the latents of a member. Raises InputError where it does not fit."""
        _, height, width = planes(member)
        if height % self.factor or width % self.factor:
            raise InputError(
                f"members of {height} x {width} points; an autoencoder with {len(self.channels)} "
                f"resolutions needs multiples of {self.factor} points: choose fewer channels"
            )
        return self.latent, height // self.factor, width // self.factor

    def build(self, member: Sequence[int]) -> nn.Module:
        """diffusers' network for members of that shape, with random weights."""
        try:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        except ImportError as error:
            raise InputError(NEEDED) from error
        self.shape(member)
        inner, count = planes(member)[0], len(self.channels)
        channels: Any = self.channels
        down: Any = ("DownEncoderBlock2D",) * count
        up: Any = ("UpDecoderBlock2D",) * count
        network: Any = AutoencoderKL(
            in_channels=inner,
            out_channels=inner,
            block_out_channels=channels,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=self.layers,
            latent_channels=self.latent,
            norm_num_groups=self.groups,
            mid_block_add_attention=self.attention,
            scaling_factor=1.0,
        )
        if self.periodic:
            _halve_evenly(network)
            around_the_torus(network)
        last = network.quant_conv
        nn.init.constant_(last.bias[self.latent :], NARROW)
        if self.learns_the_rest:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias[: self.latent])
            nn.init.zeros_(network.decoder.conv_out.weight)
            nn.init.zeros_(network.decoder.conv_out.bias)
        return network


class Coder(nn.Module):
    """An AutoencoderKL between members (B, *X), in the prior's numbers, and latents (B, *Z).

    mean: m, shape X. basis: W, (d, K), with as many columns as latents, or none. shift, scale: of
    the latents, (channels, 1, 1): what is learned has mean `shift` and deviation `scale`.
    """

    mean: Tensor
    basis: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, config: Autoencoder, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.inner = tuple(shape), config.shape(shape)
        self.network: Any = config.build(shape)
        columns = min(prod(self.inner), prod(shape)) if config.learns_the_rest else 0
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("basis", torch.zeros(prod(shape), columns))
        self.register_buffer("shift", torch.zeros(config.latent, 1, 1))
        self.register_buffer("scale", torch.ones(config.latent, 1, 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q, (B, *Z) both, before shift and scale."""
        found = self.network.encode(x.reshape(len(x), *planes(self.shape))).latent_dist
        plain = rows(x - self.mean) @ self.basis
        missing = prod(self.inner) - plain.shape[1]
        plain = nn.functional.pad(plain, (0, missing))
        # The components take turns among the channels, so that all have about the same variance.
        places = plain.reshape(len(x), prod(self.inner[1:]), self.inner[0]).transpose(1, 2)
        return found.mean + places.reshape(found.mean.shape), found.std

    def generated(self, z: Tensor) -> Tensor:
        """Members of latents before shift and scale, (B, *Z) to (B, *X)."""
        places = z.flatten(2).transpose(1, 2).flatten(1)[:, : self.basis.shape[1]]
        found = self.network.decode(z).sample.reshape(len(z), *self.shape)
        return self.mean + (places @ self.basis.T).reshape(found.shape) + found

    def encode(self, x: Tensor) -> Tensor:
        """(B, *X) to (B, *Z): the encoder's mean."""
        return (self.posterior(x)[0] - self.shift) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """(B, *Z) to (B, *X)."""
        return self.generated(self.shift + self.scale * z)


def objective(coder: Coder, x: Tensor, noise: Tensor, kl: float) -> Tensor:
    """The loss of `enkg.learned.autoencoder`, the mean over the samples x, (B, *X)."""
    mean, std = coder.posterior(x)
    error = (coder.generated(mean + std * noise) - x).square().mean()
    divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log())
    return error + kl / prod(coder.shape) * divergence.sum() / len(x)


@torch.no_grad()
def reconstruction_error(coder: Any, x: Tensor) -> float:
    """Root-mean-square error a point of decode(encode(x)), for members (N, *X) and what has
    `encode` and `decode`."""
    total = sum(
        float((coder.decode(coder.encode(part)) - part).double().square().sum())
        for part in x.split(256)
    )
    return sqrt(total / x.numel())


def config_of(told: dict[str, Any]) -> Autoencoder:
    """The network of a card. Raises StoreError where it does not describe one."""
    known = {f.name for f in fields(Autoencoder)}
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k in known
    }
    try:
        return Autoencoder(**settings)
    except (TypeError, InputError) as error:
        raise StoreError(f"the card's [autoencoder] describes none: {error}") from error


def _halve_evenly(network: nn.Module) -> None:
    """Halves the field with a padding of one on every side, which can go around the torus."""
    for layer in network.modules():
        if type(layer).__name__ == "Downsample2D":
            made: Any = layer
            made.padding, made.conv.padding = 1, (1, 1)
            made.conv._reversed_padding_repeated_twice = (1, 1, 1, 1)
