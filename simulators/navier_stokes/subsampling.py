"""What an instrument sees of a flow: every q-th point of the grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def subsample(y: np.ndarray, every: int) -> np.ndarray:
    """Keep every `every`-th point of both axes, from point 0: (B, s, s) -> (B, s/every, s/every).

    `every` must divide s, so that the points kept are evenly spaced on the torus.
    """
    s = y.shape[-1]
    if every < 1 or s % every or y.shape[-2] % every:
        raise ValueError(f"every={every} does not divide the grid {y.shape[-2:]}; give a divisor")
    return np.ascontiguousarray(y[..., ::every, ::every])


@dataclass(frozen=True)
class Subsampled:
    """A simulator followed by `subsample`: (B, s, s) -> (B, s/every, s/every).

    A failed member stays a row of NaN. Costs what the simulator costs. Has a gradient `vjp` if the
    simulator has one.
    """

    simulator: Callable[[np.ndarray], np.ndarray]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; give 1 (all points) or more")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: vorticity (B, s, s). Returns (B, s/every, s/every) of the simulator's dtype."""
        return subsample(self.simulator(x), self.every)

    @property
    def vjp(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """J(x)^T v: (B, s, s), (B, s/every, s/every) -> (B, s, s), of the simulator's dtype.

        Raises AttributeError where the simulator has none, so that `hasattr` tells the truth.
        """
        inner = self.simulator.vjp  # pyright: ignore[reportFunctionMemberAccess]

        def pull_back(x: np.ndarray, v: np.ndarray) -> np.ndarray:
            x, v = np.asarray(x), np.asarray(v)
            expected = (*x.shape[:1], *(s // self.every for s in x.shape[1:]))
            if v.shape != expected:
                raise ValueError(f"v has shape {v.shape}; expected {expected}")
            spread = np.zeros(x.shape, dtype=v.dtype)
            spread[..., :: self.every, :: self.every] = v
            return inner(x, spread)

        return pull_back
