"""Replacement: the part of the noisy state that the data determine is overwritten at each level.

With x' the ancestral step of the unguided chain from sigma to s and z, n standard normal,

    form="projection"    x_s = x' + P (A^+ (y - G(0)) + s n - x'),    P = A^+ A
    form="lowpass"       x_s = x' + L (A^+ y + s n - x'),             L = up(down(.))

The first is the projection of Song et al.: the seen part of the state is the data at noise s. P is
had from the full map, x_s = x' + A^+ y - A^+ G(x' - s n), so the simulator is asked at a noisy
state: it must be linear, and take any number. The second is ILVR, for images on the last two axes:
what a resize by `factor` and back keeps (antialiased cubic down, cubic up; the kernel matters)
comes from the reference A^+ y. It asks the simulator nothing.

The last step has s = 0. Then form="projection" gives A x = y, whatever the noise of y.

`until`: share of the levels that are guided; the rest are free, so that the prior may mend what was
forced on it. 1: all.

Law: exact as the levels are refined for data without noise, if the prior is Gaussian and its
covariance commutes with P; else the seen part of the state is not drawn given the unseen one, and
the two disagree. There is no posterior law for noisy data, whose noise is taken for signal.

Cost, for N levels and J chains: N J denoiser calls and those of the start; simulator calls N J
times `until` (projection) or none (lowpass); no gradient. Needs pinv, and no missing data.

References: Song et al. 2021, arXiv 2011.13456, appendix I (imputation); Song, Shen, Xing and Ermon
2022, arXiv 2111.08005; Choi et al. 2021, "ILVR: Conditioning method for denoising diffusion
probabilistic models", arXiv 2108.02938, algorithm 1.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import Chains, check_choices, finite, operator
from enkg.guidance.restoration import check_complete, drawn, info, replaced
from enkg.guidance.reverse import ancestral_step
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream


@dataclass(frozen=True)
class ILVR(Chains):
    """Replacement of the seen part. Cost: `levels` simulator calls a member (projection), or none
    (lowpass)."""

    form: Literal["projection", "lowpass"] = "projection"
    """What is replaced: the range of the simulator's transpose, or the low frequencies (ILVR)."""
    factor: int = 4
    """Resize of form="lowpass"; the images' sides must be multiples of it."""
    until: float = 1.0
    """Share of the levels, from the highest, that are guided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "form")
        if self.factor < 2:
            raise InputError(f"factor is {self.factor}; expected a resize by 2 or more")
        if not 0 < self.until <= 1:
            raise InputError(f"until is {self.until}; expected a share above 0, at most 1")

    @property
    def guided(self) -> int:
        """Number of guided levels."""
        return ceil(self.until * self.levels)

    @property
    def sweeps(self) -> int:
        return self.guided if self.form == "projection" else 0

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("pinv",)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i = state.step
        sigma, to = self.sigmas[i : i + 2]
        check_complete(observation, "ILVR")
        clean = prior.denoise(state.x, sigma)
        x = ancestral_step(state.x, clean, sigma, to, drawn(state, prior))
        if i < self.guided:
            noisy = x - to * drawn(state, prior, Stream.RENOISE).to(x)
            if self.form == "projection":
                y = forward(noisy)
                x = x + replaced(state.own(y), forward, observation).to(x)
            else:
                given = observation.y.to(x.device, torch.float64)[None]
                reference = operator(forward).pinv(given).to(x)
                x = x + finite(lowpass(reference - noisy, self.factor))
        after = replace(state, x=x, step=i + 1, sigma=to, finished=i + 1 == self.levels)
        return after, info(state, self.levels)


def lowpass(x: Tensor, factor: int) -> Tensor:
    """Images (J, ..., H, W) down by the factor and up again."""
    if x.dim() < 3 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise InputError(
            f'ILVR with form="lowpass" and factor={factor} was given members of shape '
            f"{tuple(x.shape[1:])}; expected images whose sides are multiples of the factor"
        )
    size = (x.shape[-2], x.shape[-1])
    small = (size[0] // factor, size[1] // factor)
    done = []
    for image in x:  # one by one, so that no image knows how many there are
        flat = image.reshape(1, -1, *size)
        down = interpolate(flat, small, mode="bicubic", antialias=True, align_corners=False)
        up = interpolate(down, size, mode="bicubic", antialias=True, align_corners=False)
        done.append(up.reshape(image.shape))
    return torch.stack(done) if done else x
