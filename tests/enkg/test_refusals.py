"""What a method cannot have is said before the simulator is asked, and what it finds is trusted."""

import json

import numpy as np
import pytest
import torch

import enkg
from tests.gradients import OBSERVATION, PROBLEM
from tests.test_gradient_laws import Counting


def refused(match: str, **changes) -> None:
    """The run raises and has made no simulator call."""
    seen = []

    def simulate(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return PROBLEM.simulate(x)

    simulator = PROBLEM.simulator
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": enkg.Function(simulate, adjoint=simulator.adjoint, svd=simulator.svd),
        "observation": OBSERVATION,
        "double": True,
    }
    with pytest.raises(enkg.InputError, match=match):
        enkg.run(enkg.Experiment(**{**fields, **changes}))
    assert not seen


METHODS = [enkg.MMPS(4), enkg.DDNM(4), enkg.PiGDM(4), enkg.PnPADMM(4), enkg.ILVR(4), enkg.MCG(4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_that_a_latent_prior_is_refused_before_the_simulator_is_asked(method):
    prior = enkg.latent(PROBLEM.gaussian, lambda z: z.sinh(), (6,))
    refused("decoder before it, it is not linear", prior=prior, guidance=method)


@pytest.mark.parametrize("method", [enkg.MMPS(4), enkg.PnPADMM(4), enkg.DDRM(4)], ids=str)
def test_that_units_of_many_scales_are_refused_before_the_simulator_is_asked(method):
    units = enkg.Affine(scale=torch.linspace(1, 2, 6))
    refused("units of one scale", units=units, guidance=method)


def test_that_the_yardstick_is_trusted():
    experiment = enkg.Experiment(
        prior=PROBLEM.gaussian,
        simulator=PROBLEM.simulator,
        observation=OBSERVATION,
        guidance=enkg.MMPS(members=64, levels=20),
        double=True,
    )
    summary = json.loads(enkg.run(experiment).attrs["summary"])
    assert summary["trusted"], summary["reason"]


def test_that_a_start_below_the_width_of_the_prior_is_remarked():
    wide = enkg.Gaussian(torch.zeros(6), torch.full((6,), 100.0), enkg.Identity((6,)))
    for sigma, told in ((5.0, True), (20.0, False)):
        experiment = enkg.Experiment(
            prior=wide,
            simulator=PROBLEM.simulator,
            observation=OBSERVATION,
            guidance=enkg.DPS(members=4, levels=3, sigma_max=sigma),
        )
        summary = json.loads(enkg.run(experiment).attrs["summary"])
        found = [remark for remark in summary["remarks"] if "raise sigma_max" in remark]
        assert bool(found) is told
    assert not enkg.DPS().doubts(Counting())
