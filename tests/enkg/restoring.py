"""Problems and checks shared by the tests of the restoration methods."""

from dataclasses import replace

import torch
from torch import Tensor

import enkg
from enkg.guidance import Guidance, State
from tests.enkg.problems import (
    DOUBLE,
    LinearGaussian,
    LinearOperator,
    follow,
    normal,
    small_problem,
    whitened,
)

SEEN = (0.5, 1.0, 2.0)


def noisy(std: float) -> LinearGaussian:
    """The small problem with noise of one standard deviation: nothing commutes."""
    problem = small_problem()
    return replace(problem, noise=std**2 * torch.eye(3, dtype=torch.float64))


def commuting(std: float) -> LinearGaussian:
    """6 independent unknowns of variances .5 to 2; 3 are seen, with singular values SEEN."""
    covariance = torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64))
    matrix = torch.zeros(3, 6, dtype=torch.float64)
    matrix[range(3), range(3)] = torch.tensor(SEEN, dtype=torch.float64)
    mean = normal(6, seed=1)
    y = matrix @ (mean + covariance.sqrt() @ normal(6, seed=2)) + std * normal(3, seed=3)
    return LinearGaussian(mean, covariance, matrix, std**2 * torch.eye(3).double(), y)


def measured(problem: LinearGaussian) -> enkg.Observation:
    return enkg.Observation(problem.y, std=float(problem.noise[0, 0]) ** 0.5)


def result(method: Guidance, problem: LinearGaussian) -> Tensor:
    """The members at the end of a run on the Gaussian prior."""
    states, _ = follow(method, problem.gaussian, problem.operator, measured(problem))
    return states[-1].x


def quality(method: Guidance, problem: LinearGaussian) -> tuple[float, Tensor]:
    """Whitened mean error and eigenvalues against the exact posterior."""
    return whitened(result(method, problem), *problem.posterior)


def only(*places: int):
    """A change of the first state: some of its chains."""

    def change(state: State) -> State:
        fields = {
            name: getattr(state, name)[list(places)] for name in state.sharded if name != "members"
        }
        return replace(state, **fields, members=tuple(state.members[k] for k in places))

    return change


def check_chains(method: Guidance, problem: LinearGaussian) -> None:
    """Each chain alone ends as it does among others, to the last bit."""
    prior, observation = Rowwise(problem), measured(problem)
    together, _ = follow(method, prior, problem.operator, observation)
    for places in ((0,), (2,), (1, 3)):
        alone, _ = follow(method, prior, problem.operator, observation, change=only(*places))
        assert torch.equal(alone[-1].x, together[-1].x[list(places)])


def check_failure(method: Guidance, problem: LinearGaussian) -> Tensor:
    """A chain whose simulator gives NaN leaves the others as they are; returns the failed one."""

    def spoiled(x: Tensor) -> Tensor:
        y = torch.from_numpy(problem.simulate(x.numpy()))
        y[2] = torch.nan
        return y

    prior, observation = Rowwise(problem), measured(problem)
    whole, _ = follow(method, prior, problem.operator, observation)
    part, _ = follow(method, prior, LinearOperator(problem, spoiled), observation)
    others = [0, 1, 3]
    assert torch.equal(part[-1].x[others], whole[-1].x[others])
    assert part[-1].x.isfinite().all()
    return part[-1].x[2]


class Rowwise:
    """The Gaussian prior, each row computed by itself: products of matrices are not so to the bit.

    It gives no samples, so that chains begin with noise around D(0, sigma_max).
    """

    def __init__(self, problem: LinearGaussian) -> None:
        self.inner = problem.gaussian
        self.shape = self.inner.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return torch.cat([self.inner.denoise(row[None], sigma) for row in x])


def unguided(method: Guidance, problem: LinearGaussian, place: int) -> Tensor:
    """Where a chain without data ends: a run whose simulator always fails."""
    dead = LinearOperator(problem, lambda x: torch.full((len(x), 3), torch.nan).double())
    states, _ = follow(method, Rowwise(problem), dead, measured(problem))
    return states[-1].x[place]


def first_state(method: Guidance, problem: LinearGaussian, seed: int = 0) -> State:
    return method.init(problem.gaussian, seed, DOUBLE)
