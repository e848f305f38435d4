"""The sampler behind the reference of M87, on targets with known answers, and what it stored."""

import numpy as np
import pytest
import torch

from experiments.m87.imaging import FLUX, Sky
from experiments.references.m87_hmc import Hamiltonian, Posterior, centroid, load, shifts
from priors.log_images import principal_components
from tests.experiments.crescent import crescent


class Gaussian(Posterior):
    """N(mean, diag(variance)), in place of the posterior of M87."""

    def __init__(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.centre, self.variance = mean, variance

    def potential(self, w, power=1.0):
        return 0.5 * ((w - self.centre).square() / self.variance).sum(1)


@pytest.fixture(scope="module")
def sky():
    rng = np.random.default_rng(0)
    images = [
        crescent(32, east=float(e), north=float(n), diameter=float(d))
        for e, n, d in zip(*rng.normal([[0], [0], [40]], [[8], [8], [3]], (3, 60)), strict=True)
    ]
    return Sky(principal_components(np.stack(images), components=50))


def draws(moves: Hamiltonian, chains: int, iterations: int, step: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(chains, len(moves.scale))
    kept = []
    for _ in range(iterations):
        w, u, _ = moves.move(w, step, generator)
        torch.testing.assert_close(u, moves.posterior.potential(w))
        kept.append(w)
    return torch.cat(kept[iterations // 5 :])


def test_that_the_transitions_keep_a_gaussian_of_known_moments():
    mean, variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.04, 1.0, 4.0])
    turn = torch.linalg.matrix_exp(torch.tensor([[0, 0.5, 0], [-0.5, 0, 0.2], [0, -0.2, 0]]))
    move = torch.tensor([0.1, 0.0, -0.1])
    maps = [(turn, move), (turn.T.contiguous(), -move @ turn)]  # a map and its inverse
    moves = Hamiltonian(Gaussian(mean, variance), torch.eye(3), 12, maps, 4)
    found = draws(moves, 400, 100, 0.15)
    torch.testing.assert_close(found.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(found.var(0) / variance, torch.ones(3), atol=0.08, rtol=0)


def test_that_shifts_move_images_keep_volume_and_run_back(sky):
    maps = shifts(sky)
    spread = torch.from_numpy(np.sqrt(sky.basis.variance))
    w = torch.randn(20, len(spread), generator=torch.Generator().manual_seed(0)) / 3

    def place(w):
        images = FLUX * sky.basis.decode((w * spread).numpy())
        return centroid(images)

    before = place(w)
    for k, (turn, move) in enumerate(maps):
        axis, (pixels, way) = k // 8, ((0.05, 0.1, 0.2, 0.3)[k % 8 // 2], 2 * (k % 2) - 1)
        moved = w @ turn.T + move
        change = (place(moved) - before).mean(axis=0)
        assert change[axis] == pytest.approx(way * pixels, rel=0.25)
        assert abs(change[1 - axis]) < 0.1 * pixels
        unwhitened = turn * spread[:, None] / spread
        torch.testing.assert_close(
            unwhitened @ unwhitened.T, torch.eye(len(spread)), atol=1e-4, rtol=0
        )
        back, home = maps[k ^ 1]
        torch.testing.assert_close(moved @ back.T + home, w, atol=1e-3, rtol=0)


def test_that_the_stored_reference_is_nearly_mixed_and_agrees_with_itself():
    reference = load()
    assert reference.mean.shape == reference.std.shape == (64, 64)
    assert reference.mean.sum() == pytest.approx(FLUX, rel=1e-3)
    facts = reference.facts
    spread = reference.std.sum() / reference.mean.sum()
    assert facts["relative_spread"] == pytest.approx(spread, rel=1e-3)
    hat = facts["split_r_hat"]
    for name in ("potential", "leading_coefficients", "position", "diameter", "bright_pixels"):
        assert hat[name] < 1.25, name
    one, two = facts["two_runs"]["relative_spread"]
    assert one == pytest.approx(two, rel=0.1)
    assert facts["two_runs"]["mean_image"] < 0.1
