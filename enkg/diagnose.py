"""Can this ensemble be trusted? One sentence, from numbers that every run has.

The tests are necessary, not sufficient: an ensemble that passes may still be wrong where the prior
is, or where the posterior has modes that no member found.
"""

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Verdict:
    """trusted: no test failed. reason: the tests that failed, or what was found in order."""

    trusted: bool
    reason: str


def verdict(
    *,
    law: str | None,
    beta: float,
    misfit_per_datum: float,
    data: int,
    spread: float,
    members: int,
    failed_share: float,
) -> Verdict:
    """Judges a finished run.

    For a calibrated ensemble the misfit per datum of its members is 1 with standard deviation
    about sqrt(2 / data) (discrepancy principle); three of these, and at least 0.2, are allowed.
    """
    slack = max(0.2, 3 * sqrt(2 / data))
    doubts = []
    if law is None:
        doubts.append("the method has no posterior law: its spread is not an uncertainty")
    if beta < 1 and law is not None:
        doubts.append(f"only {beta:.2f} of the likelihood was used")
    if not misfit_per_datum < 1 + slack:
        doubts.append(
            f"the misfit per datum is {misfit_per_datum:.2f}, above {1 + slack:.2f}: the members "
            "do not reach the data (too few members, a wrong noise level, or a prior or simulator "
            "that cannot explain them)"
        )
    if misfit_per_datum < 1 - slack:
        doubts.append(
            f"the misfit per datum is {misfit_per_datum:.2f}, below {1 - slack:.2f}: the members "
            "fit the noise, or the noise level given is too high"
        )
    if spread < 0.01:
        doubts.append(
            f"the posterior spread is {spread:.2g} of the prior's: the ensemble has collapsed"
        )
    if spread > 1.1:
        doubts.append(f"the posterior spread is {spread:.2f} of the prior's: it should not grow")
    if failed_share > 0.2:
        doubts.append(f"{failed_share:.0%} of the simulator calls failed")
    if doubts:
        return Verdict(False, "; ".join(doubts))
    return Verdict(
        True,
        f"misfit per datum {misfit_per_datum:.2f} (1 +- {slack:.2f} expected), posterior spread "
        f"{spread:.2f} of the prior's, {members} members, {failed_share:.0%} of calls failed",
    )
