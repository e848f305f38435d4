"""The noise model: whitening, misfit and perturbation against dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import enkg
from tests.enkg.problems import normal

SHAPE, SIZE = (2, 3), 6
Y = normal(*SHAPE, seed=1)
ROOT = normal(SIZE, SIZE, seed=2)
DENSE = ROOT @ ROOT.T + torch.eye(SIZE)
STD = normal(*SHAPE, seed=3).abs() + 0.2
MASK = torch.tensor([[True, False, True], [True, True, False]])
KEEP = MASK.flatten()

NOISES = {"one std": {"std": 0.7}, "std each": {"std": STD}, "dense": {"covariance": DENSE}}
DENSE_FORM = {
    "one std": 0.49 * torch.eye(SIZE, dtype=torch.float64),
    "std each": torch.diag(STD.flatten() ** 2),
    "dense": DENSE,
}
every_noise = pytest.mark.parametrize("noise", NOISES)
masked_or_not = pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])


def observation(noise, mask=None) -> enkg.Observation:
    y = Y if mask is None else torch.where(mask, Y, torch.nan)
    return enkg.Observation(y, mask=mask, **NOISES[noise])


def block(noise, mask):
    keep = torch.ones(SIZE, dtype=torch.bool) if mask is None else mask.flatten()
    return keep, DENSE_FORM[noise][keep][:, keep]


@masked_or_not
@every_noise
def test_that_the_misfit_is_the_quadratic_form_of_the_inverse_covariance(noise, mask):
    seen, data = observation(noise, mask), normal(4, *SHAPE, seed=4)
    keep, gamma = block(noise, mask)
    r = (Y - data).flatten(1)[:, keep]
    expected = 0.5 * torch.einsum("ji,ij->j", r, torch.linalg.solve(gamma, r.T))
    torch.testing.assert_close(seen.misfit(data), expected)
    assert seen.size == int(keep.sum())
    assert seen.residual(data).shape == (4, seen.size)
    assert seen.misfit_per_datum(data) == pytest.approx(float(2 * expected.mean() / seen.size))


@masked_or_not
@every_noise
def test_that_whitened_differences_have_unit_covariance(noise, mask):
    # W Gamma W^T = I, with W read off from whitening the unit vectors.
    seen = observation(noise, mask)
    keep, gamma = block(noise, mask)
    units = torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)
    w = seen.whiten(units)[keep].T
    identity = torch.eye(seen.size, dtype=torch.float64)
    torch.testing.assert_close(w @ gamma @ w.T, identity)


@masked_or_not
@every_noise
def test_that_the_misfit_of_true_noise_is_half_the_number_of_data(noise, mask):
    # chi^2 of m degrees has variance 2 m; 2,000 draws, four standard errors.
    seen = observation(noise, mask)
    draws = torch.stack([seen.perturb(Y, seed=0, step=k) for k in range(2000)])
    phi = seen.misfit(draws)
    m = seen.size
    assert (phi.mean() - m / 2).abs() < 4 * (m / 2 / 2000) ** 0.5
    assert phi.var() == pytest.approx(m / 2, rel=0.25)


@masked_or_not
@every_noise
def test_that_perturbed_data_have_mean_y_and_the_noise_covariance(noise, mask):
    seen = observation(noise, mask)
    keep, gamma = block(noise, mask)
    count = 4000
    draws = torch.stack([seen.perturb(Y, seed=1, step=k) for k in range(count)]).flatten(1)
    assert draws[:, ~keep].isnan().all()
    scale = gamma.diagonal().sqrt()
    error = (draws[:, keep].mean(0) - Y.flatten()[keep]).abs()
    assert (error < 4 * scale / count**0.5).all()
    error = (torch.cov(draws[:, keep].T) - gamma).abs()
    assert (error < 4 * (2 / count) ** 0.5 * scale.outer(scale)).all()


def test_that_perturbations_follow_the_seed():
    seen = observation("one std")
    assert torch.equal(seen.perturb(Y, seed=3), seen.perturb(Y, seed=3))
    assert (seen.perturb(Y, seed=3) != seen.perturb(Y, seed=4)).all()


def test_that_perturbed_observations_are_white_and_keyed():
    seen = observation("dense", MASK)
    eta = seen.noise(0, range(2000), 0)
    assert eta.shape == (2000, seen.size)
    expected = torch.eye(seen.size, dtype=torch.float64)
    assert (torch.cov(eta.T) - expected).abs().max() < 4 * (2 / 2000) ** 0.5
    assert torch.equal(seen.noise(0, [7, 3], 0), eta[[7, 3]])


def test_that_masked_elements_never_matter():
    seen, data = observation("dense", MASK), normal(4, *SHAPE, seed=4)
    wild = data.clone()
    wild[:, ~MASK] = 1e9
    torch.testing.assert_close(seen.misfit(wild), seen.misfit(data))


def test_that_data_told_twice_count_once_in_the_misfit_per_datum():
    plain = enkg.Observation(Y, std=1.0)
    twice = enkg.Observation(torch.stack([Y, Y]), std=1.0, independent=SIZE)
    data = normal(4, *SHAPE, seed=4)
    both = torch.stack([data, data], dim=1)
    assert twice.misfit_per_datum(both) == pytest.approx(2 * plain.misfit_per_datum(data))
    torch.testing.assert_close(twice.misfit(both), 2 * plain.misfit(data))


def test_that_single_precision_data_are_whitened_in_double():
    seen, data = observation("dense"), normal(4, *SHAPE, seed=4).float()
    assert seen.residual(data).dtype == torch.float64
    assert enkg.Observation(Y.float(), std=0.1).y.dtype == torch.float64


ARRAYS = {
    "numpy": lambda a: a.copy(),
    "single": lambda a: a.astype(np.float32),
    "list": lambda a: a.tolist(),
    "reversed view": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(">f8"),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "integers": lambda a: np.round(a).astype(np.int64),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_that_data_come_as_any_real_array(kind):
    given = ARRAYS[kind](Y.numpy())
    seen = enkg.Observation(given, std=ARRAYS[kind](STD.numpy() + 1))
    np.testing.assert_allclose(seen.y.numpy(), np.asarray(given, dtype=float), rtol=1e-6)
    assert seen.y.dtype == torch.float64


def test_that_changing_the_given_array_later_changes_nothing():
    given = np.ones(3)
    seen = enkg.Observation(given, std=1.0)
    given[:] = 7
    assert seen.y.tolist() == [1, 1, 1]


def test_that_one_number_is_an_observation():
    seen = enkg.Observation(1.5, std=0.5)
    assert seen.size == 1
    torch.testing.assert_close(
        seen.misfit(torch.tensor([1.5, 2.0])), torch.tensor([0.0, 0.5], dtype=torch.float64)
    )


def test_that_a_covariance_symmetric_up_to_rounding_is_accepted():
    q = torch.linalg.qr(normal(16, 16)).Q
    rotated = q @ q.T  # the identity, with off-diagonal rounding that is not symmetric
    assert enkg.Observation(torch.zeros(16), covariance=rotated).size == 16


def test_that_an_observation_can_be_changed_field_by_field():
    louder = replace(observation("one std", MASK), std=1.4)
    data = normal(4, *SHAPE, seed=4)
    torch.testing.assert_close(4 * louder.misfit(data), observation("one std", MASK).misfit(data))


NAN = torch.where(MASK, Y, torch.nan)
WRONG = {
    "no noise": ({}, "exactly one"),
    "two noises": ({"std": 1.0, "covariance": DENSE}, "exactly one"),
    "zero std": ({"std": 0.0}, "positive"),
    "negative std": ({"std": -1.0}, "positive"),
    "NaN std": ({"std": float("nan")}, "positive"),
    "infinite std": ({"std": float("inf")}, "positive"),
    "one bad std": ({"std": STD * torch.tensor([1, 1, 0])}, "positive"),
    "std shape": ({"std": torch.ones(3)}, "std has shape"),
    "covariance shape": ({"covariance": torch.eye(3)}, r"\(6, 6\)"),
    "not symmetric": ({"covariance": DENSE + torch.ones(6, 6).triu(1)}, "symmetric"),
    "not positive": ({"covariance": -DENSE}, "positive definite"),
    "NaN covariance": ({"covariance": DENSE / 0}, "positive definite"),
    "NaN in y": ({"y": NAN, "std": 1.0}, "mask=isfinite"),
    "NaN under the mask": ({"y": NAN, "std": 1.0, "mask": ~MASK}, "NaN"),
    "mask shape": ({"std": 1.0, "mask": torch.ones(3, dtype=torch.bool)}, "mask has shape"),
    "mask type": ({"std": 1.0, "mask": torch.ones(SHAPE)}, "bool"),
    "all masked": ({"std": 1.0, "mask": torch.zeros(SHAPE, dtype=torch.bool)}, "no datum"),
    "empty": ({"y": torch.zeros(0), "std": 1.0}, "no datum"),
    "independent": ({"std": 1.0, "independent": 7}, "between 1 and"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_that_impossible_observations_are_refused_in_words(wrong):
    fields, words = WRONG[wrong]
    with pytest.raises(enkg.InputError, match=words):
        enkg.Observation(**{"y": Y, **fields})
