"""Draws of a posterior under a mixture prior, for any differentiable operator: tempered chains.

Sequential Monte Carlo (Del Moral, Doucet and Jasra 2006) from the prior to the posterior along
p(x) exp(-beta Phi(x)), beta from 0 to 1, with Phi = |y - G(x)|^2 / (2 s^2). The first particles
are draws of the prior with equally many of each component. Each step raises beta until the
effective sample size falls to a share of the particles, resamples systematically, and moves each
particle by rounds of two exact kernels of the joint law of x and its component i:

    i given x      a draw from P(i | x), by the weights of the mixture
    x given i      Hamiltonian Monte Carlo on |x - x_i|^2 / (2 h^2) + beta Phi(x)

Consistent as the particles increase. The shares of separate modes come from the weights alone, so
they are what to compare between runs of different seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Tempering:
    """copies: particles of each component. ess: share at which beta stops. rounds: moves a step.

    last_rounds: at beta = 1. leaps: of a trajectory, whose length is `reach` times the narrowest
    standard deviation.
    """

    copies: int = 2
    ess: float = 0.6
    rounds: int = 1
    leaps: int = 5
    reach: float = 3.0
    last_rounds: int = 6


@dataclass(frozen=True, eq=False)
class Chains:
    """x: (N, d), equal weights. component: (N,). steps: of beta. acceptance: at beta = 1."""

    x: Tensor
    component: Tensor
    steps: int
    acceptance: float


def tempered(
    centres: Tensor,
    h: float,
    potential: Callable[[Tensor], Tensor],
    steepest: float,
    seed: int,
    settings: Tempering | None = None,
) -> Chains:
    """centres: (M, d), float32 or float64. potential: Phi, (N, d) to (N,), differentiable.

    steepest: a bound of the curvature of Phi, which sets the step of the leaps.
    """
    settings = settings or Tempering()
    generator = torch.Generator().manual_seed(seed)
    component = torch.arange(len(centres)).repeat(settings.copies)
    x = centres[component] + h * _normal(centres[component], generator)
    phi, beta, steps, accepted = potential(x), 0.0, 0, 1.0
    while beta < 1:
        beta, weights = _raised(phi.double(), beta, settings.ess)
        chosen = _systematic(weights, generator)
        x, steps = x[chosen], steps + 1
        length = settings.reach / (1 / h**2 + beta * steepest) ** 0.5
        for _ in range(settings.rounds if beta < 1 else settings.last_rounds):
            component = _components(x, centres, h, generator)
            x, phi, accepted = _moved(
                x, centres[component], h, beta, potential, length, settings.leaps, generator
            )
    return Chains(x, component, steps, accepted)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _raised(phi: Tensor, beta: float, share: float) -> tuple[float, Tensor]:
    """The next beta by bisection, at most 1, and the weights of the particles."""

    def weights(to: float) -> Tensor:
        return torch.softmax(-(to - beta) * phi, dim=0)

    low, high = beta, 1.0
    if float(1 / weights(1.0).square().sum()) < share * len(phi):
        for _ in range(50):
            middle = (low + high) / 2
            enough = float(1 / weights(middle).square().sum()) >= share * len(phi)
            low, high = (middle, high) if enough else (low, middle)
    return high, weights(high)


def _systematic(weights: Tensor, generator: Generator) -> Tensor:
    count = len(weights)
    u = (torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
    return torch.searchsorted(weights.cumsum(dim=0), u).clamp(max=count - 1)


def _components(x: Tensor, centres: Tensor, h: float, generator: Generator) -> Tensor:
    """A draw from P(i | x) for each particle."""
    drawn = []
    for part in x.split(1024):
        logits = (part @ centres.T - 0.5 * centres.square().sum(dim=1)) / h**2
        below = torch.softmax(logits, dim=1).cumsum(dim=1)
        u = torch.rand(len(part), 1, generator=generator, dtype=x.dtype) * below[:, -1:]
        drawn.append(torch.searchsorted(below, u).clamp(max=len(centres) - 1)[:, 0])
    return torch.cat(drawn)


def _moved(
    x: Tensor,
    centre: Tensor,
    h: float,
    beta: float,
    potential: Callable[[Tensor], Tensor],
    length: float,
    leaps: int,
    generator: Generator,
) -> tuple[Tensor, Tensor, float]:
    """One Hamiltonian trajectory of each particle; the new x, its Phi, the share that moved."""

    def energy(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = at.detach().requires_grad_()
        phi = potential(at)
        (slope,) = torch.autograd.grad(phi.sum(), at)
        at = at.detach()
        value = (at - centre).square().sum(dim=1) / (2 * h**2) + beta * phi.detach()
        return value, (at - centre) / h**2 + beta * slope, phi.detach()

    # A random length, so that no direction comes back to where it was.
    dt = length / leaps * (0.6 + 0.8 * torch.rand(len(x), 1, generator=generator, dtype=x.dtype))
    before, slope, phi = energy(x)
    p = _normal(x, generator)
    start, at = before + 0.5 * p.square().sum(dim=1), x
    after, new = before, phi
    for _ in range(leaps):
        p = p - 0.5 * dt * slope
        at = at + dt * p
        after, slope, new = energy(at)
        p = p - 0.5 * dt * slope
    gain = start - after - 0.5 * p.square().sum(dim=1)
    taken = torch.rand(len(x), generator=generator, dtype=x.dtype).log() < gain
    return (
        torch.where(taken[:, None], at, x),
        torch.where(taken, new, phi),
        float(taken.double().mean()),
    )
