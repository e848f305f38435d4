r"""Do the members look like samples of the prior? A fit may be bought by leaving it.

If the truth is a draw of the prior, so is a posterior member, over all truths and noises. So for
any statistic E, the mean of E over the members of one posterior is spread less around E's prior
mean than E of single prior samples is (Jensen: it is a conditional expectation). Members whose
mean E lies above that of single prior samples have left the prior, or the truth is no draw of it.

E grows with -log p. For a Gaussian prior with variances C_k along e_k it is, in closed form,

    E(x) = sum_k z_k^2 / (C_k + s^2) + |the rest of x|^2 / s^2,     z = T(x - m),

that is -2 log p_s up to a constant, the density of the prior smoothed at s = 0.05 of its standard
deviation: what is finer than s counts little. For any other prior the denoiser is asked:

    E(x) = sum_l |x - (D(x + s_l n, s_l) + D(x - s_l n, s_l)) / 2|^2 / s_l^2

at s_l = 0.1, 0.3 and 1 of the prior's standard deviation. The square of a denoiser's error,
integrated over 1/s^2, is -2 log p up to a constant (Kong, Brekelmans and Ver Steeg 2023, arXiv
2302.03792), and s_l in equal ratios give a step of this integral weight 1/s_l^2. The
pair of opposite noises cancels what the noise adds to first order, so the sum is that of a Gaussian
without sampling error.

The distance is mean E over the members by mean E of prior samples: 1 for prior samples, in bounds
from the chi-square distribution that has the mean and variance of E.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.bounds import chi_square
from enkg.ensemble import spread
from enkg.prior import Gaussian, Prior
from enkg.random import Stream

FINEST = 0.05
LEVELS = (0.1, 0.3, 1.0)
ASKED = 32
"""Members, and prior samples, that the denoiser is asked about."""


@dataclass(frozen=True)
class Distance:
    """value: 1 for prior samples. bounds: where it lies for the posterior of a draw of the prior,
    but for three cases in a thousand. denoiser_calls: what it cost."""

    value: float
    bounds: tuple[float, float]
    denoiser_calls: int = 0


def distance(prior: Prior, x: Tensor, samples: Tensor, seed: int) -> Distance | None:
    """Of an ensemble x, (J, *X), from the prior; None where the prior is a point.

    samples: of the prior, (N, *X); used where the prior is no `Gaussian`. Cost: one transform for
    a Gaussian, else `2 len(LEVELS)` denoiser calls for each of at most `ASKED` members and as many
    samples; no simulator call.
    """
    if isinstance(prior, Gaussian):
        return _closed(prior, x)
    return _by_denoiser(prior, x[:ASKED], samples[:ASKED], seed)


def _closed(prior: Gaussian, x: Tensor) -> Distance | None:
    variance = prior.variance.double().to(x.device)
    floor = FINEST**2 * float(variance.sum()) / x[0].numel()
    if floor == 0:
        return None
    centred = x.double() - prior.mean.double().to(x.device)
    square = prior.transform.forward(centred).square()
    rest = (rows(centred).square().sum(dim=1) - square.sum(dim=1)).clamp(min=0)
    found = (square / (variance + floor)).sum(dim=1) + rest / floor
    weight = variance / (variance + floor)
    mean, second = float(weight.sum()), float(weight.square().sum())
    return Distance(float(found.mean()) / mean, chi_square(mean**2 / second))


def _by_denoiser(prior: Prior, x: Tensor, samples: Tensor, seed: int) -> Distance | None:
    scale = spread(samples)
    if len(samples) < 2 or not scale > 0:
        return None
    members, typical = (_pull(prior, each, scale, seed) for each in (x, samples))
    mean, count = float(typical.mean()), len(samples)
    # The mean over the samples is itself one of N draws.
    variance = float(typical.var()) * (1 + 1 / count)
    if not variance > 0:
        return None
    calls = 2 * len(LEVELS) * (len(x) + count)
    return Distance(float(members.mean()) / mean, chi_square(2 * mean**2 / variance), calls)


def _pull(prior: Prior, x: Tensor, scale: float, seed: int) -> Tensor:
    """E of each row, (J,), float64."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for step, share in enumerate(LEVELS):
        sigma = share * scale
        noise = random.normal(x.shape[1:], seed, Stream.REFERENCE, range(len(x)), step).to(x)
        pair = prior.denoise(x + sigma * noise, sigma) + prior.denoise(x - sigma * noise, sigma)
        total += rows((x - 0.5 * pair).double() / sigma).square().sum(dim=1)
    return total
