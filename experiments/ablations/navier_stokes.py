"""What a gradient is worth on Navier-Stokes: derivative-free methods against DPS and DAPS.

enkg ablate experiments/ablations/navier_stokes.py --quick
enkg ablate experiments/ablations/navier_stokes.py --workers 2

The problem of experiments/navier_stokes/quickstart.py (64 x 64 vorticity, Gaussian field as prior,
data one time unit later), with noise in units of the prior's standard deviation and every second or
fourth point observed. DPS and DAPS have the gradient by the adjoint of the solver, and a product
with the adjoint counts as a call: so a budget of 640 is 640 calls without gradient, or 320 calls
and 320 products. A seed is a truth, its noise, and the seed of the run.

Data without noise are inverted as if their standard deviation were 0.02: a covariance of zero says
that the simulator and its grid are exact.
"""

from dataclasses import replace
from typing import Any

import enkg
from experiments.derivative_free.contenders import SIZED
from experiments.navier_stokes.quickstart import experiment

CHAINS = 4
WIDEST = 20.0  # just above the prior's largest standard deviation in any direction, 17.9


def daps(calls: int) -> enkg.DAPS:
    """Each level has one call before its first step."""
    levels = 16 if calls < 2000 else 40
    steps = calls // (2 * CHAINS * levels) - 1
    return enkg.DAPS(CHAINS, levels, sigma_max=WIDEST, steps=steps)


FREE = {
    "EnKG": SIZED["enkg"],
    "SLR": lambda calls: enkg.SLR(members=calls // 16, steps=16, kept_variance=0.999),
    "ES-MDA": SIZED["es-mda"],
    "EKI": SIZED["eki"],
    "GSG": lambda calls: replace(SIZED["gsg"](calls), sigma_max=WIDEST),
    "DPG": lambda calls: replace(SIZED["dpg"](calls), sigma_max=WIDEST),
    "SCG": SIZED["scg"],
    "EnKG published": SIZED["enkg-published"],
}
WITH_GRADIENT = {
    "DPS": lambda calls: enkg.DPS(CHAINS, calls // (2 * CHAINS), sigma_max=WIDEST),
    "DAPS": daps,
}
METHODS = FREE | WITH_GRADIENT
NOISELESS = 0.02
FIRST_TRUTH = 10  # options were tuned on those below


def build(guidance: str, noise: float, subsampling: int, budget: int, seed: int) -> enkg.Experiment:
    """The quickstart with another method, noise and observation."""
    problem = experiment(FIRST_TRUTH + seed, subsampling=subsampling, noise=noise or NOISELESS)
    if guidance in WITH_GRADIENT:
        problem = replace(problem, simulator=in_chunks(problem.simulator, CHAINS))
    return replace(problem, guidance=METHODS[guidance](budget), seed=seed)


def in_chunks(function: Any, members: int) -> enkg.Function:
    """The same solver, compiled for so many members, as a chunk that is not full costs as much."""
    return replace(
        function, f=replace(function.f, simulator=replace(function.f.simulator, chunk=members))
    )


def ablation(quick: bool = False, seeds: int = 2) -> enkg.Ablation:
    """Ten methods at three noise levels, two densities of data and two budgets.

    Args:
        quick: One noise, one density and one budget; one seed.
        seeds: Number of truths.
    """

    def skip(guidance: str, noise: float, subsampling: int, budget: int, seed: int) -> str | None:
        if budget != 640 and (noise != 0.2 or subsampling != 2):
            return "the larger budget is for one setting"
        return None

    return enkg.Ablation(
        build,
        {
            "guidance": list(METHODS),
            "noise": (0.2,) if quick else (0.0, 0.2, 0.4),
            "subsampling": (2,) if quick else (2, 4),
            "budget": (640,) if quick else (640, 2560),
            "seed": range(1 if quick else seeds),
        },
        title="Navier-Stokes vorticity, 64 x 64",
        measures=(
            "relative_error",
            "misfit_per_datum",
            "coverage_90",
            "spread_skill",
            "crps",
            "calls",
            "vjps",
            "denoiser_calls",
            "denoiser_vjps",
            "seconds",
        ),
        skip=skip,
        along="budget",
    )
