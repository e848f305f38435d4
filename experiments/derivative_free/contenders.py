"""The methods of the table, sized for a budget of simulator calls.

At the equal budget B each method gets sizes such that members x calls a member is B or just below;
everything else is its default. How B is split into members and steps follows one rule a family,
the same on every problem. At the published budget a method has the constants of its paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

import enkg
from enkg import METHODS, Guidance
from experiments.derivative_free.problems import Problem

BUDGETS = ("equal", "published")
CHAINS = 4
LEVELS = 16
EACH = CHAINS * LEVELS
UNPOLISHED = enkg.Polish(levels=0)


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    guidance: Guidance | None
    budget: str = "equal"


def _scg(calls: int) -> Guidance:
    guided = len(enkg.SCG(levels=LEVELS).guided)
    return enkg.SCG(members=CHAINS, levels=LEVELS, candidates=calls // (CHAINS * guided))


SIZED: dict[str, Callable[[int], Guidance]] = {
    "enkg": lambda calls: enkg.EnKG(members=calls // 8, updates=8, polish=UNPOLISHED),
    "enkg-square-root": lambda calls: enkg.EnKG(
        members=calls // 8, updates=8, deterministic=True, polish=UNPOLISHED
    ),
    "enkg-inflated": lambda calls: enkg.EnKG(
        members=calls // 5, updates=5, deterministic=True, inflation=1.05, polish=UNPOLISHED
    ),
    "enkg-folds": lambda calls: enkg.EnKG(
        members=calls // 8, updates=8, folds=8, polish=UNPOLISHED
    ),
    "enkg-polished": lambda calls: enkg.EnKG(members=calls // 13, updates=8),
    "weighted": lambda calls: enkg.WeightedEnKG(members=calls // 15),
    "daenk": lambda calls: enkg.DAEnK(members=calls // 15, levels=15),
    "split-gibbs": lambda calls: enkg.SplitGibbs(members=calls // enkg.SplitGibbs().sweeps),
    "slr": lambda calls: enkg.SLR(members=calls // 20, steps=20),
    "slr-refined": lambda calls: enkg.SLR(
        members=calls // 40, steps=20, draws=calls // 12, refine=6
    ),
    "es-mda": lambda calls: enkg.ESMDA(members=calls // 4),
    "es-mda-16": lambda calls: enkg.ESMDA(members=calls // 16, updates=16),
    "es-mda-geometric": lambda calls: enkg.ESMDA(members=calls // 5, updates=5, ratio=3.0),
    "eki-one-step": lambda calls: enkg.ESMDA(members=calls, updates=1),
    "eki": lambda calls: enkg.EKI(members=calls // LEVELS, most_steps=LEVELS),
    "eki-published": lambda calls: enkg.EKIPublished(members=calls // LEVELS, updates=LEVELS),
    "enkg-published": lambda calls: enkg.EnKGPublished(
        members=calls // LEVELS, updates=1, levels=LEVELS + 2, first_guided=1, last_guided=LEVELS
    ),
    "gsg": lambda calls: enkg.GSG(members=CHAINS, levels=LEVELS, queries=calls // EACH // 2 * 2),
    "gsg-forward": lambda calls: enkg.GSG(
        members=CHAINS, levels=LEVELS, queries=calls // EACH - 1, kind="forward"
    ),
    "dpg": lambda calls: enkg.DPG(members=CHAINS, levels=LEVELS, candidates=calls // EACH - 1),
    "scg": _scg,
}
"""Calls to a method of that many."""
GAUSSIAN_ONLY = {"slr", "slr-refined"}
NOT_FOR_GAUSSIAN = {"enkg-polished"}
PUBLISHED = (
    "enkg-published",
    "eki-published",
    "gsg-central-navier-stokes",
    "gsg-forward-navier-stokes",
    "dpg-navier-stokes",
    "scg-navier-stokes",
)
"""Presets of the Navier-Stokes rows of arXiv 2409.20175."""
PUBLISHED_FOR = {
    "navier-stokes": (),
    "m87": ("enkg-published-black-hole", "eki-published", "scg-black-hole"),
}
"""Where not all of their calls are affordable, or the paper has others."""


def contenders(problem: Problem, budget: str) -> list[Contender]:
    """All methods for that problem; at the published budget those whose calls are affordable."""
    if budget == "published":
        names = PUBLISHED_FOR.get(problem.name, PUBLISHED)
        return [Contender(name, METHODS[name], budget) for name in names]
    left_out = NOT_FOR_GAUSSIAN if problem.gaussian else GAUSSIAN_ONLY
    chosen = [name for name in SIZED if name not in left_out]
    sized = [Contender(name, SIZED[name](problem.budget)) for name in chosen]
    return [Contender("prior", None), *sized]
