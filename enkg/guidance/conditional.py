"""What an ensemble tells of x_0 given x_sigma, and of the simulator's sensitivity.

The covariance of x_0 given x_sigma is C = sigma^2 J_D with J_D the Jacobian of the denoiser
(Efron 2011, "Tweedie's formula and selection bias"). Here J_D is a regression of D_j = D(x_j,
sigma) on x_j over the ensemble: it needs no Jacobian and no further call. Coordinates are the
principal axes of the prior, in which J_D is nearly diagonal:

    j_k = Cov(x_k, D_k) / Var(x_k), between 1e-4 and 1
    M   = (R + a I)^-1 X^T E / (J - 1),   E_k = D_k - j_k x_k,   a = 0.2 d / J
    C   = sigma^2 sym(diag(j) + M), eigenvalues between 1e-6 sigma^2 and sigma^2

where X are the anomalies x_k over their standard deviations and R is their correlation. With fewer
members than twice the unknowns M is left out. Where the spectrum of the prior is flat, all j are
one number and all x_k have one scale.

Simulated data are regressed on the clean ensemble by a small ridge, in units of the prior's
standard deviations where its spectrum is steep. What the regression leaves says how far the
simulator is from linear: its variance is the model error Omega.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.comm import Comm, once
from enkg.prior import Drawable, Prior

RIDGE = 0.2
"""Ridge of the Jacobian over d / J, in units of each coordinate's variance."""
DRAWS = 1024
"""Prior draws behind the principal axes, where the prior gives them for nothing."""
MOST = 512
"""Most principal axes; what is left of the variance is taken as the same in all directions."""


@dataclass(frozen=True, eq=False)
class Symmetric:
    """V diag(values) V^T + rest (I - V V^T). vectors: V, (d, K), orthonormal. values: (K,)."""

    vectors: Tensor
    values: Tensor
    rest: float

    def __call__(self, v: Tensor, power: float = 1.0) -> Tensor:
        """The matrix to that power, times each row: (n, d) to (n, d)."""
        return self._scaled(v, self.values**power, self.rest**power if self.rest > 0 else 0.0)

    def plus(self, scale: float, shift: float) -> "Symmetric":
        """scale times this, plus shift times the identity."""
        return Symmetric(self.vectors, scale * self.values + shift, scale * self.rest + shift)

    def log_determinant(self) -> float:
        free = self.vectors.shape[0] - len(self.values)
        rest = free * torch.tensor(self.rest, dtype=torch.float64).log() if free else 0.0
        return float(self.values.log().sum() + rest)

    def _scaled(self, v: Tensor, values: Tensor, rest: float) -> Tensor:
        out = ((v @ self.vectors) * (values - rest)) @ self.vectors.T
        return out + rest * v if rest else out


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes of the prior: vectors (d, K), variance (K,), largest first, and the mean
    variance of the directions outside. All float64."""

    vectors: Tensor
    variance: Tensor
    rest: float

    @property
    def largest(self) -> float:
        """Largest standard deviation of the prior along any direction, tau."""
        return float(self.variance[0].sqrt())

    @property
    def steep(self) -> bool:
        """Whether the prior's variances differ by more than a factor of 1,000."""
        return self.rest > 0 or float(self.variance[0]) > 1000 * float(self.variance[-1])

    def to(self, device: torch.device) -> "Axes":
        return Axes(self.vectors.to(device), self.variance.to(device), self.rest)


def principal_axes(draws: Tensor) -> Axes:
    """From prior samples, shape (N, *X)."""
    flat = rows(draws).double()
    flat = flat - flat.mean(dim=0)
    n, d = flat.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(flat.T @ flat / (n - 1))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    else:
        values, left = torch.linalg.eigh(flat @ flat.T / (n - 1))
        keep = values > 1e-10 * values[-1]
        values, left = values[keep].flip(0), left[:, keep].flip(1)
        vectors = torch.linalg.qr(flat.T @ left).Q
    if d > MOST or d > n:
        total = float(values.sum())
        keep = min(MOST, int((values > 1e-10 * values[0]).sum()))
        values, vectors = values[:keep], vectors[:, :keep]
        rest = (total - float(values.sum())) / max(d - keep, 1)
        rest = rest if rest > 1e-10 * float(values[0]) else 0.0
        return Axes(vectors.contiguous(), values, rest)
    return Axes(vectors.contiguous(), values, 0.0)


def axes_of(prior: Prior, seed: int, samples: Callable[[], Tensor], comm: Comm) -> Axes:
    """The principal axes of the prior, on all ranks. Collective.

    From 1,024 exact draws where the prior gives them, else from `samples()`, prior samples of this
    rank's members, (J_r, *X).
    """
    if isinstance(prior, Drawable):
        return once(comm, lambda: principal_axes(prior.draw(seed, range(DRAWS), 1)))
    whole = comm.rows(samples())
    return once(comm, lambda: principal_axes(whole))


def conditional_covariance(x: Tensor, denoised: Tensor, sigma: float, axes: Axes) -> Symmetric:
    """C at this noise level. x, denoised: living members, (G, d), float64."""
    v = axes.vectors
    x, denoised = x - x.mean(dim=0), denoised - denoised.mean(dim=0)
    xk, dk = x @ v, denoised @ v
    variance = xk.square().sum(0)
    rest = 0.0
    if v.shape[1] < len(v):
        outside = float(x.square().sum() - variance.sum())
        shared = float((x * denoised).sum() - (xk * dk).sum())
        rest = min(max(shared / outside, 0.0), 1.0) if axes.rest > 0 else 0.0
    j, scale = ((xk * dk).sum(0) / variance).clamp(1e-4, 1.0), variance.sqrt()
    if len(x) < 2 * v.shape[1]:
        return Symmetric(v, sigma**2 * j, sigma**2 * rest)
    if not axes.steep:
        common = ((xk * dk).sum() / variance.sum()).clamp(0.0, 1.0)
        j, scale = common.expand_as(j), variance.mean().sqrt().expand_as(j)
    whitened = xk / scale
    system = whitened.T @ whitened
    system.diagonal().add_(RIDGE * v.shape[1] / len(x))
    more = torch.linalg.solve(system, whitened.T @ (dk - xk * j)) / scale[:, None]
    values, turn = torch.linalg.eigh(torch.diag(j) + 0.5 * (more + more.T))
    return Symmetric(v @ turn, sigma**2 * values.clamp(1e-6, 1.0), sigma**2 * rest)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """matrix: B, (m, d), of whitened data. residuals: of the regression, (G, m)."""

    matrix: Tensor
    residuals: Tensor


def sensitivity(z: Tensor, data: Tensor, axes: Axes) -> Sensitivity:
    """Ridge regression of whitened data (G, m) on the clean ensemble z (G, d), float64."""
    scaled: Callable[[Tensor], Tensor] = lambda v: v  # noqa: E731
    ridge = 1e-4
    if axes.steep:
        ridge = 1e-3
        unit = Symmetric(axes.vectors, axes.variance, axes.rest).plus(1 / axes.largest**2, 0.0)
        scaled = lambda v: unit(v, 0.5)  # noqa: E731
    x, y = scaled(z - z.mean(dim=0)), data - data.mean(dim=0)
    if len(x) > x.shape[1]:
        system, right = x.T @ x, x.T @ y
    else:
        system, right = x @ x.T, y
    penalty = ridge * float(x.square().sum()) / x.shape[1]
    system.diagonal().add_(penalty if penalty > 0 else 1.0)
    slope = torch.linalg.solve(system, right)
    slope = slope if len(x) > x.shape[1] else x.T @ slope
    return Sensitivity(scaled(slope.T), y - x @ slope)


@dataclass(frozen=True, eq=False)
class Gain:
    """K = C B^T S^-1 with S = B C B^T + R, R = I + Omega, for whitened innovations.

    cross: B C, (m, d). root: Cholesky factor of S, (m, m). noise: diagonal of R^(1/2), (m,).
    """

    cross: Tensor
    root: Tensor
    noise: Tensor

    def __call__(self, r: Tensor) -> Tensor:
        """K r for each row: (n, m) to (n, d)."""
        return torch.cholesky_solve(r.T, self.root).T @ self.cross

    def log_density(self, r: Tensor) -> Tensor:
        """log N(r; 0, S) of each row but for a constant, (n,)."""
        white = torch.linalg.solve_triangular(self.root, r.T, upper=False)
        return -0.5 * white.square().sum(0) - self.root.diagonal().log().sum()


def gain(c: Symmetric, model: Sensitivity) -> Gain:
    """The Kalman gain of the conditional covariance; Omega is the diagonal of the model error."""
    b = model.matrix
    noise = 1 + model.residuals.square().mean(dim=0)
    cross = c(b)
    return Gain(cross, torch.linalg.cholesky(cross @ b.T + torch.diag(noise)), noise.sqrt())
