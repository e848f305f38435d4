"""The problems of the table, each with a posterior to compare with.

linear-gaussian   64 unknowns, 16 data, Gaussian prior; closed form
box               8 x 8 digits with a missing box, kernel-density prior; closed form
phase             8 x 8 digits from Fourier magnitudes; stored tempered chains
navier-stokes     64 x 64 vorticity, 1,024 data, Gaussian field; stored Laplace approximation
m87               64 x 64 image from 247 closures, log-Gaussian; stored Hamiltonian Monte Carlo

A seed is a truth of its own, with its own noise, and the seed of the run; M87 has one
measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import enkg
from enkg import metrics

FIRST_TRUTH = 10  # of Navier-Stokes and digits; options of methods were tuned on those below it


@dataclass(frozen=True, eq=False)
class Exact:
    """A posterior: mean and standard deviation, shape X, and draws (N, *X) where there are some."""

    mean: Tensor
    std: Tensor
    draws: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """budget: simulator calls at which all methods are compared, without `predict`.

    gaussian: what the prior is.
    """

    name: str
    experiment: Callable[[int], enkg.Experiment]
    exact: Callable[[int], Exact]
    budget: int
    gaussian: bool


def linear_gaussian(seed: int) -> enkg.Experiment:
    from experiments.linear_gaussian import inversion

    return replace(inversion(FIRST_TRUTH + seed), seed=seed, analyse=None)


def exact_linear_gaussian(seed: int) -> Exact:
    from experiments.linear_gaussian import exact, inversion

    mean, covariance = exact(inversion(FIRST_TRUTH + seed).observation.y)
    white = enkg.Gaussian.from_covariance(mean, 0.5 * (covariance + covariance.T))
    return Exact(mean, covariance.diagonal().sqrt(), white.draw(0, range(1024), 0))


def _digits(problem: Literal["box", "phase"]) -> Callable[[int], enkg.Experiment]:
    def make(seed: int) -> enkg.Experiment:
        from experiments.digits.problem import experiment

        return replace(experiment(problem, truth=FIRST_TRUTH + seed), seed=seed, analyse=None)

    return make


def _exact_digits(problem: str) -> Callable[[int], Exact]:
    @cache
    def make(seed: int) -> Exact:
        from experiments.digits.setting import Setting
        from experiments.references.digits import reference

        exact = reference(Setting(problem, FIRST_TRUTH + seed))
        return Exact(exact.mean, exact.std, exact.draws)

    return make


def navier_stokes(seed: int) -> enkg.Experiment:
    from experiments.navier_stokes.quickstart import experiment

    return replace(experiment(truth=FIRST_TRUTH + seed), seed=seed)


def exact_navier_stokes(seed: int) -> Exact:
    from experiments.references.navier_stokes_laplace import stored

    return Exact(*stored(FIRST_TRUTH + seed))


def m87(seed: int) -> enkg.Experiment:
    from experiments.m87.image import experiment

    return replace(experiment(), seed=seed, analyse=None)


@cache
def exact_m87(seed: int) -> Exact:
    from experiments.references.m87_hmc import load

    stored = load()
    return Exact(torch.from_numpy(stored.mean).double(), torch.from_numpy(stored.std).double())


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("linear-gaussian", linear_gaussian, exact_linear_gaussian, 2048, True),
        Problem("box", _digits("box"), _exact_digits("box"), 15 * 128, False),
        Problem("phase", _digits("phase"), _exact_digits("phase"), 15 * 128, False),
        Problem("navier-stokes", navier_stokes, exact_navier_stokes, 640, True),
        Problem("m87", m87, exact_m87, 2872, True),
    )
}


def judged(problem: Problem, seed: int, experiment: enkg.Experiment, x: np.ndarray) -> dict:
    """An ensemble, (J, *X) in the simulator's units, against truth and posterior.

    error: of the mean, relative, against the truth, or against the reference's mean where no truth
    is known. distance: root mean square of (mean - exact mean) / exact standard deviation. spread:
    root mean square standard deviation over the exact one. energy: energy distance to exact draws.
    """
    ensemble, exact = torch.from_numpy(np.asarray(x, np.float64)), problem.exact(seed)
    mean, std = ensemble.mean(dim=0), ensemble.std(dim=0)
    far = (mean - exact.mean) / exact.std.clamp(min=1e-6 * float(exact.std.max()))
    known = exact.mean if experiment.truth is None else torch.as_tensor(experiment.truth)
    found = {
        "error": metrics.relative_error(mean, known),
        "distance": float(far.square().mean().sqrt()),
        "spread": float(std.square().mean().sqrt() / exact.std.square().mean().sqrt()),
    }
    if experiment.truth is not None:
        found["coverage"] = metrics.coverage(ensemble, known)
        found["crps"] = metrics.crps(ensemble, known)
    if exact.draws is not None:
        found["energy"] = metrics.energy_distance(ensemble, exact.draws)
    return found
