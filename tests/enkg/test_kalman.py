"""The Kalman update against the formulas it rearranges."""

import pytest
import torch
from torch import Tensor

from enkg.ensemble import cross_covariance
from enkg.guidance.kalman import perturbed_weights, square_root_weights
from tests.enkg.problems import kalman, normal

UNKNOWNS, DATA = 9, 5
POWERS = (1.0, 0.3, 1e-6)
SIZES = (2, 4, 6, 40)  # fewer members than data, about as many, many more

every_size = pytest.mark.parametrize("size", SIZES)
every_power = pytest.mark.parametrize("power", POWERS)


class Case:
    """An ensemble, its data, a dense noise covariance, and the whitened innovations."""

    def __init__(self, size: int, linear: bool = False):
        self.x = normal(size, UNKNOWNS, seed=1) * torch.linspace(0.1, 3, UNKNOWNS) + 2
        self.matrix = normal(DATA, UNKNOWNS, seed=2)
        self.data = self.x @ self.matrix.T
        if not linear:
            self.data = self.data + (2 * self.x[:, :DATA]).sin()
        root = normal(DATA, DATA, seed=3)
        self.noise = root @ root.T + torch.eye(DATA)
        self.factor = torch.linalg.cholesky(self.noise)
        self.y = normal(DATA, seed=4)
        self.eta = normal(size, DATA, seed=5)
        self.r = self.whiten(self.y - self.data)

    def whiten(self, differences: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, differences.T, upper=False).T

    def by_hand(self, power: float, trained: Tensor, moved: Tensor) -> Tensor:
        """x_j + C_xy (C_yy + Gamma / b)^-1 (y + Gamma^(1/2) eta_j / sqrt(b) - Y_j)."""
        c_xy = cross_covariance(self.x[trained], self.data[trained])
        c_yy = cross_covariance(self.data[trained], self.data[trained])
        gain = c_xy @ torch.linalg.inv(c_yy + self.noise / power)
        eta = (self.eta - self.eta.mean(0))[moved]
        perturbed = self.y + eta @ self.factor.T / power**0.5
        return self.x[moved] + (perturbed - self.data[moved]) @ gain.T


def perturbed_update(x, r, eta, power, fold=None):
    return perturbed_weights(r, eta, power, fold)(x)


def square_root_update(x, r, power):
    return square_root_weights(r, power)(x)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_power
@every_size
def test_that_the_perturbed_update_is_the_textbook_formula(size, power):
    case, everyone = Case(size), torch.arange(size)
    updated = perturbed_update(case.x, case.r, case.eta, power)
    close(updated, case.by_hand(power, everyone, everyone))


@every_power
@pytest.mark.parametrize("size", [6, 9, 40])
@pytest.mark.parametrize("folds", [2, 3])
def test_that_the_gain_of_a_fold_comes_from_the_other_folds(size, power, folds):
    case, fold = Case(size), torch.arange(size) % folds
    updated = perturbed_update(case.x, case.r, case.eta, power, fold)
    for k in range(folds):
        moved, trained = (fold == k).nonzero().ravel(), (fold != k).nonzero().ravel()
        close(updated[moved], case.by_hand(power, trained, moved))


def test_that_a_member_does_not_shape_its_own_gain():
    # Nudge the state of one member: its own fold moves by the nudge alone, others by the gain too.
    case, fold = Case(12), torch.arange(12) % 3
    nudged = case.x.clone()
    nudged[0] += 1.0
    before = perturbed_update(case.x, case.r, case.eta, 0.5, fold)
    after = perturbed_update(nudged, case.r, case.eta, 0.5, fold)
    own = fold == 0
    close((after - before)[own], (nudged - case.x)[own])
    assert (after - before)[~own].abs().max() > 1e-3


@every_power
@every_size
def test_that_the_perturbed_update_moves_the_sample_mean_as_kalman_does(size, power):
    case = Case(size, linear=True)
    updated = perturbed_update(case.x, case.r, case.eta, power)
    mean, covariance = case.x.mean(0), torch.cov(case.x.T)
    expected, _ = kalman(mean, covariance, case.matrix, case.noise / power, case.y)
    close(updated.mean(0), expected)


@every_power
@every_size
def test_that_the_square_root_update_gives_kalman_mean_and_covariance_of_the_sample(size, power):
    case = Case(size, linear=True)
    updated = square_root_update(case.x, case.r, power)
    mean, covariance = case.x.mean(0), torch.cov(case.x.T)
    expected = kalman(mean, covariance, case.matrix, case.noise / power, case.y)
    close(updated.mean(0), expected[0])
    close(torch.cov(updated.T), expected[1])


def test_that_two_half_square_root_updates_are_a_whole_one():
    # Powers add up for a linear simulator, at any ensemble size.
    case = Case(7, linear=True)
    whole = square_root_update(case.x, case.r, 1.0)
    half = square_root_update(case.x, case.r, 0.5)
    twice = square_root_update(half, case.whiten(case.y - half @ case.matrix.T), 0.5)
    close(twice.mean(0), whole.mean(0))
    close(torch.cov(twice.T), torch.cov(whole.T))


@pytest.mark.parametrize("deterministic", [False, True])
@every_size
def test_that_a_vanishing_power_moves_nobody(size, deterministic):
    # The perturbation eta / sqrt(b) leaves a rest of order sqrt(b).
    case = Case(size)
    if deterministic:
        updated = square_root_update(case.x, case.r, 1e-14)
    else:
        updated = perturbed_update(case.x, case.r, case.eta, 1e-14)
    torch.testing.assert_close(updated, case.x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("deterministic", [False, True])
@every_size
def test_that_equal_data_teach_nothing(size, deterministic):
    case = Case(size)
    r = torch.full_like(case.r, 0.3)
    if deterministic:
        updated = square_root_update(case.x, r, 1.0)
    else:
        updated = perturbed_update(case.x, r, case.eta, 1.0)
    close(updated, case.x)


@pytest.mark.parametrize("deterministic", [False, True])
def test_that_a_datum_given_twice_counts_twice(deterministic):
    case = Case(40, linear=True)
    doubled = torch.cat([case.r, case.r], dim=1)
    noise = torch.zeros_like(case.eta)
    if deterministic:
        close(square_root_update(case.x, doubled, 0.4), square_root_update(case.x, case.r, 0.8))
    else:
        close(
            perturbed_update(case.x, doubled, torch.cat([noise, noise], dim=1), 0.4),
            perturbed_update(case.x, case.r, noise, 0.8),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_that_shape_and_dtype_of_the_state_are_kept(dtype):
    case = Case(12)
    x = case.x.to(dtype).reshape(12, 3, 3)
    fold = torch.arange(12) % 3
    for updated in (
        perturbed_update(x, case.r, case.eta, 1.0),
        perturbed_update(x, case.r, case.eta, 1.0, fold),
        square_root_update(x, case.r, 1.0),
    ):
        assert updated.shape == x.shape
        assert updated.dtype == dtype
        assert updated.isfinite().all()


def test_that_the_update_leaves_its_arguments_alone():
    case, fold = Case(12), torch.arange(12) % 3
    x, r, eta = case.x.clone(), case.r.clone(), case.eta.clone()
    perturbed_update(case.x, case.r, case.eta, 1.0, fold)
    perturbed_update(case.x, case.r, case.eta, 1.0)
    square_root_update(case.x, case.r, 1.0)
    assert torch.equal(case.x, x)
    assert torch.equal(case.r, r)
    assert torch.equal(case.eta, eta)
