"""The exact posteriors of the digits problems, against brute force and against each other."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import enkg
from enkg import metrics
from tests.enkg.problems import normal

pytest.importorskip("sklearn")
from experiments.digits.setting import PROBLEMS, Setting
from experiments.references import digits_phase
from experiments.references import digits_pointwise as pointwise
from experiments.references.digits import condition, judged, reference
from experiments.references.tempered import Tempering, tempered
from priors import digits
from simulators import small_images

CLOSED = [p for p in PROBLEMS if p not in ("phase", "jpeg")]


@cache
def exact(problem, truth=0):
    return reference(Setting(problem, truth))


# --- formulas against brute force -----------------------------------------------------------


def test_that_the_mixture_posterior_is_that_of_importance_sampling():
    # 2 unknowns, 1 datum, 5 components, a million prior draws.
    centres = 1.5 * normal(5, 2, seed=3)
    a, y, h, s = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([0.4]).double(), 0.4, 0.2
    log_weights, means, covariance = condition(centres, h**2, a, y, s**2)
    weights = torch.softmax(log_weights, dim=0)
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(5, (1_000_000,), generator=generator)
    noise = torch.randn(1_000_000, 2, generator=generator, dtype=torch.float64)
    x = centres[which] + h * noise
    w = torch.softmax(-0.5 * ((y - x @ a.T)[:, 0] / s).square(), dim=0)
    mean = weights @ means
    spread = (means - mean).T @ (weights[:, None] * (means - mean)) + covariance
    found = w @ x
    assert float((mean - found).abs().max()) < 0.01  # about 300,000 effective draws
    assert float((spread - (x - found).T @ (w[:, None] * (x - found))).abs().max()) < 0.01
    shares = torch.zeros(5).double().index_add_(0, which, w)
    assert float((weights - shares).abs().max()) < 0.005


@pytest.mark.parametrize("problem", ["hdr", "quantise"])
@pytest.mark.parametrize(("m", "y"), [(0.0, 0.1), (0.55, 0.97), (-0.9, -1.02), (0.3, 0.9), (1, -1)])
def test_that_the_pieces_of_pointwise_operators_are_those_of_quadrature(problem, m, y):
    h, s = 0.2, 0.05
    operator, pieces = small_images.OPERATORS[problem], pointwise.PIECES[problem]

    def density(x, power=0):
        prior = np.exp(-0.5 * ((x - m) / h) ** 2) / (h * np.sqrt(2 * np.pi))
        residual = y - operator(np.full((1, 8, 8), x))[0, 0, 0]
        return x**power * prior * np.exp(-0.5 * (residual / s) ** 2) / (s * np.sqrt(2 * np.pi))

    if problem == "hdr":
        edges = sorted({-3.0, -0.5, 0.5, 3.0, *np.linspace(y / 2 - 0.2, y / 2 + 0.2, 5)})
    else:
        edges = [-3.0, *(np.arange(15) * 2 + 1) / 15 - 1, 3.0]
    moments = [
        sum(
            quad(density, low, high, (power,), epsabs=0, epsrel=1e-9)[0]
            for low, high in pairwise(edges)
        )
        for power in range(3)
    ]
    points = pieces(np.array([m], dtype=float), np.array([y]), h, s)
    law = pointwise.Piecewise(pieces, np.array([y]), h, s)
    evidence = law.log_evidence(np.array([[m]], dtype=float))
    assert evidence[0] == pytest.approx(np.log(moments[0]), abs=1e-7)
    first, second = pointwise.moments(points)
    assert first[0] == pytest.approx(moments[1] / moments[0], abs=1e-7)
    assert second[0] == pytest.approx(moments[2] / moments[0], abs=1e-7)


def test_that_the_grid_of_counts_is_fine_enough_for_quadrature():
    setting = Setting("poisson", 2)
    law, y = pointwise.counted(setting), setting.observation.y.flatten().numpy()
    values = np.array([-1.0, -0.25, 1.0])
    m = np.repeat(values[:, None], 64, axis=1)
    first, second = law.moments(m)
    total = law._mass[0][law._places(m)]
    for k, value in enumerate(values):
        for j in (int(y.argmin()), int(y.argmax()), 20):

            def density(x, power=0, value=value, j=j):
                rate = 20 * max((x + 1) / 2, 1e-3)
                prior = np.exp(-0.5 * ((x - value) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
                return x**power * prior * rate ** y[j] * np.exp(-rate)

            edges = [-2.6, -0.998, *np.linspace(-0.9, 2.6, 8)]
            moments = [
                sum(quad(density, a, b, (p,), epsabs=0, epsrel=1e-9)[0] for a, b in pairwise(edges))
                for p in range(3)
            ]
            assert total[k, j] == pytest.approx(np.log(moments[0]), abs=1e-5)
            assert first[k, j] == pytest.approx(moments[1] / moments[0], abs=1e-5)
            assert second[k, j] == pytest.approx(moments[2] / moments[0], abs=1e-5)


def test_that_draws_of_truncated_normals_have_their_law():
    # Of 20,000 draws: standard errors below .01 of the standard deviation.
    generator = np.random.default_rng(0)
    for pieces in pointwise.PIECES.values():
        for m, y in ((0.0, 0.1), (0.55, 0.97), (-0.9, -1.02), (0.47, 0.95)):
            points = pieces(np.full(20_000, m), np.full(20_000, y), 0.2, 0.05)
            x = pointwise.sample(points, generator)
            first, second = pointwise.moments(points)
            std = np.sqrt(second[0] - first[0] ** 2)
            assert abs(x.mean() - first[0]) < 0.03 * std
            assert x.std() == pytest.approx(std, rel=0.03)


# --- references agree with themselves -------------------------------------------------------


@pytest.mark.parametrize("problem", CLOSED)
def test_that_draws_have_the_mean_spread_and_classes_that_are_told(problem):
    # 2,048 draws: errors of the mean 1 / sqrt(2048) = .022, of the spread .016, of shares .011.
    found = exact(problem)
    against = judged(found.draws, found)
    assert against["error_in_exact_std"] < 0.035
    assert against["std_over_exact"] == pytest.approx(1, abs=0.02)
    assert against["point_std_scatter"] < 0.03
    assert against["class_distance"] < 0.05
    assert float(found.classes.sum()) == pytest.approx(1)


@pytest.mark.parametrize("problem", CLOSED)
def test_that_draws_of_two_seeds_have_one_law_and_half_as_wide_ones_do_not(problem):
    found, other = exact(problem), reference(Setting(problem), 512, seed=5).draws
    assert abs(metrics.energy_distance(other, found.draws)) < 0.02
    narrow = found.mean + 0.5 * (other - found.mean)
    assert metrics.energy_distance(narrow, found.draws) > 0.04 * float(found.std.norm())


@pytest.mark.parametrize("problem", CLOSED)
def test_that_draws_fit_the_data_within_the_noise(problem):
    setting = Setting(problem)
    y = torch.from_numpy(setting.simulator(exact(problem).draws.numpy()))
    assert 0.5 < setting.observation.misfit_per_datum(y) < 2  # sr4 has 4 data


def test_that_the_posterior_is_calibrated():
    # Shares below the median of 60 truths: independent ones would have a standard error of .065,
    # those of one truth's points are not independent, so means over points vary less.
    covered = []
    for truth in range(100, 160):
        setting = Setting("sr2", truth)
        found = reference(setting, 199)
        covered.append(metrics.coverage(found.draws, setting.image, 0.9))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_that_the_reference_of_no_data_is_the_prior():
    found = reference(Setting("random", noise=1e6), 4096)
    expected = digits.digits_gaussian().variance.sum()
    assert float(found.std.square().sum()) == pytest.approx(float(expected), rel=1e-6)
    shares = digits.centres().labels.bincount() / 1600
    assert float((found.classes - shares).abs().max()) < 1e-6


# --- tempered chains ------------------------------------------------------------------------


@pytest.mark.slow
def test_that_tempered_chains_find_the_mixture_posterior():
    setting = Setting("sr4")
    a, y = setting.matrix.float(), setting.observation.y.flatten().float()
    found = tempered(
        digits.centres().images.flatten(1).float(),
        setting.bandwidth,
        lambda x: (x @ a.T - y).square().sum(dim=1) / (2 * setting.noise**2),
        float(torch.linalg.matrix_norm(a, 2)) ** 2 / setting.noise**2,
        seed=0,
        settings=Tempering(copies=2),
    )
    against = judged(found.x[::2].reshape(-1, 8, 8), exact("sr4"))
    assert against["error_in_exact_std"] < 0.08
    assert against["std_over_exact"] == pytest.approx(1, abs=0.03)
    assert abs(against["energy_distance"]) < 0.02
    assert against["class_distance"] < 0.08


def test_that_tempered_chains_find_two_modes_by_their_weights():
    # |x| is seen: by symmetry the modes are at +1 and -1, and the prior prefers the first by 3 : 1.
    centres = torch.tensor([[1.0], [1.0], [1.0], [-1.0]]).double()
    found = tempered(
        centres,
        0.3,
        lambda x: (x.abs() - 1).square().sum(dim=1) / (2 * 0.2**2),
        1 / 0.2**2,
        seed=1,
        settings=Tempering(copies=1500),
    )
    assert float((found.x > 0).double().mean()) == pytest.approx(0.75, abs=0.03)
    upper = found.x[found.x > 0]
    assert float(upper.mean()) == pytest.approx(1, abs=0.02)
    assert float(upper.std()) == pytest.approx((0.3**-2 + 0.2**-2) ** -0.5, rel=0.06)
    assert found.acceptance > 0.7


def test_that_the_potential_of_the_chains_is_the_misfit():
    setting, x = Setting("phase", 1), normal(9, 8, 8)
    answers = torch.from_numpy(setting.simulator(x.numpy()))
    gap = setting.observation.misfit(answers) - digits_phase.potential(setting)(x.flatten(1))
    assert float(gap.std()) < 1e-9 * float(gap.abs().max())  # equal up to a constant


@pytest.mark.parametrize("noise", digits_phase.NOISES)
def test_that_the_kept_posteriors_of_phase_fit_and_agree(noise):
    for truth in range(digits_phase.TRUTHS):
        setting = Setting("phase", truth, noise)
        found = reference(setting)
        y = torch.from_numpy(setting.simulator(found.draws.numpy()))
        assert 0.7 < setting.observation.misfit_per_datum(y) < 1.3
        against = judged(found.draws, found)
        assert against["error_in_exact_std"] < 0.15
        assert against["std_over_exact"] == pytest.approx(1, abs=0.1)


def test_that_settings_without_a_known_posterior_are_refused():
    with pytest.raises(enkg.InputError, match="jpeg"):
        reference(Setting("jpeg"))
    with pytest.raises(enkg.InputError, match="truth 77"):
        reference(Setting("phase", 77))
