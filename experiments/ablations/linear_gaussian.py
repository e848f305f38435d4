"""Ensemble methods against the exact posterior: 64 unknowns, 16 linear data, two noise levels.

enkg ablate experiments/ablations/linear_gaussian.py --quick
enkg ablate experiments/ablations/linear_gaussian.py --workers 2
"""

import dataclasses

import torch
import xarray as xr

import enkg
from enkg import metrics
from experiments import linear_gaussian as problem

METHODS = {
    "EnKG": enkg.EnKG,
    "ES-MDA": enkg.ESMDA,
    "SLR": enkg.SLR,
    "published EnKG": enkg.EnKGPublished,
}


def build(guidance: str, noise: float, members: int, seed: int) -> enkg.Experiment:
    """The problem with its truth of that number; noise: standard deviation of a datum."""
    signal = problem.prior.draw(seed=seed, members=[10**6], step=0)[0]
    clean = enkg.Observation(problem.kernel @ signal, std=noise)
    return dataclasses.replace(
        problem.experiment,
        guidance=METHODS[guidance](members=members),
        observation=enkg.Observation(clean.perturb(clean.y, seed=seed), std=noise),
        truth=signal,
        seed=seed,
        analyse=None,
    )


def against_exact(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """Error of the mean in exact standard deviations, and the variance over the exact one."""
    observation = experiment.observation
    assert observation.std is not None
    x = torch.from_numpy(tree["posterior"]["signal"].values).double()
    mean, covariance = problem.exact(observation.y, float(observation.std.ravel()[0]))
    return {
        "mean_off_by": metrics.standard_errors(x, mean, covariance.diagonal().sqrt()),
        "variance_over_exact": float(x.var(0).sum() / covariance.trace()),
    }


def ablation(quick: bool = False, seeds: int | None = None) -> enkg.Ablation:
    """Four methods, two noise levels, some ensemble sizes.

    Args:
        quick: Two ensemble sizes, and two truths unless seeds says otherwise.
        seeds: Number of truths; 5 if not given, 2 with quick.
    """
    if seeds is None:
        seeds = 2 if quick else 5
    return enkg.Ablation(
        build,
        {
            "guidance": list(METHODS),
            "noise": (0.2, 0.4),
            "members": (32, 128) if quick else (32, 64, 128, 256, 512),
            "seed": range(seeds),
        },
        title="Linear-Gaussian problem, 64 unknowns",
        measures=(
            "relative_error",
            "mean_off_by",
            "variance_over_exact",
            "coverage_90",
            "crps",
            "calls",
            "seconds",
        ),
        measure=against_exact,
        along="members",
    )
