"""OSS, oversampling smoothness: HIO whose object is smoothed outside the support.

    v <- as HIO (see `enkg.guidance.hio`)
    u <- v in the support,    F^-1 [exp(-|k|^2 / (2 alpha^2)) F v] outside

with k in whole waves of the grid. alpha falls linearly in the `stages`, from the number of points
of the grid's longer side to 1: the noise of the data, which HIO keeps outside the support, is
smoothed away more and more. Along a shorter side, k counts in proportion. The last stages smooth so
much that they fit worse; the estimate with the smallest misfit is kept.

The paper starts each stage from the best object of all before; here the object goes on as it is.

Reference: Rodriguez, Xu, Chen, Zou and Miao 2013, "Oversampling smoothness: an effective algorithm
for phase retrieval of noisy diffraction intensities", J. Applied Crystallography 46, 312.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from enkg.guidance.phase_projections import AlternatingProjections, check_feedback


@dataclass(frozen=True)
class OSS(AlternatingProjections):
    """Oversampling smoothness. Cost: `best_of` x (`iterations` + 1) pairs of Fourier transforms a
    member, and as many for the filter."""

    feedback: float = 0.9
    """beta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_feedback(self.feedback)

    def width(self, stage: int, points: int) -> float:
        """alpha for a grid of so many points a side."""
        return points + (1 - points) * stage / max(1, self.stages - 1)

    def moved(self, u: Tensor, p: Tensor, obeys: Tensor, support: Tensor, k: int) -> Tensor:
        stage = sum(k >= self.ends(i) for i in range(1, self.stages))
        v = torch.where(obeys, p, u - self.feedback * p)
        longest = max(support.shape)
        kept = torch.ones((), dtype=v.dtype, device=v.device)
        for axis, points in enumerate(support.shape):
            waves = torch.fft.fftfreq(points, 1 / longest, dtype=v.dtype, device=v.device)
            damped = torch.exp(-0.5 * (waves / self.width(stage, longest)) ** 2)
            kept = kept * damped.reshape(-1, *(1,) * (support.dim() - 1 - axis))
        # One transform a row, so that no last bit depends on who else is in the batch.
        smooth = [torch.fft.ifftn(kept * torch.fft.fftn(row)).real for row in v]
        return torch.where(support, v, torch.stack(smooth) if smooth else v)
