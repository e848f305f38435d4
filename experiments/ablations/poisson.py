"""Counts: the exact Poisson likelihood against its Gaussian approximation, on images of digits.

enkg ablate experiments/ablations/poisson.py --quick
enkg ablate experiments/ablations/poisson.py

Counts at every point of an image of 8 x 8, R of them on average at a white point and .001 R at a
black one. The prior is that of experiments/digits/problem.py, and the posterior under the Poisson
likelihood is known. The approximation is a normal law of variance max(y, 1) at the counts y. EnKG
knows no other one, so that its two rows are equal; DPS and DAPS follow the gradient of either.

    error_in_exact_std, std_over_exact   of mean and standard deviation, over the points
    energy_distance                      to draws of the exact posterior, 0 if equal in law
    misfit_per_datum                     of the likelihood that is used
"""

from dataclasses import dataclass, replace

import enkg
from experiments.digits.problem import AgainstExact
from experiments.digits.setting import Setting
from experiments.images.views import data_field
from simulators import images, small_images

FIRST_TRUTH = 50
METHODS: dict[str, enkg.Guidance] = {
    "EnKG": enkg.EnKG(members=128),
    "DPS": enkg.DPS(members=32, levels=100),
    "DAPS": enkg.DAPS(members=32, levels=20, steps=50),
}


@dataclass(frozen=True)
class Counted(Setting):
    """Counts of another peak."""

    peak: float = 20.0

    @property
    def simulator(self) -> images.Operator:
        whole = images.Identity(small_images.SHAPE)
        return images.Intensity(small_images.SHAPE, operator=whole, peak=self.peak)


def build(guidance: str, likelihood: str, counts: int, seed: int) -> enkg.Experiment:
    """The problem with that likelihood; counts: R; seed: of truth, counts and run."""
    setting = Counted("poisson", FIRST_TRUTH + seed, peak=float(counts))
    observation = setting.observation
    if likelihood == "normal":
        observation = enkg.Observation(observation.y, std=observation.y.clamp(min=1).sqrt())
    return enkg.Experiment(
        prior=setting.prior,
        simulator=setting.simulator,
        observation=observation,
        guidance=replace(METHODS[guidance]),
        unknown=enkg.Field("image", dims=("row", "column"), colour_map="gray"),
        data=data_field(setting.simulator, "count"),
        truth=setting.image,
        seed=seed,
        chunk=64,
        analyse=AgainstExact(setting),
    )


def ablation(quick: bool = False, seeds: int = 4) -> enkg.Ablation:
    """Three methods, two likelihoods, three intensities.

    Args:
        quick: One seed, two intensities.
        seeds: Number of truths.
    """
    return enkg.Ablation(
        build,
        {
            "guidance": list(METHODS),
            "likelihood": ("Poisson", "normal"),
            "counts": (10, 100) if quick else (10, 30, 100),
            "seed": range(1 if quick else seeds),
        },
        title="Counts, digits 8 x 8",
        measures=(
            "error_in_exact_std",
            "std_over_exact",
            "energy_distance",
            "relative_error",
            "coverage_90",
            "misfit_per_datum",
            "calls",
            "vjps",
            "seconds",
        ),
        along="counts",
    )
