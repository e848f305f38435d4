"""PiGDM and conjugate PiGDM in few denoiser calls, on pictures of 32 x 32 points and on digits.

enkg ablate experiments/ablations/conjugate_pigdm.py --quick
enkg ablate experiments/ablations/conjugate_pigdm.py

One draw of the prior of experiments/images/restore.py or one digit a seed, with noise 0.05, and one
denoiser call a chain and level, in three forms:

    conjugate   `ConjugatePiGDM` with its published start A^+ y, steps equal in forward time
    published   the discrete step of PiGDM, same levels, from a draw of the prior's noise
    denoiser    the guided denoiser D_y with Euler's rule, 5 to 0.02, as Bayes has it for weight 1

The weight w means something else in each: Bayes has 1 for `denoiser`, the papers have 1 for
`published` and 2 to 15 for `conjugate`. jpeg and hdr are not linear: an inverse that is a guess
stands for the singular values (the data themselves; half of them).

`error_of_exact_mean` is the distance of the mean over the 20 chains from the exact posterior mean,
over the norm of that; `error_in_exact_std` the same in exact standard deviations, where 20 exact
draws have 0.22.
"""

from dataclasses import replace
from typing import Any

import torch
import xarray as xr

import enkg
from enkg import metrics
from experiments.digits import problem as digits
from experiments.digits.setting import Setting
from experiments.images import restore
from experiments.references.digits import reference
from simulators import images

SIZE = 32
NOISE = 0.05
CHAINS = 20
FIRST_TRUTH = 50
DIGITS = "digits "
SURROGATE = ("jpeg", "hdr")
VP = "variance-preserving"
PROBLEMS = ("sr4", "blur", "jpeg", "hdr", "digits sr4", "digits blur")


def method(form: str, levels: int, weight: float, inverse: Any) -> enkg.Guidance:
    """One of the three forms; levels: as many denoiser calls a chain."""
    common: dict[str, Any] = {
        "members": CHAINS,
        "levels": levels,
        "weight": weight,
        "inverse": inverse,
    }
    if form == "conjugate":
        return enkg.ConjugatePiGDM(start="published", **common)
    if form == "published":
        return enkg.PiGDM(form="published", schedule=VP, **common)
    return enkg.PiGDM(sampler="euler", sigma_max=5.0, sigma_min=0.02, **common)


def setting_of(problem: str, seed: int) -> Setting:
    """Of a problem on digits."""
    return Setting(problem.removeprefix(DIGITS), FIRST_TRUTH + seed, NOISE)


def build(guidance: str, problem: str, weight: float, levels: int, seed: int) -> enkg.Experiment:
    """The problem with that form; seed: of truth, noise and run."""
    inverse = "pinv" if problem in SURROGATE else "svd"
    task: Any = problem.removeprefix(DIGITS)
    if problem.startswith(DIGITS):
        given = digits.experiment(task, FIRST_TRUTH + seed, NOISE)
    else:
        given = restore.experiment(task, "draw", SIZE, NOISE, truth=seed)
    found = method(guidance, levels, weight, inverse)
    return replace(given, guidance=found, seed=seed, analyse=None)


def scores(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """Against the truth, and against the exact posterior where that is known."""
    members = torch.from_numpy(tree["posterior"].to_dataset()["image"].values).double()
    found = {"psnr_of_mean": metrics.psnr(members.mean(dim=0), experiment.truth)}
    if not isinstance(experiment.simulator, images.Linear):
        return found
    if isinstance(experiment.prior, enkg.Gaussian):
        mean, std = restore.exact_posterior(
            experiment.prior, experiment.simulator, experiment.observation
        )
    else:
        task = "sr4" if isinstance(experiment.simulator, images.BlockMean) else "blur"
        exact = reference(setting_of(DIGITS + task, experiment.seed))
        mean, std = exact.mean, exact.std
    found["error_of_exact_mean"] = metrics.relative_error(members.mean(dim=0), mean)
    found["error_in_exact_std"] = metrics.standard_errors(members, mean, std)
    found["std_over_exact"] = metrics.std_ratio(members, std)
    return found


def ablation(quick: bool = False, seeds: int = 2) -> enkg.Ablation:
    """Three forms, six problems, three weights; 5, 10 and 20 denoiser calls a chain.

    Args:
        quick: Three problems, one weight, two numbers of levels, one seed.
        seeds: Number of truths.
    """
    return enkg.Ablation(
        build,
        {
            "guidance": ("conjugate", "published", "denoiser"),
            "problem": ("sr4", "jpeg", "digits sr4") if quick else PROBLEMS,
            "weight": (4.0,) if quick else (1.0, 4.0, 15.0),
            "levels": (5, 20) if quick else (5, 10, 20),
            "seed": range(1 if quick else seeds),
        },
        title="PiGDM in few denoiser calls",
        measures=(
            "psnr_of_mean",
            "error_of_exact_mean",
            "error_in_exact_std",
            "std_over_exact",
            "coverage_90",
            "misfit_per_datum",
            "seconds",
        ),
        measure=scores,
        along="levels",
    )
