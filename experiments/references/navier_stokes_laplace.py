"""The Navier-Stokes posterior by its Gaussian approximation at the mode: a reference for ensembles.

    python experiments/references/navier_stokes_laplace.py --store

In white coordinates z of the prior and whitened data r(z), the mode minimises |z|^2 + |r(z)|^2. It
is found by damped Gauss-Newton steps with one-sided differences of the simulator, and the posterior
is taken as N(mode, (I + A A^T)^-1) with the sensitivities A there (Laplace's method; Tierney and
Kadane 1986, doi 10.1080/01621459.1986.10478240). It is exact as far as the simulator is linear
across the posterior. The coordinates that hold all but 1 / 1000 of the prior's variance are moved;
the others keep the prior's variance.

Starts from the mean of an SLR run, which decides only how many steps it takes. Cost: about 300
simulator calls a step, 3 to 8 steps a truth. Writes navier_stokes.npz beside this file: mode and
standard deviation of the vorticity of each truth, float16, which `stored` reads.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import enkg
from enkg.metrics import relative_error
from experiments.navier_stokes.quickstart import experiment as problem

FILE = Path(__file__).parent / "navier_stokes.npz"
KEPT = 0.999
DIFFERENCE = 0.05  # of one-sided differences, in prior standard deviations: float32 solver
STEPS = 12


@dataclass(frozen=True, eq=False)
class Laplace:
    """Mode and standard deviation, (s, s), in the simulator's units.

    misfit: per datum, at the mode. step: the Gauss-Newton step that is left there, root mean square
    in posterior standard deviations. error: of the mode against the truth.
    """

    mode: Tensor
    std: Tensor
    misfit: float
    step: float
    error: float


class Linearised:
    """The simulator in the prior's leading white coordinates, z (K,) to whitened innovation."""

    def __init__(self, experiment: enkg.Experiment) -> None:
        prior = experiment.prior
        assert isinstance(prior, enkg.Gaussian)
        assert callable(experiment.simulator)
        self.experiment, self.prior, self.simulator = experiment, prior, experiment.simulator
        scales, order = prior.scales.double().sort(descending=True, stable=True)
        share = scales.square().cumsum(0) / scales.square().sum()
        self.order = order[: int((share < KEPT).sum()) + 1]

    def field(self, z: Tensor) -> Tensor:
        """(B, K) to (B, s, s), prior units."""
        whole = torch.zeros(len(z), len(self.prior.scales), dtype=torch.float64)
        whole[:, self.order] = z
        return self.prior.from_white(whole)

    def residual(self, z: Tensor) -> Tensor:
        """(B, K) to whitened innovations (B, m)."""
        x = self.experiment.units.to_simulator(self.field(z)).numpy().astype(np.float32)
        return self.experiment.observation.residual(torch.from_numpy(self.simulator(x)))

    def sensitivity(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Innovation r at z, (m,), and A = -dr/dz, (K, m). Cost: K + 1 calls."""
        eye = DIFFERENCE * torch.eye(len(z), dtype=torch.float64)
        r = self.residual(torch.cat([z[None], z + eye]))
        return r[0], (r[0] - r[1:]) / DIFFERENCE


def laplace(experiment: enkg.Experiment) -> Laplace:
    """The approximation for one experiment with a Gaussian prior and a known truth."""
    run = dataclasses.replace(experiment, predict=1, analyse=None)
    physical = enkg.run(run)["posterior"].to_dataset()[experiment.unknown.name].values
    mean = experiment.units.to_prior(torch.from_numpy(physical).double()).mean(dim=0)
    linear = Linearised(experiment)
    prior = linear.prior
    white = prior.transform.forward((mean - prior.mean.double())[None])[0] / prior.scales.double()
    z = white[linear.order]
    r, a = linear.sensitivity(z)
    for _ in range(STEPS):
        value = float(z.square().sum() + r.square().sum())
        step = torch.linalg.solve(torch.eye(len(z)).double() + a @ a.T, a @ r - z)
        lengths = torch.tensor([1.0, 0.5, 0.25, 0.1, 0.03], dtype=torch.float64)
        tried = z + lengths[:, None] * step
        values = tried.square().sum(1) + linear.residual(tried).square().sum(1)
        best = int(values.argmin())
        if not float(values[best]) < value - 1e-4:
            break
        z = tried[best]
        r, a = linear.sensitivity(z)
    slope = a @ r - z
    covariance = torch.linalg.inv(torch.eye(len(z)).double() + a @ a.T)
    scale = float(experiment.units.to_simulator(torch.ones(())))
    root = torch.linalg.cholesky(covariance)
    moved = linear.field(root.T) - prior.mean.double()  # one field for each column of the root
    rest = prior.scales.double().clone()
    rest[linear.order] = 0
    # The rest is stationary, so its variance is the same at every point.
    variance = moved.square().sum(dim=0) + rest.square().sum() / mean.numel()
    mode = scale * linear.field(z[None])[0]
    return Laplace(
        mode,
        scale * variance.sqrt(),
        float(r.square().mean()),
        float((slope @ covariance @ slope / len(z)).sqrt()),
        relative_error(mode, experiment.truth),
    )


def stored(truth: int) -> tuple[Tensor, Tensor]:
    """Mode and standard deviation of a truth of the quickstart, (64, 64), from the stored file."""
    with np.load(FILE) as file:
        if f"mode_{truth}" not in file:
            raise FileNotFoundError(
                f"{FILE} holds no truth {truth}; python {__file__} --truths {truth} --store adds it"
            )
        pair = file[f"mode_{truth}"], file[f"std_{truth}"]
    return torch.from_numpy(pair[0]).double(), torch.from_numpy(pair[1]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--truths", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--store", action="store_true", help=f"write {FILE.name}")
    given = parser.parse_args()
    found: dict[str, np.ndarray] = {}
    if FILE.exists():
        with np.load(FILE) as file:
            found = dict(file)
    for truth in given.truths:
        experiment = problem(truth)
        at = laplace(experiment)
        found[f"mode_{truth}"] = at.mode.numpy().astype(np.float16)
        found[f"std_{truth}"] = at.std.numpy().astype(np.float16)
        known = torch.as_tensor(experiment.truth).double()
        skill = at.std.square().mean().sqrt() / (at.mode - known).square().mean().sqrt()
        print(
            f"truth {truth}: error {at.error:.3f}, spread over error {skill:.2f}, misfit per datum "
            f"of the mode {at.misfit:.2f}, {at.step:.2f} standard deviations from the next step",
            flush=True,
        )
    if given.store:
        np.savez_compressed(FILE, allow_pickle=False, **found)


if __name__ == "__main__":
    main()
