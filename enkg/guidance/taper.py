"""The perturbed-observation update with a tapered cross covariance: localisation by correlation.

A sample correlation r between an unknown and a datum has a sampling error of about 1 / sqrt(J),
whatever the truth. The covariance of each pair is therefore multiplied by

    t(r) = r^2 / (r^2 + (1 + r^2) / J)

which is next to zero for correlations that the sampling error explains, and tends to one for all
others as J grows:

    x_j += (t o C_xY) (C_YY + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)

No coordinates of unknowns and data are needed. Law: as without taper, exact for linear simulators
and Gaussian priors as J grows; at finite J it leaves the span of the anomalies.

The factor is that of least mean squared error for a true correlation r (Furrer and Bengtsson 2007,
"Estimation of high-dimensional prior and posterior covariance matrices in Kalman filter variants",
Journal of Multivariate Analysis 98, 227-255), taken at the sample's r. Tapering by sample
correlations: Luo and Bhakta 2020, "Automatic and adaptive localization for ensemble-based history
matching", Journal of Petroleum Science and Engineering 184, 106559 (with another factor, on the
gain).

Cost: O(J d m) for d unknowns and m data, where the update without taper takes O(J^2 d). Memory: the
covariance is made for `enkg.comm.TILE` unknowns at a time, 8 x 256 x m bytes three times over,
never d x m; the system is solved in the smaller of the J x J and the m x m space.
"""

from dataclasses import dataclass

from torch import Tensor

from enkg.arrays import rows
from enkg.ensemble import anomalies
from enkg.guidance.kalman import solved


@dataclass(frozen=True, eq=False)
class Tapered:
    """data: anomalies of the whitened data, (G, m). weights: solutions of the system for each
    member's innovation, (G, m). Both float64."""

    data: Tensor
    weights: Tensor

    def to(self, like: Tensor) -> "Tapered":
        """On the device of `like`."""
        return Tapered(self.data.to(like.device), self.weights.to(like.device))

    def __call__(self, x: Tensor) -> Tensor:
        """The moved members, shape (G, *X) to (G, *X), in the dtype of x."""
        flat = rows(x).double()
        change = anomalies(flat)
        covariance = change.T @ self.data / (len(flat) - 1)
        scale = change.square().sum(0)[:, None] * self.data.square().sum(0) / (len(flat) - 1) ** 2
        square = covariance.square() / scale.clamp(min=1e-300)
        factor = taper(square, len(flat))
        return (flat + self.weights @ (factor * covariance).T).to(x).reshape(x.shape)


def taper(square: Tensor, members: int) -> Tensor:
    """t of squared correlations, any shape; 0 where there is none."""
    return square / (square + (1 + square) / members)


def tapered_update(r: Tensor, eta: Tensor, power: float) -> Tapered:
    """The update of the living members. r: whitened innovations, (G, m). eta: standard normal,
    (G, m); it is centred here."""
    innovations = r + anomalies(eta.to(r)) / power**0.5
    return Tapered(-anomalies(r), solved(r, innovations, power))
