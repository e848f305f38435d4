"""Navier-Stokes vorticity from sparse, noisy data one time unit later: the demo.

enkg run experiments/navier_stokes/quickstart.py
"""

import torch

import enkg
from priors.gaussian_field import gaussian_field
from simulators.navier_stokes import NavierStokes2D, Subsampled

STD = 1.6  # standard deviation of the initial vorticity


def experiment(
    truth: int = 0, size: int = 64, subsampling: int = 2, noise: float = 0.2
) -> enkg.Experiment:
    """Recovers the vorticity at t = 0 from every q-th point of the vorticity at t = 1.

    Args:
        truth: Which truth of the synthetic problem; each number is another draw from the prior.
        size: Grid points per side.
        subsampling: Every q-th point is observed in each direction.
        noise: Standard deviation of the noise in units of the prior's, 1.6.
    """
    prior = gaussian_field(size)
    simulator = Subsampled(NavierStokes2D(size=size), every=subsampling)
    initial = STD * prior.draw(seed=1000 + truth, members=[0], step=0)
    final = torch.from_numpy(simulator(initial.float().numpy()))[0].double()
    exact = enkg.Observation(final, std=noise * STD)
    measured = exact.perturb(final, seed=1000 + truth)
    return enkg.Experiment(
        prior=prior,
        simulator=simulator,
        observation=enkg.Observation(measured, std=noise * STD),
        units=enkg.Affine(scale=STD),
        truth=initial[0],
    )
