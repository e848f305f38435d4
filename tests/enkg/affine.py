"""The exact law of a deterministic method that is affine in its start.

On a linear-Gaussian problem, d + 1 chains give the map x_T -> M x_T + c, and with it the mean and
the covariance of the result for starts N(m, S + sigma^2 I), without a random number.
"""

from dataclasses import replace

import torch
from torch import Tensor

from enkg.guidance import Guidance, State
from enkg.guidance.chains import Chains
from tests.enkg.problems import LinearGaussian, follow


def moments(method: Chains, problem: LinearGaussian, observation=None) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the method's result."""
    d, sigma = len(problem.mean), method.sigmas[0]
    eye = torch.eye(d, dtype=torch.float64)

    def probes(state: State) -> State:
        return replace(state, x=problem.mean + sigma * torch.cat([0 * eye[:1], eye]))

    probing: Guidance = replace(method, members=d + 1)
    observation = observation or problem.observation
    states, _ = follow(probing, problem.gaussian, problem.operator, observation, change=probes)
    x = states[-1].x
    slope = (x[1:] - x[0]).T / sigma
    return x[0], slope @ (problem.covariance + sigma**2 * eye) @ slope.T


def against(problem: LinearGaussian, mean: Tensor, covariance: Tensor) -> tuple[float, Tensor]:
    """Distance to the posterior mean and eigenvalues of the covariance, in the posterior's metric.

    The exact posterior gives 0 and ones.
    """
    centre, exact = problem.posterior
    factor = torch.linalg.cholesky(exact)
    shift = torch.linalg.solve_triangular(factor, (mean - centre)[:, None], upper=False)
    half = torch.linalg.solve_triangular(factor, covariance, upper=False)
    white = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return float(shift.norm()), torch.linalg.eigvalsh(0.5 * (white + white.T))


def law(method: Chains, problem: LinearGaussian, observation=None) -> tuple[float, Tensor]:
    """`against` of `moments`."""
    return against(problem, *moments(method, problem, observation))
