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
        b = mean over new rows of Y - A (z - mu)
        beta = min(1, max(beta, 3 m / |y - b|^2))
        R = I / beta + 0.9 E^T E / J + 0.1 tr(E^T E) / (J m) I
        C = (I + A^T R^-1 A)^-1,  mu = C A^T R^-1 (y - b + A mu)

The power beta of the likelihood tempers the noise, not the error of the linear model, which tempers
by itself: a simulator that is far from linear over the prior would stand still under both.

The ridge in units of u says that the sensitivity per unit of the field is about the same in every
direction: localisation without coordinates. Weak directions then get small gains.

Law: exact for a linear simulator once the evaluations in use, J min(T, 10), exceed the number of
coordinates. Otherwise the answer is the Gaussian that fits the posterior near its mean. A run has
converged where beta = 1 and |y - b|^2 / m, the misfit of the mean, is at most 1 + 3 sqrt(2 / m) at
the last step. One that has not may go on for `extra` steps; one that still has not says so in its
remarks. Fewer than about 14 steps do not converge on strongly nonlinear problems.

With `pairs`, the experiment's low-fidelity simulator L (`enkg.Low`) is the control variate. It
answers every batch, and in the last `paired_steps` the simulator answers the first P members too.
One regression is made of L, over all batches, another of D = G - L, over the pairs, with the same
ridge; the linear models add up, and so do their errors:

    A = A_L + A_D,  y - b = (y - b_L) - b_D,  R = I / beta + error of L + error of D

L need not be right, only parallel: what the pairs do not explain of D is in R. Before the pairs
the draws follow the posterior of L, so D is learnt where L would put the posterior, and once more
around the corrected mean.

With `refine`, the draws are moved in rounds of one call each by randomised maximum likelihood
(`enkg.guidance.slr_refine`): they end where the simulator itself fits their data.

Statistical linear regression, iterated: Garcia-Fernandez, Svensson, Morelande and Sarkka 2015,
"Posterior linearization filter", IEEE Transactions on Signal Processing 63. Control variates from
a low-fidelity model: Peherstorfer, Willcox and Gunzburger 2018, "Survey of multifidelity methods",
SIAM Review 60. The recycling of evaluations, the ridge and the use of its residuals as model error
are enkg's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.comm import ALONE, Comm, once
from enkg.ensemble import alive
from enkg.errors import EnsembleFailure, InputError, MissingCapability
from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.slr_refine import Refined, begun, judged, proposed, remember
from enkg.guidance.slr_regression import (
    FORGET,
    Evaluations,
    Law,
    coordinates,
    fitted,
    informed,
    posterior,
    recall,
    recent,
)
from enkg.observation import Observation
from enkg.prior import Prior, White
from enkg.random import Stream

LASTING = 1e-6
"""Weight below which an evaluation is dropped where a refinement will need it."""


@dataclass(frozen=True, eq=False)
class SLRState(State):
    """z: white coordinates of all J members, (J, K). mean: mu. memory: all evaluations still in
    use, of all ranks. paired: those of both simulators, with the difference of their innovations.
    refined: the members that the simulator moves, from the end of the steps on.
    """

    z: Tensor = field(default_factory=lambda: torch.empty(0))
    mean: Tensor = field(default_factory=lambda: torch.empty(0))
    memory: Evaluations | None = None
    paired: Evaluations | None = None
    refined: Refined | None = None


@dataclass(frozen=True, eq=False)
class _Analysis:
    """What a step concludes. misfit: of the mean that the batch was drawn around, per datum."""

    beta: float
    misfit: float
    mean: Tensor
    z: Tensor
    finished: bool
    refined: Refined | None = None


@dataclass(frozen=True)
class SLR(Guidance):
    """SLR. Cost: `steps` simulator calls a member, `steps` + `extra` at most; no denoiser call.

    With `refine`: besides, at most so many calls for each of the `draws`. With `pairs`: `steps`
    low-fidelity calls a member, `pairs` * `paired_steps` simulator calls.
    """

    state: ClassVar[type[State]] = SLRState
    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior"

    members: int = 64
    """Batch size J of each step."""
    steps: int = 20
    """Number T of steps."""
    extra: int = 0
    """Steps that a run may add while it has not converged."""
    draws: int = 512
    """Members of the final ensemble; they cost no simulator call but for `refine`."""
    refine: int = 0
    """Rounds, at most, in which the simulator moves the final members, with one call each: for
    posteriors that one Gaussian does not fit. The first round only looks where they stand, so give
    0 or at least 2."""
    kept_variance: float = 1.0
    """Share of the prior's variance in the coordinates that the data may move; the others stay as
    in the prior. Below 1 it saves time on fields, and is wrong where the data see what it drops."""
    pairs: int = 0
    """Members of a batch that both simulators answer, where the experiment has a low-fidelity one;
    0 uses the simulator alone."""
    paired_steps: int = 2
    """Number of last steps that have pairs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.draws < 2 or self.extra < 0:
            raise InputError(
                f"{self.steps} steps, {self.extra} extra ones and {self.draws} draws; expected at "
                "least 1, 0 and 2"
            )
        if not 0 < self.kept_variance <= 1:
            raise InputError(f"kept_variance is {self.kept_variance}; expected a share in (0, 1]")
        if self.pairs and not 2 <= self.pairs <= self.members:
            raise InputError(
                f"{self.pairs} pairs of {self.members} members; give 0, or 2 to {self.members}"
            )
        if self.refine < 0 or self.refine == 1 or (self.refine and self.pairs):
            raise InputError(
                f"refine is {self.refine} with {self.pairs} pairs; expected 0, or at least 2 and "
                "no pairs"
            )
        if not self.paired_steps >= 1:
            raise InputError(f"paired_steps is {self.paired_steps}; expected at least 1")

    @property
    def begins_at_prior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the simulator itself answers the first draws, and not a cheaper one."""
        return not self.pairs

    @property
    def sweeps(self) -> int:
        steps = self.steps + self.extra
        return self._steps + min(steps, self.paired_steps + self.extra) * bool(self.pairs)

    @property
    def _steps(self) -> int:
        return self.steps + self.extra + self.refine

    def calls_for(self, prior: Prior) -> int:
        return (self.sweeps - self.refine) * self.members + self.refine * self.draws

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> SLRState:
        if not isinstance(prior, White):
            raise InputError(
                "SLR needs a Gaussian prior (enkg.Gaussian), whose coordinates it can whiten; for "
                "other priors use EnKG"
            )
        order, _ = informed(prior, self.kept_variance)
        law = Law.prior(len(order))
        key = seed, tuple(range(self.members)), 0
        z = once(comm, lambda: coordinates(prior, order, law, key))
        state = SLRState(torch.empty(0), (), seed, z=z, mean=law.mean, comm=comm)
        return self._placed(state, prior, order, self.members, like)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        assert isinstance(state, SLRState)
        assert isinstance(prior, White)
        if state.refined is not None:
            return self._refined(state, prior, forward, observation)
        y = self._batch(forward)(state.x)
        new = _evaluated(state, y, observation.residual(y))
        memory = recall(state.memory, new, state.step, LASTING if self.refine else FORGET)
        misfit = observation.misfit_per_datum(y[alive(y)])
        paired, differences = state.paired, None
        if self.pairs and state.step >= self.steps - self.paired_steps:
            both = forward(state.x[: max(0, self.pairs - state.first)])
            difference = observation.residual(both) - observation.residual(y[: len(both)])
            differences = _evaluated(state, both + y[: len(both)], difference)
            if len(differences.z) < 2:
                raise EnsembleFailure(
                    f"of {len(both)} pairs, {len(differences.z)} were answered by both simulators; "
                    "at least 2 are needed"
                )
            paired = recall(paired, differences, state.step)
            misfit = observation.misfit_per_datum(both[alive(both)])
        order, u = informed(prior, self.kept_variance)

        def analysis() -> _Analysis:
            fit = fitted(recent(memory, state.step), new, state.mean, u, state.step)
            if paired is not None and differences is not None:
                fit += fitted(paired, differences, state.mean, u, state.step)
            distance = float(fit.gap.square().sum()) / observation.count
            beta = min(1.0, max(state.beta, 3 / distance)) if distance > 0 else 1.0
            law = posterior(fit, state.mean, beta)
            finished = self._finished(state.step + 1, beta, distance, observation.count)
            key = state.seed, tuple(range(self._count(finished))), state.step + 1
            if finished and self.refine:
                start = coordinates(prior, order, Law.prior(len(order)), key)
                noise = observation.noise(*key)
                refined = begun(fit, state.mean, start, noise, key[2])
                return _Analysis(beta, distance, law.mean, refined.z, True, refined)
            z = coordinates(prior, order, law, key)
            return _Analysis(beta, distance, law.mean, z, finished)

        found = once(state.comm, analysis)
        finished = found.finished and found.refined is None
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=1.0 if finished else (state.step + 1) / self._steps,
            power=found.beta - state.beta,
            beta=found.beta,
            misfit=misfit,
            evaluated=((state.x, y),),
        )
        after = replace(
            state,
            step=state.step + 1,
            beta=found.beta,
            finished=finished,
            z=found.z,
            mean=found.mean,
            memory=memory,
            paired=paired,
            refined=found.refined,
        )
        if finished:
            said = _remarks(after.step, found.beta, found.misfit, observation.count)
            after = replace(after, remarks=state.remarks + said)
        return self._placed(after, prior, order, self._count(found.finished), state.x), info

    def _refined(
        self, state: SLRState, prior: White, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        """A round of the refinement."""
        y = forward(state.x)
        living = alive(y).cpu()
        order, u = informed(prior, self.kept_variance)

        def analysis() -> tuple[Evaluations, Refined, Tensor, bool]:
            assert state.refined is not None
            assert state.memory is not None
            r = observation.residual(y).cpu()
            new = _evaluated(state, y, r)
            memory = remember(state.memory, new, state.step)
            members = judged(state.refined, state.z, r, living)
            if members.settled or state.step + 1 - members.step >= self.refine:
                return memory, members, members.z, True
            z = proposed(members, memory, u, state.step)
            return memory, members, z, False

        memory, members, z, finished = once(state.comm, analysis)
        info = Info(
            step=state.step,
            sigma=0.0,
            progress=1.0 if finished else (state.step + 1) / self._steps,
            power=1.0 - state.beta,
            beta=1.0,
            misfit=observation.misfit_per_datum(y[alive(y)]),
            evaluated=((state.x, y),),
        )
        after = replace(
            state,
            step=state.step + 1,
            beta=1.0,
            finished=finished,
            z=z,
            memory=memory,
            refined=members,
        )
        if finished:
            said = _refined_remarks(members, after.step, observation.count)
            after = replace(after, remarks=state.remarks + said)
        return self._placed(after, prior, order, self.draws, state.x), info

    def _batch(self, forward: Forward) -> Callable[[Tensor], Tensor]:
        """The simulator that answers whole batches."""
        if not self.pairs:
            return forward
        low = getattr(forward, "low", None)
        if low is None:
            raise MissingCapability(
                f"SLR with {self.pairs} pairs",
                "a low-fidelity simulator",
                "give Experiment(low=enkg.Low(simulator, cost=...)), or set pairs to 0",
            )
        return low

    def _count(self, finished: bool) -> int:
        return self.draws if finished else self.members

    def _finished(self, steps: int, beta: float, misfit: float, data: int) -> bool:
        """Whether so many steps are enough."""
        if steps < self.steps:
            return False
        return _converged(beta, misfit, data) or steps == self.steps + self.extra

    def _placed(
        self, state: SLRState, prior: White, order: Tensor, count: int, like: Tensor
    ) -> SLRState:
        """The state with this rank's part of `count` members, at the coordinates z."""
        members = self.own_members(prior, state.comm, count)
        # The coordinates that are not moved are the same in all rounds of the refinement.
        step = state.step if state.refined is None else state.refined.step
        white = random.normal((len(prior.scales),), state.seed, Stream.SAMPLER, members, step)
        white[:, order] = state.z[list(members)]
        return replace(state, x=prior.from_white(white.to(like)), members=members)

    @property
    def posterior_members(self) -> int:
        return self.draws

    def drop(self, state: State, living: Tensor) -> State:
        """Every step draws its members afresh, so there is nobody to drop; a member that fails in
        the refinement stays where it was."""
        return state


def _evaluated(state: SLRState, y: Tensor, r: Tensor) -> Evaluations:
    """The first members of the batch, those of them that have data. r: whitened innovations."""
    living = alive(y).cpu()
    z = state.z[: len(living)][living]
    return Evaluations(z, r.cpu()[living], torch.full((len(z),), state.step))


def _limit(data: int) -> float:
    return 1 + 3 * sqrt(2 / data)


def _converged(beta: float, misfit: float, data: int) -> bool:
    return beta == 1 and misfit <= _limit(data)


def _remarks(steps: int, beta: float, misfit: float, data: int) -> tuple[str, ...]:
    """A remark that begins with "not converged" makes a run not trusted (`enkg.diagnose`)."""
    if _converged(beta, misfit, data):
        return ()
    if beta < 1:
        return (
            f"not converged: {steps} steps of SLR used {beta:.2g} of the likelihood; give more "
            "steps",
        )
    return (
        f"not converged: after {steps} steps of SLR the misfit per datum of the mean is "
        f"{misfit:.2f}, above {_limit(data):.2f}; give more steps or members, unless the noise "
        "level or the simulator is wrong",
    )


def _refined_remarks(members: Refined, steps: int, data: int) -> tuple[str, ...]:
    answered = members.value.isfinite()
    misfit = float(members.r[answered].square().sum(1).mean()) / data
    said: tuple[str, ...] = ()
    if not _converged(1.0, misfit, data):
        said += (
            f"not converged: after {members.step} steps of SLR and {steps - members.step} rounds "
            f"of refinement the misfit per datum of the members is {misfit:.2f}, above "
            f"{_limit(data):.2f}; give more steps or more rounds (refine), unless the noise level "
            "or the simulator is wrong",
        )
    if not bool(answered.all()):
        said += (
            f"{int((~answered).sum())} of {len(answered)} members failed in every round of the "
            "refinement and stand where SLR's linear model put them",
        )
    return said
