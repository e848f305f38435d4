"""Counts: the measurement y ~ Poisson(G(x)), each datum with its own rate G >= 0.

Exact likelihood, up to the constant that makes the best rate G = y cost nothing (half the
deviance), and its gradient:

    Phi(Y) = sum_i Y_i - y_i + y_i log(y_i / Y_i),      d Phi / d Y_i = 1 - y_i / Y_i

The mean of 2 Phi per datum at the true rates is 1 + 1 / (6 rate) where these are above a few; for
rates near one it is up to 1.16 (the sum over the Poisson law), and it goes to zero with the rate.

Below a small `floor` f the logarithm is left: there Phi goes on along its tangent at f where
something was counted, and stays as it is at f where nothing was. So Phi is continuous, convex and
not negative for any rate, and a simulator that gives rates below zero is led back above.

Ensemble Kalman methods need a covariance. They get that of the Gaussian approximation at the data,

    y - G ~ N(0, diag(max(y, 1))),

which `whiten`, `residual`, `noise` and `std` speak of; it is good where most counts are above ten.
`misfit` and `gradient` are those of the exact likelihood.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows, tensor
from enkg.errors import InputError
from enkg.observation import Observation
from enkg.random import Stream

log = logging.getLogger("enkg")


@dataclass(frozen=True, eq=False)
class Poisson(Observation):
    """Counts.

    y: whole numbers >= 0, shape Y. The simulator gives their rates, background included. mask,
    independent: see `Observation`. floor: the rate below which a rate counts as none, between 0 and
    1. std: of the Gaussian approximation.
    """

    std: Any = field(init=False, default=None)
    covariance: Any = field(init=False, default=None)
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.floor < 1:
            raise InputError(f"floor is {self.floor}; expected a rate between 0 and 1")
        y = tensor(self.y, torch.float64)
        object.__setattr__(self, "std", y.nan_to_num(0.0).clamp(min=1.0).sqrt())
        super().__post_init__()
        counts = self.y[self.mask]
        wrong = counts[(counts < 0) | (counts != counts.round())]
        if len(wrong):
            raise InputError(
                f"{len(wrong)} of {len(counts)} counts are no counts, the first is "
                f"{float(wrong[0]):.6g}; expected whole numbers that are not negative. For data "
                "with Gaussian noise give enkg.Observation(y, std=...)"
            )

    def misfit(self, y: Tensor) -> Tensor:
        """Phi of rates y, (J, *Y) to (J,), float64."""
        counts, rates, floored = self._used(y)
        # Rows of `beyond` are what the tangent adds below the floor; 0 above.
        beyond = (rates - floored) * self._slope(counts, floored).clamp(max=0)
        phi = floored - counts + torch.xlogy(counts, counts) - torch.xlogy(counts, floored)
        return (phi.clamp(min=0) + beyond).sum(dim=1)

    def gradient(self, y: Tensor) -> Tensor:
        """d Phi / d y, (J, *Y) twice, float64; 0 outside the mask."""
        counts, rates, floored = self._used(y)
        slope = self._slope(counts, floored)
        slope = torch.where(rates < floored, slope.clamp(max=0), slope)
        out = torch.zeros(len(y), *self.y.shape, dtype=torch.float64, device=y.device)
        out[:, self.mask.to(y.device)] = slope
        return out

    def perturb(self, y: Tensor, seed: int, step: int = 0) -> Tensor:
        """Counts drawn at the rates y, for synthetic data: shape Y, masked elements NaN."""
        rates = y.double()[self.mask]
        if not bool(rates.isfinite().all()) or bool((rates < 0).any()):
            raise InputError(
                f"rates between {float(rates.min()):.3g} and {float(rates.max()):.3g} were given; "
                "counts need finite ones that are not negative. Let the simulator clip them, or "
                "give it the logarithm of the rate as its unknown (enkg.Log)"
            )
        (chance,) = random.generators(seed, Stream.SYNTHETIC, [0], step)
        out = torch.full_like(self.y, float("nan"))
        out[self.mask] = torch.from_numpy(chance.poisson(rates.numpy())).double()
        return out

    def _used(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (m,), rates (J, m) and rates above the floor (J, m), without missing data."""
        mask = self.mask.to(y.device)
        rates, counts = y.double()[:, mask], self.y.to(y.device)[mask]
        answered = rows(y).any(dim=1, keepdim=True)  # zeros alone stand for a failed member
        low = (rates < self.floor) & (counts > 0) & answered
        if bool(low.any()):
            _ = self._told
        return counts, rates, rates.clamp(min=self.floor)

    @staticmethod
    def _slope(counts: Tensor, rates: Tensor) -> Tensor:
        return 1 - counts / rates

    @cached_property
    def _told(self) -> None:
        log.warning(
            "the simulator gave rates below %g where something was counted; the likelihood goes on "
            "along its tangent there (enkg.Poisson, floor). Let it give rates above zero: add the "
            "background, or take the logarithm of the rate as the unknown",
            self.floor,
        )
