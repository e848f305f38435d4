"""The network of a learned prior: the U-Net of diffusers, for fields on a grid.

A member is (H, W), or (C, H, W) with C channels. `patch` gathers patch x patch points into
channels before the network and spreads them after it, which makes it patch^2 times cheaper at the
same number of weights. `periodic` pads every convolution around the torus.

References: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597; Ho, Jain and Abbeel 2020, arXiv
2006.11239 (the form that diffusers' UNet2DModel has); Shi et al. 2016, arXiv 1609.05158 (pixel
unshuffling).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from enkg.errors import InputError

NEEDED = (
    "training, and priors that were trained, need diffusers and safetensors, which are not "
    'installed; give pip install "enkg[train]"'
)


@runtime_checkable
class Architecture(Protocol):
    """What makes a network: `UNet`, or a frozen dataclass of yours."""

    def build(self, shape: Sequence[int], inputs: int) -> nn.Module:
        """A module from (B, inputs * C, H, W) and times (B,) to (B, C, H, W) for members of shape
        (H, W), where C is 1, or (C, H, W)."""
        ...


@dataclass(frozen=True)
class UNet:
    """diffusers' UNet2DModel, without its attention but for the middle."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Channels at each resolution; the grid is halved between them."""
    layers: int = 1
    """Residual blocks at each resolution."""
    patch: int = 1
    """Points per side gathered into channels; 2 or 4 makes large fields affordable."""
    periodic: bool = False
    """The field lives on a torus."""
    attention: bool = False
    """Attention between all points at the lowest resolution."""
    groups: int = 8
    """Groups of the group normalisation; divides all channels."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise InputError("channels is (); expected a number for each resolution")
        for name in ("layers", "patch", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")

    def build(self, shape: Sequence[int], inputs: int) -> nn.Module:
        """See `Architecture`. Raises InputError for shapes that do not fit."""
        channels, height, width = planes(shape)
        smallest = self.patch * 2 ** (len(self.channels) - 1)
        if height % smallest or width % smallest:
            raise InputError(
                f"members of {height} x {width} points; a network with patch={self.patch} and "
                f"{len(self.channels)} resolutions needs multiples of {smallest} points: choose "
                "another patch or fewer channels"
            )
        if any(c % self.groups for c in self.channels):
            raise InputError(
                f"channels {self.channels} are not all multiples of groups={self.groups}"
            )
        kind = _diffusers_unet()
        down = ("DownBlock2D",) * len(self.channels)
        up = ("UpBlock2D",) * len(self.channels)
        network = kind(
            sample_size=(height // self.patch, width // self.patch),
            in_channels=inputs * channels * self.patch**2,
            out_channels=channels * self.patch**2,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=down,
            up_block_types=up,
            norm_num_groups=self.groups,
            add_attention=self.attention,
        )
        if self.periodic:
            around_the_torus(network)
        # It begins as no correction at all.
        nn.init.zeros_(network.conv_out.weight)
        nn.init.zeros_(network.conv_out.bias)
        return Patched(network, self.patch)


class Patched(nn.Module):
    """A diffusers network on patches of patch x patch points, with a plain tensor as its answer."""

    def __init__(self, network: nn.Module, patch: int) -> None:
        super().__init__()
        self.network, self.patch = network, patch

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.patch == 1:
            return self.network(x, time).sample
        x = nn.functional.pixel_unshuffle(x, self.patch)
        return nn.functional.pixel_shuffle(self.network(x, time).sample, self.patch)


def planes(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) of a member of shape (H, W) or (C, H, W)."""
    if len(shape) not in (2, 3):
        raise InputError(
            f"members of shape {tuple(shape)}; the U-Net takes (H, W) or (C, H, W). Give a network "
            "of your own for others: an object with build(shape, inputs)"
        )
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    return channels, height, width


def around_the_torus(network: nn.Module) -> None:
    """Makes every padded convolution of a network pad periodically."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and any(layer.padding):
            assert not isinstance(layer.padding, str)
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [
                width for width in reversed(layer.padding) for _ in range(2)
            ]


def _diffusers_unet() -> Any:
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError as error:
        raise InputError(NEEDED) from error
    return UNet2DModel
