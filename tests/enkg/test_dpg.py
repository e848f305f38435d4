"""DPG by theory: its gradient against the Gaussian integral, its radius, its chains."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.errors import InputError, MissingCapability
from enkg.guidance import DPG, METHODS
from enkg.guidance.candidates import Candidates
from enkg.guidance.dpg import DPGState
from enkg.random import Stream
from tests.enkg.problems import DOUBLE, follow, small_problem, values

PROBLEM = small_problem()
NAN = torch.nan
forms = pytest.mark.parametrize("form", ["whitened", "published"])


def integral(a: Tensor, residual: Tensor, z: float, radius: float) -> Tensor:
    """grad_D E exp(-(|r - A n radius|^2 - |r|^2) / Z) for r = y - A D: see enkg.guidance.dpg."""
    lam, h = 2 * a.T @ a / z, 2 * a.T @ residual / z
    q = torch.linalg.inv(torch.eye(len(h), dtype=torch.float64) + radius**2 * lam)
    return torch.linalg.det(q).sqrt() * (radius**2 * h @ q @ h / 2).exp() * q @ h


def estimates(method: DPG, radius: float, z: float, spoil=None) -> tuple[Tensor, Tensor]:
    """g of many chains at the prior mean, (J, d), and the exact expectation."""
    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    state = method.init(prior, 0, DOUBLE)
    clean = PROBLEM.mean.expand(method.members, -1)

    def forward(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        return y if spoil is None else spoil(y)

    found = Candidates(state, clean, forward, observation, method._loss(observation))
    residual = PROBLEM.y - PROBLEM.matrix @ PROBLEM.mean
    std = PROBLEM.noise.diagonal().sqrt() if method.form == "whitened" else torch.ones(3).double()
    a, residual = PROBLEM.matrix / std[:, None], residual / std
    each = torch.ones(method.members, dtype=torch.float64)
    reference = residual.square().sum() * each
    gradient, _ = method._gradient(state, prior, found, reference, z * each, radius * each)
    return gradient, integral(a, residual, z, radius)


@forms
@pytest.mark.parametrize(("radius", "z"), [(0.1, 8.0), (0.5, 20.0)])
def test_that_the_mean_gradient_is_the_gaussian_integral(form, radius, z):
    found, exact = estimates(DPG(members=600, candidates=30, form=form), radius, z)
    error = found.std(0) / sqrt(len(found))
    assert (found.mean(0) - exact).abs().max() < 4 * error.max()
    assert error.max() < 0.1 * exact.norm()  # the test can see a bias


def test_that_lost_candidates_leave_the_mean_unbiased():
    def spoil(y: Tensor) -> Tensor:
        y.unflatten(0, (600, -1))[:, 2:9] = NAN
        return y

    found, exact = estimates(DPG(members=600, candidates=30), 0.3, 20.0, spoil)
    error = found.std(0) / sqrt(len(found))
    assert (found.mean(0) - exact).abs().max() < 4 * error.max()


def test_that_the_size_of_a_batch_does_not_matter():
    few, _ = estimates(DPG(members=3, candidates=12, rows_at_once=15), 0.3, 20.0)
    one, _ = estimates(DPG(members=3, candidates=12, rows_at_once=1), 0.3, 20.0)
    all_at_once, _ = estimates(DPG(members=3, candidates=12), 0.3, 20.0)
    torch.testing.assert_close(few, all_at_once, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one, all_at_once, rtol=1e-9, atol=1e-9)


def test_that_a_step_does_not_hold_all_its_candidates():
    method = DPG(members=3, levels=2, candidates=50, rows_at_once=30)
    _, infos = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    for info in infos:
        for held, each in zip(info.evaluated[0], (6, 3), strict=True):
            assert held.shape == (3, each)
            assert held.untyped_storage().nbytes() == 3 * each * 8


def test_that_equal_losses_give_no_direction():
    def same(y: Tensor) -> Tensor:
        return torch.full_like(y, 0.3)

    found, _ = estimates(DPG(members=4, candidates=10), 0.3, 20.0, same)
    assert not bool(found.any())


def test_that_the_temperature_follows_the_loss_and_the_momentum_the_raw_gradient():
    method = DPG(members=3, levels=6, candidates=12, momentum=0.5)
    states, infos = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    z, v = None, torch.zeros(3, 6, dtype=torch.float64)
    for i, (before, after) in enumerate(pairwise(states)):
        assert isinstance(after, DPGState)
        at_clean = 2 * PROBLEM.observation.misfit(infos[i].evaluated[0][1])
        z = at_clean if z is None else 0.9 * z + 0.1 * at_clean
        torch.testing.assert_close(after.z, z)
        # The guided denoiser, from the step: x_s = D_y + (s / sigma)^2 (x - D_y) + noise.
        ratio = (after.sigma / before.sigma) ** 2
        up = after.sigma * sqrt(1 - ratio)
        key = before.seed, Stream.SAMPLER, before.members, i
        noise = random.normal((6,), *key)
        guided = (after.x - up * noise - ratio * before.x) / (1 - ratio)
        moved = guided - PROBLEM.gaussian.denoise(before.x, before.sigma)
        share = 0.5 * (6 - i - 1) / 6
        mixed = share * v + (1 - share) * after.v
        v = after.v
        mixed = mixed / mixed.norm(dim=1, keepdim=True)
        length = before.sigma**2 * sqrt(6 * 12 / 19) / 2
        torch.testing.assert_close(moved, length * mixed, rtol=1e-6, atol=1e-6)


def test_that_the_radius_settles_where_the_rewards_are_of_order_one():
    method = DPG(members=4, levels=40, candidates=64, sigma_min=1.0)
    for factor in (0.1, 10.0):
        problem = replace(PROBLEM, noise=factor * PROBLEM.noise)
        states, _ = follow(method, problem.gaussian, problem.forward, problem.observation)
        last = states[-1]
        assert isinstance(last, DPGState)
        rise = last.radius**2 * (torch.linalg.inv(problem.noise).diagonal() @ _gains())
        capped = last.radius > 0.7 * (1 / sqrt(2))
        assert bool(((rise / last.z > 0.1) & (rise / last.z < 0.6) | capped).all())


def _gains() -> Tensor:
    return PROBLEM.matrix.square().sum(1)


def test_that_the_published_radius_is_half_the_residual_of_a_datum():
    method = DPG(form="published", smallest_radius=0.01)
    z = torch.tensor([0.0, 24.0, NAN]).double()
    found = method._radius(z, z, 1.0, torch.zeros(3, 6))
    torch.testing.assert_close(found, torch.tensor([0.01, 1.0, 0.1]).double())


@forms
def test_that_chains_are_independent(form):
    method = DPG(members=4, form=form, levels=5, candidates=6)
    prior, observation = PROBLEM.one_component, PROBLEM.observation
    together, _ = follow(method, prior, PROBLEM.forward, observation)

    def only(k: int):
        part = slice(k, k + 1)
        return lambda s: replace(
            s, x=s.x[part], members=(k,), v=s.v[part], z=s.z[part], radius=s.radius[part]
        )

    for k in range(4):
        alone, _ = follow(method, prior, PROBLEM.forward, observation, change=only(k))
        torch.testing.assert_close(alone[-1].x[0], together[-1].x[k], rtol=1e-9, atol=1e-9)


@forms
def test_that_one_bad_chain_leaves_the_others_alone(form):
    method = DPG(members=4, form=form, levels=5, candidates=6)

    def fails(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y.unflatten(0, (4, -1))[2] = NAN
        return y

    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    whole, _ = follow(method, prior, PROBLEM.forward, observation)
    part, _ = follow(method, prior, fails, observation)
    assert part[-1].x.isfinite().all()
    others = [0, 1, 3]
    torch.testing.assert_close(part[-1].x[others], whole[-1].x[others], rtol=1e-9, atol=1e-9)


def test_that_the_data_guide_the_chains():
    method = DPG(members=40, levels=20, candidates=32)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    x = states[-1].x
    assert x.isfinite().all()
    prior = PROBLEM.gaussian.draw(1, range(40), 0)
    misfit = PROBLEM.observation.misfit_per_datum
    assert misfit(PROBLEM.forward(x)) < 0.2 * misfit(PROBLEM.forward(prior))
    assert method.posterior_law is None


class NoGradient:
    """A denoiser written in NumPy."""

    shape = (6,)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return torch.from_numpy(x.numpy() / (1 + sigma**2))


def test_that_a_prior_without_derivatives_is_refused():
    with pytest.raises(MissingCapability, match="DPG needs a denoiser that torch can"):
        DPG().init(NoGradient(), 0, DOUBLE)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"candidates": 1}, {"momentum": 1.0}, {"guidance_scale": 0.0}, {"smallest_radius": 0.0}),
        *({"form": "norm"}, {"rows_at_once": 0}, {"levels": 0}),
    ],
)
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        DPG(**wrong)


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("dpg-")])
def test_that_every_preset_makes_finite_steps(name):
    method = METHODS[name]
    assert isinstance(method, DPG)
    method = replace(method, candidates=7, levels=20)
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    assert states[-1].x.isfinite().all()


def test_that_calls_and_products_follow_the_formulas():
    tree = enkg.run(
        enkg.Experiment(
            prior=PROBLEM.gaussian,
            simulator=PROBLEM.simulate,
            observation=PROBLEM.observation,
            guidance=DPG(members=3, candidates=4, levels=5),
            double=True,
            predict=3,
        )
    )
    assert int(values(tree, "trace", "calls")[-1]) == 5 * 3 * (4 + 1)
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 5 * 3 + 1
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 3
