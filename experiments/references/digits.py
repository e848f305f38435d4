"""Exact posteriors of the digits problems, against which methods are judged.

The prior is p(x) = 1/N sum_i N(x; x_i, h^2 I). For a linear problem y = A x + noise of standard
deviation s the posterior is a mixture again (Sorenson and Alspach 1971, "Recursive Bayesian
estimation using Gaussian sums"): with S = h^2 A A^T + s^2 I,

    weight_i ~ N(y; A x_i, S)
    mean_i   = x_i + h^2 A^T S^-1 (y - A x_i)
    cov      = h^2 I - h^4 A^T S^-1 A            the same for all i

`hdr`, `quantise` and `poisson` act on each point by itself, so their posteriors are mixtures of
products of laws of one variable (`experiments.references.digits_pointwise`); `phase` has no closed
form, and long tempered chains are stored for it (`experiments.references.digits_phase`). For `jpeg`
there is nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

import enkg
from enkg import metrics, random
from enkg.random import Stream
from experiments.digits.setting import Setting
from priors import digits

DRAWS = 2048
NEGLIGIBLE = 1e-12
"""Components of a smaller weight, relative to the largest, are left out of the draws."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A posterior. mean, std: (8, 8). classes: P(class | y), (10,). draws: (K, 8, 8), independent.

    All float64. closed: whether mean, std and classes are closed forms, not averages of draws.
    """

    mean: Tensor
    std: Tensor
    classes: Tensor
    draws: Tensor
    closed: bool


def reference(setting: Setting, draws: int = DRAWS, seed: int = 0) -> Reference:
    """The exact posterior of a setting, with so many draws of their own seed.

    `phase` is there for a few settings, with at most as many draws as are stored; InputError for
    others, and for `jpeg`. No simulator call.
    """
    if setting.problem == "jpeg":
        raise enkg.InputError("no posterior is known for jpeg: there is no closed form")
    if setting.problem == "phase":
        from experiments.references import digits_phase

        return digits_phase.stored(setting, draws)
    generator = random.generators(seed, Stream.REFERENCE, [setting.truth], 0)[0]
    if setting.linear:
        return linear(setting, draws, generator)
    from experiments.references import digits_pointwise

    return digits_pointwise.posterior(setting, draws, generator)


def is_known(setting: Setting) -> bool:
    """Whether `reference` has an answer for this setting."""
    if setting.problem != "phase":
        return setting.problem != "jpeg"
    from experiments.references import digits_phase

    return digits_phase.name(setting) in digits_phase.names(digits_phase.FILE)


def linear(setting: Setting, draws: int, generator: Generator) -> Reference:
    """The mixture posterior of a linear problem."""
    centres = digits.centres().images.flatten(1)
    y = setting.observation.y.flatten()
    variance = setting.bandwidth**2
    log_weights, means, covariance = condition(
        centres, variance, setting.matrix, y, setting.noise**2
    )
    weights = torch.softmax(log_weights, dim=0)
    mean = weights @ means
    std = (covariance.diagonal() + weights @ (means - mean).square()).sqrt()
    which = choose(weights, draws, generator)
    white = torch.from_numpy(generator.standard_normal((draws, 64)))
    values, vectors = torch.linalg.eigh(covariance)
    drawn = means[which] + (white * values.clamp(min=0).sqrt()) @ vectors.T
    shape = (8, 8)
    return Reference(
        mean.reshape(shape),
        std.reshape(shape),
        class_weights(weights),
        drawn.reshape(-1, *shape),
        closed=True,
    )


def condition(
    centres: Tensor, kernel: float, a: Tensor, y: Tensor, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture of N(x_i, kernel I) after y = A x + N(0, noise I); kernel and noise are variances.

    centres: (N, d), a: (m, d), y: (m,). Returns log weights (N,) up to a constant, means (N, d) and
    the covariance (d, d).
    """
    s = kernel * a @ a.T + noise * torch.eye(len(a)).to(a)
    factor = torch.linalg.cholesky(s)
    innovation = y - centres @ a.T
    whitened = torch.linalg.solve_triangular(factor, innovation.T, upper=False)
    gain = kernel * torch.cholesky_solve(a, factor).T
    covariance = kernel * (torch.eye(a.shape[1]).to(a) - gain @ a)
    return (
        -0.5 * whitened.square().sum(dim=0),
        centres + innovation @ gain.T,
        (covariance + covariance.T) / 2,
    )


def choose(weights: Tensor, count: int, generator: Generator) -> Tensor:
    """Independent draws of components, (count,)."""
    p = weights.numpy() * (weights.numpy() > NEGLIGIBLE * float(weights.max()))
    return torch.from_numpy(generator.choice(len(p), size=count, p=p / p.sum()).astype(np.int64))


def class_weights(weights: Tensor) -> Tensor:
    """Weights of the components (N,) to those of the classes, (10,)."""
    return torch.zeros(digits.CLASSES).double().index_add_(0, digits.centres().labels, weights)


def judged(
    ensemble: Tensor, exact: Reference, bandwidth: float = digits.BANDWIDTH
) -> dict[str, float]:
    """An ensemble, (J, 8, 8), against the exact posterior; see `enkg.metrics`.

    point_std_scatter is the rms logarithm of the ratio of standard deviations, point by point;
    class_distance the total variation between the shares of the classes.
    """
    x = ensemble.double()
    ratio = x.std(dim=0) / exact.std
    classes = digits.class_shares(x, bandwidth)
    return {
        "error_in_exact_std": metrics.standard_errors(x, exact.mean, exact.std),
        "std_over_exact": metrics.std_ratio(x, exact.std),
        "point_std_scatter": float(ratio.clamp(min=1e-6).log().square().mean().sqrt()),
        "energy_distance": metrics.energy_distance(x, exact.draws),
        "class_distance": float((classes - exact.classes).abs().sum() / 2),
    }
