"""Options of ensemble Kalman methods: inflation, taper, orthogonal draws, folded square root."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import ESMDA, EnKG
from enkg.comm import TILE
from enkg.ensemble import anomalies, cross_covariance
from enkg.errors import InputError, MissingCapability
from enkg.guidance.inflation import inflated
from enkg.guidance.kalman import perturbed_weights, solved, square_root_weights
from enkg.guidance.orthogonal import orthogonalised
from enkg.guidance.taper import taper, tapered_update
from tests.enkg.problems import follow, kalman, normal, small_problem, values, whitened
from tests.enkg.threads_comm import spread

PROBLEM = small_problem()


def correlated(members: int, unknowns: int = 7, data: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Members, their whitened innovations and perturbations."""
    x = normal(members, unknowns, seed=1)
    r = 2.0 - 3 * x @ normal(unknowns, data, seed=2) + 0.3 * normal(members, data, seed=3)
    return x, r, normal(members, data, seed=4)


# --- inflation ------------------------------------------------------------------------------


def test_that_inflation_keeps_the_mean_and_multiplies_the_anomalies():
    x = normal(12, 3, 2) + 5
    grown = inflated(lambda members: members + 1, 1.25)(x)
    torch.testing.assert_close(grown.mean(0), x.mean(0) + 1, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(anomalies(grown), 1.25 * anomalies(x), rtol=1e-13, atol=1e-13)


def test_that_no_inflation_is_the_update_itself():
    moved = lambda x: x  # noqa: E731
    assert inflated(moved, 1.0) is moved


@pytest.mark.parametrize("method", [EnKG(members=40, updates=1), ESMDA(members=40, updates=1)])
def test_that_a_run_inflates_after_its_update(method):
    plain, more = (
        follow(replace(method, inflation=f), PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
        for f in (1.0, 1.5)
    )
    before, after = plain[0][-1].x, more[0][-1].x
    # For a Gaussian prior the flow to zero noise is affine.
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(anomalies(after), 1.5 * anomalies(before), rtol=1e-9, atol=1e-9)


# --- taper ----------------------------------------------------------------------------------


def test_that_the_taper_is_its_formula_between_zero_and_one():
    square = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = taper(square, 20)
    for s, t in zip(square.tolist(), found.tolist(), strict=True):
        assert t == pytest.approx(s / (s + (1 + s) / 20))
    assert float(found[0]) == 0
    assert bool((found.diff() > 0).all())
    assert float(taper(square[1:], 10**9).min()) > 1 - 1e-7


@pytest.mark.parametrize("members", [5, 30])
def test_that_a_tapered_update_is_the_textbook_formula_with_a_schur_product(members):
    x, r, eta = correlated(members)
    power, y = 0.4, -r
    c_xy, c_yy = cross_covariance(x, y), cross_covariance(y, y)
    correlation = c_xy / x.std(0)[:, None] / y.std(0)
    gain = taper(correlation.square(), members) * c_xy
    gain = gain @ torch.linalg.inv(c_yy + torch.eye(4).double() / power)
    expected = x + (r + anomalies(eta) / power**0.5) @ gain.T
    torch.testing.assert_close(tapered_update(r, eta, power)(x), expected, rtol=1e-10, atol=1e-10)


def test_that_the_taper_vanishes_as_the_ensemble_grows():
    # Unknowns that the data see keep t = 1 - O(1 / J); the others have r^2 of order 1 / J.
    far = []
    for members in (100, 10_000):
        x, r, eta = correlated(members)
        plain = perturbed_weights(r, eta, 1.0)(x)
        far.append(float((tapered_update(r, eta, 1.0)(x) - plain).square().mean().sqrt()))
    assert far[1] < 0.1 * far[0]


def test_that_the_taper_removes_spurious_updates():
    # One unknown is seen, one hundred are not, and should stay as they are. J r^2 of these is about
    # chi-square of one degree, and E[x (x / (x + 1))^2] = .47 for such an x.
    x = normal(30, 101, seed=5)
    r = 2 - 5 * x[:, :1] + 0.1 * normal(30, 1, seed=6)
    eta = normal(30, 1, seed=7)

    def moved(update: Tensor) -> float:
        return float((update - x)[:, 1:].square().mean())

    tapered = tapered_update(r, eta, 1.0)(x)
    assert moved(tapered) == pytest.approx(0.47 * moved(perturbed_weights(r, eta, 1.0)(x)), rel=0.2)
    assert float(tapered[:, 0].std()) < 0.4 * float(x[:, 0].std())


def test_that_tiles_and_constant_unknowns_do_no_harm():
    x, r, eta = correlated(20, unknowns=TILE + 3)
    x[:, 5] = 1.5
    update = tapered_update(r, eta, 1.0)
    whole, tile = update(x), update(x[:, TILE:])
    torch.testing.assert_close(tile, whole[:, TILE:], rtol=1e-12, atol=1e-12)
    assert torch.equal(whole[:, 5], x[:, 5])
    assert update(x.float()).dtype == torch.float32


@pytest.mark.parametrize("members", [5, 30])
def test_that_the_system_is_solved_in_either_space(members):
    _, r, innovations = correlated(members)
    system = cross_covariance(r, r) + torch.eye(4).double() / 0.3
    expected = innovations @ torch.linalg.inv(system)
    torch.testing.assert_close(solved(r, innovations, 0.3), expected, rtol=1e-10, atol=1e-10)


# --- orthogonal draws -----------------------------------------------------------------------


@pytest.mark.parametrize(("members", "unknowns"), [(40, 6), (7, 6), (6, 6), (5, 9)])
def test_that_orthogonal_draws_have_the_moments_of_the_prior(members, unknowns):
    scales = torch.linspace(1, 2, unknowns)
    z = orthogonalised(normal(members, unknowns, seed=8), scales)
    leading = z[:, -min(unknowns, members - 1) :]  # the largest scales are the last
    torch.testing.assert_close(z.mean(0), torch.zeros(unknowns).double(), rtol=0, atol=1e-13)
    eye = torch.eye(leading.shape[1], dtype=torch.float64)
    torch.testing.assert_close(torch.cov(leading.T), eye, rtol=0, atol=1e-12)


def test_that_orthogonal_draws_are_near_the_draws_they_come_from():
    z = normal(4000, 6, seed=9)
    assert float((orthogonalised(z, torch.ones(6)) - z).abs().max()) < 0.25


@pytest.mark.parametrize("method", [EnKG(orthogonal=True), ESMDA(orthogonal=True)])
def test_that_the_first_simulated_ensemble_has_the_moments_of_the_prior(method):
    method = replace(method, members=30)
    _, infos = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    x0 = infos[0].evaluated[0][0]
    torch.testing.assert_close(x0.mean(0), PROBLEM.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.cov(x0.T), PROBLEM.covariance, rtol=1e-8, atol=1e-8)


def test_that_with_square_root_updates_a_small_ensemble_is_then_exact():
    # No error of sampling is left for a linear simulator: the posterior to rounding.
    method = EnKG(members=8, deterministic=True, orthogonal=True)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    mean, covariance = PROBLEM.posterior
    torch.testing.assert_close(states[-1].x.mean(0), mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.cov(states[-1].x.T), covariance, rtol=1e-7, atol=1e-7)


def test_that_orthogonal_draws_need_a_gaussian_prior():
    with pytest.raises(MissingCapability, match="Gaussian prior"):
        EnKG(orthogonal=True).init(PROBLEM.one_component, 0, PROBLEM.y)


# --- folded square root ---------------------------------------------------------------------


@pytest.mark.parametrize("members", [6, 40])
def test_that_folds_weigh_mean_and_anomalies_by_the_gain_of_the_others(members):
    x, r, _ = correlated(members)
    power, fold = 0.7, torch.arange(members) % 2
    found = square_root_weights(r, power, fold)(x)
    for k in (0, 1):
        moved, trained = fold == k, fold != k
        c_xy, c_yy = (
            cross_covariance(x[trained], -r[trained]),
            cross_covariance(-r[trained], -r[trained]),
        )
        v, q = torch.linalg.eigh(c_yy)
        v = v.clamp(min=1e-12)
        root = (1 + power * v).sqrt()
        full = c_xy @ (q * (power / (1 + power * v))) @ q.T
        half = c_xy @ (q * ((1 - 1 / root) / v)) @ q.T
        mean = r.mean(0)
        expected = x[moved] + full @ mean + (r[moved] - mean) @ half.T
        torch.testing.assert_close(found[moved], expected, rtol=1e-8, atol=1e-8)


def test_that_one_fold_of_square_roots_is_the_kalman_covariance():
    x = normal(30, 6, seed=1)
    r = PROBLEM.observation.residual(PROBLEM.forward(x))
    updated = square_root_weights(r, 1.0)(x)
    expected = kalman(x.mean(0), torch.cov(x.T), PROBLEM.matrix, PROBLEM.noise, PROBLEM.y)
    torch.testing.assert_close(updated.mean(0), expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cov(updated.T), expected[1], rtol=1e-10, atol=1e-10)


# --- all together ---------------------------------------------------------------------------

OPTIONS = {
    "inflation": EnKG(inflation=1.05),
    "taper": ESMDA(taper=True),
    "orthogonal": EnKG(orthogonal=True),
    "orthogonal on clean states": ESMDA(orthogonal=True, deterministic=True),
    "folds, orthogonal": EnKG(folds=4, orthogonal=True, deterministic=True),
}
every_option = pytest.mark.parametrize("method", OPTIONS.values(), ids=list(OPTIONS))


@every_option
def test_that_options_keep_the_law(method):
    method = replace(method, members=2000, inflation=1.0)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


@every_option
def test_that_options_agree_on_ranks_to_the_last_bit(method):
    experiment = enkg.Experiment(
        prior=PROBLEM.gaussian,
        simulator=PROBLEM.simulate,
        observation=PROBLEM.observation,
        guidance=replace(method, members=22),
        double=True,
    )

    def posterior(comm: enkg.comm.Comm = enkg.comm.ALONE) -> np.ndarray:
        return values(enkg.run(experiment, comm=comm), "posterior", "x")

    whole = posterior()
    for found in spread(3, posterior):
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"inflation": 0.0},
        {"inflation": float("inf")},
        {"taper": True, "folds": 2},
        {"taper": True, "deterministic": True},
        {"folds": 0},
        {"folds": 300},
    ],
)
@pytest.mark.parametrize("kind", [EnKG, ESMDA])
def test_that_options_that_cannot_be_are_refused(kind, options):
    with pytest.raises(InputError):
        kind(**options)
