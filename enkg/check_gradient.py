"""Are the gradient, the adjoint and their kin, which a simulator offers, what they claim to be?

For living draws x, cotangents v of the scale of the noise and directions d,

    vjp       <v, (G(x + h d) - G(x - h d)) / (2 h)>  =  <vjp(x, v), d>       prior units
    adjoint   <v, G(x') - G(x)>  =  <A^T v, x' - x>                           simulator's units
    pinv      G(A^+ G(x))  =  G(x)
    svd       U diag(s) V^T (x' - x)  =  G(x') - G(x),  U^T U = V^T V = 1
    project   onto(u, G(crop(u)))  =  u  for positive u on the support

where x' is another draw. Rounding falls with the step h and truncation rises, so h goes through a
ladder and each draw keeps its best agreement; the ladder ends as soon as all agree. Half of the
directions are differences of draws, half are white noise of the same size. Errors are relative to
<v, G' d>, or to |G' d| in the metric of the noise if this is larger, so that a chance zero of the
former harms nothing.

Cost for n draws: 2 n calls for each step of the ladder that is needed (one for a right vjp of a
smooth simulator, five at most) and 2 n vjps; n calls more for each of pinv and project.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg import abilities, random
from enkg.arrays import rows
from enkg.errors import EnkgError, EnsembleFailure, InputError
from enkg.experiment import Experiment
from enkg.findings import Grade, Report
from enkg.forward import Forward
from enkg.random import Stream

STEPS = (1e-2, 1e-3, 1e-1, 1e-4, 1e-5)
"""Of the central differences, in units of the size of a draw; the likeliest first."""
GOOD, UNSOUND = 0.01, 0.03
"""Relative errors of a gradient up to which it is right, and from which it is wrong."""
EXACT, INEXACT = 1e-3, 1e-2
"""The same of linear algebra, which knows no truncation."""
DRAWS = 4

Rows = list[ndarray]


def calls(experiment: Experiment, draws: int) -> int:
    """What a check of so many draws costs, where all is well."""
    if experiment.observe is not None:
        return 0
    able = abilities.of(experiment.simulator)
    return min(draws, DRAWS) * (
        2 * (able.vjp is not None) + (able.pinv is not None) + (able.project is not None)
    )


def abilities_checked(report: Report, forward: Forward, x: Tensor, y: ndarray) -> None:
    """Findings about all that the simulator offers. x: living draws, prior units; y: their data."""
    experiment = forward.experiment
    able = abilities.of(experiment.simulator)
    if not able.names() or experiment.observe is not None:
        why = "none with observe=" if able.names() else "none"
        report.facts["gradient"] = (
            f"{why}; methods that need one are refused, derivative-free ones do without"
        )
        return
    if len(x) < 2:
        report.facts["gradient"] = "untried: it takes two draws that the simulator answers"
        return
    trial = _Trial(forward, x[:DRAWS], y[:DRAWS])
    parts: dict[str, Callable[[Report], None]] = {
        "vjp": trial.vjp,
        "adjoint": trial.adjoint,
        "pinv": trial.pinv,
        "svd": trial.svd,
        "project": trial.project,
    }
    for name in able.names():
        try:
            parts[name](report)
        except EnkgError as error:
            report.add(Grade.UNSOUND, name, str(error))
        except Exception as error:  # a user's code may raise anything
            report.add(Grade.UNSOUND, name, f"raised {type(error).__name__}: {error}")
    report.facts["gradient"] = (
        f"checked in {trial.calls} calls, {forward.operator.vjps} vjps: {', '.join(able.names())}"
    )


class _Trial:
    """What is offered, draw by draw."""

    def __init__(self, forward: Forward, x: Tensor, y: ndarray) -> None:
        self.forward, self.x, self.calls = forward, x, 0
        experiment = forward.experiment
        self.observation = experiment.observation
        self.mask = self.observation.mask.numpy()
        self.y = np.where(self.mask, y, 0.0)
        self.given = experiment.physical(x).detach().cpu().numpy()
        self.able = abilities.of(experiment.simulator)
        clean = self.observation.y.nan_to_num()
        noisy = [self.observation.perturb(clean, experiment.seed, j) for j in range(len(x))]
        self.v = self.observation.gradient(torch.stack(noisy)).numpy()
        self.d = self._directions(experiment.seed)

    def _directions(self, seed: int) -> Tensor:
        """Even rows: to the next draw. Odd rows: white noise of that size."""
        towards = torch.roll(self.x, -1, 0) - self.x
        size = rows(towards).square().mean().sqrt()
        shape, members = tuple(self.x.shape[1:]), range(len(self.x))
        white = random.normal(shape, seed, Stream.PROPOSAL, members, 0).to(self.x)
        odd = torch.arange(len(self.x)).reshape(-1, *(1,) * len(shape)) % 2 == 1
        return torch.where(odd, size * white, towards)

    def vjp(self, report: Report) -> None:
        pulled = self.forward.operator.pull_back(self.x, torch.from_numpy(self.v))
        finite = rows(pulled).isfinite().all(dim=1)
        if not bool(finite.all()):
            report.add(
                Grade.UNSOUND,
                "vjp",
                f"{int((~finite).sum())} of {len(finite)} draws with an answer have no finite "
                "gradient",
                "run vjp by hand on one member; roots, logarithms and clipping at their edge "
                "give infinity or NaN",
            )
            return
        self._alone(report, pulled)
        errors, rough, best = self._along_the_ladder(pulled)
        if np.isnan(errors).all():
            text = "the simulator failed at both sides of every draw"
            report.add(Grade.DOUBT, "vjp", text, "so the gradient is untried")
            return
        worst, right = float(np.nanmax(errors)), int((errors <= GOOD).sum())
        if worst <= GOOD:
            text = f"agrees with central differences to {worst:.1g} (steps {_listed(best)})"
            report.add(Grade.GOOD, "vjp", text)
        elif rough > worst / 3:
            report.add(
                Grade.DOUBT,
                "vjp",
                f"central differences of different steps disagree by {rough:.1g}, so they cannot "
                f"tell; the best lie {worst:.1g} from the gradient",
                "the answers jump or are rounded: adaptive steps, tables, low precision",
            )
        elif 2 * right >= len(errors):
            report.add(
                Grade.DOUBT,
                "vjp",
                f"agrees with central differences for {right} of {len(errors)} draws; the others "
                f"lie up to {worst:.1g} away",
                "no fault where a draw happens to lie on a kink, such as the edge of a clipping",
            )
        else:
            report.add(
                Grade.UNSOUND if worst > UNSOUND else Grade.DOUBT,
                "vjp",
                f"lies {worst:.1g} (relative) from central differences, which agree with each "
                f"other to {rough:.1g}",
                "compare vjp(x, v) with the derivative of sum(v * simulator(x)): its sign, its "
                "scale, the order of its axes",
            )

    def _along_the_ladder(self, pulled: Tensor) -> tuple[ndarray, float, list[float]]:
        """Of each draw, the smallest error; how far neighbouring steps disagree at best, the worst
        draw's; and the steps that were best."""
        slopes: dict[float, ndarray] = {}
        sizes: dict[float, ndarray] = {}
        errors = np.full(len(self.x), np.nan)
        best = [np.nan] * len(self.x)
        for step in STEPS:
            slopes[step], sizes[step], along = self._difference(step, pulled)
            error = np.abs(slopes[step] - along) / sizes[step]
            for j in np.flatnonzero(~(error >= errors) & np.isfinite(error)):
                errors[j], best[j] = error[j], step
            if (errors <= GOOD).all():
                break
        if np.isnan(errors).all():
            return errors, 0.0, best
        steps, worst = sorted(slopes), int(np.nanargmax(errors))
        slope = np.array([slopes[step][worst] for step in steps])
        size = np.array([sizes[step][worst] for step in steps])
        apart = np.abs(np.diff(slope)) / np.minimum(size[1:], size[:-1])
        return errors, float(np.min(apart[np.isfinite(apart)], initial=np.inf)), best

    def _difference(self, step: float, pulled: Tensor) -> tuple[ndarray, ndarray, ndarray]:
        """<v, G' d> by differences, its size, and by the gradient, each (n,); NaN for failed."""
        ahead, behind = self.x + step * self.d, self.x - step * self.d
        d = (ahead.double() - behind.double()) / (2 * step)  # what is left after rounding
        try:
            y, _, calls = self.forward.simulate(torch.cat([ahead, behind]))
        except EnsembleFailure as error:
            self.calls += error.calls
            nothing = np.full(len(self.x), np.nan)
            return nothing, nothing, nothing
        self.calls += calls
        n = len(self.x)
        slope = np.where(self.mask, y[:n].astype(np.float64) - y[n:], 0.0) / (2 * step)
        along = (rows(pulled.double()) * rows(d)).sum(dim=1).numpy()
        by_slope = _dots(self.v, slope)
        size = np.maximum(self._scale(slope), np.maximum(np.abs(by_slope), np.abs(along)))
        return by_slope, size, along

    def _alone(self, report: Report, pulled: Tensor) -> None:
        """Once more in reverse, the first with a cotangent of NaN."""
        v = torch.from_numpy(self.v[::-1].copy())
        v[0] = torch.nan
        again = self.forward.operator.pull_back(self.x.flip(0), v).flip(0)
        off = rows(again[:-1] - pulled[:-1]).norm(dim=1)
        if not bool((off <= 0.1 * EXACT * rows(pulled[:-1]).norm(dim=1)).all()):
            report.add(
                Grade.UNSOUND,
                "vjp",
                "a member's gradient changes with its neighbours, or with a NaN among them",
                "row j of vjp(x, v) must follow from x[j] and v[j] only",
            )

    def adjoint(self, report: Report) -> None:
        assert self.able.adjoint is not None
        back = self._asked(self.able.adjoint, self.v, self.given.shape)
        ahead, apart = self._pairs()
        one, other = _dots(self.v, apart), _dots(back, ahead)
        error = np.abs(one - other) / np.maximum(self._scale(apart), np.abs(one))
        self._judged(
            report,
            "adjoint",
            "<v, A x> and <A^T v, x> differ by",
            error,
            "adjoint must be the transpose of the simulator, and that be linear up to a constant",
        )

    def pinv(self, report: Report) -> None:
        assert self.able.pinv is not None
        x = self._asked(self.able.pinv, self.y, self.given.shape)
        result = self.forward.evaluator.evaluate(x.astype(self.given.dtype))
        self.calls += result.calls
        y = np.where(self.mask, result.y, 0.0)
        error = self._size(y - self.y) / self._scale(self._pairs()[1])
        what = "G(pinv(y)) and y differ by"
        if self.able.adjoint is not None:
            self._judged(report, "pinv", what, error, "A A^+ A must be A")
            return
        worst = float(np.max(error))  # NaN stays NaN
        text = f"a guess, for the simulator is not linear: {what} {worst:.2g} of what draws differ"
        if worst < 1:
            report.add(Grade.GOOD, "pinv", text)
        else:
            report.add(Grade.DOUBT, "pinv", text, "any other draw would do as well")

    def svd(self, report: Report) -> None:
        svd = self.able.svd
        assert svd is not None
        s = np.asarray(svd.s, dtype=np.float64)
        if s.ndim != 1 or not len(s) or not (np.isfinite(s).all() and (s > 0).all()):
            raise InputError("svd.s must be a vector of positive, finite singular values")
        n = len(self.given)
        ahead, apart = self._pairs()
        built = self._asked(
            svd.u, s * self._asked(svd.vt, ahead, (n, len(s))), (n, *self.y.shape[1:])
        )
        advice = "U diag(s) V^T must be the simulator's matrix, without its zero singular values"
        error = self._size(built - apart) / self._scale(apart)
        self._judged(report, "svd", "U diag(s) V^T x and A x differ by", error, advice)
        z = random.normal((len(s),), self.forward.experiment.seed, Stream.PROPOSAL, range(n), 1)
        z = z.double().numpy()
        back = [
            self._asked(svd.ut, self._asked(svd.u, z, self.y.shape), z.shape),
            self._asked(svd.vt, self._asked(svd.v, z, self.given.shape), z.shape),
        ]
        error = [np.linalg.norm(b - z, axis=1) / np.linalg.norm(z, axis=1) for b in back]
        advice = "the columns of U and of V must be orthonormal, and ut, vt the transposes"
        self._judged(report, "svd", "U^T U and V^T V differ from 1 by", np.stack(error), advice)

    def project(self, report: Report) -> None:
        project = self.able.project
        assert project is not None
        support = np.asarray(project.support, dtype=bool)
        n, seed = len(self.given), self.forward.experiment.seed
        noise = random.normal(support.shape, seed, Stream.PROPOSAL, range(n), 2).numpy()
        u = support * np.exp(-(noise**2)) * np.abs(self.given).max()
        x = self._asked(project.crop, u, self.given.shape).astype(self.given.dtype)
        result = self.forward.evaluator.evaluate(x)
        self.calls += result.calls
        back = self._asked(lambda u: project.onto(u, result.y), u, u.shape)
        error = np.linalg.norm((back - u).reshape(n, -1), axis=1)
        self._judged(
            report,
            "project",
            "u and its projection onto its own magnitudes differ by",
            error / np.linalg.norm(u.reshape(n, -1), axis=1),
            "the simulator must be the magnitudes of a unitary transform of what is cropped",
        )

    def _pairs(self) -> tuple[ndarray, ndarray]:
        """x' - x and G(x') - G(x) of neighbouring draws, float64."""
        x, y = self.given.astype(np.float64), self.y.astype(np.float64)
        return np.roll(x, -1, axis=0) - x, np.roll(y, -1, axis=0) - y

    def _size(self, r: ndarray) -> ndarray:
        """|r| in the metric of the noise, (n,)."""
        return self.observation.whiten(torch.from_numpy(r)).norm(dim=1).numpy()

    def _scale(self, r: ndarray) -> ndarray:
        """The same to divide by: 1 where it is zero."""
        size = self._size(r)
        return np.where(size == 0, 1.0, size)

    def _asked(self, f: Callable, given: ndarray, shape: tuple[int, ...]) -> ndarray:
        found = np.array(f(given.copy()))
        if found.shape != tuple(shape):
            raise InputError(
                f"was given shape {given.shape} and returned {found.shape}; expected {tuple(shape)}"
            )
        return found.astype(np.float64)

    def _judged(self, report: Report, name: str, what: str, error: ndarray, advice: str) -> None:
        worst = float(np.max(error))
        text = f"{what} {worst:.1g} (relative)"
        if worst <= EXACT:
            report.add(Grade.GOOD, name, text)
        else:  # NaN too
            report.add(Grade.DOUBT if worst <= INEXACT else Grade.UNSOUND, name, text, advice)


def _dots(a: ndarray, b: ndarray) -> ndarray:
    return (a.astype(np.float64) * b).reshape(len(a), -1).sum(axis=1)


def _listed(steps: list[float]) -> str:
    return ", ".join(f"{step:g}" for step in sorted(set(steps)))
