"""Problems with a closed-form answer, and the plainest loop around a method.

Prior N(m, S) and data y = A x + N(0, Gamma) give the posterior with gain
K = S A^T (A S A^T + Gamma)^-1, mean m + K (y - A m) and covariance S - K A S.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import enkg
from enkg.guidance import Forward, Guidance, Info, State

DOUBLE = torch.empty(0, dtype=torch.float64)
SINGLE = torch.empty(0, dtype=torch.float32)


def values(tree: xr.DataTree, group: str, name: str) -> np.ndarray:
    """One array of a run's results."""
    return tree[group].to_dataset()[name].values


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers from a generator that enkg does not know."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """mean m, covariance S, matrix A, noise Gamma and data y, all float64."""

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    noise: Tensor
    y: Tensor

    @property
    def gaussian(self) -> enkg.Gaussian:
        return enkg.Gaussian.from_covariance(self.mean, self.covariance)

    @property
    def one_component(self) -> enkg.Mixture:
        """The same prior without a closed-form flow: a mixture of one component, the kernel."""
        gaussian = self.gaussian
        origin = torch.zeros(1, len(gaussian.variance), dtype=torch.float64)
        return enkg.Mixture.shrunken(gaussian, origin, eta=1.0)

    @property
    def observation(self) -> enkg.Observation:
        return enkg.Observation(self.y, covariance=self.noise)

    @property
    def posterior(self) -> tuple[Tensor, Tensor]:
        return kalman(self.mean, self.covariance, self.matrix, self.noise, self.y)

    def forward(self, x: Tensor) -> Tensor:
        """The simulator as a method sees it, (J, d) to (J, m), float64."""
        return x.double() @ self.matrix.T

    @property
    def operator(self) -> "LinearOperator":
        """`forward` with its linear algebra, for methods that need it."""
        return LinearOperator(self)

    @property
    def simulator(self) -> enkg.Function:
        """`simulate` with all abilities, each row computed by itself."""
        return enkg.Function(
            self.simulate,
            adjoint=lambda v: _each(self.matrix.numpy().T, v),
            svd=Decomposition(self.matrix.numpy()),
        )

    def simulate(self, x: np.ndarray) -> np.ndarray:
        """The simulator as a scientist writes it; each row is computed by itself, to the bit."""
        return (x.astype(np.float64)[:, None, :] * self.matrix.numpy()).sum(axis=-1)

    def times(self, factor: float) -> "LinearGaussian":
        """Data, simulator and noise in other units."""
        return replace(
            self, y=factor * self.y, matrix=factor * self.matrix, noise=factor**2 * self.noise
        )


class Decomposition:
    """The compact SVD of a matrix as a simulator offers it."""

    def __init__(self, matrix: np.ndarray) -> None:
        left, s, right = np.linalg.svd(matrix, full_matrices=False)
        keep = s > 1e-12 * s[0]
        self.left, self.s, self.right = left[:, keep], s[keep], right[keep].T

    def ut(self, y: np.ndarray) -> np.ndarray:
        return _each(self.left.T, y)

    def u(self, z: np.ndarray) -> np.ndarray:
        return _each(self.left, z)

    def vt(self, x: np.ndarray) -> np.ndarray:
        return _each(self.right.T, x)

    def v(self, z: np.ndarray) -> np.ndarray:
        return _each(self.right, z)


def _each(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (rows.astype(np.float64)[:, None, :] * matrix).sum(axis=-1)


class LinearOperator:
    """What a gradient method asks of a linear problem; `forward` may be another one.

    calls, vjps: how many members have been asked for. Rows are computed by themselves, to the bit.
    """

    def __init__(
        self, problem: LinearGaussian, forward: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.problem = problem
        self.forward = forward or (lambda x: torch.from_numpy(problem.simulate(x.numpy())))
        self.operator = self.pixel = self
        self.calls = self.vjps = 0
        self.parts = Decomposition(problem.matrix.numpy())

    def __call__(self, x0: Tensor) -> Tensor:
        self.calls += len(x0)
        return self.forward(x0)

    def vjp(self, x0: Tensor, v: Tensor) -> Tensor:
        alive = x0.isfinite().all(dim=1, keepdim=True)
        return torch.where(alive, self.adjoint(v), torch.nan).to(x0)

    def adjoint(self, v: Tensor) -> Tensor:
        self.vjps += len(v)
        return torch.from_numpy(_each(self.problem.matrix.numpy().T, v.numpy())).to(v)

    def linear(self, v: Tensor) -> Tensor:
        self.calls += len(v)
        return torch.from_numpy(self.problem.simulate(v.numpy())).to(v)

    def offset(self) -> Tensor:
        return torch.zeros_like(self.problem.y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.svd.v(self.svd.ut(y) / self.svd.s.to(y))

    @property
    def svd(self) -> "TorchDecomposition":
        return TorchDecomposition(self.parts)

    def decode(self, z: Tensor) -> Tensor:
        return z

    def decode_vjp(self, z: Tensor, v: Tensor) -> Tensor:
        return v

    def encode(self, x: Tensor) -> Tensor:
        return x


class TorchDecomposition:
    """A `Decomposition` of tensors."""

    def __init__(self, parts: Decomposition) -> None:
        self.s, self.parts = torch.from_numpy(parts.s), parts

    def ut(self, y: Tensor) -> Tensor:
        return torch.from_numpy(self.parts.ut(y.numpy())).to(y)

    def u(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.parts.u(z.numpy())).to(z)

    def vt(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.parts.vt(x.numpy())).to(x)

    def v(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.parts.v(z.numpy())).to(z)


def kalman(
    mean: Tensor, covariance: Tensor, matrix: Tensor, noise: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the posterior of a linear-Gaussian problem."""
    innovation = matrix @ covariance @ matrix.T + noise
    gain = torch.linalg.solve(innovation, matrix @ covariance).T
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def small_problem(seed: int = 0) -> LinearGaussian:
    """6 unknowns with a dense covariance (eigenvalues .2 to 2), 3 data."""
    basis = torch.linalg.qr(normal(6, 6, seed=seed)).Q
    covariance = basis * torch.linspace(0.2, 2.0, 6, dtype=torch.float64) @ basis.T
    covariance = 0.5 * (covariance + covariance.T)
    mean, matrix = normal(6, seed=seed + 1), normal(3, 6, seed=seed + 2)
    noise = torch.diag(torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64))
    return _with_data(mean, covariance, matrix, noise, seed + 3)


def smooth_problem(unknowns: int = 64, data: int = 16, std: float = 0.2) -> LinearGaussian:
    """A smooth signal of standard deviation one, seen as local means with noise."""
    place = torch.arange(unknowns, dtype=torch.float64)
    distance = (place[:, None] - place).abs()
    covariance = torch.exp(-0.5 * (distance / 4) ** 2) + 1e-3 * torch.eye(unknowns)
    sensors = torch.linspace(2, unknowns - 3, data).round().long()
    matrix = torch.exp(-0.5 * (distance[sensors] / 2) ** 2)
    matrix /= matrix.sum(dim=1, keepdim=True)
    noise = std**2 * torch.eye(data, dtype=torch.float64)
    return _with_data(torch.zeros(unknowns, dtype=torch.float64), covariance, matrix, noise, 2)


def _with_data(
    mean: Tensor, covariance: Tensor, matrix: Tensor, noise: Tensor, seed: int
) -> LinearGaussian:
    truth = mean + torch.linalg.cholesky(covariance) @ normal(len(mean), seed=seed)
    error = torch.linalg.cholesky(noise) @ normal(len(noise), seed=seed + 1)
    return LinearGaussian(mean, covariance, matrix, noise, matrix @ truth + error)


def follow(
    method: Guidance,
    prior: enkg.Prior,
    forward: Forward,
    observation: enkg.Observation,
    seed: int = 0,
    like: Tensor = DOUBLE,
    change: Callable[[State], State] = lambda state: state,
) -> tuple[list[State], list[Info]]:
    """Every state and every Info of a run. `change` may replace the first state."""
    states = [change(method.init(prior, seed, like))]
    infos = []
    while not states[-1].finished:
        state, info = method.step(states[-1], prior, forward, observation)
        states.append(state)
        infos.append(info)
    return states, infos


def whitened(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, Tensor]:
    """|L^-1 (sample mean - mean)| and the eigenvalues of L^-1 Cov L^-T with covariance = L L^T.

    An exact ensemble of J members gives about sqrt(d / J) and (1 +- sqrt(d / J))^2.
    """
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, (x.double() - mean).T, upper=False).T
    return float(z.mean(0).norm()), torch.linalg.eigvalsh(torch.cov(z.T))
