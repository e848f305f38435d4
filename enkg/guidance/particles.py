"""Weighted members: resampling, agreement of two halves, and the guided Gaussian kernel."""

from math import sqrt

import torch
from torch import Tensor

from enkg.guidance.conditional import Gain, Symmetric


def effective_size(log_weight: Tensor) -> float:
    """(sum w)^2 / sum w^2 of log weights, (n,): from 1 to n."""
    w = (log_weight - log_weight.max()).exp()
    return float(w.sum().square() / w.square().sum())


def largest_power(log_weight: Tensor, least: float) -> float:
    """The largest of 1, .8, .64, ... for which the weights to that power have this effective size.

    least: below the number of weights.
    """
    power = 1.0
    while effective_size(power * log_weight) < least:
        power *= 0.8
    return power


def systematic(log_weight: Tensor, offset: float, count: int | None = None) -> Tensor:
    """Indices of ancestors by systematic resampling, (count,), ascending; as many as there are
    weights by default. offset: in [0, 1).

    Each member has its expected number of offspring to within one (Kitagawa 1996,
    doi 10.1080/10618600.1996.10474692).
    """
    count = len(log_weight) if count is None else count
    total = (log_weight - log_weight.max()).exp().cumsum(0)
    at = (torch.arange(count, dtype=total.dtype, device=total.device) + offset) / count
    return torch.searchsorted(total / total[-1], at, right=True).clamp(max=len(log_weight) - 1)


def energy_coefficient(x: Tensor, log_weight: Tensor, halves: list[Tensor]) -> float | None:
    """(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / (2 E|X - Y|) of two weighted samples.

    x: (J, d). halves: the places of each. About 0 if the two are equal in law, and 1 if they are
    two different points; unbiased in numerator and denominator, so it may be below 0. None where
    there are not two halves, or one has fewer than two members. Cost: J^2 d.
    """
    if len(halves) != 2 or min(len(half) for half in halves) < 2:
        return None
    weights = [log_weight[half].softmax(0) for half in halves]
    across = weights[0] @ torch.cdist(x[halves[0]], x[halves[1]]) @ weights[1]
    within = x.new_zeros(())
    for half, w in zip(halves, weights, strict=True):
        pairs = (1 - w.square().sum()).clamp(min=1e-12)
        within = within + w @ torch.cdist(x[half], x[half]) @ w / pairs
    return float((2 * across - within) / (2 * across)) if across > 0 else 0.0


def kernel(
    x: Tensor,
    denoised: Tensor,
    shift: Tensor,
    c: Symmetric,
    b: Tensor,
    k: Gain,
    levels: tuple[float, float],
    noise: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """One guided step of the reverse SDE, and log N(x'; m, Sp) - log N(x'; m + a u, Sq).

    Notation of `enkg.guidance.weighted`; all of shape (J, d). noise: standard normal, (J, d),
    (J, d) and (J, m). A draw of N(0, C_y) is c - K (B c + e) with c ~ N(0, C), e ~ N(0, R); the
    inverse and the determinant of Sq follow from those of Sp by an m x m system.
    """
    sigma, to = levels
    a = 1 - (to / sigma) ** 2
    v = a * to**2
    draw = c(noise[1], 0.5)
    draw = draw - k(draw @ b.T + noise[2] * k.noise)
    away = sqrt(v) * noise[0] + a * draw  # x' - (m + a u)
    unguided = c.plus(a**2, v)  # Sp
    solved = unguided(k.cross, -1.0)
    core = k.root @ k.root.T / a**2 - k.cross @ solved.T
    core_root = torch.linalg.cholesky(0.5 * (core + core.T))
    along = torch.linalg.solve_triangular(core_root, (away @ solved.T).T, upper=False)
    by_guided = (away * unguided(away, -1.0)).sum(1) + along.square().sum(0)
    whole = away + a * shift
    by_unguided = (whole * unguided(whole, -1.0)).sum(1)
    # log |Sq| - log |Sp|
    shrunk = core_root.diagonal().log().sum() - k.root.diagonal().log().sum()
    shrunk = 2 * (shrunk + len(core) * torch.tensor(a, dtype=torch.float64).log().to(core))
    return x + a * (denoised - x) + a * shift + away, 0.5 * (by_guided - by_unguided + shrunk)
