"""ER, error reduction: phase retrieval by projections onto magnitudes and constraints in turn.

    u <- P_S P_M u,    P_S p = p where p >= 0 in the support, 0 elsewhere

(see `enkg.guidance.phase_projections`). P_S is the projection onto a convex set, so the distance to
the magnitudes, and with it | y - |F u| |, never increases:

    |u' - P_M u'| <= |u' - P_M u| <= |u - P_M u|.

It stops at the first of many local minima. Use it as the yardstick for HIO, and to polish.

References: Fienup 1982, Applied Optics 21, 2758; Gerchberg and Saxton 1972, Optik 35, 237.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.guidance.phase_projections import AlternatingProjections


@dataclass(frozen=True)
class ER(AlternatingProjections):
    """Error reduction. Cost: `best_of` x (`iterations` + 1) pairs of Fourier transforms a
    member."""

    def moved(self, u: Tensor, p: Tensor, obeys: Tensor, support: Tensor, k: int) -> Tensor:
        return torch.where(obeys, p, 0.0)
