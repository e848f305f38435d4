"""M87 and known rings from closures: derivative-free methods against DPS and DAPS.

enkg ablate experiments/ablations/black_hole.py --quick
enkg ablate experiments/ablations/black_hole.py --workers 2

The inversion of experiments/m87/image.py with the Gaussian prior of log-images: of 11 April 2017,
and of ring images seen through the same array with the same noise, whose truth is known. Of 11
April `error_of_mean` is the relative distance of the mean from that of long Hamiltonian Monte Carlo
(experiments/references/m87_hmc.py), and `spread_over_reference` the standard deviation over its
own; of a known ring the error and the coverage are against the truth, up to a shift. The budget
counts calls and products with the Jacobian alike.

Needs the extra `radio`, and the measurement, which is fetched or found where ENKG_DATA says.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import xarray as xr

import enkg
from enkg.metrics import relative_error
from experiments.derivative_free.contenders import SIZED
from experiments.m87 import image, known_image
from experiments.references.m87_hmc import load

CHAINS = 8
WIDEST = 25.0  # above the largest standard deviation of the prior in any direction, 21.3


def daps(calls: int) -> enkg.DAPS:
    """Each level has one call before its first step."""
    levels = 12 if calls < 2000 else 30
    steps = calls // (2 * CHAINS * levels) - 1
    return enkg.DAPS(CHAINS, levels, sigma_max=WIDEST, steps=steps)


METHODS = {
    "EnKG": SIZED["enkg-square-root"],
    "EnKG inflated": SIZED["enkg-inflated"],
    "SLR": lambda calls: enkg.SLR(members=calls // 28, steps=28),
    "ES-MDA 16": SIZED["es-mda-16"],
    "EKI": SIZED["eki"],
    "GSG": lambda calls: replace(SIZED["gsg"](calls), sigma_max=WIDEST),
    "DPG": lambda calls: replace(SIZED["dpg"](calls), sigma_max=WIDEST),
    "SCG": SIZED["scg"],
    "DPS": lambda calls: enkg.DPS(CHAINS, calls // (2 * CHAINS), sigma_max=WIDEST),
    "DAPS": daps,
}


def build(guidance: str, source: str, budget: int, seed: int) -> enkg.Experiment:
    """The problem with another method. source: 11 April, or the number of a ring."""
    if source == "11 April":
        problem = image.experiment()
    else:
        problem = known_image.experiment(truth=int(source.removeprefix("ring ")))
    return replace(problem, guidance=METHODS[guidance](budget), seed=seed)


@cache
def reference() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the long chains, (64, 64)."""
    stored = load()
    return np.asarray(stored.mean, np.float64), np.asarray(stored.std, np.float64)


def against(experiment: enkg.Experiment, tree: xr.DataTree) -> dict[str, float]:
    """Distance from the reference, where there is one."""
    if experiment.truth is not None:
        return {}
    members = tree["posterior"].to_dataset()["brightness"].values.astype(np.float64)
    mean, std = reference()
    return {
        "error_of_mean": relative_error(torch.from_numpy(members.mean(0)), torch.from_numpy(mean)),
        "spread_over_reference": float(
            np.linalg.norm(members.std(0, ddof=1)) / np.linalg.norm(std)
        ),
    }


def ablation(quick: bool = False, seeds: int = 2) -> enkg.Ablation:
    """Ten methods on the measurement and on two known rings.

    Args:
        quick: The measurement alone, with a fifth of the budget and one seed.
        seeds: Number of seeds.
    """
    return enkg.Ablation(
        build,
        {
            "guidance": list(METHODS),
            "source": ("11 April",) if quick else ("11 April", "ring 0", "ring 1"),
            "budget": (600,) if quick else (2880,),
            "seed": range(1 if quick else seeds),
        },
        title="Black-hole imaging from closures",
        measures=(
            "error_of_mean",
            "spread_over_reference",
            "relative_error_aligned",
            "misfit_per_datum",
            "coverage_90_aligned",
            "calls",
            "vjps",
            "denoiser_calls",
            "seconds",
        ),
        measure=against,
    )
