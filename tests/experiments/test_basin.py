"""The search with exact gradients in developed flow: its gradient, and its coordinates."""

import numpy as np
import pytest

pytest.importorskip("jax_cfd")
from experiments.navier_stokes.basin import Problem

pytestmark = pytest.mark.slow  # the hard problem makes 65 flows first


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(truth=0, subsampling=2, noise=1.0)


def test_that_the_gradient_is_that_of_the_objective(problem: Problem):
    generator = np.random.default_rng(1)
    z = 0.1 * generator.standard_normal(problem.std.numel())
    _, gradient = problem.objective(z)
    towards = gradient / np.linalg.norm(gradient)
    step = 3e-3
    ahead, behind = (problem.objective(z + s * step * towards)[0] for s in (1, -1))
    assert (ahead - behind) / (2 * step) == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_that_white_coordinates_lead_back_to_the_field(problem: Problem):
    back = problem.field(problem.white(problem.truth))
    assert problem.error(back) < 1e-3


def test_that_the_truth_explains_its_data(problem: Problem):
    assert float(problem.residual(problem.truth).square().mean()) == pytest.approx(1.0, abs=0.15)


def test_that_starts_between_truth_and_draw_are_as_far_as_their_names_say(problem: Problem):
    starts = problem.starts((0.5, 0.85), draws=1)
    assert list(starts) == ["mean of the prior", "draw 1", "50% truth", "85% truth", "truth"]
    errors = {name: problem.error(problem.field(z)) for name, z in starts.items()}
    assert errors["truth"] < 1e-3
    assert errors["85% truth"] < errors["50% truth"] < errors["draw 1"]
