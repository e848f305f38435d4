"""Perturbed clean estimates of independent chains, and what the simulator says of them.

A zeroth-order method asks for the loss at many points D_j + offset around the clean estimate of
each chain j. A simulator call takes the candidates of all chains, chain by chain, so that row
j q + k of a batch of q candidates a chain is candidate k of chain j. Nothing here mixes chains.

Sums over the candidates of a chain are made for each chain by itself, in the order of the
candidates: a chain has the same last bits wherever it lives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from enkg import random
from enkg.arrays import rows
from enkg.errors import InputError
from enkg.guidance.base import Forward, State
from enkg.guidance.chains import Chains
from enkg.observation import Observation
from enkg.random import Stream

Loss = Callable[[Tensor], Tensor]
"""Simulated data (B, *Y) to the loss of each row, (B,), float64; not finite where it failed."""


class Candidates:
    """The candidates of one step. clean: D of this rank's chains, (J_r, *X).

    evaluated: what `Info.evaluated` holds, of the first candidate of each chain alone: all of them
    need not fit into memory together. Building one is collective.
    """

    def __init__(
        self,
        state: State,
        clean: Tensor,
        forward: Forward,
        observation: Observation,
        loss: Loss,
    ) -> None:
        self.clean, self.forward, self.observation, self.loss = clean, forward, observation, loss
        blocks = state.comm.gather(len(state.members))
        self.first, self.chains = sum(blocks[: state.comm.rank]), sum(blocks)
        self.evaluated: list[tuple[Tensor, Tensor]] = []
        self._misfit, self._living = 0.0, 0

    def losses(self, offsets: Tensor) -> Tensor:
        """The losses of D + offsets, (J_r, q, *X) to (J_r, q), float64; a failed one is NaN.

        One batch of J q simulator calls. Collective.
        """
        count = offsets.shape[1]
        x = self.clean[:, None] + offsets.to(self.clean)
        y = self.forward(x.flatten(0, 1))
        finite = rows(y).isfinite().all(dim=1)
        loss = self.loss(y)
        loss = torch.where(finite & loss.isfinite(), loss, torch.nan)
        living = loss.isfinite()
        self._living += int(living.sum())
        self._misfit += float(2 * self.observation.misfit(y)[living].sum())
        y = y.reshape(self.chains, count, *y.shape[1:])
        if not self.evaluated:
            self.evaluated = [(x[:, 0].clone(), y[:, 0].clone())]  # a view would hold all of them
        return loss.reshape(self.chains, count)[self.first : self.first + len(self.clean)]

    @property
    def misfit(self) -> float | None:
        """|whitened residual|^2 / m, averaged over the candidates that did not fail."""
        if not self._living:
            return None
        return self._misfit / self._living / self.observation.count


@dataclass(frozen=True)
class Queried(Chains):
    """Base of the methods that guide chains by candidates."""

    rows_at_once: int = 4096
    """Most candidates of all chains in one batch of simulator calls; they are held in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows_at_once < 1:
            raise InputError(f"{self.rows_at_once} rows at once; expected at least 1")


def squared_residual(observation: Observation) -> Loss:
    """|y - G|^2 over the data in use, in their own unit and whatever their noise."""

    def loss(y: Tensor) -> Tensor:
        mask = observation.mask.to(y.device)
        return (y.double() - observation.y.to(y.device))[:, mask].square().sum(dim=1)

    return loss


def batches(count: int, members: int, rows_at_once: int, whole: int = 1) -> Iterator[range]:
    """Splits `count` candidates a chain into batches of at most `rows_at_once` rows of all chains.

    whole: candidates that belong together. A batch holds these, even where they are more.
    """
    size = max(1, rows_at_once // (members * whole)) * whole
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


class White:
    """Standard normal directions of one step, one generator a chain; the same however batched."""

    def __init__(self, state: State, shape: Sequence[int], stream: Stream) -> None:
        self.generators = random.generators(state.seed, stream, state.members, state.step)
        self.shape, self.device = tuple(shape), state.x.device

    def __call__(self, count: int) -> Tensor:
        """The next ones, (J_r, count, *X), float64."""
        drawn = np.stack([g.standard_normal(count * prod(self.shape)) for g in self.generators])
        drawn = drawn.reshape(len(self.generators), count, *self.shape)
        return torch.from_numpy(drawn).to(self.device)


def weighted(weights: Tensor, offsets: Tensor) -> Tensor:
    """sum_k w_jk u_jk for each chain j, (J_r, q) and (J_r, q, *X) to (J_r, *X), float64."""
    tail = (1,) * (offsets.dim() - 2)
    return torch.stack(
        [(w.reshape(-1, *tail) * u).sum(dim=0) for w, u in zip(weights, offsets, strict=True)]
    )
