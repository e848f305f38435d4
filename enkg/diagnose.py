"""Can this ensemble be trusted? One sentence, from numbers that every run has.

The tests are necessary, not sufficient: an ensemble that passes may still be wrong where the prior
is, or where the posterior has modes that no member found.

misfit      For a calibrated ensemble the misfit per datum of its members has mean 1 and is spread
            less than chi^2_m / m over truths and noises (discrepancy principle).
rank        The directions in which members differ, against prior samples of the same number
            (`enkg.ensemble.effective_rank`).
distance    Members are prior samples over all truths, so they must look like some
            (`enkg.distance`).
error       Where the truth is known: the squared error of the mean over the variance is a mean of
            as many squares as the ensemble has directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from enkg.bounds import chi_square
from enkg.distance import Distance

NOT_CONVERGED = "not converged"
POINT = 1e-3
"""Spread over the prior's, below which members are one point."""
"""A method's remark that begins so says that its result is not to be trusted."""
TOO_SURE = 2.0
"""Error over spread that is no fault of an inversion."""


@dataclass(frozen=True)
class Ranks:
    """Effective rank of the ensemble and of the prior samples, each of `members` members."""

    posterior: float
    prior: float
    members: int


@dataclass(frozen=True)
class Verdict:
    """trusted: no test failed. reason: the tests that failed, or what was found in order."""

    trusted: bool
    reason: str


def most_error(rank: float) -> float:
    """The largest error of the mean, in spreads, that chance allows an ensemble of that effective
    rank."""
    return sqrt(chi_square(max(rank, 1.0), TOO_SURE**2 - 1)[1])


def verdict(
    *,
    law: str | None,
    beta: float,
    misfit_per_datum: float,
    data: int,
    spread: float,
    members: int,
    failed_share: float,
    ranks: Ranks | None = None,
    distance: Distance | None = None,
    spread_skill: float | None = None,
    remarks: Sequence[str] = (),
) -> Verdict:
    """Judges a finished run.

    spread: over the prior's. ranks, distance: None where unknown. spread_skill: spread over error,
    None where no truth is known. remarks: what the method says of the run.
    """
    low, high = chi_square(data)
    doubts = [remark for remark in remarks if remark.startswith(NOT_CONVERGED)]
    if law is None:
        doubts.append("the method has no posterior law: its spread is not an uncertainty")
    if beta < 1 and law is not None:
        doubts.append(f"only {beta:.2f} of the likelihood was used")
    doubts += _of_misfit(misfit_per_datum, low, high)
    spreads = law is not None or spread > POINT  # of point estimates nothing more can be said
    doubts += _of_spread(spread, ranks) if spreads else []
    if distance is not None and not distance.value <= distance.bounds[1]:
        doubts.append(
            f"the members lie {distance.value:.3g} times as far out in the prior as its samples, "
            f"above {distance.bounds[1]:.2f}: the fit was bought by leaving the prior"
        )
    if spread_skill is not None and ranks is not None and spreads:
        doubts += _of_error(spread_skill, most_error(ranks.posterior))
    if failed_share > 0.2:
        doubts.append(f"{failed_share:.0%} of the simulator calls failed")
    if doubts:
        return Verdict(False, "; ".join(doubts))
    within = [] if distance is None else ["members within the prior"]
    found = [
        f"misfit per datum {misfit_per_datum:.2f} ({low:.2f} to {high:.2f} expected)",
        f"posterior spread {spread:.2f} of the prior's",
        *within,
        f"{members} members",
        f"{failed_share:.0%} of calls failed",
    ]
    return Verdict(True, ", ".join(found))


def _of_misfit(misfit: float, low: float, high: float) -> list[str]:
    if misfit < low:
        return [
            f"the misfit per datum is {misfit:.2f}, below {low:.2f}: the members fit the noise, or "
            "the noise level given is too high"
        ]
    if not misfit <= high:
        return [
            f"the misfit per datum is {misfit:.2f}, above {high:.2f}: the members do not reach the "
            "data (too few members, a wrong noise level, or a prior or simulator that cannot "
            "explain them)"
        ]
    return []


def _of_spread(spread: float, ranks: Ranks | None) -> list[str]:
    if spread < 0.01:
        return [f"the posterior spread is {spread:.2g} of the prior's: the ensemble has collapsed"]
    if spread > 1.1:
        return [f"the posterior spread is {spread:.2f} of the prior's: it should not grow"]
    if ranks is not None and ranks.posterior < min(2.0, ranks.prior / 5):
        return [
            f"the members differ in {ranks.posterior:.1f} directions and prior samples in "
            f"{ranks.prior:.1f}: the ensemble has collapsed, or the data leave one direction"
        ]
    return []


def _of_error(spread_skill: float, allowed: float) -> list[str]:
    if spread_skill * allowed >= 1:
        return []
    error = 1 / spread_skill if spread_skill > 0 else float("inf")
    return [
        f"the true error is {error:.2f} times the spread, above {allowed:.2f}: the ensemble is too "
        "sure"
    ]
