"""Where a sum of squares lies by chance."""

TAIL = 0.00135
"""Share beyond each bound: three standard deviations of a normal distribution."""
LEAST = 0.2
"""Bounds are never closer to 1: a fifth is no fault of an inversion."""


def chi_square(freedom: float, least: float = LEAST) -> tuple[float, float]:
    """Bounds of the mean of so many squared standard normal numbers, around 1.

    freedom: need not be whole. They hold as well for what is less spread in the convex order, such
    as the average of chi-squares over the members of a calibrated ensemble.

    >>> [round(b, 2) for b in chi_square(4)], [round(b, 2) for b in chi_square(100_000)]
    ([0.03, 4.45], [0.8, 1.2])
    """
    from scipy.special import gammaincinv  # scipy.stats takes seconds to import

    low, high = (2 * float(gammaincinv(freedom / 2, q)) / freedom for q in (TAIL, 1 - TAIL))
    return min(low, 1 - least), max(high, 1 + least)
