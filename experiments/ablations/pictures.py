"""Pictures of 32 x 32 points from linear, clipped, phaseless and compressed data, method by method.

enkg ablate experiments/ablations/pictures.py --quick
enkg ablate experiments/ablations/pictures.py

The problem of experiments/images/restore.py with the Gaussian prior of patches and noise 0.05: two
pictures that the prior has not seen, and a draw of the prior, where coverage can be judged. A
method is run with the linear algebra that the operator offers: the singular values, the gradient,
or an inverse that is a guess (jpeg: the data themselves; hdr: half of them).

    psnr_of_mean, ssim_of_mean   of the posterior mean, or of the estimate
    psnr_over_members            of the squared error averaged over all members
    error_in_exact_std           of the mean, for sr4, random and blur
    std_over_exact               standard deviation over the exact one, for the same

The magnitudes of `phase` are those of the picture and of the same turned by 180 degrees alike; each
member is turned to whichever is nearer to the truth before it is scored. RED-diff, PnP-ADMM,
ADMM-TV and HIO are estimates: their spread is no uncertainty, and they have no coverage. Chains are
20, the fewest that have a central interval of 90 %.
"""

from dataclasses import replace
from math import nan

import torch
import xarray as xr

import enkg
from enkg import Guidance, abilities, metrics
from experiments.images.restore import exact_posterior, experiment
from simulators import images

SIZE = 32
NOISE = 0.05
CHAINS = 20
LEVELS = 50
ESTIMATES = ("RED-diff", "PnP-ADMM", "ADMM-TV", "HIO")
LIKE_OTHERS = {"sampler": "euler", "sigma_max": 5.0, "sigma_min": 0.02, "levels": LEVELS}
ANY: dict[str, Guidance] = {
    "EnKG": enkg.EnKG(members=512),
    "SLR": enkg.SLR(),
    "DPS": enkg.DPS(members=CHAINS, levels=LEVELS),
    "DAPS": enkg.DAPS(members=CHAINS, levels=12, steps=40),
}
LINEAR: dict[str, Guidance] = {
    **ANY,
    "MMPS": enkg.MMPS(members=CHAINS, iterations=8, **LIKE_OTHERS),
    "PiGDM": enkg.PiGDM(members=CHAINS, **LIKE_OTHERS),
    "DDRM": enkg.DDRM(members=CHAINS, levels=LEVELS),
    "DDNM+": enkg.DDNM(members=CHAINS, levels=LEVELS, plus=True),
    "DiffPIR": enkg.DiffPIR(members=CHAINS, levels=LEVELS, prox="svd"),
    "RED-diff": enkg.REDdiff(members=2),
    "PnP-ADMM": enkg.PnPADMM(members=2),
    "ADMM-TV": enkg.ADMMTV(members=2),
}
NONLINEAR: dict[str, Guidance] = {
    **ANY,
    "PiGDM": enkg.PiGDM(members=CHAINS, inverse="pinv", **LIKE_OTHERS),
    "DDNM+": enkg.DDNM(members=CHAINS, levels=LEVELS),
    "DiffPIR": enkg.DiffPIR(members=CHAINS, levels=LEVELS),
    "RED-diff": enkg.REDdiff(members=2),
    "HIO": enkg.HIO(members=2),
}
METHODS = tuple(dict.fromkeys([*LINEAR, *NONLINEAR]))
TASKS = ("sr4", "random", "blur", "hdr", "phase", "jpeg")


def methods(task: str) -> dict[str, Guidance]:
    """By name, as they are run on a task. DDNM+ is plain DDNM where there is no SVD."""
    linear = isinstance(images.operator(task, (SIZE, SIZE)), images.Linear)
    return LINEAR if linear else NONLINEAR


def build(guidance: str, task: str, picture: str, seed: int) -> enkg.Experiment:
    """The restoration with that method; seed: of the noise, of a draw, and of the run."""
    problem = experiment(task, picture, SIZE, NOISE, truth=seed)  # pyright: ignore[reportArgumentType]
    return replace(problem, guidance=methods(task)[guidance], seed=seed, analyse=None)


def skip(guidance: str, task: str, picture: str, seed: int) -> str | None:
    """Where a method has no operator to work with."""
    if guidance not in methods(task):
        return "not for this operator"
    operator = images.operator(task, (SIZE, SIZE))
    needs = methods(task)[guidance].needs
    lacking = set(needs) - set(abilities.of(operator).names())
    if lacking:
        return f"the operator has no {' and no '.join(sorted(lacking))}"
    if task == "phase" and "pinv" in needs:
        return "without the phases no guess at an inverse is near"
    return None


def scores(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """Against the truth, and against the exact posterior where that is known."""
    members = torch.from_numpy(tree["posterior"].to_dataset()["image"].values).double()
    truth, operator = experiment.truth, experiment.simulator
    if isinstance(operator, images.Phase):
        members = turned(members, truth)
    found = metrics.image_scores(members, truth)
    estimate = isinstance(experiment.guidance, enkg.REDdiff | enkg.PnPADMM | enkg.ADMMTV | enkg.HIO)
    found["coverage_90"] = nan if estimate else metrics.coverage(members, truth)
    if isinstance(operator, images.Linear) and isinstance(experiment.prior, enkg.Gaussian):
        mean, std = exact_posterior(experiment.prior, operator, experiment.observation)
        found["error_in_exact_std"] = metrics.standard_errors(members, mean, std)
        found["std_over_exact"] = nan if estimate else metrics.std_ratio(members, std)
    return found


def turned(members: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Each member, (J, H, W), or the same turned by 180 degrees where that is nearer."""
    other = members.flip(1, 2)
    gaps = [(x - truth).flatten(1).norm(dim=1) for x in (members, other)]
    return torch.where((gaps[0] <= gaps[1])[:, None, None], members, other)


def ablation(quick: bool = False, seeds: int = 1) -> enkg.Ablation:
    """Thirteen methods on six tasks and three pictures.

    Args:
        quick: Two tasks, of a draw of the prior.
        seeds: Number of noises, and of draws.
    """
    return enkg.Ablation(
        build,
        {
            "guidance": METHODS,
            "task": ("sr4", "jpeg") if quick else TASKS,
            "picture": ("draw",) if quick else ("camera", "chelsea", "draw"),
            "seed": range(seeds),
        },
        title="Pictures, 32 x 32",
        measures=(
            "psnr_of_mean",
            "psnr_over_members",
            "ssim_of_mean",
            "error_in_exact_std",
            "std_over_exact",
            "coverage_90",
            "misfit_per_datum",
            "calls",
            "vjps",
            "denoiser_calls",
            "seconds",
        ),
        measure=scores,
        skip=skip,
    )
