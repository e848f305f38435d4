"""The burned-in regime: developed flow, where a Gaussian prior is not enough.

    enkg run experiments/navier_stokes/hard.py
    enkg run experiments/navier_stokes/hard.py --prior learned

Random fields are evolved for five time units first: standard deviation about 5, vortices and
filaments. The prior is a Gaussian with the mean profile and the spectrum of such fields, which
knows no vortex, or the learned one of priors/vorticity. 64 x 64 points do not resolve this flow
fully, so results hold for this solver on this grid only.
"""

from typing import Any, Literal

import torch

import enkg
from experiments.navier_stokes.problem import measure, vorticity
from priors.gaussian_field import gaussian_field
from priors.stationary_field import stationary_field
from priors.vorticity import vorticity_prior
from simulators.navier_stokes import NavierStokes2D, burned_in

SIZE = 64  # grid points per side
SAMPLES = 64  # fields to which the Gaussian is fitted


def experiment(
    truth: int = 0,
    prior: Literal["gaussian", "learned"] = "gaussian",
    subsampling: int = 2,
    noise: float = 1.0,
    members: int = 384,
) -> enkg.Experiment:
    """Recovers a developed vorticity field from every q-th point one time unit later.

    Args:
        truth: Which truth of the synthetic problem; no prior has seen any of them.
        prior: A Gaussian, or the network of priors/vorticity.
        subsampling: Every q-th point is observed in each direction.
        noise: Standard deviation of the noise in vorticity units; the field has about 5.
        members: Ensemble size.
    """
    if truth < 0:
        raise ValueError(f"truth is {truth}; expected 0, 1, 2, ...")
    initial = _developed([10_000 + truth])[0].double()
    measured = measure(initial, subsampling, noise, seed=7 + truth)
    chosen: Any
    if prior == "learned":
        chosen = vorticity_prior()
        units = chosen.units
    else:
        samples = _developed(list(range(SAMPLES))).double()
        units = enkg.Affine(scale=float(samples.std()))
        chosen = stationary_field(samples / units.scale)
    return enkg.Experiment(
        prior=chosen,
        simulator=measured.simulator,
        observation=measured.observation,
        guidance=guidance(members),
        units=units,
        unknown=vorticity("vorticity", SIZE),
        data=vorticity("final_vorticity", SIZE, subsampling),
        truth=initial,
        predict=64,
    )


def guidance(members: int) -> enkg.EnKG:
    """The tempered EnKG where it is far from the law of large ensembles.

    The linear relation of data and unknown holds for small steps only, so there are many, and an
    ensemble of fewer members than there are data takes chance correlations for real ones: hence the
    taper, and the inflation against what it leaves.
    """
    return enkg.EnKG(
        members=members,
        taper=True,
        inflation=1.12,
        levels=16,
        sigma_start=5.0,
        sigma_end=0.3,
        flow=enkg.Flow(levels=4, sigma_min=0.05),
        clean_steps=3,
        polish=enkg.Polish(levels=0),
    )


def _developed(members: list[int]) -> torch.Tensor:
    """Burned-in fields, keyed by their number; five simulator calls each."""
    start = gaussian_field(SIZE, std=0.154).draw(seed=7, members=members, step=0)
    return torch.from_numpy(burned_in(NavierStokes2D(size=SIZE), start.float().numpy()))
