"""Whether Markov chains have converged, and how many independent draws they are worth.

References: Gelman et al. 2013, "Bayesian data analysis", section 11.4 (split R-hat); Vehtari et al.
2021, "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis 16
(effective sample size).
"""

import numpy as np
from numpy import ndarray


def split_r_hat(draws: ndarray) -> float:
    """draws: (iterations, chains) of one quantity."""
    half = len(draws) // 2
    chains = np.concatenate([draws[:half], draws[half : 2 * half]], axis=1)
    within = chains.var(axis=0, ddof=1).mean()
    between = half * chains.mean(axis=0).var(ddof=1)
    return float(np.sqrt(((half - 1) / half * within + between / half) / within))


def effective_size(draws: ndarray) -> float:
    """Independent draws worth as much as these, (iterations, chains), of one quantity."""
    n, chains = draws.shape
    within = draws.var(axis=0, ddof=1).mean()
    total = (n - 1) / n * within + draws.mean(axis=0).var(ddof=1)
    power = np.abs(np.fft.rfft(draws - draws.mean(axis=0), 2 * n, axis=0)) ** 2
    covariance = np.fft.irfft(power, axis=0)[:n].mean(axis=1) / n
    correlation = 1 - (within - covariance) / total
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs < 0)
    pairs = np.minimum.accumulate(pairs[: ends[0] if len(ends) else None])
    return float(n * chains / max(2 * pairs.sum() - 1, 1 / np.log10(n * chains)))
