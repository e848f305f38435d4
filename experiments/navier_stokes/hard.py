"""The burned-in regime: developed flow, where a Gaussian prior is not enough.

    enkg run experiments/navier_stokes/hard.py

Random fields are evolved for five time units first: standard deviation about 5, vortices and
filaments. The prior is a Gaussian with the mean profile and the spectrum of other such fields; it
knows no vortex. 64 x 64 points do not resolve this flow fully, so results hold for this solver on
this grid only.
"""

import torch

import enkg
from experiments.navier_stokes.problem import measure, vorticity
from priors.gaussian_field import gaussian_field
from priors.stationary_field import stationary_field
from simulators.navier_stokes import NavierStokes2D, burned_in

SAMPLES = 64  # fields to which the prior is fitted


def experiment(
    truth: int = 0, size: int = 64, subsampling: int = 2, noise: float = 1.0
) -> enkg.Experiment:
    """Recovers a developed vorticity field from every q-th point one time unit later.

    Args:
        truth: Which truth of the synthetic problem; none of them is among the prior's samples.
        size: Grid points per side.
        subsampling: Every q-th point is observed in each direction.
        noise: Standard deviation of the noise in vorticity units; the field has about 5.
    """
    if truth < 0:
        raise ValueError(f"truth is {truth}; expected 0, 1, 2, ...")
    members = [*range(SAMPLES), 10_000 + truth]
    seeds = gaussian_field(size, std=0.154).draw(seed=7, members=members, step=0)
    fields = torch.from_numpy(burned_in(NavierStokes2D(size=size), seeds.float().numpy()))
    samples, initial = fields[:-1].double(), fields[-1].double()
    scale = float(samples.std())
    measured = measure(initial, subsampling, noise, seed=7 + truth)
    return enkg.Experiment(
        prior=stationary_field(samples / scale),
        simulator=measured.simulator,
        observation=measured.observation,
        guidance=enkg.EnKG(),
        units=enkg.Affine(scale=scale),
        unknown=vorticity("vorticity", size),
        data=vorticity("final_vorticity", size, subsampling),
        truth=initial,
        predict=64,
    )
