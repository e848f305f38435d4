"""SDEdit by theory: the Gaussian law of its output, its guides and what they cost."""

from math import sqrt

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import InputError, MissingCapability
from enkg.guidance.sdedit import SDEdit
from tests.enkg.problems import follow, small_problem, values

PROBLEM = small_problem()
EYE = torch.eye(6, dtype=torch.float64)
GUIDES = {
    "pinv": torch.linalg.pinv(PROBLEM.matrix) @ PROBLEM.y,
    "adjoint": PROBLEM.matrix.T @ PROBLEM.y,
    "given": torch.arange(6).double(),
}


def method(guide: str, **options) -> SDEdit:
    chosen = {"given": GUIDES["given"].numpy()} if guide == "given" else {"guide": guide}
    return SDEdit(**chosen, **options)


@pytest.mark.parametrize("guide", GUIDES)
def test_that_the_output_has_its_gaussian_law(guide):
    """N(m + J (guide - m), sigma^2 J + sigma^2 J^2)."""
    sigma, chains = 1.5, 500
    m = method(guide, members=chains, levels=80, sigma_max=sigma)
    states, _ = follow(m, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    gain = PROBLEM.covariance @ torch.linalg.inv(PROBLEM.covariance + sigma**2 * EYE)
    mean = PROBLEM.mean + gain @ (GUIDES[guide] - PROBLEM.mean)
    covariance = sigma**2 * (gain + gain @ gain)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    z = (states[-1].x - mean) @ root.T
    edge = sqrt(6 / chains)
    assert z.mean(0).norm() < 4 * edge
    found = torch.linalg.eigvalsh(torch.cov(z.T))
    assert found.min() > (1 - 2 * edge) ** 2
    assert found.max() < (1 + 2 * edge) ** 2


def test_that_little_noise_leaves_the_guide_but_for_the_denoiser():
    m = method("given", members=2, levels=3, sigma_max=1e-3, sigma_min=1e-4)
    states, _ = follow(m, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
    torch.testing.assert_close(states[-1].x[0], GUIDES["given"], atol=0.02, rtol=0)


def test_that_the_preserved_levels_begin_at_half_of_the_time():
    m = SDEdit(levels=1000, schedule="variance-preserving", sigma_max=3.41)
    assert 3.3 < m.sigmas[0] <= 3.41
    assert abs(len(m.sigmas) - 500) <= 2
    with pytest.raises(InputError, match="below sigma_max"):
        SDEdit(levels=3, schedule="variance-preserving", sigma_max=1e-3)


def run(guide: str, members: int = 4, simulator=None, **changes):
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": simulator or PROBLEM.simulator,
        "observation": PROBLEM.observation,
        "guidance": method(guide, members=members, levels=5),
        "double": True,
    }
    return enkg.run(enkg.Experiment(**{**fields, **changes}))


@pytest.mark.parametrize(("guide", "products"), [("pinv", 0), ("adjoint", 1), ("given", 0)])
def test_that_the_simulator_is_called_for_the_prediction_alone(guide, products):
    tree = run(guide, predict=4)
    assert int(values(tree, "trace", "calls")[-1]) == 0
    assert int(values(tree, "trace", "vjps")[-1]) == products
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 4
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 0


def test_that_four_chains_are_the_first_four_of_eight_to_the_bit():
    few, many = (values(run("pinv", n), "posterior", "x") for n in (4, 8))
    np.testing.assert_array_equal(few, many[:4])


def test_that_it_needs_what_its_guide_needs():
    assert method("pinv").needs == ("pinv",)
    assert method("adjoint").needs == ("adjoint",)
    assert method("given").needs == ()
    run("given", simulator=PROBLEM.simulate)
    with pytest.raises(MissingCapability, match="pseudo-inverse"):
        run("pinv", simulator=PROBLEM.simulate)


def test_that_a_guide_of_another_shape_and_missing_data_are_refused():
    with pytest.raises(InputError, match="guide has shape"):
        run("given", guidance=SDEdit(members=2, given=np.zeros(5)))
    with pytest.raises(InputError, match="NaN"):
        SDEdit(given=np.array([np.nan]))
    masked = enkg.Observation(PROBLEM.y, std=1.0, mask=[True, False, True])
    with pytest.raises(InputError, match="masked"):
        run("pinv", observation=masked)
