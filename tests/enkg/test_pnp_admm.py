"""PnP-ADMM: its fixed point is the posterior mean of a Gaussian prior, for any penalty."""

from dataclasses import replace

import pytest
import torch

import enkg
from enkg.guidance.pnp_admm import PnPADMM, SplitState
from enkg.transform import Identity
from tests.enkg.problems import (
    DOUBLE,
    LinearOperator,
    follow,
    kalman,
    small_problem,
    values,
)

PROBLEM = replace(small_problem(), noise=0.3**2 * torch.eye(3, dtype=torch.float64))
FAST = PnPADMM(members=3, iterations=150, penalty=4.0, inner=3)


WHITE = enkg.Observation(PROBLEM.y, std=0.3)
"""That of the problem, for what needs noise of one standard deviation."""


def ended(method: PnPADMM, problem=PROBLEM, prior=None, **changes):
    observation = WHITE if problem is PROBLEM else problem.observation
    prior = prior or problem.gaussian
    return follow(method, prior, problem.operator, observation, **changes)[0][-1]


@pytest.mark.parametrize("solver", ["cg", "svd"])
@pytest.mark.parametrize("penalty", [1.0, 4.0])
def test_that_the_fixed_point_is_the_posterior_mean_for_any_penalty(solver, penalty):
    # ADMM converges linearly here; at 150 steps the slower penalty is left with 2e-9.
    found = ended(replace(FAST, solver=solver, penalty=penalty)).x
    assert (found - PROBLEM.posterior[0]).abs().max() < 1e-7


def test_that_a_dense_noise_covariance_is_used():
    problem = replace(small_problem(), noise=small_problem().noise + 0.05)
    assert (ended(FAST, problem).x - problem.posterior[0]).abs().max() < 1e-6


def test_that_lambda_multiplies_the_noise_covariance():
    p = PROBLEM
    expected = kalman(p.mean, p.covariance, p.matrix, 3 * p.noise, p.y)[0]
    found = ended(replace(FAST, strength=3.0, penalty=6.0)).x
    assert (found - expected).abs().max() < 1e-7


@pytest.mark.parametrize("solver", ["cg", "svd"])
def test_that_the_plain_metric_leaves_the_noise_out(solver):
    p = PROBLEM
    expected = kalman(p.mean, p.covariance, p.matrix, torch.eye(3, dtype=torch.float64), p.y)[0]
    found = ended(replace(FAST, metric="plain", solver=solver, penalty=2.0)).x
    assert (found - expected).abs().max() < 1e-7


def test_that_one_step_is_the_published_one():
    method = replace(FAST, iterations=1)
    start = method.init(PROBLEM.gaussian, 0, DOUBLE)
    forward, observation = PROBLEM.operator, PROBLEM.observation
    state, info = method.step(start, PROBLEM.gaussian, forward, observation)
    a, rho = PROBLEM.matrix / 0.3, method.penalty
    rhs = PROBLEM.y / 0.3 @ a + rho * start.x
    x = torch.linalg.solve(a.T @ a + rho * torch.eye(6, dtype=torch.float64), rhs.T).T
    z = PROBLEM.gaussian.denoise(x, rho**-0.5)
    torch.testing.assert_close(state.x, x, rtol=0, atol=1e-12)
    assert isinstance(state, SplitState)
    torch.testing.assert_close(state.z, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.u, x - z, rtol=0, atol=1e-12)
    assert info.misfit == pytest.approx(observation.misfit_per_datum(forward(start.x)))


def test_that_chains_differ_by_their_start_alone():
    method = replace(FAST, iterations=1)
    assert ended(method).x.std(dim=0).max() > 0.1
    assert ended(FAST).x.std(dim=0).max() < 1e-7


def failing(dead: int, when: int) -> LinearOperator:
    """Member `dead` fails at the whole sweep of that number."""
    operator, plain, sweeps = PROBLEM.operator, PROBLEM.operator.forward, [0]

    def fails(x: torch.Tensor) -> torch.Tensor:
        y = plain(x).clone()
        if sweeps[0] == when:
            y[dead] = torch.nan
        sweeps[0] += 1
        return y

    operator.forward = fails
    return operator


@pytest.mark.parametrize("solver", ["cg", "svd"])
def test_that_a_failed_chain_is_denoised_and_leaves_the_others_alone(solver):
    method = replace(FAST, iterations=4, solver=solver)
    plain = ended(method).x
    states, _ = follow(method, PROBLEM.gaussian, failing(1, 2), WHITE)
    assert torch.equal(states[-1].x[[0, 2]], plain[[0, 2]])
    before = states[2]
    assert isinstance(before, SplitState)
    assert torch.equal(states[3].x[1], before.z[1] - before.u[1])
    assert states[-1].x.isfinite().all()


@pytest.mark.parametrize("solver", ["cg", "svd"])
def test_that_a_chain_alone_is_the_chain_in_company(solver):
    problem = replace(PROBLEM, noise=PROBLEM.noise + 0.02) if solver == "cg" else PROBLEM
    method = replace(FAST, members=7, iterations=3, solver=solver)
    # A denoiser that works row by row; `enkg.run` sees to this for any other.
    prior = enkg.Gaussian(problem.mean, problem.covariance.diagonal(), Identity((6,)))
    together = ended(method, problem, prior).x

    def alone(state, k: int):
        rows = {name: getattr(state, name)[k : k + 1] for name in ("x", "members", "z", "u")}
        return replace(state, **rows)

    for k in (0, 6):
        found = ended(method, problem, prior, change=lambda state, k=k: alone(state, k)).x
        assert torch.equal(found[0], together[k])


@pytest.mark.parametrize(("solver", "per_step"), [("cg", 4), ("svd", 1)])
def test_that_calls_are_counted(solver, per_step):
    method = replace(FAST, iterations=5, solver=solver)
    operator = PROBLEM.operator
    follow(method, PROBLEM.gaussian, operator, WHITE)
    assert operator.calls == method.sweeps * 3 == 5 * per_step * 3
    assert operator.vjps == (5 * per_step * 3 if solver == "cg" else 0)


def test_that_a_run_gives_the_posterior_mean_in_other_units():
    # The simulator sees 2 x + 1; in prior units its matrix is A and its offset does not vanish.
    p = PROBLEM
    shift = p.simulate(torch.ones(1, 6).numpy())[0] / 2

    class Simulator:
        def __call__(self, x):
            return p.simulate(x) / 2

        def adjoint(self, v):
            return v @ p.matrix.numpy() / 2

    experiment = enkg.Experiment(
        prior=p.gaussian,
        simulator=Simulator(),
        observation=enkg.Observation(p.y.numpy() + shift, covariance=p.noise),
        guidance=FAST,
        units=enkg.Affine(scale=2.0, offset=1.0),
        double=True,
    )
    found = values(enkg.run(experiment), "posterior", "x")
    assert abs((found - 1) / 2 - p.posterior[0].numpy()).max() < 1e-6


@pytest.mark.parametrize("solver", ["cg", "svd"])
def test_that_a_simulator_without_linear_algebra_is_refused(solver):
    experiment = enkg.Experiment(
        prior=PROBLEM.gaussian,
        simulator=PROBLEM.simulate,
        observation=PROBLEM.observation,
        guidance=replace(FAST, solver=solver),
    )
    with pytest.raises(enkg.MissingCapability, match="PnPADMM needs a linear simulator"):
        enkg.run(experiment)


@pytest.mark.parametrize(
    "fields",
    [
        {"strength": 0.0},
        {"penalty": 0.0},
        {"iterations": 0},
        {"inner": 0},
        {"solver": "lu"},
        {"metric": "other"},
    ],
)
def test_that_impossible_settings_are_refused(fields):
    with pytest.raises(enkg.InputError):
        PnPADMM(**fields)


@pytest.mark.parametrize("solver", ["cg", "svd"])
def test_that_counts_of_photons_are_refused(solver):
    observation = enkg.Poisson(torch.ones(3).numpy())
    method = replace(FAST, solver=solver)
    with pytest.raises(enkg.InputError, match="Gaussian noise"):
        follow(method, PROBLEM.gaussian, PROBLEM.operator, observation)
