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

    A failed member stays a row of NaN. Costs what the simulator costs.
    """

    simulator: Callable[[np.ndarray], np.ndarray]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; give 1 (all points) or more")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: vorticity (B, s, s). Returns (B, s/every, s/every) of the simulator's dtype."""
        return subsample(self.simulator(x), self.every)
