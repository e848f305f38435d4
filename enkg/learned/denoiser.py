"""A network and its preconditioning: together the denoiser of a learned prior.

    D(x, sigma) = D_0(x, sigma) + e_0(sigma) F((x - D_0) / a, (D_0 - m) / b, c_noise)

with D_0, e_0, a, b, m and C of `enkg.learned.base`, and the time c_noise linear in ln sigma. a and
b are the standard deviations of what they divide: the part of x that the linear denoiser takes for
noise, and the part that it keeps. Each is seen at unit scale, however small it is beside the other;
for C = I both are the published c_in x. F learns to minimise

    E | D(x_0 + sigma n, sigma) - x_0 |^2 / e_0(sigma)^2,      ln sigma ~ N(P_mean, P_std^2)

whose value is one for F = 0 at every level: the share of the linear denoiser's square error that is
left. precision: "bfloat16" runs the network F in it, and nothing else.

Reference: Karras et al. 2022, arXiv 2206.00364, equations 7 and 8 and table 1.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

from enkg.learned.base import Base

LOWEST, HIGHEST, TIMES = 0.002, 80.0, 250.0
"""The noise levels that the times 0 and TIMES stand for."""
TINY = 1e-9
"""Least standard deviation that an input is divided by."""


class Preconditioned(nn.Module):
    """The denoiser of members of `shape`; `network` as `enkg.learned.network.Architecture` says."""

    def __init__(self, network: nn.Module, base: Base, shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.shape = network, tuple(shape)
        self.precision = "float32"
        for name, value in base.arrays().items():
            self.register_buffer(f"base_{name}", value)

    @property
    def base(self) -> Base:
        """Where the module is."""
        return Base.of({n[5:]: b for n, b in self.named_buffers() if n.startswith("base_")})

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_sigma = x], (B, *X) and (B,) to (B, *X)."""
        linear, error, correction = self.parts(x, sigma)
        return linear + error * correction

    def parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D_0, e_0 and F, the first and last of shape (B, *X)."""
        base = self.base
        wide = sigma.reshape(-1, *(1,) * len(self.shape))
        linear = base.denoise(x, sigma)
        seen = (
            (x - linear) / base.taken(sigma).clamp(min=TINY).reshape(wide.shape),
            (linear - base.mean) / base.kept(sigma).clamp(min=TINY).reshape(wide.shape),
        )
        inputs = torch.cat([self._planes(each) for each in seen], dim=1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            correction = self.network(inputs, times(sigma))
        return linear, base.error(sigma).reshape(wide.shape), correction.to(x).reshape(x.shape)

    def loss(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Mean square error in units of the linear denoiser's, row by row, (B,)."""
        noisy = x + sigma.reshape(-1, *(1,) * len(self.shape)) * noise
        linear, error, correction = self.parts(noisy, sigma)
        return ((x - linear) / error - correction).square().flatten(1).mean(dim=1)

    def _planes(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if len(self.shape) == 2 else x


def times(sigma: Tensor) -> Tensor:
    """c_noise: what the network is told of the noise level."""
    return TIMES * (sigma.log() - log(LOWEST)) / (log(HIGHEST) - log(LOWEST))
