"""DPS by theory: its affine recursion, the published update, its forms and what they cost."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.errors import InputError, MissingCapability
from enkg.guidance.dps import DPS, _Norm
from tests.enkg.problems import (
    DOUBLE,
    LinearGaussian,
    follow,
    normal,
    small_problem,
    values,
    whitened,
)

PROBLEM = small_problem()
EYE = torch.eye(6, dtype=torch.float64)


def recursion(
    problem: LinearGaussian, sigmas: list[float], eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Factor F and offset f of the plain form's x_end = F x_start + f + noise, and the noise's
    covariance, from the formulas alone."""
    weight = problem.matrix.T @ torch.linalg.inv(problem.noise)
    factor, offset, spread = EYE, torch.zeros(6).double(), torch.zeros(6, 6).double()
    for sigma, to in pairwise(sigmas):
        jacobian = problem.covariance @ torch.linalg.inv(problem.covariance + sigma**2 * EYE)
        level = jacobian, problem.mean - jacobian @ problem.mean  # D = J x + (m - J m)
        gain = sigma**2 * jacobian.T @ weight
        guided = level[0] - gain @ problem.matrix @ level[0]
        constant = level[1] + gain @ (problem.y - problem.matrix @ level[1])
        up = eta * to * sqrt(1 - (to / sigma) ** 2)
        keep = sqrt(to**2 - up**2) / sigma
        step = (1 - keep) * guided + keep * EYE
        factor, offset = step @ factor, step @ offset + (1 - keep) * constant
        spread = step @ spread @ step.T + up**2 * EYE
    return factor, offset, spread


def followed(method: DPS, starts: Tensor, problem: LinearGaussian = PROBLEM) -> Tensor:
    """Where chains end that begin at `starts`."""
    method = replace(method, members=len(starts))
    states, _ = follow(
        method,
        problem.gaussian,
        problem.operator,
        problem.observation,
        change=lambda state: replace(state, x=starts),
    )
    return states[-1].x


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_that_the_plain_form_is_the_affine_recursion(eta, monkeypatch):
    method = DPS(form="plain", levels=8, sigma_max=2.0, eta=eta)
    sigmas = method.sigmas
    chains = 7 + 6 * method.levels

    def impulses(shape, seed, stream, members, step):
        # Chain 7 + 6 i + k alone is kicked, once: in step i, in coordinate k.
        noise = torch.zeros(len(members), 6, dtype=torch.float64)
        for k in range(6):
            noise[torch.tensor(members) == 7 + 6 * step + k, k] = 1.0
        return noise

    starts = torch.zeros(chains, 6, dtype=torch.float64)
    starts[1:7] = EYE
    monkeypatch.setattr(random, "normal", impulses)
    ends = followed(method, starts)
    factor, offset, spread = recursion(PROBLEM, sigmas, eta)
    torch.testing.assert_close(ends[0], offset, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((ends[1:7] - ends[0]).T, factor, rtol=1e-10, atol=1e-10)
    kicks = ends[7:] - ends[0]
    torch.testing.assert_close(kicks.T @ kicks, spread, rtol=1e-10, atol=1e-10)


def test_that_the_plain_form_loses_the_variance_that_the_data_see():
    """The defect of the method: its exact law with fine steps, from seven chains."""
    method = DPS(form="plain", levels=1500, eta=0.0)
    starts = torch.cat([torch.zeros(1, 6).double(), EYE])
    ends = followed(method, starts)
    factor = (ends[1:] - ends[0]).T
    covariance = factor @ (PROBLEM.covariance + method.sigmas[0] ** 2 * EYE) @ factor.T
    root = torch.linalg.inv(torch.linalg.cholesky(PROBLEM.posterior[1]))
    found = torch.linalg.eigvalsh(root @ covariance @ root.T)
    assert found.min() < 0.1
    assert 0.5 < found.max() < 1.2  # directions that the data do not see
    assert method.posterior_law is None


def test_that_the_damped_form_keeps_its_spread_at_levels_far_apart():
    """20 levels, where the plain form's variance along a stiff direction grows beyond 10."""
    found = {}
    for form in ("plain", "damped"):
        method = DPS(members=300, levels=20, form=form)
        states, _ = follow(method, PROBLEM.gaussian, PROBLEM.operator, PROBLEM.observation)
        found[form] = whitened(states[-1].x, *PROBLEM.posterior)
    assert found["plain"][1].max() > 10
    # Of 300 exact draws: (1 +- sqrt(6 / 300))^2 = .74 to 1.30. The bias of the form comes on top.
    error, spread = found["damped"]
    assert error < 0.5
    assert spread.min() > 0.3
    assert spread.max() < 2.0


def test_that_the_damped_form_is_exact_for_one_datum():
    one = replace(PROBLEM, matrix=PROBLEM.matrix[:1], noise=PROBLEM.noise[:1, :1], y=PROBLEM.y[:1])
    sigma = 0.7
    x = PROBLEM.mean + normal(4, 6, seed=5)
    method = DPS(members=4, levels=1, sigma_max=sigma)
    found = followed(method, x, one)  # one step to zero ends at D_y
    jacobian = PROBLEM.covariance @ torch.linalg.inv(PROBLEM.covariance + sigma**2 * EYE)
    clean, spread = PROBLEM.mean + (x - PROBLEM.mean) @ jacobian.T, sigma**2 * jacobian
    innovation = one.matrix @ spread @ one.matrix.T + one.noise
    gain = spread @ one.matrix.T @ torch.linalg.inv(innovation)
    exact = clean + (one.y - clean @ one.matrix.T) @ gain.T
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_that_the_norm_form_is_the_published_update_in_its_own_variables(monkeypatch):
    """Prior N(0, 1), simulator 2 x, y = 3; alpha-bar falls from 1/2 to 1/4, so sigma^2 = 1 to 3.

    With x_t = 1: x0-hat = sqrt(1/4) 1 = 1/2, |y - 2 x0-hat| = 2 with the gradient -2 / 2 = -1 in
    x_t. DDPM with alpha = beta = 1/2 has the mean sqrt(1/2) (1/2) / (3/4) (x0-hat + x_t) and the
    variance (1/2) / (3/4) / 2 = 1/3.
    """
    monkeypatch.setattr(DPS, "sigmas", property(lambda self: [sqrt(3), 1.0, 0.0]))
    monkeypatch.setattr(
        random, "normal", lambda *given: torch.full((2, 1), 0.6, dtype=torch.float64)
    )
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = LinearGaussian(torch.zeros(1).double(), one, 2 * one, one, 3 * one[0])
    method = DPS(
        members=2, levels=2, form="norm", schedule="variance-preserving", guidance_scale=0.3
    )
    state = method.init(problem.gaussian, 0, DOUBLE)
    state = replace(state, x=torch.full((2, 1), 1 / 0.5, dtype=torch.float64))
    after, _ = method.step(state, problem.gaussian, problem.operator, problem.observation)
    published = sqrt(0.5) * 0.5 / 0.75 * (0.5 + 1.0) + sqrt(1 / 3) * 0.6 - 0.3 * -1.0
    assert float(after.x[0, 0]) * sqrt(0.5) == pytest.approx(published, rel=1e-12)


def test_that_the_norm_is_the_residual_in_its_own_unit_and_for_counts_weighted():
    y = torch.tensor([0.0, 4.0, 9.0], dtype=torch.float64)
    rates = torch.tensor([[1.0, 2.0, 12.0]], dtype=torch.float64, requires_grad=True)
    plain = _Norm(enkg.Observation(y, std=0.1, mask=[True, True, False]))
    counts = _Norm(enkg.Poisson(y))
    assert float(plain.misfit(rates.detach())) == pytest.approx(sqrt(1 + 4))
    assert float(counts.misfit(rates.detach())) == pytest.approx(sqrt(1 / 2 + 4 / 8 + 9 / 18))
    for norm in (plain, counts):
        (slope,) = torch.autograd.grad(norm.misfit(rates).sum(), rates)
        torch.testing.assert_close(norm.gradient(rates.detach()), slope)
    exact = enkg.Observation(y, std=0.1)
    assert _Norm(exact).gradient(y[None]).isfinite().all()


@pytest.mark.parametrize("form", ["damped", "norm"])
def test_that_it_runs_on_counts(form):
    """Rates 20 exp(x): the chains end closer to the counts than the prior is."""
    prior = enkg.Gaussian(torch.zeros(8), torch.full((8,), 0.5), enkg.Identity((8,)))

    def rates(x):
        return 20 * np.exp(np.clip(x, -4, 4))

    simulator = enkg.Function(rates, vjp=lambda x, v: rates(x) * v * (np.abs(x) < 4))
    truth = normal(8, seed=3).numpy() * sqrt(0.5)
    counts = enkg.Poisson(np.zeros(8)).perturb(torch.from_numpy(rates(truth)), 1)
    method = DPS(members=16, levels=40, form=form, guidance_scale=0.1)
    tree = enkg.run(enkg.Experiment(prior, simulator, enkg.Poisson(counts), method, double=True))
    misfit = values(tree, "trace", "misfit_per_datum")
    assert np.isfinite(misfit).all()
    assert misfit[-1] < 0.2 * misfit[0]
    if form == "damped":
        assert 0.2 < misfit[-1] < 2.5
        found = values(tree, "posterior", "x").mean(axis=0)
        assert np.abs(found - truth).max() < 0.6  # counts near 20: 1 / sqrt(20) = .22


def run(members: int, simulator=None, **options):
    return enkg.run(
        enkg.Experiment(
            prior=PROBLEM.gaussian,
            simulator=simulator or PROBLEM.simulator,
            observation=PROBLEM.observation,
            guidance=DPS(members=members, levels=6, **options),
            double=True,
        )
    )


def test_that_calls_and_products_follow_the_formulas():
    tree = run(4)
    for name in ("calls", "vjps", "denoiser_calls"):
        assert int(values(tree, "trace", name)[-1]) == 6 * 4
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 6 * 4 + 1


@pytest.mark.parametrize("form", ["damped", "norm"])
def test_that_four_chains_are_the_first_four_of_eight_to_the_bit(form):
    few, many = (values(run(n, form=form), "posterior", "x") for n in (4, 8))
    np.testing.assert_array_equal(few, many[:4])


@pytest.mark.parametrize("form", ["damped", "plain", "norm"])
def test_that_a_failed_gradient_leaves_the_other_chains_alone(form):
    inside = PROBLEM.simulator

    def vjp(x, v):
        out = v @ PROBLEM.matrix.numpy()
        out[2:3] = np.nan
        return out

    def whole(x, v):
        return v @ PROBLEM.matrix.numpy()

    options = {"form": form, "sigma_max": 1.0}
    broken = values(run(4, enkg.Function(inside.f, vjp=vjp), **options), "posterior", "x")
    sound = values(run(4, enkg.Function(inside.f, vjp=whole), **options), "posterior", "x")
    others = [0, 1, 3]
    np.testing.assert_array_equal(broken[others], sound[others])
    assert np.isfinite(broken).all()
    assert not np.array_equal(broken[2], sound[2])


def test_that_what_it_needs_and_takes_is_said():
    with pytest.raises(MissingCapability, match="gradient"):
        run(4, PROBLEM.simulate)
    for wrong in ({"form": "l2"}, {"eta": 1.5}, {"guidance_scale": 0.0}):
        with pytest.raises(InputError):
            replace(DPS(), **wrong)
