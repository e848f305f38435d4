"""Adapters: a network that is exact for a Gaussian prior must give the Gaussian's own denoiser.

For x_0 ~ N(m, S) and x_t = a x_0 + b n, with P = a^2 S + b^2 I and r = P^-1 (x_t - a m):

    E[x_0 | x_t] = m + a S r,    E[n | x_t] = b r

What a network predicts is made of the two. The networks here know S and the times they are given,
and nothing of sigma.
"""

import pickle
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import enkg
from enkg.learned.adapters import EDM, Denoiser, FlowMatching, VariancePreserving
from enkg.learned.rescale import rescaled
from enkg.prior import Drawable, Flowing, Prior, White, vjp
from enkg.schedule import vp
from tests.enkg.problems import normal, small_problem, values, whitened

PROBLEM = small_problem()
GAUSSIAN = PROBLEM.gaussian
SHAPE = (6,)
SIGMAS = (0.01, 0.0123, 0.1, 0.5, 1.0, 3.7, 20.0, 80.0)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ABAR = (1 - BETAS).cumprod(0)
ABAR_LEVELS = ((1 - ABAR) / ABAR).sqrt()


def parts(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t] and E[n | x_t], rows (B, 6) with a and b (B,)."""
    mean, S = PROBLEM.mean.to(x), PROBLEM.covariance.to(x)
    a, b = a.to(x)[:, None], b.to(x)[:, None]
    P = a[..., None] ** 2 * S + b[..., None] ** 2 * torch.eye(6).to(x)
    r = torch.linalg.solve(P, (x - a * mean)[..., None])[..., 0]
    return mean + a * (r @ S), b * r


def predicted(what: str, x: Tensor, abar: Tensor) -> Tensor:
    a, b = abar.sqrt(), (1 - abar).sqrt()
    x0, noise = parts(x, a, b)
    velocity = a.to(x)[:, None] * noise - b.to(x)[:, None] * x0
    return {"noise": noise, "sample": x0, "velocity": velocity}[what]


def continuous(what: str, time_scale: float = 1.0, **options) -> VariancePreserving:
    def network(x: Tensor, time: Tensor) -> Tensor:
        t = time.double() / time_scale
        return predicted(what, x, torch.exp(-(0.1 * t + 19.9 / 2 * t**2)))

    return VariancePreserving(network, SHAPE, what, time_scale=time_scale, **options)


def discrete(what: str, **options) -> VariancePreserving:
    """A network of 1,000 steps that is exact between them as well, linear in log sigma."""

    def network(x: Tensor, time: Tensor) -> Tensor:
        logs = np.interp(time.detach().numpy(), np.arange(1000), ABAR_LEVELS.log().numpy())
        return predicted(what, x, 1 / (1 + torch.from_numpy(logs).mul(2).exp()))

    return VariancePreserving(network, SHAPE, what, alphas_cumprod=ABAR, **options)


def learned_variance(x: Tensor, time: Tensor) -> Tensor:
    noise = continuous("noise").network(x, time)
    return torch.cat([noise, 100 + noise], dim=1)


def straight(x: Tensor, t: Tensor) -> Tensor:
    x0, noise = parts(x, t, 1 - t)
    return x0 - noise


def straight_back(x: Tensor, s: Tensor) -> Tensor:
    return -straight(x, 1 - s / 1000)


def preconditioned(y: Tensor, c_noise: Tensor) -> Tensor:
    """The F with D = c_skip x + c_out F for sigma_data = .7, at y = c_in x."""
    sigma = (4 * c_noise).exp()
    c_in = (sigma**2 + 0.49).rsqrt()
    x = y / c_in[:, None]
    x0, _ = parts(x, torch.ones_like(sigma), sigma)
    return (x0 - 0.49 * (c_in**2)[:, None] * x) / (0.7 * sigma * c_in)[:, None]


ADAPTERS = {
    "denoiser": Denoiser(GAUSSIAN.denoise, SHAPE),
    "denoiser by rows": Denoiser(
        lambda x, sigma: parts(x, torch.ones_like(sigma), sigma)[0], SHAPE, per_row=True
    ),
    "edm": EDM(preconditioned, SHAPE, sigma_data=0.7),
    "noise": continuous("noise"),
    "sample": continuous("sample"),
    "velocity": continuous("velocity", time_scale=999.0),
    "learned variance": VariancePreserving(learned_variance, SHAPE),
    "steps of noise": discrete("noise"),
    "steps of the sample": discrete("sample"),
    "steps of velocity": discrete("velocity"),
    "flow": FlowMatching(straight, SHAPE),
    "flow in reverse": FlowMatching(straight_back, SHAPE, reverse=True, time_scale=1000.0),
    "rescaled": rescaled(rescaled(GAUSSIAN, 0.5, -0.5), 2.0, 1.0),
}
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))


def at(sigma: float) -> Tensor:
    return PROBLEM.mean + (1 + sigma) * normal(5, 6, seed=7)


@every_adapter
@pytest.mark.parametrize("sigma", SIGMAS)
def test_that_an_exact_network_gives_the_denoiser_of_the_gaussian(adapter, sigma):
    assert isinstance(adapter, Prior)
    x = at(sigma)
    exact = GAUSSIAN.denoise(x, sigma)
    torch.testing.assert_close(adapter.denoise(x, sigma), exact, rtol=1e-5, atol=1e-5)


@every_adapter
@pytest.mark.parametrize("sigma", SIGMAS)
def test_that_an_exact_network_has_the_jacobian_of_the_gaussian(adapter, sigma):
    x, v = at(sigma), normal(5, 6, seed=8)
    exact = GAUSSIAN.vjp(x, sigma, v)
    torch.testing.assert_close(vjp(adapter, x, sigma, v), exact, rtol=1e-5, atol=1e-5)


def test_that_the_continuous_time_is_that_of_the_schedule():
    t = 0.37
    sigma = float(np.sqrt(np.expm1(0.1 * t + 19.9 / 2 * t**2)))
    prior = VariancePreserving(straight, SHAPE, time_scale=10.0)
    assert prior.time(sigma) == pytest.approx(3.7)
    assert prior.sigma_max == pytest.approx(float(vp(1)), rel=1e-12)
    constant = VariancePreserving(straight, SHAPE, beta_min=3.0, beta_d=0.0)
    assert constant.time(float(np.sqrt(np.expm1(3.0 * t)))) == pytest.approx(t)


def test_that_the_time_at_a_training_step_is_its_index():
    time = discrete("noise").time
    for index in (0, 1, 250, 999):
        assert time(float(ABAR_LEVELS[index])) == pytest.approx(index, abs=1e-6)
    assert time(float((ABAR_LEVELS[10] * ABAR_LEVELS[11]).sqrt())) == pytest.approx(10.5)
    assert time(1e-4) == 0


def test_that_integer_times_are_whole_and_the_nearest_step():
    seen = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.append(time)
        return x

    prior = VariancePreserving(network, SHAPE, alphas_cumprod=ABAR, integer_times=True)
    prior.denoise(at(1.0), float(ABAR_LEVELS[10] * 1.001))
    assert seen[0].dtype == torch.int64
    assert seen[0].tolist() == [10] * 5


def test_that_above_its_training_a_network_is_asked_at_its_highest_level():
    prior = VariancePreserving(continuous("noise").network, SHAPE, beta_d=8.0)
    x = at(80.0)
    below = prior.denoise(x * prior.sigma_max / 400, prior.sigma_max)
    torch.testing.assert_close(prior.denoise(x, 400.0), below)


def test_that_a_last_step_without_signal_is_a_noise_level_that_is_never_reached():
    zero = torch.cat([ABAR, torch.zeros(1)])  # rescale_betas_zero_snr
    prior = VariancePreserving(discrete("velocity").network, SHAPE, "velocity", zero)
    assert prior.sigma_max == pytest.approx(float(ABAR_LEVELS[-1]))
    assert bool(prior.denoise(at(500.0), 500.0).isfinite().all())


def test_that_clip_bounds_the_denoised_members():
    free, clipped = continuous("noise"), continuous("noise", clip=0.5)
    x = at(1.0)
    bounded = free.denoise(x, 0.5).clamp(-0.5, 0.5)
    assert bool((bounded.abs() == 0.5).any())
    torch.testing.assert_close(clipped.denoise(x, 0.5), bounded)


# --- range ----------------------------------------------------------------------------------


def test_that_a_rescaled_gaussian_is_the_gaussian_of_the_new_numbers():
    inside, offset = PROBLEM.gaussian, normal(6, seed=3)
    prior: Any = rescaled(inside, 0.25, offset)
    exact = enkg.Gaussian.from_covariance(0.25 * PROBLEM.mean + offset, 0.0625 * PROBLEM.covariance)
    assert all(isinstance(prior, kind) for kind in (Drawable, Flowing, White))
    x, v = 2 * normal(5, 6), normal(5, 6, seed=1)
    torch.testing.assert_close(prior.denoise(x, 0.3), exact.denoise(x, 0.3))
    torch.testing.assert_close(prior.vjp(x, 0.3, v), exact.vjp(x, 0.3, v))
    torch.testing.assert_close(prior.flow(x, 3.0, 0.2), exact.flow(x, 3.0, 0.2))
    torch.testing.assert_close(prior.draw(0, [2, 5], 0), 0.25 * inside.draw(0, [2, 5], 0) + offset)
    torch.testing.assert_close(prior.scales, exact.scales)
    torch.testing.assert_close(prior.from_white(v), 0.25 * inside.from_white(v) + offset)


def test_that_a_rescaled_prior_has_no_ability_that_the_prior_has_not():
    prior = rescaled(continuous("noise"), 2.0)
    assert not isinstance(prior, Drawable | Flowing | White)
    mixture = rescaled(PROBLEM.one_component, 2.0)
    assert isinstance(mixture, Drawable)
    assert not isinstance(mixture, Flowing)
    again = pickle.loads(pickle.dumps(mixture))
    assert torch.equal(again.denoise(at(1.0), 1.0), mixture.denoise(at(1.0), 1.0))
    assert isinstance(again, Drawable)


def test_that_a_range_that_is_none_is_refused():
    latent = enkg.latent(GAUSSIAN, lambda z: z, (6,))
    with pytest.raises(enkg.InputError, match="rescale the prior inside"):
        rescaled(latent, 2.0)
    for scale in (0.0, -1.0, inf, nan):
        with pytest.raises(enkg.InputError, match="expected a positive number"):
            rescaled(GAUSSIAN, scale)
    with pytest.raises(enkg.InputError, match=r"an offset of shape \(5,\)"):
        rescaled(GAUSSIAN, 1.0, torch.zeros(5))
    with pytest.raises(enkg.InputError, match="finite"):
        rescaled(GAUSSIAN, 1.0, nan)
    with pytest.raises(enkg.InputError, match="the prior is a str"):
        rescaled("mine", 1.0)  # pyright: ignore[reportArgumentType]


# --- torch modules --------------------------------------------------------------------------


class Small(nn.Module):
    """A network in float32 that is random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(7, 6), nn.Dropout(0.5)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen.append(time.dtype)
        return self.drop(self.layer(torch.cat([x, time[:, None]], dim=1)))


@pytest.mark.parametrize("kind", [EDM, VariancePreserving, FlowMatching])
def test_that_a_module_works_in_its_own_precision_and_in_evaluation_mode(kind):
    network = Small().train()
    prior = kind(network, SHAPE)
    assert not network.training
    network.train()  # whoever does that later must not make the prior random
    x = at(1.0)
    assert prior.denoise(x, 0.4).dtype == torch.float64
    assert torch.equal(prior.denoise(x, 0.4), prior.denoise(x, 0.4))
    assert set(network.seen) == {torch.float32}


def test_that_a_module_goes_where_the_members_are():
    network = Small()
    away = VariancePreserving(network, SHAPE).denoise(at(1.0).to("meta"), 0.4)
    assert away.device == network.layer.weight.device == torch.device("meta")


def test_that_a_method_of_a_module_is_taken_for_the_module():
    network = Small().train()
    prior = FlowMatching(network.forward, SHAPE)
    prior.denoise(at(1.0), 0.4)
    assert not network.training
    assert network.seen == [torch.float32]


def test_that_no_graph_is_kept_unless_the_members_ask_for_one():
    prior = EDM(Small(), SHAPE)  # its weights do require a gradient
    x = at(1.0)
    assert not prior.denoise(x, 0.4).requires_grad
    v = normal(5, 6, seed=1)
    exact = torch.autograd.functional.vjp(lambda y: prior.denoise(y, 0.4), x, v)[1]
    torch.testing.assert_close(vjp(prior, x, 0.4, v), exact)


def test_that_a_prior_of_a_module_can_be_pickled():
    prior = VariancePreserving(Small(), SHAPE, alphas_cumprod=ABAR)
    again = pickle.loads(pickle.dumps(prior))
    x = at(1.0)
    assert torch.equal(again.denoise(x, 0.4), prior.denoise(x, 0.4))
    assert "Linear" not in repr(prior)


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Denoiser, EDM, VariancePreserving, FlowMatching])
def test_that_what_is_no_network_is_refused(kind):
    with pytest.raises(enkg.InputError, match="the network is a int; expected a function"):
        kind(3, SHAPE)
    with pytest.raises(enkg.InputError, match="expected the sizes of one member"):
        kind(straight, (6.5,))
    with pytest.raises(enkg.InputError, match=r"given shape \(5, 6\) and returned \(5, 3\)"):
        kind(lambda x, t: x[:, :3], SHAPE).denoise(at(1.0), 1.0)
    with pytest.raises(enkg.InputError, match="returned a tuple; expected a tensor"):
        kind(lambda x, t: (x,), SHAPE).denoise(at(1.0), 1.0)
    with pytest.raises(enkg.InputError, match=r"a batch of shape \(5, 6\); expected"):
        kind(straight, (7,)).denoise(at(1.0), 1.0)


def test_that_twice_the_channels_are_a_learned_variance_of_vp_networks_only():
    with pytest.raises(enkg.InputError, match=r"returned \(5, 12\)"):
        FlowMatching(learned_variance, SHAPE).denoise(at(1.0), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predicts": "epsilon"}, "predicts is 'epsilon'; expected one of noise, sample"),
        ({"alphas_cumprod": BETAS}, "falling from below 1"),
        ({"alphas_cumprod": [[0.5, 0.1]]}, r"shape \(1, 2\)"),
        ({"alphas_cumprod": [1.0, 0.5]}, "falling from below 1"),
        ({"alphas_cumprod": [0.9, nan]}, "falling from below 1"),
        ({"integer_times": True}, "has no integer times"),
        ({"beta_d": -1.0}, "beta_d >= 0"),
        ({"beta_min": 0.0}, "beta_min is 0.0; expected a positive number"),
        ({"clip": 0.0}, "clip is 0.0"),
    ],
)
def test_that_a_schedule_that_is_none_is_refused(options, message):
    with pytest.raises(enkg.InputError, match=message):
        VariancePreserving(straight, SHAPE, **options)
    with pytest.raises(enkg.InputError, match="sigma_data is 0"):
        EDM(straight, SHAPE, sigma_data=0)
    with pytest.raises(enkg.InputError, match="time_scale is 0"):
        FlowMatching(straight, SHAPE, time_scale=0)


# --- a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["velocity", "flow", "edm"])
def test_that_a_run_with_an_exact_network_samples_the_posterior(name):
    experiment = enkg.Experiment(
        prior=ADAPTERS[name],
        simulator=PROBLEM.simulator,
        observation=PROBLEM.observation,
        guidance=enkg.EnKG(members=1000),
        double=True,
        chunk=1000,
    )
    found = torch.from_numpy(values(enkg.run(experiment), "posterior", "x"))
    error, spread = whitened(found, *PROBLEM.posterior)
    assert error < 0.2  # sqrt(6 / 1000) = .08 for exact draws
    assert 0.7 < spread[0] < spread[-1] < 1.3
