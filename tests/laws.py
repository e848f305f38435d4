"""The laws that every guidance method obeys. A method joins them in `tests/methods.py`.

A calibrated method (one with a `posterior_law`) samples the exact posterior of a linear-Gaussian
problem, whatever its schedule and whether the prior's flow is closed or integrated. The published
method has no such law; its known bias is stated instead.
"""

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg import EnKG, EnKGPublished, random
from enkg.guidance import (
    DPG,
    EKI,
    GSG,
    SCG,
    Guidance,
    State,
)
from enkg.random import Stream
from enkg.sample import euler, reverse_step
from tests.enkg.problems import (
    SINGLE,
    follow,
    normal,
    smooth_problem,
    whitened,
)
from tests.methods import (
    MEMBERS,
    METHODS,
    PRIORS,
    PROBLEM,
    REDRAWN,
    SLRS,
    both_priors,
    ensemble,
    every_calibrated_method,
    every_exact_pair,
    every_method,
    every_pair,
    experiment,
    posterior,
    prior_for,
    sized,
)

# --- the posterior --------------------------------------------------------------------------


@every_exact_pair
def test_that_mean_and_total_variance_are_exact_within_five_per_cent(name, prior):
    # Sampling error at 2,048 members: .5 % of the mean's norm for exact draws and about 1.5 % with
    # the error of the gain (16 data); 1 % of the trace. Five per cent is three times the larger.
    problem = smooth_problem()
    exact_mean, exact_covariance = problem.posterior
    method = sized(name, 2048)
    states, _ = follow(method, PRIORS[prior](problem), problem.forward, problem.observation)
    x = states[-1].x
    assert (x.mean(0) - exact_mean).norm() < 0.05 * exact_mean.norm()
    assert float(x.var(0).sum() / exact_covariance.trace()) == pytest.approx(1, abs=0.05)


@every_exact_pair
def test_that_the_whitened_ensemble_is_standard_normal(name, prior):
    # sqrt(d / J) = .04: an exact ensemble has e = .04 and eigenvalues .92 to 1.08.
    method = sized(name, 4000)
    states, _ = follow(method, PRIORS[prior](PROBLEM), PROBLEM.forward, PROBLEM.observation)
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert error < 0.15
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


@every_calibrated_method
def test_that_observed_pixels_keep_their_spread_under_strong_noise(name):
    # Prior std .5, noise 1: the posterior std is sqrt(.25 / 1.25) = .447 and the mean .2 y.
    d, m = 256, 16
    prior = enkg.Gaussian(
        torch.zeros(d, dtype=torch.float64),
        torch.full((d,), 0.25, dtype=torch.float64),
        enkg.Identity((d,)),
    )
    y = 0.5 * normal(m, seed=5) + normal(m, seed=6)
    observation = enkg.Observation(y, std=1.0)
    states, _ = follow(sized(name, 1024), prior, lambda x: x[:, :m], observation)
    seen = states[-1].x[:, :m]
    assert float(seen.var(0).mean().sqrt()) == pytest.approx(0.447, rel=0.15)
    slope = float(seen.mean(0) @ y / (y @ y))
    assert slope == pytest.approx(0.20, abs=0.05)


@pytest.mark.parametrize("step_size", [0.5, 2.0])
def test_that_the_published_method_collapses(step_size):
    method = EnKGPublished(members=512, step_size=step_size)
    assert method.posterior_law is None
    states, _ = follow(method, PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    error, eigenvalues = whitened(states[-1].x, *PROBLEM.posterior)
    assert eigenvalues.min() < 0.05  # sampling alone gives .8
    assert error > 0.3  # sampling alone gives .1
    # Short steps take all directions with them; long ones may throw some of them back open.
    assert step_size == 2.0 or eigenvalues.max() < 0.5


def test_that_the_published_method_knows_neither_residual_nor_noise():
    plain = posterior("enkg-published")
    noisier = replace(PROBLEM, noise=100 * PROBLEM.noise)
    assert torch.equal(posterior("enkg-published", noisier), plain)
    # Thirty steps of fixed length amplify the rounding of the product by seven.
    torch.testing.assert_close(
        posterior("enkg-published", PROBLEM.times(7)), plain, rtol=1e-6, atol=1e-6
    )


@every_calibrated_method
def test_that_the_noise_covariance_decides_the_result(name):
    noisier = posterior(name, replace(PROBLEM, noise=100 * PROBLEM.noise))
    plain = posterior(name)
    assert noisier.var(0).sum() > 1.2 * plain.var(0).sum()


@every_method
def test_that_the_units_of_the_data_do_not_matter(name):
    plain = posterior(name)
    torch.testing.assert_close(posterior(name, PROBLEM.times(7)), plain, rtol=1e-6, atol=1e-6)


@every_method
def test_that_masked_data_do_not_matter(name):
    plain, observation = posterior(name), PROBLEM.observation
    mask = torch.tensor([True, False, True, True])
    y = torch.full((4,), torch.nan, dtype=torch.float64)
    y[mask] = PROBLEM.y
    noise = torch.eye(4, dtype=torch.float64)
    noise[mask.outer(mask)] = PROBLEM.noise.flatten()
    observation = enkg.Observation(y, covariance=noise, mask=mask)

    def forward(x: Tensor) -> Tensor:
        data = PROBLEM.forward(x)
        return torch.cat([data[:, :1], 1e3 * x[:, :1].sin(), data[:, 1:]], dim=1)

    states, _ = follow(sized(name), prior_for(name), forward, observation)
    torch.testing.assert_close(states[-1].x, plain, rtol=1e-8, atol=1e-8)


# --- the members ----------------------------------------------------------------------------


def rows(state: State, places: list[int]) -> State:
    """The state of some of the members, in that order."""
    changes: dict = {
        field: getattr(state, field)[places] for field in state.sharded if field != "members"
    }
    changes["members"] = tuple(state.members[k] for k in places)
    for name in set(state.sharded) - set(changes):
        changes[name] = getattr(state, name)[places]
    if hasattr(state, "mean"):  # SLR keeps their white coordinates as well
        changes["z"] = state.z[places]  # pyright: ignore[reportAttributeAccessIssue]
    refined = getattr(state, "refined", None)
    if refined is not None:
        each = ("prior", "noise", "z", "r", "value", "length")
        changes["refined"] = replace(refined, **{k: getattr(refined, k)[places] for k in each})
    return replace(state, **changes)


def shuffled(state: State) -> State:
    order = torch.randperm(len(state.x), generator=torch.Generator().manual_seed(3))
    return rows(state, order.tolist())


@every_method
@pytest.mark.parametrize("some_fail", [False, True], ids=["all alive", "some fail"])
def test_that_members_permute(name, some_fail):
    def forward(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        if some_fail:
            y[x[:, 0].topk(4).indices] = torch.nan
        return y

    def last(change=lambda state: state) -> State:
        prior, observation = prior_for(name), PROBLEM.observation
        return follow(sized(name), prior, forward, observation, change=change)[0][-1]

    plain, permuted = last(), last(shuffled)
    assert set(permuted.members) == set(range(MEMBERS))
    torch.testing.assert_close(permuted.x, plain.x[list(permuted.members)], rtol=1e-6, atol=1e-6)


@every_method
def test_that_a_failed_member_moves_the_others_only_through_the_statistics(name):
    dead = 5
    others = [j for j in range(MEMBERS) if j != dead]

    def fails(x: Tensor) -> Tensor:
        y = PROBLEM.forward(x)
        y.unflatten(0, (MEMBERS, -1))[dead, :, 1] = torch.nan  # all candidates of that member
        return y

    method, prior, observation = sized(name), prior_for(name), PROBLEM.observation
    states, _ = follow(method, prior, fails, observation)
    for state in states[:-1:3]:
        with_dead, _ = method.step(state, prior, fails, observation)
        assert with_dead.x.isfinite().all()
        left_out, _ = method.step(rows(state, others), prior, PROBLEM.forward, observation)
        # SLR draws all members anew; the other methods keep them, and revive the dead one.
        kept = with_dead.x[list(left_out.members)]
        # What is drawn before the simulator answers has the dead member in its covariance.
        close = 0.1 if name in set(REDRAWN) - set(SLRS) else 1e-8
        torch.testing.assert_close(kept, left_out.x, rtol=close, atol=close)


@every_method
def test_that_chunks_agree_to_the_last_bit(name):
    # 48 members: 48 = 4 x 12 fits, 7 and 64 leave a remainder.
    whole = ensemble(name)
    for chunk in (1, 7, 12, 64):
        simulator = enkg.Function(PROBLEM.simulate, chunk=chunk)
        np.testing.assert_array_equal(ensemble(name, simulator=simulator), whole)


@both_priors
def test_that_the_denoiser_treats_each_member_by_itself(prior):
    x = normal(40, 6, seed=8)
    together = prior(PROBLEM).denoise(x, 0.7)
    alone = torch.cat([prior(PROBLEM).denoise(row[None], 0.7) for row in x])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in REDRAWN])
def test_that_no_step_without_information_moves_the_ensemble(name):
    """A simulator with one answer for all has zero covariance: prior flow, nothing else."""
    method, prior = sized(name), PROBLEM.one_component
    states, _ = follow(method, prior, same_for_all, PROBLEM.observation)
    unmoved = states[0].x
    for before, after in pairwise(states):
        unmoved = _drift(method, prior, unmoved, before, after)
    torch.testing.assert_close(states[-1].x, unmoved, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", REDRAWN)
def test_that_members_drawn_anew_without_information_are_of_the_prior(name):
    method, prior = sized(name, 2000), prior_for(name)
    states, _ = follow(method, prior, same_for_all, PROBLEM.observation)
    error, eigenvalues = whitened(states[-1].x, PROBLEM.mean, PROBLEM.covariance)
    assert error < 0.2
    assert eigenvalues.min() > 0.85
    assert eigenvalues.max() < 1.15


@every_method
def test_that_a_perfect_fit_does_no_harm(name):
    forward = lambda x: PROBLEM.y.expand(len(x), -1).clone()  # noqa: E731
    states, _ = follow(sized(name), prior_for(name), forward, PROBLEM.observation)
    assert all(state.x.isfinite().all() for state in states)


def same_for_all(x: Tensor) -> Tensor:
    return torch.full((len(x), 3), 0.3, dtype=torch.float64)


def _drift(method: Guidance, prior: enkg.Prior, x: Tensor, before: State, after: State) -> Tensor:
    """What the method does to x between two levels when no update moves it."""
    if isinstance(method, EnKG):
        flow = method.flow
        if after.finished:
            flow = replace(flow, fewest=method.clean_steps)
        return flow(prior, x, before.sigma, after.sigma)
    if isinstance(method, EnKGPublished):
        return euler(prior, x, [before.sigma, after.sigma])
    if isinstance(method, SCG | GSG | DPG):
        x, up = reverse_step(x, prior.denoise(x, before.sigma), before.sigma, after.sigma)
        key = before.seed, Stream.SAMPLER, before.members, before.step
        return x + up * random.normal(prior.shape, *key)
    return x


# --- the run --------------------------------------------------------------------------------


@every_method
def test_that_the_seed_alone_decides(name):
    zero = ensemble(name, seed=0)
    np.testing.assert_array_equal(ensemble(name, seed=0), zero)
    assert np.abs(ensemble(name, seed=1) - zero).max() > 0.1


@every_method
def test_that_no_truth_reaches_the_method(name):
    truths = (None, PROBLEM.mean, normal(6, seed=9))
    first, *others = [ensemble(name, truth=truth) for truth in truths]
    for other in others:
        np.testing.assert_array_equal(other, first)


@every_pair
def test_that_a_run_goes_on_from_any_state_to_the_last_bit(name, prior):
    method, exact, observation = sized(name), PRIORS[prior](PROBLEM), PROBLEM.observation
    states, _ = follow(method, exact, PROBLEM.forward, observation)
    for state in states[:-1:3]:
        again = pickle.loads(pickle.dumps(state))
        resumed, _ = follow(
            method, exact, PROBLEM.forward, observation, change=lambda _, s=again: s
        )
        assert torch.equal(resumed[-1].x, states[-1].x)
        assert torch.equal(state.x, again.x)  # a step leaves its state alone


@every_method
def test_that_the_dtype_is_kept(name):
    single = posterior(name, like=SINGLE)
    assert single.dtype == torch.float32
    assert posterior(name).dtype == torch.float64
    if METHODS[name].posterior_law:  # the published steps amplify rounding
        torch.testing.assert_close(single.double(), posterior(name), rtol=0, atol=0.01)


@every_calibrated_method
def test_that_the_powers_add_up_to_one(name):
    _, infos = follow(sized(name), PROBLEM.gaussian, PROBLEM.forward, PROBLEM.observation)
    assert infos[0].power > 0
    assert all(info.power >= 0 for info in infos)
    assert abs(sum(info.power for info in infos) - 1) < 1e-12
    assert infos[-1].beta == 1.0


@every_method
def test_that_calls_are_counted_exactly(name):
    seen = []

    def counting(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return PROBLEM.simulate(x)

    predict = 10
    tree = enkg.run(experiment(name, simulator=counting, predict=predict))
    method, calls = sized(name), json.loads(tree.attrs["summary"])["calls"]
    sweeps, rest = divmod(calls - predict, MEMBERS)
    assert calls == sum(seen)
    assert rest == 0
    adaptive = isinstance(method, EnKG) and method.updates is None
    if isinstance(method, EKI) or adaptive or name == "slr-refined":
        assert sweeps == tree["trace"].sizes["step"]
        assert sweeps <= method.sweeps
    else:
        assert sweeps == method.sweeps
