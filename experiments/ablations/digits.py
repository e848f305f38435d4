"""Eighteen methods on images of digits, against the exact posterior: what each is good for.

enkg ablate experiments/ablations/digits.py --quick
enkg ablate experiments/ablations/digits.py --workers 2

The problems of `experiments.digits.problem`, 8 x 8 points and a prior that is far from Gaussian. A
seed is a truth, its noise, and the seed of the run. Methods stand there with their default options
and 128 members, so with very different numbers of calls; those and the seconds are columns:

    energy_distance       to draws of the exact posterior; 0 if equal in law
    error_in_exact_std    of the posterior mean, root mean square over the points
    std_over_exact        standard deviation over the exact one, mean over the points
    misfit_over_exact     squared residual of the members over that of exact draws
    psnr_of_mean          of the posterior mean against the truth, dB; digits have a range of 2

A method that comes in several forms has the first that the simulator can serve (`FORMS`). What no
form can be run on is left out, with the reason. PnP-ADMM, RED-diff and HIO give estimates, not
posteriors: their standard deviations mean nothing. There is no exact posterior for jpeg, so its
first columns are empty. The seeds 0, 1, ... are the truths 10, 11, ...; options were tuned on those
below, and `phase` has stored chains up to truth 19.
"""

from dataclasses import replace
from functools import partial

import torch
import xarray as xr

import enkg
from enkg import abilities, metrics
from enkg.guidance import METHODS
from experiments.digits.compare import misfit
from experiments.digits.problem import AgainstExact, experiment
from experiments.digits.setting import PROBLEMS
from experiments.references.digits import reference
from simulators.small_images import LINEAR, OPERATORS

MEMBERS = 128
NOISE = 0.05
FIRST_TRUTH = 10
FORMS = {
    "weighted": ("weighted",),
    "enkg": ("enkg",),
    "daenk": ("daenk",),
    "es-mda": ("es-mda",),
    "dps": ("dps",),
    "mmps": ("mmps", "mmps-nonlinear"),
    "pigdm": ("pigdm", "pigdm-surrogate"),
    "c-pigdm": ("conjugate-pigdm", "conjugate-pigdm-surrogate"),
    "daps": ("daps",),
    "daps-mh": ("daps-mh",),
    "ddrm": ("ddrm",),
    "ddnm-plus": ("ddnm-plus",),
    "diffpir": ("diffpir-svd", "diffpir"),
    "mcg": ("mcg",),
    "scoreald": ("scoreald",),
    "reddiff": ("reddiff",),
    "pnp-admm": ("pnp-admm-svd",),
    "hio": ("hio",),
}
"""Names of `enkg list`, the best first."""
QUICK = ("box", "sr4", "hdr")
SLOW = ("enkg", "mmps", "daps", "daps-mh", "diffpir", "scoreald")
"""Left out of the quick grid."""
FEW = 32
"""Members of the quick grid."""
ONE_STD = ("pigdm", "c-pigdm")
"""Methods that do not take the counts of `poisson`."""


def chosen(guidance: str, task: str) -> str | None:
    """The form that the simulator of the task can serve, if any."""
    there = abilities.of(OPERATORS[task]).names()
    return next((f for f in FORMS[guidance] if set(METHODS[f].needs) <= set(there)), None)


def skip(guidance: str, task: str, seed: int) -> str | None:
    """Why a method cannot be run on a task."""
    if chosen(guidance, task) is None:
        needs = [" and ".join(METHODS[form].needs) for form in FORMS[guidance]]
        return f"{guidance} needs {', or '.join(needs)}; {task} has none"
    if guidance in ONE_STD and task == "poisson":
        return f"{guidance} needs noise of one standard deviation; counts have many"
    if guidance == "mcg" and task not in LINEAR:
        return f"mcg projects by the exact pseudo-inverse; that of {task} is a guess"
    return None


def build(guidance: str, task: str, seed: int, members: int = MEMBERS) -> enkg.Experiment:
    """The digits problem with that method and truth number 10 + seed."""
    form = chosen(guidance, task)
    assert form is not None
    problem = experiment(task, FIRST_TRUTH + seed, NOISE)  # type: ignore[arg-type]
    method = replace(METHODS[form], members=members)
    return replace(problem, guidance=method, seed=seed, chunk=members)


def further(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """PSNR of the posterior mean and of the members; the misfit against that of exact draws."""
    members = torch.from_numpy(tree["posterior"].to_dataset()["image"].values)
    assert experiment.truth is not None
    found = metrics.image_scores(members, torch.as_tensor(experiment.truth))
    if isinstance(experiment.analyse, AgainstExact):
        setting = experiment.analyse.setting
        exact = misfit(setting, reference(setting).draws)
        found["misfit_over_exact"] = misfit(setting, members) / exact
    return found


def ablation(quick: bool = False, seeds: int = 2) -> enkg.Ablation:
    """All methods on twelve tasks.

    Args:
        quick: Twelve methods with 32 members, three tasks, one truth.
        seeds: Number of truths.
    """
    return enkg.Ablation(
        partial(build, members=FEW) if quick else build,
        {
            "guidance": [name for name in FORMS if not (quick and name in SLOW)],
            "task": QUICK if quick else PROBLEMS,
            "seed": range(1 if quick else seeds),
        },
        title="Digits, 8 x 8, noise .05",
        measures=(
            "energy_distance",
            "error_in_exact_std",
            "std_over_exact",
            "misfit_over_exact",
            "psnr_of_mean",
            "calls",
            "vjps",
            "denoiser_calls",
            "denoiser_vjps",
            "seconds",
        ),
        measure=further,
        skip=skip,
    )
