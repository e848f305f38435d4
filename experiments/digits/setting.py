"""The truths and data of the digits problems: one for each (problem, truth, noise, bandwidth).

Truths are draws of the kernel-density prior, so that its exact posterior is calibrated.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.poisson import Poisson
from enkg.random import Stream
from priors import digits
from simulators import images, small_images

Problem = Literal[
    "denoise",
    "box",
    "random",
    "sr2",
    "sr4",
    "blur",
    "motion",
    "hdr",
    "quantise",
    "poisson",
    "phase",
    "jpeg",
]
PROBLEMS: tuple[str, ...] = get_args(Problem)
TRUTH_SEED = 0
NOISE_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """What decides the data. bandwidth: h of the prior.

    noise: standard deviation of a datum; `poisson` has that of counts, whatever is given.
    """

    problem: str
    truth: int = 0
    noise: float = 0.05
    bandwidth: float = digits.BANDWIDTH

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise enkg.InputError(
                f"there is no problem {self.problem!r} on digits; give one of {', '.join(PROBLEMS)}"
            )
        if self.truth < 0:
            raise enkg.InputError(f"truth is {self.truth}; expected a number from 0 on")

    @cached_property
    def prior(self) -> enkg.Mixture:
        return digits.digits(self.bandwidth)

    @cached_property
    def component(self) -> int:
        """The component of the prior that the truth is drawn from."""
        return int(random.choose(digits.CENTRES, TRUTH_SEED, Stream.TRUTH, [self.truth], 0)[0])

    @cached_property
    def image(self) -> Tensor:
        """The truth, (8, 8), float64."""
        white = random.normal((8, 8), TRUTH_SEED, Stream.TRUTH, [self.truth], 1)[0]
        return digits.centres().images[self.component] + self.bandwidth * white

    @cached_property
    def label(self) -> int:
        """The class of the truth's component."""
        return int(digits.centres().labels[self.component])

    @cached_property
    def observation(self) -> enkg.Observation:
        clean = self.simulator(self.image[None].numpy())[0]
        seed = NOISE_SEED + self.truth
        if self.problem == "poisson":
            generator = random.generators(seed, Stream.SYNTHETIC, [0], 0)[0]
            return Poisson(generator.poisson(clean))
        exact = enkg.Observation(clean, std=self.noise)
        return enkg.Observation(exact.perturb(exact.y, seed=seed), std=self.noise)

    @property
    def simulator(self) -> images.Operator:
        """The operator of the problem, (B, 8, 8) to (B, *Y), with what it offers beside."""
        return small_images.OPERATORS[self.problem]

    @property
    def linear(self) -> bool:
        return self.problem in small_images.LINEAR

    @cached_property
    def matrix(self) -> Tensor:
        """A of a linear problem, y = A x for flattened y and x, (m, 64), float64."""
        if not self.linear:
            raise enkg.InputError(f"the operator of {self.problem} is not linear: no matrix")
        answers = self.simulator(np.eye(64).reshape(64, 8, 8))
        return torch.from_numpy(answers.reshape(64, -1).T.copy())
