"""One tempered Kalman update of an ensemble, with the noise covariance in the gain.

With whitened innovations r_j = Gamma^(-1/2) (y - Y_j), B = -(r_j - mean r) / sqrt(J - 1) stacked as
rows, shape (J, m), anomalies X' of the state and likelihood power b, the perturbed-observation
update is

    x_j += 1 / sqrt(J - 1) X'^T (B B^T + I / b)^-1 B (r_j + eta_j / sqrt(b))

which equals x_j + C_xy (C_yy + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j) of Emerick
and Reynolds 2013 (ES-MDA). The square-root form moves the mean the same way without eta and
transforms the anomalies by (I + b B B^T)^(-1/2) (Bishop, Etherton and Majumdar 2001; Hunt,
Kostelich and Szunyogh 2007), so that mean and covariance are the Kalman ones of the sample to
rounding.

Weights are solved in float64, in the J x J or the m x m space, whichever is smaller; the state
keeps its dtype. Cost: O(min(J, m)^3 + J^2 d), where m < J / 2 O(m^3 + J m d): the weights stay a
product of two thin factors.

The k-fold gain: the gain that moves a member is computed from the members of the other folds, so
that no member's own sampling error enters its gain. This undoes the loss of spread that small
ensembles suffer (Houtekamer and Mitchell 1998 introduced the pair of ensembles, k = 2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.ensemble import anomalies
from enkg.errors import EnsembleFailure

WILD = 1e7
"""Whitened anomalies above this lose the noise, whose variance is 1, in the Gram matrix."""


@dataclass(frozen=True, eq=False)
class Weights:
    """W of an update x += W X', as the product of its factors, first one left; each adds up to
    zero along its rows, or meets anomalies alone."""

    factors: tuple[Tensor, ...]

    def to(self, like: Tensor) -> "Weights":
        """In the dtype and on the device of `like`."""
        return Weights(tuple(factor.to(like) for factor in self.factors))

    def __call__(self, x: Tensor) -> Tensor:
        """The moved members, shape (G, *X) to (G, *X), in the dtype of x."""
        flat = rows(x)
        change = anomalies(flat)
        for factor in reversed(self.factors[1:]):
            change = factor.to(x) @ change
        return torch.addmm(flat, self.factors[0].to(x), change).reshape(x.shape)


def perturbed_weights(r: Tensor, eta: Tensor, power: float, fold: Tensor | None = None) -> Weights:
    """Weights of the update with perturbed observations.

    r: whitened innovations, (J, m). eta: standard normal, (J, m); it is centred here, which makes
    the update of the sample mean exact for linear simulators. fold: the fold of each member,
    integers of shape (J,); None computes one gain from all members.
    """
    _check(anomalies(r))
    innovations = r + anomalies(eta.to(r)) / power**0.5
    if fold is None and 2 * r.shape[1] < len(r):
        return Weights(_factors_in_data_space(r, innovations, power))
    everyone = torch.ones(len(r), dtype=torch.bool, device=r.device)
    if fold is None:
        groups = [(everyone, everyone)]
    else:
        groups = [(fold == k, fold != k) for k in fold.unique().tolist()]
    weights = torch.zeros(len(r), len(r), dtype=r.dtype, device=r.device)
    if r.shape[1] < len(r):
        for moved, trained in groups:
            left, right = _factors_in_data_space(r[trained], innovations[moved], power)
            weights[moved.nonzero(), trained.nonzero().T] = left @ right
    else:
        centred = anomalies(r)  # a common offset would cancel below, but not in the digits
        gram, cross = centred @ centred.T, innovations @ centred.T
        for moved, trained in groups:
            weights[moved.nonzero(), trained.nonzero().T] = _weights_in_ensemble_space(
                gram[trained][:, trained], cross[moved][:, trained], power
            )
    # Each row of the weights adds up to zero, so any common mean may be taken off.
    return Weights((weights,))


def square_root_weights(r: Tensor, power: float) -> Weights:
    """Weights of the deterministic (ensemble transform) update."""
    b = -anomalies(r) / (len(r) - 1) ** 0.5
    _check(b)
    if b.shape[1] < len(b):
        values, v = torch.linalg.eigh(b.T @ b)
        values = values.clamp(min=0)
        # Directions without variance are left alone below, whatever u is there.
        u = b @ v / values.clamp(min=values[-1] * 1e-14 + 1e-300).sqrt()
    else:
        values, u = torch.linalg.eigh(b @ b.T)
        values = values.clamp(min=0)
    shrink = (1 + power * values).rsqrt() - 1
    mean_shift = -(r.mean(dim=0) @ b.T @ u) * power / (1 + power * values)
    left = u * shrink - mean_shift / (len(r) - 1) ** 0.5  # every member moves with the mean
    return Weights((left, u.T)) if 2 * u.shape[1] < len(r) else Weights((left @ u.T,))


def _factors_in_data_space(r: Tensor, innovations: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """W, (n, G), for n innovations and G members, as (n, m) times (m, G), by an m x m system."""
    b = -anomalies(r) / (len(r) - 1) ** 0.5
    system = b.T @ b
    system.diagonal().add_(1 / power)
    solved = torch.cholesky_solve(innovations.T, torch.linalg.cholesky(system))
    return solved.T, b.T / (len(r) - 1) ** 0.5


def _weights_in_ensemble_space(gram: Tensor, cross: Tensor, power: float) -> Tensor:
    """The same by a G x G system. gram: r r^T, (G, G). cross: innovations r^T, (n, G)."""
    size = len(gram)
    centred = gram - gram.mean(dim=0, keepdim=True)
    centred = centred - centred.mean(dim=1, keepdim=True)
    system = centred / (size - 1)
    system.diagonal().add_(1 / power)
    right = (cross - cross.mean(dim=1, keepdim=True)).T
    return -torch.cholesky_solve(right, torch.linalg.cholesky(system)).T / (size - 1)


def _check(b: Tensor) -> None:
    """Refuses anomalies so wild that a Gram matrix in float64 loses the others."""
    largest = float(b.abs().max())
    if not largest < WILD:
        raise EnsembleFailure(
            f"simulated data differ from each other by {largest:.2g} standard deviations of the "
            "noise; the analysis cannot use them. A member that blew up should answer NaN"
        )
