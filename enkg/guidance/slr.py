"""SLR: recycled statistical-linear regression, for Gaussian priors.

Small fresh batches are drawn around the current posterior; one ridge regression over all recent
evaluations gives a linear model of the simulator and, from its leave-one-out residuals, the error
of that model; the posterior is then recomputed from the prior, never from the last posterior, so
that no datum is counted twice and old linearisations are forgotten. With white coordinates z ~
N(0, I) of the prior, u_k the prior standard deviation of coordinate k over the largest, and
whitened data:

    mu = 0, C = I;  for t = 0 .. T-1
        z_j ~ N(mu, C), j = 1..J;  Y_j = G(z_j)                   J simulator calls
        weights 1/2^(t - step of the evaluation)
        A = ridge regression of Y on u (z - mu), penalty by leave-one-out error on the new rows
        E = leave-one-out residuals of the new rows
        R = I + 0.9 E^T E / J + 0.1 tr(E^T E) / (J m) I
        b = mean over new rows of Y - A (z - mu)
        beta = min(1, max(beta, 3 m / |y - b|^2))
        C = (I + beta A^T R^-1 A)^-1,  mu = beta C A^T R^-1 (y - b + A mu)

The ridge in units of u says that the sensitivity per unit of the field is about the same in every
direction: localisation without coordinates. Weak directions then get small gains.

Law: exact for a linear simulator once the evaluations in use, J min(T, 10), exceed the number of
coordinates. Otherwise the answer
is the Gaussian that fits the posterior near its mean; a run that ends with beta < 1 has not
converged and says so. Fewer than about 14 steps do not converge on strongly nonlinear problems.

Statistical linear regression, iterated: Garcia-Fernandez, Svensson, Morelande and Sarkka 2015,
"Posterior linearization filter", IEEE Transactions on Signal Processing 63. The recycling of
evaluations, the ridge and the use of its residuals as model error are enkg's own.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import InputError
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.observation import Observation
from enkg.prior import Prior, White
from enkg.random import Stream

FORGET = 1e-3
"""Evaluations whose weight has fallen below this are dropped."""
PENALTIES = tuple(10.0**e for e in (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3))


@dataclass(frozen=True, eq=False)
class Evaluations:
    """What the simulator has answered so far: white coordinates (N, K), whitened innovations
    (N, m) and the step of each, (N,)."""

    z: Tensor
    r: Tensor
    step: Tensor


@dataclass(frozen=True, eq=False)
class SLRState(State):
    """z: white coordinates of all J members, (J, K). mean: mu. memory: all evaluations still in
    use, of all ranks."""

    z: Tensor = field(default_factory=lambda: torch.empty(0))
    mean: Tensor = field(default_factory=lambda: torch.empty(0))
    memory: Evaluations | None = None


@dataclass(frozen=True)
class SLR(Guidance):
    """SLR. Cost: `steps` simulator calls a member, no denoiser call."""

    state: ClassVar[type[State]] = SLRState
    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior"

    members: int = 64
    """Batch size J of each step."""
    steps: int = 20
    """Number T of steps."""
    draws: int = 512
    """Members of the final ensemble; they cost no simulator call."""
    kept_variance: float = 1.0
    """Share of the prior's variance in the coordinates that the data may move; the others stay as
    in the prior. Below 1 it saves time on fields, and is wrong where the data see what it drops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.draws < 2:
            raise InputError(
                f"{self.steps} steps and {self.draws} draws; expected at least 1 and 2"
            )
        if not 0 < self.kept_variance <= 1:
            raise InputError(f"kept_variance is {self.kept_variance}; expected a share in (0, 1]")

    @property
    def sweeps(self) -> int:
        return self.steps

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> SLRState:
        if not isinstance(prior, White):
            raise InputError(
                "SLR needs a Gaussian prior (enkg.Gaussian), whose coordinates it can whiten; for "
                "other priors use EnKG"
            )
        order, _ = _informed(prior, self.kept_variance)
        mean = torch.zeros(len(order), dtype=torch.float64)
        key = seed, tuple(range(self.members)), 0
        z = once(
            comm, lambda: _coordinates(prior, order, (mean, torch.eye(len(order)).double()), key)
        )
        state = SLRState(torch.empty(0), (), seed, z=z, mean=mean, comm=comm)
        return self._placed(state, prior, order, self.members, like)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, SLRState)
        assert isinstance(prior, White)
        y = forward(state.x)
        living = alive(y)
        new = Evaluations(
            state.z[living.cpu()],
            observation.residual(y)[living].cpu(),
            torch.full((int(living.sum()),), state.step),
        )
        memory = _recall(state.memory, new, state.step)
        order, u = _informed(prior, self.kept_variance)
        finished = state.step + 1 == self.steps
        count = self.draws if finished else self.members

        def analysis() -> tuple[float, Tensor, Tensor]:
            a, residuals = _regress(memory, new, state.mean, u, state.step)
            gap = (new.r + (new.z - state.mean) @ a).mean(dim=0)  # y - b
            distance = float(gap.square().sum())
            beta = max(state.beta, 3 * observation.count / distance) if distance > 0 else 1.0
            beta = min(1.0, beta)
            law = _posterior(a, residuals, gap + state.mean @ a, beta)
            key = state.seed, tuple(range(count)), state.step + 1
            return beta, law[0], _coordinates(prior, order, law, key)

        beta, mean, z = once(state.comm, analysis)
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=(state.step + 1) / self.steps,
            power=beta - state.beta,
            beta=beta,
            misfit=observation.misfit_per_datum(y[living]),
            evaluated=((state.x, y),),
        )
        after = replace(
            state,
            step=state.step + 1,
            beta=beta,
            finished=finished,
            z=z,
            mean=mean,
            memory=memory,
        )
        return self._placed(after, prior, order, count, state.x), info

    def _placed(
        self, state: SLRState, prior: White, order: Tensor, count: int, like: Tensor
    ) -> SLRState:
        """The state with this rank's part of `count` members, at the coordinates z."""
        members = self.own_members(prior, state.comm, count)
        white = random.normal((len(prior.scales),), state.seed, Stream.SAMPLER, members, state.step)
        white[:, order] = state.z[list(members)]
        return replace(state, x=prior.from_white(white.to(like)), members=members)

    @property
    def posterior_members(self) -> int:
        return self.draws

    def drop(self, state: State, living: Tensor) -> State:
        """Every step draws its members afresh, so there is nobody to drop."""
        return state


def _informed(prior: White, kept: float) -> tuple[Tensor, Tensor]:
    """Indices of the coordinates that hold that share of the variance, largest first; their u."""
    scales, order = prior.scales.double().cpu().sort(descending=True, stable=True)
    share = scales.square().cumsum(0) / scales.square().sum()
    keep = int((share < kept).sum()) + 1 if kept < 1 else int((scales > 0).sum())
    return order[:keep], scales[:keep] / scales[0]


def _coordinates(
    prior: White,
    order: Tensor,
    law: tuple[Tensor, Tensor],
    key: tuple[int, tuple[int, ...], int],
) -> Tensor:
    """Draws of the coordinates `order` from N(mean, root root^T), (J, K), float64.

    law: mean and root. key: seed, members, step.
    """
    mean, root = law
    seed, members, step = key
    white = random.normal((len(prior.scales),), seed, Stream.SAMPLER, members, step)
    return mean + white[:, order] @ root.T


def _recall(memory: Evaluations | None, new: Evaluations, step: int) -> Evaluations:
    """All evaluations whose weight still counts, the new ones last."""
    if memory is None:
        return new
    keep = 0.5 ** (step - memory.step) >= FORGET
    return Evaluations(
        torch.cat([memory.z[keep], new.z]),
        torch.cat([memory.r[keep], new.r]),
        torch.cat([memory.step[keep], new.step]),
    )


def _regress(
    memory: Evaluations, new: Evaluations, mean: Tensor, u: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Sensitivity A, (K, m), and the leave-one-out residuals of the new rows, (J, m)."""
    weight = 0.5 ** (step - memory.step).double()
    weight = weight[:, None]
    total = weight.sum()
    x, y = (memory.z - mean) * u, -memory.r
    x = weight.sqrt() * (x - (weight * x).sum(0) / total)
    y = weight.sqrt() * (y - (weight * y).sum(0) / total)
    values, left_vectors, right_vectors = _singular(x)
    turned = left_vectors.T @ y
    last = slice(len(x) - len(new.z), None)  # weight 1
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        shrink = values / (values + penalty)
        left = y[last] - (left_vectors[last] * shrink) @ turned
        leverage = (left_vectors[last].square() * shrink).sum(1) + 1 / total
        left = left / (1 - leverage).clamp(min=1e-6)[:, None]
        error = float(left.square().mean())
        if best is None or error < best[0]:
            best = error, penalty, left
    assert best is not None
    _, penalty, residuals = best
    a = right_vectors @ ((values.sqrt() / (values + penalty))[:, None] * turned)
    return u[:, None] * a, residuals


def _singular(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared singular values and vectors of x, from the smaller of x x^T and x^T x."""
    tall = len(x) > x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    keep = values > 1e-13 * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    other = (x @ vectors if tall else x.T @ vectors) / values.sqrt()
    return (values, other, vectors) if tall else (values, vectors, other)


def _posterior(a: Tensor, residuals: Tensor, target: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mean, (K,), and a square root of the covariance, (K, K), of z given y - b + A mu.

    R^-1 by the Woodbury identity: R = c I + 0.9 E^T E / J with c = 1 + 0.1 tr(E^T E) / (J m).
    """
    count, m = residuals.shape
    c = 1 + 0.1 * float(residuals.square().sum()) / (count * m)
    system = residuals @ residuals.T
    system.diagonal().add_(c * count / 0.9)
    factor = torch.linalg.cholesky(system)

    def weigh(rows: Tensor) -> Tensor:
        """Rows times R^-1."""
        inner = torch.cholesky_solve((rows @ residuals.T).T, factor).T
        return (rows - inner @ residuals) / c

    weighted = weigh(a)
    precision = beta * weighted @ a.T
    precision = 0.5 * (precision + precision.T)
    precision.diagonal().add_(1.0)
    lower = torch.linalg.cholesky(precision)
    mean = beta * torch.cholesky_solve((weighted @ target)[:, None], lower)[:, 0]
    eye = torch.eye(len(a), dtype=a.dtype)
    return mean, torch.linalg.solve_triangular(lower, eye, upper=False).T
