"""Few steps of the conjugate integrator against as many of Euler's rule, on a Gaussian problem.

    python experiments/benchmarks/conjugate_pigdm.py

Both integrate the flow of `enkg.guidance.conjugate_pigdm` from the same starts. The prior is a
smooth signal of 64 points and variance one, the data 16 local means with noise 0.2. The figure is
the root mean square distance to Euler's rule with 40,000 steps, over all chains and points, in
units of the prior's standard deviation.
"""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import enkg
from enkg.guidance.conjugate_pigdm import ConjugatePiGDM
from enkg.guidance.reverse import Schedule

POINTS, DATA, STD, CHAINS = 64, 16, 0.2, 16
STEPS, WEIGHTS, FINE = (5, 10, 20), (4.0, 15.0), 40_000


def problem() -> tuple[ndarray, ndarray, ndarray]:
    """Covariance of the prior, matrix of the data, and data of a drawn truth."""
    place = np.arange(POINTS)
    distance = np.abs(place[:, None] - place)
    covariance = np.exp(-0.5 * (distance / 4) ** 2) + 1e-3 * np.eye(POINTS)
    sensors = np.linspace(2, POINTS - 3, DATA).round().astype(int)
    matrix = np.exp(-0.5 * (distance[sensors] / 2) ** 2)
    matrix /= matrix.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    truth = np.linalg.cholesky(covariance) @ rng.standard_normal(POINTS)
    return covariance, matrix, matrix @ truth + STD * rng.standard_normal(DATA)


def euler(
    covariance: ndarray, matrix: ndarray, y: ndarray, x: ndarray, sigmas: list[float], weight: float
) -> ndarray:
    """Euler's rule for the flow; x: (d, chains), at the first level. The prior has mean zero."""
    left, s, right = np.linalg.svd(matrix, full_matrices=False)
    inverted = right.T @ (left.T @ y / s)
    variance, basis = np.linalg.eigh(covariance)
    into = right @ basis
    z, data = basis.T @ x, basis.T @ inverted
    for sigma, to in pairwise(sigmas):
        shrink = (variance / (variance + sigma**2))[:, None]
        clean = shrink * z
        gain = sigma**2 * s**2 / (sigma**2 * s**2 + STD**2 * (1 + sigma**2))
        pull = into.T @ (gain[:, None] * (into @ (data[:, None] - clean)))
        slope = (z - clean) / sigma - weight * sigma / (1 + sigma**2) * shrink * pull
        z = z + (to - sigma) * slope
    return basis @ z


def conjugate(
    covariance: ndarray, matrix: ndarray, y: ndarray, method: ConjugatePiGDM
) -> tuple[Tensor, Tensor]:
    """The start, A^+ y included, and the result of the method, (chains, d)."""
    left, s, right = np.linalg.svd(matrix, full_matrices=False)

    def times(factor: ndarray) -> Any:
        part = torch.from_numpy(factor)
        return lambda v: v @ part.T

    svd = SimpleNamespace(
        s=torch.from_numpy(s), ut=times(left.T), u=times(left), vt=times(right), v=times(right.T)
    )
    forward: Any = times(matrix)
    forward.operator = SimpleNamespace(svd=svd, offset=lambda: torch.zeros(DATA).double())
    prior = enkg.Gaussian.from_covariance(np.zeros(POINTS), covariance)
    observation = enkg.Observation(y, std=STD)
    state = method.init(prior, 0, torch.empty(0, dtype=torch.float64))
    start = state.x + torch.from_numpy(right.T @ (left.T @ y / s))
    while not state.finished:
        state, _ = method.step(state, prior, forward, observation)
    return start, state.x


def table(schedule: Schedule) -> None:
    """One line for each weight and number of steps."""
    setting = problem()
    for weight in WEIGHTS:
        exact: ndarray | None = None
        for steps in STEPS:
            method = ConjugatePiGDM(CHAINS, levels=steps, weight=weight, schedule=schedule)
            start, found = conjugate(*setting, method)
            x = start.numpy().T
            if exact is None:
                exact = euler(*setting, x, replace(method, levels=FINE).sigmas, weight)
            plain = euler(*setting, x, method.sigmas, weight)
            errors = [np.sqrt(np.mean((a - exact) ** 2)) for a in (plain, found.numpy().T)]
            print(f"{schedule:>20} {weight:4g} {steps:6d} {errors[0]:8.4f} {errors[1]:10.4f}")


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'levels':>20} {'w':>4} {'steps':>6} {'Euler':>8} {'conjugate':>10}")
    table("variance-preserving")
    table("karras")


if __name__ == "__main__":
    main()
