"""Figures of merit of a posterior ensemble.

Never the best of many members: everything is of the posterior mean or over all members.
"""

from math import sqrt

import torch
from torch import Tensor


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """|estimate - truth| / |truth|, Euclidean, over all elements."""
    return float((estimate.double() - truth.double()).norm() / truth.double().norm())


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """Share of the elements whose truth lies in the central interval of that level.

    ensemble: (J, *X); truth: X. A calibrated ensemble gives `level`.
    """
    ordered = _sorted(ensemble)
    low = _at(ordered, (1 - level) / 2)
    high = _at(ordered, (1 + level) / 2)
    inside = (low <= truth.double()) & (truth.double() <= high)
    return float(inside.double().mean())


def _sorted(ensemble: Tensor) -> Tensor:
    """Each element's members in ascending order, float64, members on axis 0."""
    by_element = ensemble.movedim(0, -1).contiguous()  # sorted in memory order: 5 times faster
    return by_element.sort(dim=-1).values.double().movedim(-1, 0)


def _at(ordered: Tensor, share: float) -> Tensor:
    """Quantile by Weibull's plotting position, which makes the coverage unbiased at any J.

    A quantile beyond the ensemble is its end, so level must not exceed (J - 1) / (J + 1).
    """
    position = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    k = min(int(position), len(ordered) - 2) if len(ordered) > 1 else 0
    upper = ordered[min(k + 1, len(ordered) - 1)]
    return ordered[k] + (position - k) * (upper - ordered[k])


def crps(ensemble: Tensor, truth: Tensor) -> float:
    """Continuous ranked probability score, fair form, averaged over the elements.

    1/J sum_j |x_j - t| - 1/(2 J (J-1)) sum_jk |x_j - x_k| (Gneiting and Raftery 2007; Ferro 2014).
    """
    ordered = _sorted(ensemble)
    j = len(ordered)
    rank = torch.arange(1, j + 1, dtype=torch.float64, device=ordered.device)
    weight = (2 * rank - j - 1).reshape(-1, *[1] * (ordered.dim() - 1))
    pairs = (weight * ordered).sum(dim=0) / (j * (j - 1))
    return float(((ordered - truth.double()).abs().mean(dim=0) - pairs).mean())


def spread_skill(ensemble: Tensor, truth: Tensor) -> float:
    """Root-mean-square spread over the root-mean-square error of the mean; 1 when calibrated.

    The spread carries the finite-ensemble factor sqrt((J + 1) / J) of Fortin et al. 2014.
    """
    x = ensemble.double()
    error = (x.mean(dim=0) - truth.double()).square().mean().sqrt()
    return float(sqrt((len(x) + 1) / len(x)) * x.var(dim=0).mean().sqrt() / error)
