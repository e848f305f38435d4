r"""Simulation-based calibration: are the intervals of a method as wide as they say?

Truths t are drawn from the prior, data from the truth, an ensemble from the data. If the ensemble
samples the posterior, truth and members are exchangeable, so over all truths

    rank       the rank of t among its J members is uniform on 0 .. J, for any scalar of the unknown
               (Talts et al. 2018, arXiv 1804.06788, theorem 1)
    coverage   central intervals of probability p hold t in a share p of the cases
    spread     sqrt((J + 1) / J mean variance) is the root-mean-square error of the ensemble mean
               (Fortin et al. 2014, J. Hydrometeorology 15, 1708)
    crps       is the least that any ensemble reaches (Gneiting and Raftery 2007, JASA 102, 359)

Elements of one unknown are correlated, so a truth counts as one observation: standard errors are
over truths, and ranks are tested for scalars, of which each truth has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enkg import metrics, random
from enkg.arrays import rows
from enkg.bounds import TAIL
from enkg.random import Stream

LEVELS = (0.5, 0.68, 0.9, 0.95)
BINS = 10
"""Bins of the rank histogram of all elements."""
COMPONENTS = 3
"""Principal components of the prior whose ranks are tested."""
GROUPS = 10
"""Groups of elements, by their spread, in the spread-skill plot."""
NULLS = 20_000
"""Histograms drawn from the uniform law for a p-value."""
SLACK = 0.03
"""Difference of a coverage from its level that is no fault."""
UNLIKELY = 0.003
"""p-value of all scalars together below which ranks are not uniform."""
MANY = 30
"""Truths below which only gross faults are seen."""


@dataclass(frozen=True)
class Score:
    """What one truth and its ensemble say. Of the inversion: misfit per datum, whether it was
    trusted, calls and failed calls.

    coverage: share of elements inside, by level. crps, prior_crps: of ensemble and prior samples.
    variance: mean over the elements, with (J + 1) / J. square_error: of the ensemble mean.
    histogram: of the ranks of all elements. ranks: of scalars, as a share of J + 1, ties and bins
    broken by chance. by_spread: (variance, square_error) of groups of elements in the order of
    their spread.
    """

    coverage: Mapping[str, float]
    crps: float
    prior_crps: float
    variance: float
    square_error: float
    relative_error: float
    histogram: Sequence[int]
    ranks: Mapping[str, float]
    by_spread: Sequence[tuple[float, float]]
    misfit: float
    trusted: bool
    calls: int
    failed: int


def components(samples: Tensor, count: int = COMPONENTS) -> Tensor:
    """Leading principal directions of prior samples (N, *X), (k, d) with k <= count."""
    flat = rows(samples).double()
    flat = flat - flat.mean(dim=0)
    _, scale, directions = torch.linalg.svd(flat, full_matrices=False)
    kept = int((scale > 1e-10 * scale[0]).sum())
    return directions[: min(count, kept)]


def score(
    ensemble: Tensor,
    samples: Tensor,
    truth: Tensor,
    directions: Tensor,
    key: tuple[int, int],
    summary: Mapping[str, Any],
) -> Score:
    """Of an ensemble (J, *X), prior samples (N, *X) and truth X, all in the same units.

    directions: (k, d), of `components`. key: seed and number of the truth, for ties. summary: the
    numbers of the run.
    """
    x, t = rows(ensemble).double(), truth.double().flatten()
    chance = random.generators(key[0], Stream.CHOICE, [key[1]], 0)[0]
    ranks = _ranks(x, t, chance)
    scalars = {"mean": (x.mean(dim=1), t.mean())}
    for k, direction in enumerate(directions.double(), 1):
        scalars[f"component {k}"] = (x @ direction, t @ direction)
    if len(t) == 1:
        scalars = {}
    one = int(chance.integers(len(t)))
    scalars["an element"] = (x[:, one], t[one])
    variance = (len(x) + 1) / len(x) * x.var(dim=0)
    square = (x.mean(dim=0) - t).square()
    order = torch.argsort(variance, stable=True)
    groups = [g for g in np.array_split(order.numpy(), min(GROUPS, len(order))) if len(g)]
    return Score(
        coverage={
            f"{level:g}": metrics.coverage(x, t, level)
            for level in LEVELS
            if level <= (len(x) - 1) / (len(x) + 1)
        },
        crps=metrics.crps(x, t),
        prior_crps=metrics.crps(rows(samples), t),
        variance=float(variance.mean()),
        square_error=float(square.mean()),
        relative_error=metrics.relative_error(x.mean(dim=0), t),
        histogram=_counts(ranks, BINS),
        ranks={
            name: float(_ranks(of_members[:, None], of_truth[None], chance)[0])
            for name, (of_members, of_truth) in scalars.items()
        },
        by_spread=[(float(variance[g].mean()), float(square[g].mean())) for g in groups],
        misfit=float(summary["misfit_per_datum"]),
        trusted=bool(summary["trusted"]),
        calls=int(summary["calls"]),
        failed=int(summary["failed"]),
    )


def _ranks(x: Tensor, t: Tensor, chance: np.random.Generator) -> np.ndarray:
    """Ranks of t (d,) among x (J, d), uniform on (0, 1) if truth and members are exchangeable."""
    less, same = (x < t).sum(dim=0).numpy(), (x == t).sum(dim=0).numpy()
    return (less + chance.random(len(t)) * (same + 1)) / (len(x) + 1)


def _counts(ranks: Sequence[float] | np.ndarray, bins: int) -> list[int]:
    return np.histogram(ranks, bins=bins, range=(0, 1))[0].tolist()


def uniformity(ranks: Sequence[float]) -> tuple[list[int], float]:
    """Histogram of independent ranks on (0, 1), and the p-value of its chi-square statistic.

    The law of the statistic is simulated, so that the p-value holds for few ranks as well.
    """
    bins = min(max(len(ranks) // 5, 4), 20)
    counts = _counts(ranks, bins)
    found = np.square(np.array(counts)).sum()
    worse = NULLS - int(np.searchsorted(_null(len(ranks), bins), found))
    return counts, (1 + worse) / (1 + NULLS)


@cache
def _null(ranks: int, bins: int) -> np.ndarray:
    """Sums of squared counts of uniform ranks, ascending, (NULLS,)."""
    chance = np.random.default_rng(bins)
    counts = chance.multinomial(ranks, [1 / bins] * bins, size=NULLS)
    return np.sort(np.square(counts).sum(axis=1))


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "standard_error": float(np.std(values, ddof=1) / sqrt(len(values))),
    }


def _ratio(spreads: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Root of the ratio of two means, with its jackknife error over the truths."""
    a, b = np.array(spreads), np.array(errors)
    n = len(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = float(np.sqrt(a.sum() / b.sum()))
        without = np.sqrt((a.sum() - a) / (b.sum() - b))
    error = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return {"mean": whole, "standard_error": error}


def calibration(scores: Sequence[Score], elements: int) -> dict[str, Any]:
    """The numbers of calibration.json, from at least two truths of so many elements each."""
    levels = [f"{p:g}" for p in LEVELS if all(f"{p:g}" in s.coverage for s in scores)]
    names = list(scores[0].ranks)
    tests = {}
    for name in names:
        values = [s.ranks[name] for s in scores]
        counts, p = uniformity(values)
        tests[name] = {"p": p, "counts": counts, "values": values}
    found: dict[str, Any] = {
        "truths": len(scores),
        "elements": elements,
        "coverage": {level: _mean([s.coverage[level] for s in scores]) for level in levels},
        "spread_skill": _ratio([s.variance for s in scores], [s.square_error for s in scores]),
        "crps": {
            **_mean([s.crps for s in scores]),
            "prior": float(np.mean([s.prior_crps for s in scores])),
        },
        "relative_error": _mean([s.relative_error for s in scores]),
        "misfit_per_datum": _mean([s.misfit for s in scores]),
        "rank_histogram": np.sum([s.histogram for s in scores], axis=0).tolist(),
        "ranks": tests,
        "p": min(1.0, len(tests) * min(test["p"] for test in tests.values())),
        "trusted": sum(s.trusted for s in scores),
        "calls": sum(s.calls for s in scores),
        "failed": sum(s.failed for s in scores),
    }
    found["crps"]["relative"] = found["crps"]["mean"] / found["crps"]["prior"]
    found["calibrated"], found["reason"] = _judged(found)
    found["each"] = [vars(s) for s in scores]
    return found


def _judged(found: Mapping[str, Any]) -> tuple[bool, str]:
    """One sentence. A coverage is wrong if it differs from its level by `SLACK`, and by three
    standard errors (of Student's law) or by more than if the elements of a truth were one."""
    from scipy.stats import binom  # slow to import, and only wanted at the end
    from scipy.stats import t as student

    truths = found["truths"]
    wide = float(student.ppf(1 - TAIL, truths - 1))
    doubts, worst = [], {-1: (0.0, ""), 1: (0.0, "")}
    for level, share in found["coverage"].items():
        nominal = float(level)
        least = sqrt(nominal * (1 - nominal) / (truths * found["elements"]))
        error = wide * max(share["standard_error"], least)
        low, high = (float(k) / truths for k in binom.ppf([TAIL, 1 - TAIL], truths, nominal))
        low, high = max(low, nominal - error), min(high, nominal + error)
        gap = share["mean"] - nominal
        if abs(gap) > SLACK and not low <= share["mean"] <= high:
            side = 1 if gap > 0 else -1
            text = f"those of {nominal:.0%} hold the truth in {_percent(share)}"
            worst[side] = max(worst[side], (abs(gap), text))
    if worst[-1][1]:
        doubts.append(f"the intervals are too narrow: {worst[-1][1]}")
    if worst[1][1]:
        doubts.append(f"the intervals are too wide: {worst[1][1]}")
    if found["p"] < UNLIKELY:
        name, test = min(found["ranks"].items(), key=lambda item: item[1]["p"])
        doubts.append(f"the truth's ranks are not uniform (p = {test['p']:.2g} for the {name})")
    few = f"; {truths} truths show gross faults only" if truths < MANY else ""
    if doubts:
        return False, "; ".join(doubts)
    parts = []
    for level in [level for level in ("0.9", "0.68", "0.5") if level in found["coverage"]][:1]:
        held = _percent(found["coverage"][level])
        parts.append(f"intervals of {float(level):.0%} hold the truth in {held}")
    ratio = found["spread_skill"]
    if isfinite(ratio["mean"]):
        parts.append(f"spread over error {ratio['mean']:.2f} +- {ratio['standard_error']:.2f}")
    parts.append(f"ranks uniform (p = {found['p']:.2g})")
    return True, ", ".join(parts) + few


def _percent(share: Mapping[str, float]) -> str:
    return f"{100 * share['mean']:.1f} +- {100 * share['standard_error']:.1f} %"


def band(truths: int, bins: int, level: float = 0.95) -> tuple[int, int]:
    """Central interval of a bin's count where independent ranks are uniform (binomial)."""
    from scipy.stats import binom

    low, high = binom.interval(level, truths, 1 / bins)
    return int(low), int(high)
