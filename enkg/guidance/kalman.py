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
ensembles suffer (Houtekamer and Mitchell 1998 introduced the pair of ensembles, k = 2). With the
square-root form, the mean innovation and the difference of a member from it are each weighted by
the gain of the other folds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.ensemble import anomalies
from enkg.errors import EnsembleFailure

Response = Callable[[Tensor], Tensor]
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
    weights = torch.zeros(len(r), len(r), dtype=r.dtype, device=r.device)
    groups = _groups(r, fold)
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


def square_root_weights(r: Tensor, power: float, fold: Tensor | None = None) -> Weights:
    """Weights of the deterministic (ensemble transform) update. fold: as above; the anomalies of a
    member then shrink by the gain of the other folds, no longer to the Kalman covariance exactly.
    """

    def of_anomalies(values: Tensor) -> Tensor:
        root = (1 + power * values).sqrt()
        return power / (root * (root + 1))

    return deterministic_weights(r, lambda v: power / (1 + power * v), of_anomalies, fold)


def deterministic_weights(
    r: Tensor, of_mean: Response, of_anomalies: Response, fold: Tensor | None = None
) -> Weights:
    """Weights of x_j += 1 / sqrt(J - 1) X'^T B (f(B^T B) mean r + g(B^T B) (r_j - mean r)).

    of_mean, of_anomalies: f and g as functions of the eigenvalues, (n,) to (n,). The update by
    power b has f = b / (1 + b v) and g = (1 - (1 + b v)^(-1/2)) / v.
    """
    centred = anomalies(r)
    _check(centred)
    mean = r.mean(dim=0)
    if fold is None and 2 * r.shape[1] < len(r):
        left, right = _responses_in_data_space(centred, mean, centred, of_mean, of_anomalies)
        return Weights((left, right))
    weights = torch.zeros(len(r), len(r), dtype=r.dtype, device=r.device)
    for moved, trained in _groups(r, fold):
        if r.shape[1] < len(r):
            left, right = _responses_in_data_space(
                r[trained], mean, centred[moved], of_mean, of_anomalies
            )
            block = left @ right
        else:
            b = -anomalies(centred[trained]) / (int(trained.sum()) - 1) ** 0.5
            values, u = torch.linalg.eigh(b @ b.T)
            values = values.clamp(min=0)
            shift = (mean @ b.T @ u) * of_mean(values)
            block = shift + (centred[moved] @ b.T @ u) * of_anomalies(values)
            block = block @ u.T / (len(b) - 1) ** 0.5
        weights[moved.nonzero(), trained.nonzero().T] = block
    return Weights((weights,))


def _groups(r: Tensor, fold: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Who is moved by the gain of whom: pairs of bool, (J,)."""
    if fold is None:
        everyone = torch.ones(len(r), dtype=torch.bool, device=r.device)
        return [(everyone, everyone)]
    return [(fold == k, fold != k) for k in fold.unique().tolist()]


def _responses_in_data_space(
    trained: Tensor, mean: Tensor, moved: Tensor, of_mean: Response, of_anomalies: Response
) -> tuple[Tensor, Tensor]:
    """Weights of the deterministic update as (n, m) times (m, G). trained: innovations, (G, m).
    mean: (m,). moved: their differences from it, (n, m)."""
    b = -anomalies(trained) / (len(trained) - 1) ** 0.5
    values, v = torch.linalg.eigh(b.T @ b)
    values = values.clamp(min=0)
    left = (mean @ v) * of_mean(values) + (moved @ v) * of_anomalies(values)
    return left @ v.T, b.T / (len(b) - 1) ** 0.5


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


def solved(r: Tensor, innovations: Tensor, power: float) -> Tensor:
    """(B^T B + I / b)^-1 innovations, row by row, (n, m) to (n, m), for members r, (G, m)."""
    b = -anomalies(r) / (len(r) - 1) ** 0.5
    _check(b)
    tall = len(b) > b.shape[1]
    system = b.T @ b if tall else b @ b.T
    system.diagonal().add_(1 / power)
    factor = torch.linalg.cholesky(system)
    if tall:
        return torch.cholesky_solve(innovations.T, factor).T
    return power * (innovations - torch.cholesky_solve((innovations @ b.T).T, factor).T @ b)


def _check(b: Tensor) -> None:
    """Refuses anomalies so wild that a Gram matrix in float64 loses the others."""
    largest = float(b.abs().max())
    if not largest < WILD:
        raise EnsembleFailure(
            f"simulated data differ from each other by {largest:.2g} standard deviations of the "
            "noise; the analysis cannot use them. A member that blew up should answer NaN"
        )
