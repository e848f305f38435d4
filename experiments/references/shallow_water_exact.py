"""The shallow-water posterior in closed form: the reference for the ensembles.

    python experiments/references/shallow_water_exact.py

Small waves are linear in the displacement of the surface. One simulator call for each of the 64
components gives the matrix of the map, and with the Gaussian prior and the Gaussian noise the
posterior is known: in white coordinates z of the prior and whitened data,

    covariance C = (I + A A^T)^-1,   mean = C A (y - b),   A = d data / dz, b the data of z = 0.

At a standard deviation of 1 m the gauges differ from the linear map by 0.6 mm (root mean square);
their noise is 2 cm. With --std the waves, and the noise with them, are made smaller or larger.
"""

import argparse
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

import enkg
from experiments.shallow_water import inversion
from simulators.shallow_water import FOLDER


@dataclass(frozen=True, eq=False)
class Exact:
    """The posterior in the prior's white coordinates: mean, (K,), and covariance, (K, K)."""

    mean: Tensor
    covariance: Tensor


def closed_form(experiment: enkg.Experiment, step: float = 1e-2) -> Exact:
    """Cost: K + 1 calls. step: of the differences, in prior standard deviations."""
    prior, program, observation = experiment.prior, experiment.simulator, experiment.observation
    assert isinstance(prior, enkg.Gaussian)
    assert callable(program)
    z = torch.cat([torch.zeros(1, len(prior.scales)), torch.eye(len(prior.scales))]).double()
    x = experiment.units.to_simulator(prior.from_white(step * z))
    innovation = observation.residual(torch.from_numpy(program(x.numpy())))
    gap = innovation[0]
    a = (gap - innovation[1:]) / step
    covariance = torch.linalg.inv(a @ a.T + torch.eye(len(a)).double())
    return Exact(covariance @ a @ gap, covariance)


@dataclass(frozen=True)
class Difference:
    """Of an ensemble from the closed form, along the principal axes of the exact posterior.

    mean: root mean square difference in exact standard deviations; a sample of J members that is
    exact has 1 / sqrt(J). std: mean ratio of the standard deviations. worst: the ratio that is
    farthest from 1. error: relative difference of the mean fields.
    """

    mean: float
    std: float
    worst: float
    error: float


def compare(experiment: enkg.Experiment, exact: Exact, displacement: Tensor) -> Difference:
    """displacement: posterior ensemble (J, n, n) in metres."""
    prior = experiment.prior
    assert isinstance(prior, enkg.Gaussian)
    x = experiment.units.to_prior(displacement.double())
    z = prior.transform.forward(x - prior.mean) / prior.scales
    values, axes = torch.linalg.eigh(exact.covariance)
    along = (z - exact.mean) @ axes / values.sqrt()
    ratio = along.std(dim=0)
    best = prior.from_white(exact.mean[None])[0]
    return Difference(
        mean=float(along.mean(dim=0).square().mean().sqrt()),
        std=float(ratio.mean()),
        worst=float(ratio[(ratio.log().abs()).argmax()]),
        error=float((x.mean(dim=0) - best).norm() / best.norm()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--std", type=float, default=1.0, help="of the displacement, in metres")
    parser.add_argument("--truth", type=int, default=0)
    given = parser.parse_args()

    program = enkg.Program(FOLDER)
    experiment = inversion(program, given.truth, given.std, 0.02 * given.std)
    exact = closed_form(experiment)
    methods = {
        "SLR 40 x 4": enkg.SLR(members=40, steps=4),
        "ES-MDA 64 x 4": enkg.ESMDA(members=64, updates=4),
        "ES-MDA 256 x 4": enkg.ESMDA(members=256, updates=4),
        "EnKG 256 x 4": enkg.EnKG(members=256, updates=4, ratio=3.0),
    }
    print(f"{'':16}{'calls':>6}{'mean':>8}{'std':>8}{'worst':>8}{'error':>9}")
    for name, method in methods.items():
        run = dataclasses.replace(experiment, guidance=method, analyse=None)
        tree = enkg.run(run)
        found = torch.from_numpy(tree["posterior"].to_dataset()["displacement"].values)
        d = compare(run, exact, found)
        calls = int(tree["trace"].to_dataset()["calls"][-1])
        print(f"{name:16}{calls:6}{d.mean:8.3f}{d.std:8.3f}{d.worst:8.3f}{d.error:9.4f}")


if __name__ == "__main__":
    main()
