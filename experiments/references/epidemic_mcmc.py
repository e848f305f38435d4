"""The exact posterior of the epidemic by a Markov chain: the reference for the ensembles.

    python experiments/references/epidemic_mcmc.py

Same prior and counts as experiments/epidemic.py, but with the Poisson likelihood itself, and an
integration of its own: the classical Runge-Kutta method, fixed steps of 7/16 day, many epidemics at
once. Populations of walkers move by differences of their other half (differential evolution), which
adapts to scale and correlation by itself, and later by independent draws in turn with them. They
start around the best fit with twice its standard deviation. Writes epidemic.json beside this file.

With --likelihood root the counts go through the square root of experiments/epidemic.py instead, and
nothing is written: the difference is the price of the Gaussian observation.

Reference: ter Braak 2006, "A Markov chain Monte Carlo version of the genetic algorithm
differential evolution", Statistics and Computing 16.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy.optimize import least_squares

from experiments.epidemic import LEVEL, REFERENCE, STEP, count_root, expected_root, synthetic
from experiments.references.chains import effective_size, split_r_hat
from simulators.epidemic.seir import INFECTIOUS, KNOTS, LATENT, POPULATION, START, WEEKS

H = 7 / 16  # days: a step divides the week and the distance of the knots


def expected(log_beta: ndarray) -> ndarray:
    """Expected weekly counts, (B, 11) to (B, 20); nonsense where beta is above some 5 per day."""
    half = np.arange(0, KNOTS[-1] + H / 4, H / 2)
    knot = np.minimum((half / KNOTS[1]).astype(int), len(KNOTS) - 2)
    share = half / KNOTS[1] - knot
    x = log_beta.T
    beta = np.exp(x[knot] * (1 - share)[:, None] + x[knot + 1] * share[:, None])

    def derivative(rate: ndarray, u: ndarray) -> ndarray:
        infections, onsets = rate * u[0] * u[2], u[1] / LATENT
        return np.stack([-infections, infections - onsets, onsets - u[2] / INFECTIOUS, onsets])

    u = np.zeros((4, len(log_beta)))  # S, E, I, and all who ever became infectious
    u[0], u[2] = 1 - START, START
    ever = [u[3]]
    for n in range(len(half) // 2):
        b0, b1, b2 = beta[2 * n : 2 * n + 3]
        k1 = derivative(b0, u)
        k2 = derivative(b1, u + H / 2 * k1)
        k3 = derivative(b1, u + H / 2 * k2)
        k4 = derivative(b2, u + H * k3)
        u = u + H / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if (n + 1) % round(WEEKS[1] / H) == 0:
            ever.append(u[3])
    return POPULATION * np.diff(ever, axis=0).T


def walk(z: ndarray) -> ndarray:
    """Standard normal steps to ln beta, (..., 11)."""
    return LEVEL + STEP * np.cumsum(z, axis=-1)


def poisson(counts: ndarray, mean: ndarray) -> ndarray:
    """Log-likelihood, (20,), (B, 20) to (B,)."""
    return (counts * np.log(mean) - mean).sum(axis=1)


def root(counts: ndarray, mean: ndarray) -> ndarray:
    """The same of the transformed counts, with unit variance."""
    return -0.5 * ((count_root(counts) - expected_root(mean)) ** 2).sum(axis=1)


class Posterior:
    """Log-density of the steps z, (..., 11) to (...)."""

    def __init__(self, counts: ndarray, likelihood: Callable[[ndarray, ndarray], ndarray]) -> None:
        self.counts, self.likelihood = counts, likelihood

    def __call__(self, z: ndarray) -> ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            mean = expected(walk(z).reshape(-1, z.shape[-1]))
            possible = (mean > 0).all(axis=1) & (mean.sum(axis=1) < POPULATION)
        log = self.likelihood(self.counts, np.where(possible[:, None], mean, 1.0))
        log = np.where(possible, log, -np.inf).reshape(z.shape[:-1])
        return log - 0.5 * (z**2).sum(axis=-1)

    def start(self, rng: Generator, shape: tuple[int, ...]) -> ndarray:
        """Walkers around the best of four fits, with twice the standard deviation."""

        def residual(z: ndarray) -> ndarray:
            mean = np.maximum(expected(walk(z)[None])[0], 0)
            return np.concatenate([z, count_root(self.counts) - expected_root(mean)])

        fits = [least_squares(residual, 0.3 * rng.standard_normal(len(KNOTS))) for _ in range(4)]
        best = min(fits, key=lambda fit: fit.cost)
        spread = np.linalg.cholesky(np.linalg.inv(best.jac.T @ best.jac))
        return best.x + 2 * rng.standard_normal((*shape, len(KNOTS))) @ spread.T


def sample(
    posterior: Posterior, populations: int, walkers: int, iterations: int, rng: Generator
) -> tuple[ndarray, float]:
    """Second half of the chains, (iterations / 2, populations, walkers, 11), and the acceptance.

    The first half of the iterations moves by differences alone; in the second, they take turns with
    draws from a multivariate t distribution, fitted to the end of the first half and then fixed.
    """
    z = posterior.start(rng, (populations, walkers))
    log = posterior(z)
    kept, accepted, wide = [], [], None
    for iteration in range(iterations):
        if iteration == iterations // 2:
            wide = Wide(z.reshape(-1, z.shape[-1]))
        if wide is not None and iteration % 2:
            to = wide.draw(rng, z.shape[:-1])
            gain = wide.log(z) - wide.log(to)
            accepted.append(_move(z, log, to, gain, posterior, rng))
        else:
            for first in (0, walkers // 2):
                half = slice(first, first + walkers // 2)
                other = z[:, walkers // 2 - first : walkers - first]
                to = _differences(z[:, half], other, rng)
                _move(z[:, half], log[:, half], to, 0.0, posterior, rng)
        if wide is not None:
            kept.append(z.copy())
    return np.stack(kept), float(np.mean(accepted))


def _differences(z: ndarray, other: ndarray, rng: Generator) -> ndarray:
    """z plus differences of two members each of the other half, (P, W, 11)."""
    row, count = np.arange(len(z))[:, None], other.shape[1]
    a = rng.integers(count, size=z.shape[:2])
    b = (a + rng.integers(1, count, size=z.shape[:2])) % count
    length = 2.38 / np.sqrt(2 * z.shape[-1])
    return z + length * (other[row, a] - other[row, b]) + 1e-4 * rng.standard_normal(z.shape)


def _move(
    z: ndarray,
    log: ndarray,
    to: ndarray,
    gain: ndarray | float,
    posterior: Posterior,
    rng: Generator,
) -> float:
    """Metropolis and Hastings: z and its log-density are changed in place; share of moves."""
    there = posterior(to)
    yes = np.log(rng.random(log.shape)) < there - log + gain
    z[...] = np.where(yes[..., None], to, z)
    log[...] = np.where(yes, there, log)
    return float(yes.mean())


class Wide:
    """Multivariate t distribution with the moments of some draws, (N, 11), and long tails."""

    def __init__(self, draws: ndarray, freedom: int = 8) -> None:
        self.freedom, self.mean = freedom, draws.mean(axis=0)
        self.factor = np.linalg.cholesky(np.cov(draws.T))

    def draw(self, rng: Generator, shape: tuple[int, ...]) -> ndarray:
        stretch = np.sqrt(self.freedom / rng.chisquare(self.freedom, (*shape, 1)))
        return self.mean + stretch * rng.standard_normal((*shape, len(self.mean))) @ self.factor.T

    def log(self, z: ndarray) -> ndarray:
        """Log-density up to a constant, (..., 11) to (...)."""
        white = np.linalg.solve(self.factor, (z - self.mean).reshape(-1, len(self.mean)).T)
        distance = (white**2).sum(axis=0).reshape(z.shape[:-1])
        return -0.5 * (self.freedom + len(self.mean)) * np.log1p(distance / self.freedom)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--truths", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--populations", type=int, default=4)
    parser.add_argument("--walkers", type=int, default=128, help="of each population")
    parser.add_argument("--iterations", type=int, default=2000, help="half of them are warm-up")
    parser.add_argument("--likelihood", choices=("poisson", "root"), default="poisson")
    given = parser.parse_args()

    truths = json.loads(REFERENCE.read_text())["truths"] if REFERENCE.exists() else {}
    for truth in given.truths:
        counts = synthetic(truth)[1]
        posterior = Posterior(counts, {"poisson": poisson, "root": root}[given.likelihood])
        begin = time.perf_counter()
        rng = np.random.default_rng(truth)
        z, accepted = sample(posterior, given.populations, given.walkers, given.iterations, rng)
        seconds = time.perf_counter() - begin
        chains = walk(z).reshape(len(z), -1, len(KNOTS))
        knots = range(len(KNOTS))
        r_hat = max(split_r_hat(chains[..., k]) for k in knots)
        size = min(effective_size(chains[..., k]) for k in knots)
        draws = chains.reshape(-1, len(KNOTS))
        print(
            f"truth {truth}, {given.likelihood}: {chains.shape[1]} chains x {given.iterations}, "
            f"{seconds:.0f} s, {accepted:.0%} of independent draws accepted, largest split R-hat "
            f"{r_hat:.4f}, smallest effective size {size:.0f}",
            flush=True,
        )
        mean, std = draws.mean(axis=0), draws.std(axis=0)
        if given.likelihood == "root":
            exact = truths[str(truth)]
            print("  mean error in std ", ((mean - exact["mean"]) / exact["std"]).round(3))
            print("  std over exact    ", (std / exact["std"]).round(3))
            continue
        truths[str(truth)] = {
            "counts": counts.tolist(),
            "mean": mean.round(5).tolist(),
            "std": std.round(5).tolist(),
            "quantiles": np.quantile(draws, [0.05, 0.5, 0.95], axis=0).round(5).tolist(),
            "split_r_hat": round(r_hat, 5),
            "effective_size": round(size),
        }
        REFERENCE.write_text(_text(truths))


def _text(truths: dict[str, dict]) -> str:
    """JSON, one list of numbers a line."""
    parts = [
        f'  "{truth}": {{\n'
        + ",\n".join(f'   "{key}": {json.dumps(value)}' for key, value in found.items())
        + "\n  }"
        for truth, found in sorted(truths.items(), key=lambda item: int(item[0]))
    ]
    command = json.dumps("python experiments/references/epidemic_mcmc.py")
    return f'{{\n "command": {command},\n "truths": {{\n' + ",\n".join(parts) + "\n }\n}\n"


if __name__ == "__main__":
    main()
