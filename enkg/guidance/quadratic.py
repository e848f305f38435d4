"""Quadratic problems of a linear simulator by conjugate gradients, each chain its own.

With G(x) = A x + b, weights W on the data and a symmetric operator K that is not negative,

    x = argmin 1/2 (y - G(x))^T W (y - G(x)) + 1/2 x^T K x - x^T t
    (A^T W A + K) x = A^T W (y - b) + t

W = Gamma^-1 (metric="noise") or the identity on the data in use (metric="plain"). The number of
iterations is fixed, so the calls are known beforehand and all ranks make the same; a chain that has
converged stays where it is. Directions have length one when the simulator sees them.

Cost for k iterations: k + 1 simulator calls and k + 1 adjoints a chain, and one call, once in a
run, for b.

Reference: Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.errors import InputError
from enkg.guidance.base import Forward, State
from enkg.guidance.chains import dots, each, finite, operator
from enkg.observation import Observation

Metric = Literal["noise", "plain"]
Linear = Callable[[Tensor], Tensor]
CONVERGED = 1e-28
"""Share of the first squared residual of the system at which a chain stops: rounding."""


@dataclass(frozen=True, eq=False)
class Solved:
    """x: (J_r, *X), float64; `failed` rows are where they began. everyone: data of all chains where
    they began, (J, *Y). failed: bool, (J_r,)."""

    x: Tensor
    everyone: Tensor
    failed: Tensor


def weights(observation: Observation, metric: Metric) -> Linear:
    """v to W v, (J, *Y) twice, float64. Raises InputError where Gamma has no say (Poisson)."""
    if type(observation) is not Observation:
        raise InputError(
            f"the observation is {type(observation).__name__}; this method minimises a quadratic "
            "misfit and takes enkg.Observation, Gaussian noise"
        )
    if metric == "noise":
        centred = replace(observation, y=torch.zeros_like(observation.y))
        if observation.covariance is None:
            return centred.gradient
        # Row by row: the last bits of a triangular solve depend on how many there are.
        return lambda v: torch.cat([centred.gradient(v[j : j + 1]) for j in range(len(v))] or [v])
    return lambda v: torch.where(observation.mask.to(v.device), v.double(), 0.0)


def solve(
    state: State,
    start: Tensor,
    forward: Forward,
    observation: Observation,
    metric: Metric,
    term: tuple[Linear, Tensor],
    iterations: int,
) -> Solved:
    """The minimiser above, from `start`, (J_r, *X). term: K and t, float64. Collective."""
    op, (k, target) = operator(forward), term
    weigh = weights(observation, metric)
    everyone = forward(start)
    y = state.own(everyone)
    failed = ~rows(y).isfinite().all(dim=1)
    observed = observation.y.nan_to_num().to(y.device)
    gap = torch.where(each(failed, y), 0.0, observed - y.double())

    def back(v: Tensor) -> Tensor:
        return op.adjoint(weigh(v).to(start)).double()

    x = start.double()
    r = finite(back(gap) + target - k(x))
    p, square = r, dots(r, r)
    enough = CONVERGED * square
    for _ in range(iterations):
        length = each(dots(p, p).sqrt(), p)
        unit = torch.where(length > 0, p / length, 0.0).to(start)
        a = op.linear(unit)
        bad = ~rows(a).isfinite().all(dim=1)
        h = back(torch.where(each(bad, a), 0.0, a)) + k(unit.double())
        bad |= ~rows(h).isfinite().all(dim=1)
        failed |= bad
        p = length * unit.double()
        h = length * torch.where(each(bad, h), 0.0, h)
        curvature = dots(p, h)
        moves = (square > enough) & (curvature > 0) & ~failed
        step = torch.where(moves, square / torch.where(moves, curvature, 1.0), 0.0)
        x, r = x + each(step, p) * p, r - each(step, h) * h
        new = dots(r, r)
        share = torch.where(moves, new / torch.where(moves, square, 1.0), 0.0)
        p = torch.where(each(moves, p), r + each(share, p) * p, p)
        square = torch.where(moves, new, square)
    return Solved(torch.where(each(failed, x), start.double(), x), everyone, failed)
