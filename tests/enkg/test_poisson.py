"""Counts by theory: likelihood and gradient, deviance, what lies below the floor, draws."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import InputError
from tests.enkg.problems import normal, values

COUNTS = torch.tensor([0.0, 1.0, 3.0, 40.0, 700.0], dtype=torch.float64)


def some_rates(members: int = 6) -> torch.Tensor:
    return (COUNTS + 0.5) * torch.exp(0.3 * normal(members, 5, seed=1))


def test_that_the_gradient_is_that_of_the_log_probability():
    rates = some_rates().requires_grad_()
    law = torch.distributions.Poisson(rates)
    (slope,) = torch.autograd.grad(-law.log_prob(COUNTS.expand_as(rates)).sum(), rates)
    torch.testing.assert_close(enkg.Poisson(COUNTS).gradient(rates.detach()), slope)


def test_that_the_misfit_is_the_negative_log_likelihood_up_to_that_of_the_best_rates():
    rates, best = some_rates(), COUNTS.clamp(min=1e-300)
    phi = -torch.distributions.Poisson(rates).log_prob(COUNTS.expand_as(rates)).sum(1)
    least = -torch.distributions.Poisson(best).log_prob(COUNTS).sum()
    torch.testing.assert_close(enkg.Poisson(COUNTS).misfit(rates), phi - least)


@pytest.mark.parametrize(("rate", "expected"), [(300.0, 1.0), (8.0, 1.025)])
def test_that_the_misfit_per_datum_of_the_true_rates_is_about_one(rate, expected):
    """The mean deviance is 1 + 1 / (6 rate) + ... for large rates (Bartlett)."""
    rates = torch.full((40_000,), rate, dtype=torch.float64)
    counts = enkg.Poisson(torch.zeros(40_000)).perturb(rates, seed=3)
    found = enkg.Poisson(counts).misfit_per_datum(rates[None])
    assert found == pytest.approx(expected, abs=4 * np.sqrt(2 / 40_000))


def test_that_the_misfit_below_the_floor_is_continuous_convex_and_not_negative():
    for count in (0.0, 2.0):
        observation = enkg.Poisson(torch.tensor([count]), floor=0.01)
        rates = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
        phi, slope = observation.misfit(rates), observation.gradient(rates)[:, 0]
        assert (phi >= 0).all()
        assert (slope.diff() >= 0).all()
        # The trapezoid rule of the slope gives the misfit back.
        rise = 0.5 * (slope[1:] + slope[:-1]) * 0.001
        assert (phi.diff() - rise).abs().max() < 0.001 * slope.abs().max()
        below = rates[:, 0] < 0.009
        torch.testing.assert_close(phi[below].diff(), slope[below][:-1] * 0.001)


def test_that_rates_below_the_floor_are_told_once(caplog):
    observation = enkg.Poisson(COUNTS)
    wrong = some_rates()
    wrong[2, 3] = -1.0
    with caplog.at_level(logging.WARNING, "enkg"):
        assert observation.gradient(wrong).isfinite().all()
        observation.misfit(wrong)
    assert len(caplog.records) == 1
    assert "floor" in caplog.text
    fresh = enkg.Poisson(COUNTS)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "enkg"):
        fresh.gradient(torch.zeros(2, 5))  # a failed member, not a rate
    assert not caplog.records


def test_that_drawn_counts_have_the_mean_and_the_variance_of_their_rates():
    rates = torch.tensor([0.0, 0.3, 5.0, 200.0]).repeat_interleave(20_000)
    counts = enkg.Poisson(torch.zeros(80_000)).perturb(rates, seed=1)
    assert torch.equal(counts, counts.round())
    for rate, part in zip([0.0, 0.3, 5.0, 200.0], counts.reshape(4, -1), strict=True):
        assert float(part.mean()) == pytest.approx(rate, abs=4 * np.sqrt(rate / 20_000))
        spread = np.sqrt((rate + 2 * rate**2) / 20_000)  # of the sample variance
        assert float(part.var()) == pytest.approx(rate, abs=4 * spread)
    again = enkg.Poisson(torch.zeros(80_000)).perturb(rates, seed=1)
    other = enkg.Poisson(torch.zeros(80_000)).perturb(rates, seed=2)
    assert torch.equal(counts, again)
    assert not torch.equal(counts, other)


def test_that_the_ensemble_methods_see_the_gaussian_approximation():
    observation = enkg.Poisson(COUNTS)
    torch.testing.assert_close(observation.std, torch.tensor([1, 1, 3, 40, 700]).double().sqrt())
    r = observation.residual(COUNTS[None] + observation.std)
    torch.testing.assert_close(r, -torch.ones(1, 5, dtype=torch.float64))
    # Near many counts, both likelihoods agree: half the square of the residual.
    many = enkg.Poisson(torch.tensor([1e8]))
    rate = torch.tensor([[1e8 + 2e4]], dtype=torch.float64)
    assert float(many.misfit(rate)) == pytest.approx(2.0, rel=1e-3)
    assert float(0.5 * many.residual(rate).square()) == pytest.approx(2.0, rel=1e-12)


def test_that_masked_counts_are_never_used():
    y = COUNTS.clone()
    y[1], y[2] = torch.nan, -0.5
    mask = torch.tensor([True, False, False, True, True])
    observation = enkg.Poisson(y, mask=mask)
    rates = some_rates()
    fewer = enkg.Poisson(COUNTS[mask])
    assert torch.equal(observation.misfit(rates), fewer.misfit(rates[:, mask]))
    assert torch.equal(observation.gradient(rates)[:, mask], fewer.gradient(rates[:, mask]))
    assert (observation.gradient(rates)[:, ~mask] == 0).all()
    assert observation.perturb(rates[0], 0).isnan().tolist() == (~mask).tolist()


def test_that_other_data_take_their_own_noise():
    """What `enkg calibrate` does: the same observation of other counts."""
    other = replace(enkg.Poisson(COUNTS, floor=0.1), y=COUNTS + 3)
    assert isinstance(other, enkg.Poisson)
    assert other.floor == 0.1
    torch.testing.assert_close(other.std, (COUNTS + 3).sqrt())


@pytest.mark.parametrize("wrong", [[1.5, 2.0], [-1.0, 2.0], [np.nan, 1.0]])
def test_that_what_is_no_count_is_refused(wrong):
    with pytest.raises(InputError):
        enkg.Poisson(np.array(wrong))


def test_that_impossible_rates_and_floors_are_refused():
    with pytest.raises(InputError, match="not negative"):
        enkg.Poisson(COUNTS).perturb(-COUNTS - 1, 0)
    with pytest.raises(InputError, match="floor"):
        enkg.Poisson(COUNTS, floor=0.0)


def test_that_an_ensemble_method_runs_on_counts():
    prior = enkg.Gaussian(torch.zeros(8), torch.full((8,), 0.25), enkg.Identity((8,)))

    def rates(x):
        return 200 * np.exp(x)

    truth = 0.5 * normal(8, seed=3).numpy()
    counts = enkg.Poisson(np.zeros(8)).perturb(torch.from_numpy(rates(truth)), 1)
    method = enkg.EnKG(members=256)
    tree = enkg.run(enkg.Experiment(prior, rates, enkg.Poisson(counts), method, double=True))
    found = values(tree, "posterior", "x")
    assert np.abs(found.mean(axis=0) - truth).max() < 0.3  # 1 / sqrt(200) = .07
    assert 0.02 < found.std(axis=0).mean() < 0.2
