"""How near to the truth must one begin? Optimisation with the exact gradient, in developed flow.

    python -m experiments.navier_stokes.basin
    python -m experiments.navier_stokes.basin --truth 1 --noise 2 --iterations 400

The hard problem with its Gaussian prior, solved as one would with an adjoint: L-BFGS on

    J(z) = 1/2 |Gamma^(-1/2) (y - G(x(z)))|^2 + 1/2 |z|^2,    z ~ N(0, I) under the prior,

from the prior's mean, from draws of the prior, and from fields between the truth and a draw. It
shows what is not due to the lack of a gradient: where J is high although the gradient is exact, the
search ended in a wrong valley; where J is low and the error is not, the data and the prior do not
know better. One evaluation of J and its gradient costs about six simulator calls.
"""

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

import enkg
from experiments.navier_stokes.hard import SIZE, experiment
from simulators.navier_stokes import NavierStokes2D, Subsampled

TINY = 1e-3
"""Standard deviations below this, in prior units, are of wavenumbers that the solver drops."""


@dataclass(frozen=True)
class Found:
    """Where a search began and ended. errors: relative to the norm of the truth."""

    start: str
    error_at_start: float
    error: float
    misfit_per_datum: float
    objective: float
    evaluations: int


class Problem:
    """J and its gradient, in white coordinates of the Gaussian prior."""

    def __init__(self, truth: int, subsampling: int, noise: float) -> None:
        self.experiment = experiment(truth, "gaussian", subsampling, noise)
        prior = self.experiment.prior
        assert isinstance(prior, enkg.Gaussian)
        self.prior, self.noise = prior, noise
        self.simulator = Subsampled(NavierStokes2D(size=SIZE, chunk=1), every=subsampling)
        self.std = prior.variance.double().sqrt()
        assert self.experiment.truth is not None
        self.truth = self.experiment.truth.double().reshape(SIZE, SIZE)
        self.y = self.experiment.observation.y.double().reshape(-1)

    @property
    def scale(self) -> float:
        """Vorticity per prior unit."""
        return float(self.experiment.units.to_simulator(torch.ones(1)))

    def field(self, z: np.ndarray) -> torch.Tensor:
        """Vorticity, (s, s)."""
        white = torch.from_numpy(z)
        change = self.prior.transform.inverse((white * self.std)[None])[0]
        return self.scale * (self.prior.mean.double() + change)

    def white(self, x: torch.Tensor) -> np.ndarray:
        """The inverse of `field`; zero where the prior has next to no variance."""
        change = (x / self.scale - self.prior.mean.double())[None]
        z = self.prior.transform.forward(change)[0] / self.std.clamp(min=TINY)
        return torch.where(self.std > TINY, z, 0.0).numpy()

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Whitened, (m,)."""
        answer = torch.from_numpy(self.simulator(x[None].float().numpy())).double()
        return (answer.reshape(-1) - self.y) / self.noise

    def objective(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """J and its gradient."""
        x = self.field(z)
        r = self.residual(x)
        cotangent = (r / self.noise).reshape(1, *self.experiment.observation.y.shape)
        back = self.simulator.vjp(x[None].float().numpy(), cotangent.float().numpy())
        slope = self.prior.transform.forward(self.scale * torch.from_numpy(back).double())[0]
        value = 0.5 * float(r.square().sum()) + 0.5 * float(z @ z)
        return value, (slope * self.std).numpy() + z

    def error(self, x: torch.Tensor) -> float:
        return float((x - self.truth).norm() / self.truth.norm())

    def search(self, name: str, z: np.ndarray, iterations: int) -> Found:
        """L-BFGS from z."""
        before = self.error(self.field(z))
        done = minimize(
            self.objective,
            z,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30},
        )
        x = self.field(done.x)
        misfit = float(self.residual(x).square().mean())
        return Found(name, before, self.error(x), misfit, float(done.fun), int(done.nfev))

    def starts(self, shares: tuple[float, ...], draws: int) -> dict[str, np.ndarray]:
        """The prior's mean, draws, and fields with such shares of the truth, by name."""
        generator = np.random.default_rng(0)
        truth = self.white(self.truth)
        if any(not 0 <= a <= 1 for a in shares) or draws < 0:
            raise ValueError(f"shares are {shares}, draws {draws}; expected 0 to 1, and 0 or more")
        drawn = [generator.standard_normal(truth.shape) for _ in range(max(1, draws))]
        found = {"mean of the prior": np.zeros_like(truth)}
        found |= {f"draw {k + 1}": z for k, z in enumerate(drawn[:draws])}
        mixed = {f"{a:.0%} truth": a * truth + (1 - a * a) ** 0.5 * drawn[0] for a in shares}
        return found | mixed | {"truth": truth}


def main(
    truth: int = 0,
    noise: float = 1.0,
    subsampling: int = 2,
    iterations: int = 300,
    draws: int = 1,
    shares: tuple[float, ...] = (0.5, 0.7, 0.85),
) -> None:
    """Searches from several starts, and prints where each ended.

    Args:
        truth: Which truth of the hard problem.
        noise: Standard deviation of the noise, vorticity units.
        subsampling: Every q-th point is observed in each direction.
        iterations: Of L-BFGS, at most.
        draws: Draws of the prior to begin at.
        shares: Weights of the truth in the starts between it and a draw.
    """
    console, problem = Console(), Problem(truth, subsampling, noise)
    table = Table("start", "its error", "error", "misfit per datum", "J", "evaluations")
    table.title = f"Developed flow, truth {truth}, noise {noise:g}: L-BFGS with exact gradients"
    starts = problem.starts(shares, draws)
    for k, (name, z) in enumerate(starts.items()):
        console.print(f"{k + 1}/{len(starts)}  from {name}")
        found = problem.search(name, z, iterations)
        table.add_row(
            found.start,
            f"{found.error_at_start:.2f}",
            f"{found.error:.2f}",
            f"{found.misfit_per_datum:.2f}",
            f"{found.objective:.0f}",
            str(found.evaluations),
        )
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
