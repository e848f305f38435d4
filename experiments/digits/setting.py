"""The truths and data of the digits problems: one for each (problem, truth, noise, bandwidth).

Truths are draws of the kernel-density prior, so that its exact posterior is calibrated.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import enkg
from enkg import random
from enkg.random import Stream
from priors import digits
from simulators import small_images

Problem = Literal["box", "random", "sr2", "sr4", "blur", "hdr", "phase"]
PROBLEMS: tuple[str, ...] = get_args(Problem)
TRUTH_SEED = 0
NOISE_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """What decides the data. noise: standard deviation of a datum; bandwidth: h of the prior."""

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
        exact = enkg.Observation(self.simulator(self.image[None].numpy())[0], std=self.noise)
        seed = NOISE_SEED + self.truth
        return enkg.Observation(exact.perturb(exact.y, seed=seed), std=self.noise)

    def simulator(self, x: ndarray) -> ndarray:
        """The operator of the problem, (B, 8, 8) to (B, *Y)."""
        return small_images.OPERATORS[self.problem](x)

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
