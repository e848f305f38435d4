"""The algebra of SLR: memory of evaluations, ridge regression, and the posterior of a linear model.

See `enkg.guidance.slr`. All of it is in float64, in white coordinates of the prior and whitened
data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg import random
from enkg.prior import White
from enkg.random import Stream

FORGET = 1e-3
"""Evaluations whose weight has fallen below this are dropped."""
PENALTIES = tuple(10.0**e for e in (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3))


@dataclass(frozen=True, eq=False)
class Evaluations:
    """What the simulator has answered so far: white coordinates (N, K), whitened innovations
    (N, m) and the step of each, (N,)."""

    z: Tensor
    r: Tensor
    step: Tensor


def informed(prior: White, kept: float) -> tuple[Tensor, Tensor]:
    """Indices of the coordinates that hold that share of the variance, largest first; their u."""
    scales, order = prior.scales.double().cpu().sort(descending=True, stable=True)
    share = scales.square().cumsum(0) / scales.square().sum()
    keep = int((share < kept).sum()) + 1 if kept < 1 else int((scales > 0).sum())
    return order[:keep], scales[:keep] / scales[0]


@dataclass(frozen=True, eq=False)
class Law:
    """Normal law of the coordinates: the prior's, but for r directions.

    mean: (K,). directions: orthonormal, (K, r). shrunk: standard deviations along them, (r,).
    """

    mean: Tensor
    directions: Tensor
    shrunk: Tensor

    @classmethod
    def prior(cls, coordinates: int) -> "Law":
        zeros = torch.zeros(coordinates, dtype=torch.float64)
        return cls(zeros, zeros[:, None][:, :0], zeros[:0])

    def draws(self, white: Tensor) -> Tensor:
        """Standard normal numbers (J, K) to draws, (J, K), by the symmetric square root."""
        along = (white @ self.directions) * (self.shrunk - 1)
        return self.mean + white + along @ self.directions.T


def coordinates(
    prior: White, order: Tensor, law: Law, key: tuple[int, tuple[int, ...], int]
) -> Tensor:
    """Draws of the coordinates `order`, (J, K), float64. key: seed, members, step."""
    seed, members, step = key
    white = random.normal((len(prior.scales),), seed, Stream.SAMPLER, members, step)
    return law.draws(white[:, order])


def recent(memory: Evaluations, step: int, forget: float = FORGET) -> Evaluations:
    """The evaluations whose weight still counts."""
    keep = 0.5 ** (step - memory.step) >= forget
    return Evaluations(memory.z[keep], memory.r[keep], memory.step[keep])


def joined(memory: Evaluations, new: Evaluations) -> Evaluations:
    """All of both, the new ones last."""
    return Evaluations(
        torch.cat([memory.z, new.z]),
        torch.cat([memory.r, new.r]),
        torch.cat([memory.step, new.step]),
    )


def recall(
    memory: Evaluations | None, new: Evaluations, step: int, forget: float = FORGET
) -> Evaluations:
    """All evaluations whose weight still counts, the new ones last."""
    return new if memory is None else joined(recent(memory, step, forget), new)


@dataclass(frozen=True, eq=False)
class Fit:
    """A linear model of the whitened data around the mean of the draws, and its errors.

    slope: A, (K, m). gap: y - b, (m,). The covariance of the errors is F^T F + floor I, with the
    trace of that of the leave-one-out residuals. root: F, (N, m). basis: its columns span those
    of A, (K, r).
    """

    slope: Tensor
    gap: Tensor
    root: Tensor
    floor: float
    basis: Tensor

    def __add__(self, other: "Fit") -> "Fit":
        """The model of a sum whose errors are independent."""
        return Fit(
            self.slope + other.slope,
            self.gap + other.gap,
            torch.cat([self.root, other.root]),
            self.floor + other.floor,
            torch.cat([self.basis, other.basis], dim=1),
        )


def fitted(
    memory: Evaluations,
    new: Evaluations,
    mean: Tensor,
    u: Tensor,
    step: int,
    isotropic: float = 0.1,
) -> Fit:
    """The model by ridge regression over the memory, whose last rows are the new ones.

    isotropic: share of the error's variance that is spread evenly over the data.
    """
    slope, residuals, basis = regress(memory, new, mean, u, step)
    gap = (new.r + (new.z - mean) @ slope).mean(dim=0)
    count, m = residuals.shape
    floor = isotropic * float(residuals.square().sum()) / (count * m)
    return Fit(slope, gap, residuals * ((1 - isotropic) / count) ** 0.5, floor, basis)


def regress(
    memory: Evaluations, new: Evaluations, mean: Tensor, u: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sensitivity A, (K, m), leave-one-out residuals of the new rows, (J, m), and the directions
    of A, (K, r)."""
    weight = 0.5 ** (step - memory.step).double()
    weight = weight[:, None]
    total = weight.sum()
    x, y = (memory.z - mean) * u, -memory.r
    x = weight.sqrt() * (x - (weight * x).sum(0) / total)
    y = weight.sqrt() * (y - (weight * y).sum(0) / total)
    values, left_vectors, right_vectors = singular(x)
    turned = left_vectors.T @ y
    last = slice(len(x) - len(new.z), None)  # weight 1
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        shrink = values / (values + penalty)
        left = y[last] - (left_vectors[last] * shrink) @ turned
        leverage = (left_vectors[last].square() * shrink).sum(1) + 1 / total
        left = left / (1 - leverage).clamp(min=1e-6)[:, None]
        error = float(left.square().mean())
        if best is None or error < best[0]:
            best = error, penalty, left
    assert best is not None
    _, penalty, residuals = best
    a = right_vectors @ ((values.sqrt() / (values + penalty))[:, None] * turned)
    return u[:, None] * a, residuals, u[:, None] * right_vectors


def singular(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared singular values and vectors of x, from the smaller of x x^T and x^T x."""
    tall = len(x) > x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    keep = values > 1e-13 * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    other = (x @ vectors if tall else x.T @ vectors) / values.sqrt()
    return (values, other, vectors) if tall else (values, vectors, other)


def posterior(fit: Fit, mean: Tensor, beta: float) -> Law:
    """The law of z. mean: where the fit was made. beta: power of the likelihood, so that the noise
    has covariance I / beta.

    R^-1 by the Woodbury identity: R = c I + F^T F with c = 1 / beta + floor. All else happens in
    the r directions that the evaluations have seen: A = Q T with Q orthonormal, (K, r).
    Cost: K r^2 + r^3 + r m N.
    """
    root, c = fit.root, 1 / beta + fit.floor
    system = root @ root.T
    system.diagonal().add_(c)
    factor = torch.linalg.cholesky(system)
    seen = fit.basis if fit.basis.shape[1] < len(fit.basis) else torch.eye(len(fit.basis)).double()
    q = torch.linalg.qr(seen).Q
    t = q.T @ fit.slope
    inner = torch.cholesky_solve((t @ root.T).T, factor).T
    weighted = (t - inner @ root) / c  # T R^-1
    gain = weighted @ t.T
    values, vectors = torch.linalg.eigh(0.5 * (gain + gain.T))
    shrunk = 1 / (1 + values.clamp(min=0))
    directions = q @ vectors
    target = weighted @ (fit.gap + mean @ fit.slope)
    return Law(directions @ (shrunk * (vectors.T @ target)), directions, shrunk.sqrt())
