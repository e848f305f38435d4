"""DAPS on digits: many noise levels or many Markov steps, and which moves?

enkg ablate experiments/ablations/daps.py --quick
enkg ablate experiments/ablations/daps.py --workers 2

The calls of a chain are about levels x steps. `box` is linear, `hdr` is clipped, so that some
points have no gradient; both have an exact posterior (`experiments.digits.problem`). The columns
are those of experiments/ablations/digits.py. A seed is a truth, its noise, and the seed of the run.
"""

from dataclasses import replace

import enkg
from experiments.ablations.digits import FIRST_TRUTH, NOISE, further
from experiments.digits.problem import experiment

MOVES = ("langevin", "hmc", "metropolis")
MOST = 2500
"""Levels x steps; what takes more is left out."""


def build(move: str, task: str, levels: int, steps: int, seed: int) -> enkg.Experiment:
    """DAPS with 64 chains; hmc with one trajectory for each five steps."""
    problem = experiment(task, FIRST_TRUTH + seed, NOISE)  # type: ignore[arg-type]
    method = enkg.DAPS(members=64, levels=levels, steps=steps, move=move)  # type: ignore[arg-type]
    return replace(problem, guidance=method, seed=seed, chunk=64)


def skip(move: str, task: str, levels: int, steps: int, seed: int) -> str | None:
    """Leaves out what takes long."""
    return f"more than {MOST:,} calls a chain" if levels * steps > MOST else None


def ablation(quick: bool = False, seeds: int = 2) -> enkg.Ablation:
    """Three moves on two tasks, with 20, 50 and 200 levels of 5 to 200 steps.

    Args:
        quick: One task, two numbers of levels and of steps, one truth.
        seeds: Number of truths.
    """
    return enkg.Ablation(
        build,
        {
            "move": MOVES,
            "task": ("box",) if quick else ("box", "hdr"),
            "levels": (10, 50) if quick else (20, 50, 200),
            "steps": (5, 10) if quick else (5, 10, 50, 200),
            "seed": range(1 if quick else seeds),
        },
        title="DAPS on digits",
        measures=(
            "energy_distance",
            "error_in_exact_std",
            "std_over_exact",
            "misfit_over_exact",
            "calls",
            "vjps",
            "denoiser_calls",
            "seconds",
        ),
        skip=skip,
        measure=further,
        along="steps",
    )
