"""Sets of samples compared: closed forms of spectra and moments, floors, and copies found."""

from math import log, pi, sqrt

import pytest
import torch

import enkg
from enkg.errors import InputError
from enkg.learned import compare
from enkg.metrics import energy_distance
from tests.enkg.problems import normal

SIDE = 16


def fields(count: int, seed: int, exponent: float = 3.0) -> torch.Tensor:
    """Draws of a stationary Gaussian field of variance 1 on the torus, power ~ (1 + k^2)^-e/2."""
    return GAUSSIAN[exponent].draw(seed, range(count), 0)


def power(exponent: float) -> torch.Tensor:
    k = torch.fft.fftfreq(SIDE, dtype=torch.float64) * SIDE
    found = (1 + k[:, None] ** 2 + k**2) ** (-exponent / 2)
    return found * SIDE**2 / found.sum()


GAUSSIAN = {
    e: enkg.Gaussian(torch.zeros(SIDE, SIDE), power(e).flatten(), enkg.RealFourier((SIDE, SIDE)))
    for e in (2.0, 3.0)
}


# --- spectrum -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (12, 5)])
def test_that_a_spectrum_sums_to_the_mean_square(shape):
    x = 0.7 + normal(5, *shape)
    _, found = compare.spectrum(x) or pytest.fail("no spectrum")
    assert float(found.sum()) == pytest.approx(float(x.square().mean()), rel=1e-12)


def test_that_a_wave_has_its_energy_at_its_number_and_the_mean_at_zero():
    place = 2 * pi * torch.arange(24, dtype=torch.float64) / 24
    x = 2 + torch.cos(3 * place).expand(12, 24)  # 3 waves to the longer side
    k, found = compare.spectrum(x[None]) or pytest.fail("no spectrum")
    expected = torch.zeros_like(found)
    expected[0], expected[3] = 4, 0.5
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert k.tolist() == list(range(len(k)))


def test_that_the_spectrum_of_a_gaussian_field_is_that_of_its_covariance():
    k, found = compare.spectrum(fields(2000, 1)) or pytest.fail("no spectrum")
    wave = torch.fft.fftfreq(SIDE, dtype=torch.float64) * SIDE
    shell = torch.hypot(wave[:, None], wave).round()
    share = power(3.0) / SIDE**2
    expected = torch.stack([share[shell == n].sum() for n in k])
    # A shell of M waves of 2000 fields has a standard error of sqrt(2 / 2000 M), at most 3 %.
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", [(), (9,), (2, 4, 4)])
def test_that_members_of_another_rank_have_no_spectrum(shape):
    x = normal(4, *shape)
    assert compare.spectrum(x) is None
    assert compare.spectra(x, x, x) is None


def test_that_the_spectrum_error_is_the_logarithm_of_the_ratio_where_the_energy_is():
    held_out = torch.tensor([5e3, 80.0, 15.0, 4.9, 0.09, 0.01])
    samples = held_out * torch.tensor([9.0, 1.0, 2.0, 0.25, 70.0, 70.0])
    assert compare.energetic(held_out).tolist() == [1, 2, 3]  # 99.9 % without the mean
    mean, largest = compare.spectrum_error(samples, held_out)
    assert mean == pytest.approx(log(2 * 4) / 3)
    assert largest == pytest.approx(log(4))


def test_that_another_spectrum_is_far_above_the_floor_and_the_same_is_not():
    held_out, training = fields(300, 1), fields(300, 2)
    same = compare.spectra(fields(300, 3), held_out, training) or pytest.fail("no spectrum")
    other = compare.spectra(fields(300, 3, 2.0), held_out, training) or pytest.fail("no spectrum")
    assert same.mean_error < 3 * same.mean_floor
    assert other.mean_error > 5 * other.mean_floor
    assert other.max_error > 5 * other.max_floor


# --- values ---------------------------------------------------------------------------------


def test_that_the_moments_of_an_exponential_law_are_found():
    found = compare.moments(-torch.rand(500, 1000, dtype=torch.float64).log())
    assert found.mean == pytest.approx(1, rel=0.02)
    assert found.std == pytest.approx(1, rel=0.02)
    assert found.skewness == pytest.approx(2, rel=0.05)
    assert found.kurtosis == pytest.approx(9, rel=0.1)


def test_that_a_shift_of_values_is_a_wasserstein_distance_in_standard_deviations():
    held_out = 3 * normal(200, 50)
    found = compare.values(held_out + 0.6, held_out, held_out)
    assert found.wasserstein == pytest.approx(0.6 / float(held_out.std(correction=0)), rel=1e-6)
    assert found.floor == 0
    assert found.samples.mean == pytest.approx(found.held_out.mean + 0.6)
    assert found.samples.std == pytest.approx(3, rel=0.03)
    assert found.held_out.kurtosis == pytest.approx(3, abs=0.2)
    gaps = torch.tensor(found.samples_quantiles) - torch.tensor(found.held_out_quantiles)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.6))
    assert found.held_out_quantiles[4] == pytest.approx(0, abs=0.1)


def test_that_a_part_of_many_values_tells_their_law(monkeypatch):
    monkeypatch.setattr(compare, "VALUES", 4000)
    held_out = normal(100, 400)
    found = compare.values(normal(100, 400, seed=1) + 1, held_out, normal(100, 400, seed=2))
    assert found.wasserstein == pytest.approx(1, abs=0.1)
    assert 0 < found.floor < 0.1


# --- energy ---------------------------------------------------------------------------------


def test_that_the_energy_distance_is_that_of_the_metrics_without_units():
    samples, held_out, training = normal(30, 3, 2) + 1, normal(30, 3, 2, seed=1), normal(30, 3, 2)
    found = compare.energy(samples, held_out, training)
    gap = torch.nn.functional.pdist(held_out.flatten(1)).mean()
    assert found.value == pytest.approx(energy_distance(samples, held_out) / float(gap))
    scaled = compare.energy(7 * samples, 7 * held_out, 7 * training)
    assert scaled.value == pytest.approx(found.value)
    assert scaled.floor == pytest.approx(found.floor)


def test_that_equal_laws_are_below_the_floor_in_nineteen_cases_of_twenty():
    above = 0
    for case in range(60):
        ours, data, real = (normal(40, 6, seed=3 * case + i) for i in range(3))
        found = compare.energy(ours, data, real, case)
        above += found.value > found.floor
    assert above <= 9  # 3 expected; ten or more in one of a thousand cases


@pytest.mark.parametrize("change", [lambda x: x + 0.5, lambda x: 0.5 * x, lambda x: 0 * x])
def test_that_other_laws_are_above_the_floor(change):
    sets = [normal(200, 6, seed=i) for i in range(3)]
    found = compare.energy(change(sets[0]), sets[1], sets[2])
    assert found.value > 2 * found.floor > 0


def test_that_held_out_copies_of_one_sample_are_refused():
    one = torch.ones(5, 3)
    with pytest.raises(InputError, match="hold out different ones"):
        compare.energy(normal(5, 3), one, one)


# --- memory ---------------------------------------------------------------------------------


def shifts(x: torch.Tensor):
    return (x.roll(k, dims=-1) for k in range(x.shape[-1]))


def test_that_copies_of_training_samples_are_found():
    training, held_out = normal(500, 8), normal(300, 8, seed=1)
    found = compare.memory(training[:100], held_out, training)
    assert found.share == 1
    assert found.ratio < 1e-6


def test_that_fresh_samples_pass():
    training, held_out = normal(500, 8), normal(900, 8, seed=1)
    found = compare.memory(normal(900, 8, seed=2), held_out, training)
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert found.share < 0.03


def test_that_copies_up_to_a_symmetry_are_found_when_it_is_told():
    training, held_out = normal(300, 8), normal(300, 8, seed=1)
    moved = training[:200].roll(3, dims=-1)
    assert compare.memory(moved, held_out, training).share < 0.1
    found = compare.memory(moved, held_out, training, shifts)
    assert found.share == 1
    assert found.ratio < 1e-6


def test_that_the_nearest_is_the_nearest_of_all_blocks(monkeypatch):
    x, training = normal(20, 3, 2), normal(50, 3, 2, seed=1)
    whole = (x[:, None] - training).square().mean(dim=(2, 3)).sqrt().amin(dim=1)
    monkeypatch.setattr(compare, "BLOCK", 7)
    torch.testing.assert_close(compare.nearest(x.float(), training), whole, rtol=1e-5, atol=0)


def test_that_held_out_data_in_the_training_set_leave_no_ratio():
    training = normal(50, 4)
    found = compare.memory(normal(50, 4, seed=1), training[:20].round(), training.round())
    assert found.ratio != found.ratio
    assert found.share == 0


def test_that_a_subset_has_different_rows_in_their_order_and_depends_on_its_seed():
    x = torch.arange(100)
    few = compare.subset(x, 30, 0, 1)
    assert len(few) == 30
    assert bool((few.diff() > 0).all())
    assert torch.equal(few, compare.subset(x, 30, 0, 1))
    assert not torch.equal(few, compare.subset(x, 30, 1, 1))
    assert torch.equal(compare.subset(x, 200, 0, 1), x)
    assert float(few.double().mean()) == pytest.approx(49.5, abs=4 * 28.9 * sqrt(0.7 / 30))
