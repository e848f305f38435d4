"""Inflation: the anomalies of an ensemble times a number, after each update.

    x_j <- mean x + lambda (x_j - mean x)

Sampling errors of a gain that was estimated from the members themselves take spread away, the more
the smaller the ensemble; a lambda slightly above one gives some of it back, in every direction
alike and by a constant that nothing but experience tells (Anderson and Anderson 1999, Monthly
Weather Review 127, 2741-2758). The mean stays, the covariance is multiplied by lambda^2. With
lambda = 1 there is no inflation; a larger one biases the posterior of a large ensemble.

Cost: one pass over the ensemble. The k-fold gain (`enkg.guidance.kalman`) treats the cause and
needs no constant.
"""

from collections.abc import Callable

from torch import Tensor

from enkg.ensemble import anomalies


def inflated(moved: Callable[[Tensor], Tensor], factor: float) -> Callable[[Tensor], Tensor]:
    """The same update of members (G, w), with their anomalies multiplied by `factor` after it."""
    if factor == 1:
        return moved

    def update(x: Tensor) -> Tensor:
        x = moved(x)
        return x + (factor - 1) * anomalies(x)

    return update
