"""EnKG as published against the tempered EnKG: what a step of fixed length does to an ensemble.

enkg ablate experiments/ablations/published.py --quick
enkg ablate experiments/ablations/published.py

The published update does not know the noise and has no step of its own choice, so its ensemble
keeps shrinking while it is guided (see enkg.EnKGPublished). Here, at several standard deviations of
the noise, on the linear-Gaussian problem of experiments/linear_gaussian.py and on two of digits:

    published               step, window and updates of the public Navier-Stokes script, 142 calls
    published, black hole   those of its black-hole script, 63 calls, the step length decays
    published, equal calls  step 2 at 10 of 12 levels, one update each: as many calls as EnKG

`calls` is a column; EnKG decides on its number itself. The exact posterior of `phase` is stored for
noise 0.05 alone. Its members are turned images as well, so its mean is not near the truth.

    error_in_exact_std   of the posterior mean, root mean square over the unknowns
    std_over_exact       standard deviation over the exact one, mean over the unknowns
"""

import dataclasses
from typing import Any

import torch
import xarray as xr

import enkg
from enkg import metrics
from experiments import linear_gaussian
from experiments.digits.problem import experiment

LINEAR = "linear-Gaussian"
METHODS: dict[str, enkg.Guidance] = {
    "EnKG": enkg.EnKG(),
    "published": enkg.EnKGPublished(),
    "published, black hole": dataclasses.replace(enkg.METHODS["enkg-published-black-hole"]),
    "published, equal calls": enkg.EnKGPublished(
        updates=1, levels=12, first_guided=1, last_guided=10
    ),
}


def build(guidance: str, problem: str, noise: float, members: int, seed: int) -> enkg.Experiment:
    """The problem with that method; noise: standard deviation of a datum; seed: of truth too."""
    found = dataclasses.replace(METHODS[guidance], members=members)
    if problem != LINEAR:
        named: Any = problem
        given = experiment(named, seed, noise)
        return dataclasses.replace(given, guidance=found, seed=seed, chunk=64)
    signal = linear_gaussian.prior.draw(seed=seed, members=[10**6], step=0)[0]
    clean = enkg.Observation(linear_gaussian.kernel @ signal, std=noise)
    return dataclasses.replace(
        linear_gaussian.experiment,
        guidance=found,
        observation=enkg.Observation(clean.perturb(clean.y, seed=seed), std=noise),
        truth=signal,
        seed=seed,
        chunk=64,
        analyse=None,
    )


def against_exact(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """Of the linear problem; those on digits come with these numbers."""
    if experiment.shape != (linear_gaussian.UNKNOWNS,):
        return {}
    observation = experiment.observation
    x = torch.from_numpy(tree["posterior"]["signal"].values).double()
    mean, covariance = linear_gaussian.exact(observation.y, observation.scale)
    std = covariance.diagonal().sqrt()
    return {
        "error_in_exact_std": metrics.standard_errors(x, mean, std),
        "std_over_exact": metrics.std_ratio(x, std),
    }


def ablation(quick: bool = False, seeds: int = 2, members: int = 64) -> enkg.Ablation:
    """Tempered EnKG and three forms of the published one; three problems, three noise levels.

    Args:
        quick: One noise level, one seed and without the black-hole constants.
        seeds: Number of truths.
        members: Ensemble size.
    """
    names = [name for name in METHODS if not (quick and "black hole" in name)]
    return enkg.Ablation(
        build,
        {
            "guidance": names,
            "problem": (LINEAR, "box", "phase"),
            "noise": (0.05,) if quick else (0.05, 0.1, 0.2),
            "members": (members,),
            "seed": range(1 if quick else seeds),
        },
        title="EnKG, tempered and as published",
        measures=(
            "error_in_exact_std",
            "std_over_exact",
            "coverage_90",
            "relative_error",
            "crps",
            "misfit_per_datum",
            "calls",
            "denoiser_calls",
            "seconds",
        ),
        measure=against_exact,
    )
