"""Operators that act on each point by itself: clipping, quantising, and expected counts.

    HighDynamicRange   clip(2 x, -1, 1): both ends are lost
    Quantise           the nearest of so many levels between -1 and 1
    Intensity          peak max((A x + 1) / 2, least): what a detector counts on average

The first and the last have a gradient almost everywhere; that of `Quantise` is zero, so it offers
none. `pinv` is a guess at the inverse, since the operators are not linear.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy import ndarray

from simulators.images.base import Linear, Operator, Shape, batch, check_shape


@dataclass(frozen=True, eq=False)
class HighDynamicRange(Operator):
    """clip(gain x, -1, 1)."""

    gain: float = 2.0

    def __post_init__(self) -> None:
        check_shape(self.shape)

    def _answer(self, x: ndarray) -> ndarray:
        return np.clip(self.gain * x, -1, 1)

    def vjp(self, x: ndarray, v: ndarray) -> ndarray:
        """gain v where nothing is clipped, else 0."""
        x, v = batch("x", x, self.shape), batch("v", v, self.shape)
        inside = np.where(np.isnan(x), x, np.abs(self.gain * x) <= 1)
        return self.gain * inside * v

    def pinv(self, y: ndarray) -> ndarray:
        """y / gain: exact where nothing was clipped."""
        return batch("y", y, self.shape) / self.gain


@dataclass(frozen=True, eq=False)
class Quantise(Operator):
    """The nearest of `levels` values, evenly spaced from -1 to 1, both ends among them."""

    levels: int = 16

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.levels < 2:
            raise ValueError(f"{self.levels} levels; expected at least 2")

    def _answer(self, x: ndarray) -> ndarray:
        steps = self.levels - 1
        return np.rint(np.clip((x + 1) / 2, 0, 1) * steps) / steps * 2 - 1

    def pinv(self, y: ndarray) -> ndarray:
        """y itself."""
        return batch("y", y, self.shape).copy()


@dataclass(frozen=True, eq=False)
class Intensity(Operator):
    """Expected counts peak max((A x + 1) / 2, least) of a linear operator A, never below zero.

    With A = I an image point of 1 gives `peak` counts and one of -1 the dark counts, `least` times
    that. Whoever observes them draws Poisson numbers with this mean.
    """

    operator: Linear = field(kw_only=True)
    peak: float = field(kw_only=True, default=30.0)
    least: float = field(kw_only=True, default=1e-3)

    def __post_init__(self) -> None:
        if tuple(self.shape) != tuple(self.operator.shape):
            raise ValueError(f"shape is {self.shape}; that of the operator {self.operator.shape}")
        if not self.peak > 0 or not 0 < self.least < 1:
            raise ValueError(
                f"peak {self.peak} and least {self.least}; expected a positive number of counts "
                "and a share between 0 and 1"
            )

    @cached_property
    def data_shape(self) -> Shape:
        return self.operator.data_shape

    def _answer(self, x: ndarray) -> ndarray:
        return self.peak * np.maximum((self.operator(x) + 1) / 2, self.least)

    def vjp(self, x: ndarray, v: ndarray) -> ndarray:
        """peak / 2 A^T v, without the data that are dark."""
        u = (self.operator(batch("x", x, self.shape)) + 1) / 2
        lit = np.where(np.isnan(u), u, u > self.least)
        return self.operator.adjoint(self.peak / 2 * lit * batch("v", v, self.data_shape))

    def pinv(self, y: ndarray) -> ndarray:
        """A^+ (2 y / peak - 1), where A has one, else A^T."""
        inverse = getattr(self.operator, "pinv", self.operator.adjoint)
        return inverse(2 * batch("y", y, self.data_shape) / self.peak - 1)
