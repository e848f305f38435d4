"""The smallest complete inversion: 64 unknowns, 16 linear data, and the exact answer beside it.

enkg run experiments/linear_gaussian.py
enkg run experiments/linear_gaussian.py --guidance es-mda --guidance.members 2048
"""

import torch
import xarray as xr

import enkg

UNKNOWNS, DATA, NOISE = 64, 16, 0.2

place = torch.arange(UNKNOWNS, dtype=torch.float64)
covariance = torch.exp(-0.5 * ((place[:, None] - place) / 4) ** 2)
sensors = torch.linspace(2, UNKNOWNS - 3, DATA).round().long()
kernel = torch.exp(-0.5 * ((place[sensors][:, None] - place) / 2) ** 2)
kernel /= kernel.sum(dim=1, keepdim=True)

prior = enkg.Gaussian.from_covariance(torch.zeros(UNKNOWNS, dtype=torch.float64), covariance)


def simulator(x):
    """Weighted local means of the unknown, (B, 64) to (B, 16)."""
    return x @ kernel.numpy().T


def exact(y: torch.Tensor, noise: float = NOISE) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the posterior in closed form. noise: standard deviation of a datum."""
    innovation = kernel @ covariance @ kernel.T + noise**2 * torch.eye(DATA)
    gain = torch.linalg.solve(innovation, kernel @ covariance).T
    return gain @ y, covariance - gain @ kernel @ covariance


def inversion(truth: int = 7) -> enkg.Experiment:
    """The problem with another true signal and other noise for each number."""
    signal = prior.draw(seed=truth, members=[10**6], step=0)[0]
    clean = enkg.Observation(kernel @ signal, std=NOISE)
    observation = enkg.Observation(clean.perturb(clean.y, seed=truth), std=NOISE)

    def analyse(tree: xr.DataTree, folder) -> enkg.Analysis:
        """Mean and standard deviation against the closed form."""
        x = torch.from_numpy(tree["posterior"]["signal"].values).double()
        mean, posterior = exact(observation.y)
        return enkg.Analysis(
            {
                "mean_against_exact": float((x.mean(0) - mean).norm() / mean.norm()),
                "variance_over_exact": float(x.var(0).sum() / posterior.trace()),
            }
        )

    return enkg.Experiment(
        prior=prior,
        simulator=simulator,
        observation=observation,
        unknown=enkg.Field("signal", dims=("place",)),
        data=enkg.Field("local_mean", dims=("sensor",)),
        truth=signal,
        analyse=analyse,
    )


experiment = inversion()
