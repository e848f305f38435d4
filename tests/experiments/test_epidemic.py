"""The epidemic inverted, against a Markov chain with the exact likelihood."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import poisson

import enkg
from experiments.epidemic import (
    LEVEL,
    REFERENCE,
    STEP,
    against,
    count_root,
    expected_root,
    experiment,
    stored,
    synthetic,
)
from experiments.references.chains import effective_size, split_r_hat
from experiments.references.epidemic_mcmc import expected
from simulators.epidemic.seir import KNOTS, POPULATION, weekly_counts

TRUTHS = sorted(map(int, json.loads(REFERENCE.read_text())["truths"]))


def simulator(x: np.ndarray) -> np.ndarray:
    """The reference's own integration, much faster than the program; NaN where it is unstable."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = expected(x.astype(np.float64))
        y[~((y > 0).all(axis=1) & (y.sum(axis=1) < POPULATION))] = np.nan
    return y


@pytest.mark.parametrize("mean", [0.1, 1.0, 3.0, 30.0, 1000.0])
def test_that_the_roots_of_counts_have_the_mean_and_variance_that_are_assumed(mean):
    counts = np.arange(3000)
    weight, root = poisson.pmf(counts, mean), count_root(counts)
    bias = (weight * root).sum() - expected_root(np.array(mean))
    assert abs(bias) < (0.11 if mean < 3 else 0.025)
    variance = (weight * root**2).sum() - (weight * root).sum() ** 2
    assert variance < 1.07
    if mean >= 1:
        assert variance > 0.93


def test_that_the_prior_is_the_random_walk_from_which_truths_are_drawn():
    prior = experiment().prior
    assert isinstance(prior, enkg.Gaussian)
    draws = prior.draw(seed=0, members=range(4000), step=0).numpy()
    steps = np.diff(draws, axis=1, prepend=LEVEL) / STEP
    np.testing.assert_allclose(steps.mean(axis=0), 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(steps.T), np.eye(len(KNOTS)), atol=0.1)
    truths = np.array([synthetic(truth)[0] for truth in range(200)])
    steps = np.diff(truths, axis=1, prepend=LEVEL) / STEP
    assert steps.std() == pytest.approx(1, abs=4 / np.sqrt(2 * steps.size))


def test_that_the_reference_integrates_the_same_equations():
    x = np.array([synthetic(truth)[0] for truth in range(8)])
    ours = np.array([weekly_counts(member) for member in x])
    assert (np.abs(expected(x) - ours) / np.sqrt(ours)).max() < 1e-3


def test_that_correlated_chains_are_worth_what_their_correlation_leaves():
    rng, keep = np.random.default_rng(0), 0.9
    draws = rng.standard_normal((4000, 16)) / np.sqrt(1 - keep**2)
    for n in range(1, len(draws)):
        draws[n] = keep * draws[n - 1] + rng.standard_normal(16)
    assert effective_size(draws) == pytest.approx(draws.size * (1 - keep) / (1 + keep), rel=0.15)
    assert split_r_hat(draws) < 1.01
    assert split_r_hat(draws + 5 * (np.arange(16) == 3)) > 1.1


@pytest.mark.parametrize("truth", TRUTHS)
def test_that_the_stored_chains_converged_on_these_counts(truth):
    found = stored(truth, synthetic(truth)[1])
    assert found is not None, "the counts have changed: run epidemic_mcmc.py again"
    assert found["split_r_hat"] < 1.02
    assert found["effective_size"] > 10_000


@pytest.mark.parametrize("truth", TRUTHS)
def test_that_the_posterior_is_near_the_exact_one(truth):
    case = dataclasses.replace(experiment(truth=truth), simulator=simulator)
    summary = json.loads(enkg.run(case).attrs["summary"])
    assert summary["trusted"]
    assert summary["metrics"]["mean_against_exact"] < 0.5  # in posterior standard deviations
    ratio = summary["metrics"]["std_over_exact"]
    assert ratio["lowest"] > 0.7
    assert ratio["highest"] < 1.3
    assert summary["tables"][0]["columns"][-1] == "exact posterior"


@pytest.mark.slow
def test_that_the_program_gives_the_same_posterior(tmp_path):
    tree = enkg.run(experiment(), tmp_path / "run")
    x = tree["posterior"].to_dataset()["log_beta"].values
    reference = stored(0, synthetic(0)[1])
    assert reference is not None
    error, ratio = against(x, reference)
    assert np.sqrt((error**2).mean()) < 0.5
    assert 0.7 < ratio.min() < ratio.max() < 1.3
    assert (tmp_path / "run" / "figures" / "epidemic.png").stat().st_size > 10_000
