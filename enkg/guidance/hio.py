"""HIO, hybrid input-output: phase retrieval by projections, with feedback where they disagree.

    u <- p           where p = P_M u obeys the constraints,
    u <- u - beta p  elsewhere

(see `enkg.guidance.phase_projections`). The feedback pushes u away from points where the
constraints and the magnitudes are near each other and do not meet, where ER stops. There is no
monotone quantity; a solution is a fixed point. With noise there is none, and `reduction` makes the
last iterations those of ER (see `enkg.guidance.error_reduction`), which settle.

Reference: Fienup 1982, Applied Optics 21, 2758, with beta = .9 as is usual.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.errors import InputError
from enkg.guidance.phase_projections import AlternatingProjections, check_feedback


@dataclass(frozen=True)
class HIO(AlternatingProjections):
    """Hybrid input-output. Cost: `best_of` x (`iterations` + 1) pairs of Fourier transforms a
    member."""

    feedback: float = 0.9
    """beta."""
    reduction: int = 0
    """How many of the iterations, the last ones, are of error reduction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_feedback(self.feedback)
        if not 0 <= self.reduction <= self.iterations:
            raise InputError(
                f"reduction is {self.reduction}; expected 0 to the {self.iterations} iterations"
            )

    def moved(self, u: Tensor, p: Tensor, obeys: Tensor, support: Tensor, k: int) -> Tensor:
        settling = k >= self.iterations - self.reduction
        return torch.where(obeys, p, 0.0 if settling else u - self.feedback * p)
