"""Distance from the prior and effective rank: closed forms, calibration on prior samples, and an
ensemble that left its prior."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import enkg
from enkg.distance import ASKED, LEVELS, distance
from enkg.ensemble import TILE, effective_rank
from tests.enkg.problems import normal, small_problem
from tests.enkg.threads_comm import spread

GAUSSIAN = small_problem().gaussian
ONE = small_problem().one_component  # the same law, through its denoiser
CENTRES = 3.0 * torch.tensor([[a, b, -a, -b, a, b, -a, -b] for a in (-1, 1) for b in (-1, 1)])
MODES = enkg.Mixture(CENTRES, torch.full((8,), 0.01), torch.zeros(8), enkg.Identity((8,)))
PRIORS = {"Gaussian": GAUSSIAN, "denoiser": ONE, "modes": MODES}


def gap(prior, x, samples=None):
    samples = prior.draw(1, range(64), 0) if samples is None else samples
    found = distance(prior, x, samples, 0)
    assert found is not None
    return found


# --- effective rank -------------------------------------------------------------------------


def with_spectrum(scales, members: int, elements: int) -> torch.Tensor:
    """Members around 7 whose anomalies have these singular values."""
    k = len(scales)
    centred = normal(members, k + 1)
    centred[:, 0] = 1
    left = torch.linalg.qr(centred).Q[:, 1:]  # orthogonal to the mean
    right = torch.linalg.qr(normal(elements, k, seed=1)).Q
    return 7 + left * torch.tensor(scales, dtype=torch.float64) @ right.T


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (9, TILE + 100)])
@pytest.mark.parametrize(
    ("scales", "rank"), [((1, 1, 1), 3), ((2.0,), 1), ((3, 1), (9 + 1) ** 2 / (81 + 1))]
)
def test_that_the_effective_rank_is_the_participation_ratio_of_the_spectrum(scales, rank, shape):
    assert effective_rank(with_spectrum(scales, *shape)) == pytest.approx(rank, rel=1e-9)


def test_that_equal_members_have_no_rank_and_copies_add_none():
    assert effective_rank(torch.full((5, 4), 2.0)) == 0
    few = normal(3, 50)
    assert effective_rank(few.repeat(20, 1)) == pytest.approx(effective_rank(few))


def test_that_the_effective_rank_of_draws_is_what_their_number_allows():
    # White noise in d = 200 by J = 50: 1 / (1 / 200 + 1 / 49).
    assert effective_rank(normal(50, 200)) == pytest.approx(1 / (1 / 200 + 1 / 49), rel=0.05)


# --- distance from the prior ----------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_that_prior_samples_are_at_distance_one(name):
    prior = PRIORS[name]
    found = gap(prior, prior.draw(2, range(4000 if name == "Gaussian" else ASKED), 0))
    low, high = found.bounds
    assert low < 1 < high
    # Of N samples: their own scatter, and for a denoiser that of the 32 samples compared with.
    assert found.value == pytest.approx(1, abs=0.05 if name == "Gaussian" else 0.6)


def test_that_a_gaussian_distance_is_the_mean_of_squares_of_white_coordinates():
    prior = enkg.Gaussian(torch.ones(3), torch.tensor([1.0, 4, 0.25]), enkg.Identity((3,)))
    z = normal(5, 3)
    found = gap(prior, prior.from_white(z))
    floor = 0.05**2 * 5.25 / 3
    c = prior.variance.double()
    weight = c / (c + floor)
    assert found.value == pytest.approx(float((weight * z**2).sum(1).mean() / weight.sum()))
    freedom = float(weight.sum() ** 2 / weight.square().sum())
    assert found.bounds[1] == pytest.approx(chi2.isf(0.00135, freedom) / freedom)
    assert found.denoiser_calls == 0


@pytest.mark.parametrize("name", ["Gaussian", "denoiser"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_that_the_distance_of_a_linear_denoiser_is_quadratic(name, factor):
    # |x - D(x)|^2 is quadratic in x - m, so samples stretched by c are at c^2, to rounding.
    prior = PRIORS[name]
    samples = prior.draw(1, range(ASKED), 0)
    stretched = GAUSSIAN.mean + factor * (samples - GAUSSIAN.mean)
    one = gap(prior, samples, samples).value
    assert gap(prior, stretched, samples).value == pytest.approx(factor**2 * one, abs=1e-9)


def test_that_what_lies_outside_of_the_prior_is_seen():
    basis = torch.linalg.qr(normal(40, 5)).Q
    flat = enkg.Gaussian(torch.zeros(40), torch.ones(5), enkg.Eigenbasis(basis, (40,)))
    x = flat.draw(0, range(50), 0)
    assert gap(flat, x).value < gap(flat, x).bounds[1]
    off = x + 0.5 * normal(50, 40)
    assert gap(flat, off).value > gap(flat, off).bounds[1]


@pytest.mark.parametrize("name", PRIORS)
def test_that_few_prior_samples_are_called_outsiders(name):
    # The hardest case: all members are one prior sample, the truth itself.
    prior, trials = PRIORS[name], 200
    samples = prior.draw(1, range(64), 0)
    out = 0
    for trial in range(trials):
        found = gap(prior, prior.draw(3, [trial], 0).expand(8, -1), samples)
        out += found.value > found.bounds[1]
    assert out <= 0.02 * trials


def test_that_members_between_the_modes_are_outsiders():
    between = 0.5 * (MODES.draw(0, range(32), 0) + MODES.draw(9, range(32), 0))
    found = gap(MODES, between)
    assert found.value > 3 * found.bounds[1]
    assert found.denoiser_calls == 2 * len(LEVELS) * 2 * ASKED


def mixture_experiment(**changes) -> enkg.Experiment:
    truth = MODES.draw(5, [0], 0)[0]
    y = truth[:2] + normal(2)
    fields = {
        "prior": MODES,
        "simulator": lambda x: x[:, :2].copy(),
        "observation": enkg.Observation(y, std=1.0),
        "guidance": enkg.ESMDA(members=128),
    }
    return enkg.Experiment(**{**fields, **changes})


def test_that_es_mda_is_caught_leaving_a_mixture():
    # It moves members by combining them, so they end between the modes of the prior.
    summary = json.loads(enkg.run(mixture_experiment()).attrs["summary"])
    found = summary["diagnostics"]
    assert found["distance_from_prior"] > 3 * found["distance_bounds"][1]
    assert not summary["trusted"]
    assert "leaving the prior" in summary["reason"]
    gaussian = replace(mixture_experiment(), prior=enkg.Gaussian.from_samples(MODES.centres))
    assert json.loads(enkg.run(gaussian).attrs["summary"])["trusted"]


def fails_at_times(x):
    y = x[:, :2].copy()
    y[1000 * x[:, 0] % 6 < 1] = np.nan
    return y


def test_that_ranks_diagnose_alike_also_where_members_fail():
    policy = enkg.FailurePolicy(drop=True)
    experiment = mixture_experiment(simulator=fails_at_times, failure=policy, double=True)

    def found(comm):
        summary = json.loads(enkg.run(experiment, comm=comm).attrs["summary"])
        return {key: summary[key] for key in ("diagnostics", "tempering", "trusted", "reason")}

    alone = found(enkg.comm.ALONE)
    assert alone["diagnostics"]["effective_rank_members"] < 128
    for each in spread(3, found):
        assert each == alone


def test_that_a_prior_that_cannot_denoise_is_no_fault_of_the_run():
    def draw(seed, members, step):
        return MODES.draw(seed, members, step)

    def denoise(x, sigma):
        raise NotImplementedError("drawn only")

    mute = SimpleNamespace(shape=(8,), draw=draw, denoise=denoise)
    summary = json.loads(enkg.run(mixture_experiment(prior=mute)).attrs["summary"])
    assert summary["diagnostics"]["distance_from_prior"] is None
    assert np.isfinite(summary["misfit_per_datum"])


def test_that_a_prior_of_one_point_has_no_distance():
    point = enkg.Gaussian(torch.ones(3), torch.zeros(3), enkg.Identity((3,)))
    assert distance(point, torch.ones(4, 3), torch.ones(4, 3), 0) is None
    assert distance(ONE, torch.ones(4, 6), torch.ones(4, 6), 0) is None
