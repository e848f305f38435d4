"""GSG by theory: its gradient estimates, its guided denoiser, its chains."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor

import enkg
from enkg import random
from enkg.errors import InputError, MissingCapability
from enkg.guidance import GSG, METHODS
from enkg.guidance.candidates import Candidates
from enkg.guidance.scaling import in_prior_units
from enkg.random import Stream
from enkg.sample import reverse_step
from tests.enkg.problems import DOUBLE, follow, normal, small_problem, values, whitened

PROBLEM = small_problem()
NAN = torch.nan
forms = pytest.mark.parametrize("form", ["damped", "plain", "norm"])
kinds = pytest.mark.parametrize("kind", ["central", "forward"])


def estimates(method: GSG, problem=PROBLEM, seed: int = 0, spoil=None) -> tuple[Tensor, Tensor]:
    """The gradient estimates of many chains at the prior mean, (J, d), and the exact gradient."""
    prior, observation = problem.gaussian, problem.observation
    state = method.init(prior, seed, DOUBLE)
    clean = problem.mean.expand(method.members, -1)

    def forward(x: Tensor) -> Tensor:
        y = problem.forward(x)
        return y if spoil is None else spoil(y)

    found = Candidates(state, clean, forward, observation, observation.misfit)
    gradient, _, _ = method._gradient(state, prior, found)
    weight = torch.linalg.inv(problem.noise)
    exact = problem.matrix.T @ weight @ (problem.matrix @ problem.mean - problem.y)
    return gradient, exact


def wide_problem(d: int = 50):
    """One strong and many weak directions of the gradient; the prior is white."""
    problem = small_problem()
    eye = torch.eye(d, dtype=torch.float64)
    matrix = normal(3, d, seed=4)
    return replace(problem, mean=torch.zeros(d).double(), covariance=eye, matrix=matrix)


@kinds
@pytest.mark.parametrize("smoothing", [0.01, 1.0])
def test_that_the_estimate_is_unbiased_for_a_quadratic_loss(kind, smoothing):
    method = GSG(members=1000, kind=kind, queries=40, smoothing=smoothing)
    found, exact = estimates(method)
    error = found.std(0) / sqrt(len(found))
    assert (found.mean(0) - exact).abs().max() < 4 * error.max()
    assert error.max() < 0.06 * exact.norm()  # the test can see a bias


def test_that_the_central_error_is_the_root_of_unknowns_over_pairs():
    problem, pairs = wide_problem(), 40
    found, exact = estimates(GSG(members=400, queries=2 * pairs), problem)
    error = (found - exact).square().sum(1).mean().sqrt() / exact.norm()
    assert float(error) == pytest.approx(sqrt(51 / pairs), rel=0.05)


def test_that_prior_directions_estimate_the_gradient_in_the_metric_of_the_prior():
    found, exact = estimates(GSG(members=400, queries=20, directions="prior"))
    exact = PROBLEM.covariance @ exact
    error = found.std(0) / sqrt(len(found))
    assert (found.mean(0) - exact).abs().max() < 4 * error.max()


@kinds
@pytest.mark.parametrize("lost", [slice(0, 1), slice(3, 7)], ids=["the first", "others"])
def test_that_lost_candidates_leave_the_estimate_unbiased(kind, lost):
    # The first candidate of a forward difference is D itself.
    def spoil(y: Tensor) -> Tensor:
        y.unflatten(0, (1000, -1))[:, lost] = NAN
        return y

    found, exact = estimates(GSG(members=1000, kind=kind, queries=20), spoil=spoil)
    assert found.isfinite().all()
    error = found.std(0) / sqrt(len(found))
    assert (found.mean(0) - exact).abs().max() < 4 * error.max()


@kinds
def test_that_the_size_of_a_batch_does_not_matter(kind):
    few, _ = estimates(GSG(members=6, kind=kind, queries=20, rows_at_once=24))
    one, _ = estimates(GSG(members=6, kind=kind, queries=20, rows_at_once=1))
    all_at_once, _ = estimates(GSG(members=6, kind=kind, queries=20))
    torch.testing.assert_close(few, all_at_once, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one, all_at_once, rtol=1e-9, atol=1e-9)


def guided(method: GSG, problem, sigma: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """D_y at one level for an exact gradient; D_y of theory, and D."""
    x = problem.mean + normal(5, 6, seed=2)
    clean = problem.gaussian.denoise(x, sigma)
    weight = torch.linalg.inv(problem.noise)
    residual = clean @ problem.matrix.T - problem.y
    gradient = residual @ weight @ problem.matrix
    slope = (gradient @ problem.covariance * gradient).sum(1)
    if method.directions == "prior":
        gradient = gradient @ problem.covariance
    v = problem.gaussian.vjp(x, sigma, gradient)
    level = problem.observation.misfit(clean @ problem.matrix.T)
    found = clean + method._shift(sigma, gradient, slope, level, v)
    eye = torch.eye(6, dtype=torch.float64)
    jacobian = torch.linalg.solve(problem.covariance + sigma**2 * eye, problem.covariance)
    spread = sigma**2 * jacobian
    innovation = problem.matrix @ spread @ problem.matrix.T + problem.noise
    gain = torch.linalg.solve(innovation, problem.matrix @ spread).T
    return found, clean - residual @ gain.T, clean


@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
def test_that_the_damped_denoiser_is_exact_for_one_datum(sigma):
    one = replace(PROBLEM, matrix=PROBLEM.matrix[:1], noise=PROBLEM.noise[:1, :1], y=PROBLEM.y[:1])
    found, exact, clean = guided(GSG(), one, sigma)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    assert (exact - clean).norm() > 0.01
    plain, _, _ = guided(GSG(form="plain"), one, sigma)
    assert (plain - clean).norm() > (exact - clean).norm()


def test_that_prior_directions_guide_as_white_ones_for_a_gaussian_prior():
    white, _, _ = guided(GSG(form="plain"), PROBLEM)
    prior, _, _ = guided(GSG(form="plain", directions="prior"), PROBLEM)
    torch.testing.assert_close(prior, white, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_that_the_plain_form_is_overconfident_and_the_damped_one_is_not():
    """With many directions the gradient is nearly exact; what is left is the bias of the form."""
    found = {}
    for form in ("plain", "damped"):
        method = GSG(members=150, form=form, levels=60, queries=128)
        states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
        found[form] = whitened(states[-1].x, *PROBLEM.posterior)[1].min()
        assert method.posterior_law is None
    # Sampling alone gives (1 - sqrt(6 / 150))^2 = .64.
    assert found["plain"] < 0.45
    assert found["damped"] > 0.5


def test_that_the_damped_form_stays_near_the_prior_at_levels_far_apart():
    method = GSG(members=40, levels=8, queries=32)
    precise = replace(PROBLEM, noise=1e-6 * PROBLEM.noise)
    for form, bound in (("damped", True), ("plain", False)):
        prior, observation = precise.gaussian, precise.observation
        states, _ = follow(replace(method, form=form), prior, precise.forward, observation)
        assert bool(states[-1].x.abs().max() < 20) == bound


@forms
@kinds
def test_that_chains_are_independent(form, kind):
    method = GSG(members=4, form=form, kind=kind, levels=5, queries=6, guidance_scale=0.1)
    prior, observation = PROBLEM.one_component, PROBLEM.observation
    together, _ = follow(method, prior, PROBLEM.forward, observation)

    def only(k: int):
        return lambda state: replace(state, x=state.x[k : k + 1], members=(k,))

    for k in range(4):
        alone, _ = follow(method, prior, PROBLEM.forward, observation, change=only(k))
        torch.testing.assert_close(alone[-1].x[0], together[-1].x[k], rtol=1e-9, atol=1e-9)


@kinds
def test_that_one_bad_chain_leaves_the_others_alone(kind):
    method = GSG(members=4, kind=kind, levels=5, queries=6)

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
    assert (part[-1].x[2] - whole[-1].x[2]).norm() > 1e-3


def test_that_a_step_does_not_hold_all_its_candidates():
    method = GSG(members=3, levels=2, queries=50, rows_at_once=30)
    _, infos = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    for info in infos:
        for held, each in zip(info.evaluated[0], (6, 3), strict=True):
            assert held.shape == (3, each)
            assert held.untyped_storage().nbytes() == 3 * each * 8


def test_that_nothing_usable_means_the_unguided_step():
    method = GSG(members=4, levels=5, queries=2)
    prior = PROBLEM.gaussian
    states, infos = follow(
        method, prior, lambda x: torch.full((len(x), 3), NAN), PROBLEM.observation
    )
    for before, after in pairwise(states):
        clean = prior.denoise(before.x, before.sigma)
        moved, up = reverse_step(before.x, clean, before.sigma, after.sigma)
        key = before.seed, Stream.SAMPLER, before.members, before.step
        assert torch.equal(after.x, moved + up * random.normal((6,), *key))
    assert infos[0].misfit is None


def test_that_odd_queries_of_pairs_are_rounded_up():
    assert GSG(queries=7, levels=3).sweeps == 24
    assert GSG(queries=7, levels=3, kind="forward").sweeps == 24
    assert GSG(queries=8, levels=3, kind="forward").sweeps == 27


def test_that_too_few_directions_are_told():
    problem = wide_problem()
    few = GSG(queries=100).init(problem.gaussian, 0, DOUBLE)
    assert "mostly noise: 50 directions for 50 unknowns" in few.remarks[0]
    assert GSG(queries=102).init(problem.gaussian, 0, DOUBLE).remarks == ()


class NoGradient:
    """A denoiser written in NumPy."""

    shape = (6,)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return torch.from_numpy(x.numpy() / (1 + sigma**2))


def test_that_a_prior_without_derivatives_is_refused():
    with pytest.raises(MissingCapability, match="GSG needs a denoiser that torch can"):
        GSG().init(NoGradient(), 0, DOUBLE)
    with pytest.raises(MissingCapability, match="draw"):
        GSG(directions="prior").init(NoGradient(), 0, DOUBLE)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"queries": 0}, {"smoothing": 0.0}, {"rows_at_once": 0}, {"levels": 0}),
        *({"form": "published"}, {"kind": "both"}, {"directions": "x"}, {"schedule": "vp"}),
    ],
)
def test_that_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        GSG(**wrong)


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("gsg-")])
def test_that_every_preset_makes_a_finite_step(name):
    method = METHODS[name]
    assert isinstance(method, GSG)
    method = replace(method, queries=10, levels=min(method.levels, 20))
    prior, observation = PROBLEM.gaussian, PROBLEM.observation
    states, _ = follow(method, prior, PROBLEM.forward, observation)
    assert states[-1].x.isfinite().all()


def test_that_the_published_step_is_in_the_units_of_the_preserved_variance():
    """x / sqrt(1 + sigma^2) moves by the scale times the gradient with respect to itself."""
    method = replace(METHODS["gsg-central-ffhq"], guidance_scale=0.3)
    assert isinstance(method, GSG)
    sigma, to = 3.0, 2.0
    before, after = 1 / sqrt(1 + sigma**2), 1 / sqrt(1 + to**2)
    length = in_prior_units(method.guidance_scale, method.schedule, sigma, to)
    assert length * after == pytest.approx(0.3 / before)


def test_that_calls_and_products_follow_the_formulas():
    tree = enkg.run(
        enkg.Experiment(
            prior=PROBLEM.gaussian,
            simulator=PROBLEM.simulate,
            observation=PROBLEM.observation,
            guidance=GSG(members=3, kind="forward", queries=4, levels=5),
            double=True,
            predict=3,
        )
    )
    assert int(values(tree, "trace", "calls")[-1]) == 5 * 3 * (4 + 1)
    assert int(values(tree, "trace", "denoiser_vjps")[-1]) == 5 * 3 + 1
    assert int(values(tree, "trace", "denoiser_calls")[-1]) == 5 * 3
    assert values(tree, "trace", "misfit_per_datum")[-1] > 0
