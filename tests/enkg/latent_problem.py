"""A linear problem seen through a decoder: 4 latent variables, 8 points, 5 data."""

import numpy as np
import torch
from torch import Tensor

import enkg
from enkg.execute import opened
from enkg.forward import Forward
from enkg.guidance import Guidance
from tests.enkg.problems import Decomposition, kalman, normal

BASIS = torch.linalg.qr(normal(8, 4, seed=3)).Q
A = normal(5, 8, seed=4)
TAU = 0.2
INNER = enkg.Gaussian(torch.zeros(4).double(), torch.ones(4).double(), enkg.Identity((4,)))
TRUTH = normal(4, seed=5)
DATA = A @ BASIS @ TRUTH + TAU * normal(5, seed=6)
OBSERVATION = enkg.Observation(DATA, std=TAU)


def decode(z: Tensor) -> Tensor:
    return (z[:, None, :] * BASIS.to(z)).sum(dim=2)


def encode(x: Tensor) -> Tensor:
    return (x[:, :, None] * BASIS.to(x)).sum(dim=1)


def bent(z: Tensor) -> Tensor:
    """A nonlinear decoder."""
    x = decode(z)
    return x + 0.1 * torch.sin(2 * x)


def bent_back(x: Tensor) -> Tensor:
    """An encoder that is not its inverse."""
    return encode(torch.tanh(x / 3) * 3)


def simulate(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64)[:, None, :] * A.numpy()).sum(axis=-1)


SIMULATOR = enkg.Function(simulate, svd=Decomposition(A.numpy()))
PRIOR = enkg.latent(INNER, decode, (8,), encode)
CURVED = enkg.latent(INNER, bent, (8,), bent_back)
POSTERIOR = kalman(
    INNER.mean, torch.eye(4).double(), A @ BASIS, TAU**2 * torch.eye(5).double(), DATA
)


def experiment(guidance: Guidance, **changes) -> enkg.Experiment:
    fields = {
        "prior": PRIOR,
        "simulator": SIMULATOR,
        "observation": OBSERVATION,
        "guidance": guidance,
        "double": True,
        "chunk": 4,
    }
    return enkg.Experiment(**{**fields, **changes})


def forward_of(guidance: Guidance, **changes) -> Forward:
    given = experiment(guidance, **changes)
    with opened(given.simulator) as evaluator:
        return Forward(given, evaluator, lambda done, total: None)


class Failing:
    """The simulator with one member that never answers; where: of which, by its place."""

    def __init__(self, where: int) -> None:
        self.where, self.svd = where, SIMULATOR.svd

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = simulate(x)
        y[self.where] = np.nan
        return y
