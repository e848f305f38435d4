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
keeps its dtype. Cost: O(min(J, m)^3 + J^2 d).

The k-fold gain: the gain that moves a member is computed from the members of the other folds, so
that no member's own sampling error enters its gain. This undoes the loss of spread that small
ensembles suffer (Houtekamer and Mitchell 1998 introduced the pair of ensembles, k = 2).
"""

import torch
from torch import Tensor

from enkg.ensemble import anomalies


def perturbed_update(
    x: Tensor, r: Tensor, eta: Tensor, power: float, fold: Tensor | None = None
) -> Tensor:
    """Perturbed-observation update, shape (J, *X) to (J, *X).

    x: state, any noise level. r: whitened innovations, (J, m). eta: standard normal, (J, m); it is
    centred here, which makes the update of the sample mean exact for linear simulators. fold: the
    fold of each member, integers of shape (J,); None computes one gain from all members.
    """
    innovations = r + anomalies(eta.to(r)) / power**0.5
    flat = x.flatten(1)
    if fold is None:
        weights = _weights(r, innovations, power)
        return (flat + weights.to(x) @ anomalies(flat)).reshape(x.shape)
    moved = flat.clone()
    for k in fold.unique().tolist():
        mine = fold == k
        weights = _weights(r[~mine], innovations[mine], power)
        moved[mine] += weights.to(x) @ anomalies(flat[~mine])
    return moved.reshape(x.shape)


def square_root_update(x: Tensor, r: Tensor, power: float) -> Tensor:
    """Deterministic (ensemble transform) update, shape (J, *X) to (J, *X)."""
    flat = x.flatten(1)
    b = -anomalies(r) / (len(r) - 1) ** 0.5
    if b.shape[1] < len(b):
        values, v = torch.linalg.eigh(b.T @ b)
        values = values.clamp(min=0)
        safe = values.clamp(min=values[-1] * 1e-14 + 1e-300)
        u = b @ v / safe.sqrt()
    else:
        values, u = torch.linalg.eigh(b @ b.T)
        values = values.clamp(min=0)
    shrink = (1 + power * values).rsqrt() - 1
    transform = torch.eye(len(b), dtype=b.dtype, device=b.device) + (u * shrink) @ u.T
    shift = _weights(r, r.mean(dim=0, keepdim=True), power)
    moved = flat.mean(dim=0) + (transform + shift).to(x) @ anomalies(flat)
    return moved.reshape(x.shape)


def _weights(r: Tensor, innovations: Tensor, power: float) -> Tensor:
    """Weights W with dx = W X' for innovations of shape (n, m), gain from r of shape (J, m)."""
    b = -anomalies(r) / (len(r) - 1) ** 0.5
    small = b.T @ b if b.shape[1] < len(b) else b @ b.T
    small.diagonal().add_(1 / power)
    factor = torch.linalg.cholesky(small)
    if b.shape[1] < len(b):
        solved = torch.cholesky_solve(innovations.T, factor).T @ b.T
    else:
        solved = torch.cholesky_solve(b @ innovations.T, factor).T
    return solved / (len(r) - 1) ** 0.5
