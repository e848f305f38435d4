"""What a learned prior is worth: developed vorticity under a network and under a Gaussian.

enkg ablate experiments/ablations/developed_flow.py --quick
enkg ablate experiments/ablations/developed_flow.py --workers 2

The problem of experiments/navier_stokes/hard.py: 64 x 64, every second point seen one time unit
later, noise of standard deviation 0, 1 and 2 where the field has 5. The learned prior is
priors/vorticity; the Gaussian has the mean profile and the spectrum of 64 fields. A seed is a
truth, its noise, and the seed of the run.

Data without noise are inverted as if their standard deviation were 0.25, a twentieth of the
field's: a covariance of zero says that the simulator and its grid are exact.
"""

from dataclasses import replace

import enkg
from experiments.navier_stokes.hard import experiment

NOISELESS = 0.25


def build(prior: str, noise: float, seed: int) -> enkg.Experiment:
    """The hard problem with one prior and noise."""
    problem = experiment(seed, noise=noise or NOISELESS, prior=prior)  # type: ignore[arg-type]
    return replace(problem, seed=seed)


def ablation(quick: bool = False, seeds: int = 3) -> enkg.Ablation:
    """Two priors at three noise levels.

    Args:
        quick: One noise and one seed.
        seeds: Number of truths.
    """
    return enkg.Ablation(
        build,
        {
            "prior": ("learned", "gaussian"),
            "noise": (1.0,) if quick else (0.0, 1.0, 2.0),
            "seed": range(1 if quick else seeds),
        },
        title="Developed vorticity, 64 x 64, every second point",
        measures=(
            "relative_error",
            "misfit_per_datum",
            "coverage_90",
            "spread_skill",
            "crps",
            "calls",
            "denoiser_calls",
            "seconds",
        ),
        along="noise",
    )
