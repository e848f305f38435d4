"""The preconditioned denoiser: what it is with an exact network, and with none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import enkg
from enkg.learned.base import Kind, fitted
from enkg.learned.denoiser import HIGHEST, LOWEST, TIMES, Preconditioned, times
from enkg.learned.network import UNet
from tests.enkg.learned.fields import Pointwise, drawn, stationary
from tests.enkg.problems import normal


class Said(nn.Module):
    """A network that answers what it is told, and remembers what it was asked."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.asked = x, time
        return self.answer(x, time)


def none(x: Tensor, time: Tensor) -> Tensor:
    return torch.zeros_like(x[:, :1])


def built(kind: Kind = "white", network: Any = None, samples=None) -> Preconditioned:
    x = drawn(60) if samples is None else samples
    return Preconditioned(network or Said(none), fitted(kind, x), x.shape[1:])


@pytest.mark.parametrize("kind", ["white", "spectrum", "components"])
def test_that_without_a_correction_it_is_the_linear_denoiser(kind):
    module, x = built(kind), normal(5, 8, 8).float()
    for sigma in (0.01, 1.0, 50.0):
        level = torch.full((5,), sigma)
        assert torch.equal(module(x, level), fitted(kind, drawn(60)).denoise(x, level))


def test_that_a_new_network_is_no_correction():
    module = built(network=UNet((4, 8), groups=4).build((8, 8), 2))
    x = normal(3, 8, 8).float()
    assert not module.parts(x, torch.ones(3))[2].any()


@pytest.mark.parametrize("kind", ["spectrum", "components"])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 20.0])
def test_that_the_loss_of_no_correction_is_one_at_every_level(kind, sigma):
    x = drawn(4000)  # enough that components of the samples are those of the law
    module = built(kind, samples=x)
    loss = module.loss(x, torch.full((4000,), sigma), normal(4000, 8, 8).float())
    assert loss.shape == (4000,)
    error = float(loss.std()) / 4000**0.5
    assert float(loss.mean()) == pytest.approx(1, abs=4.5 * error)
    assert error < 0.01


def test_that_the_loss_is_the_square_error_in_units_of_the_base():
    module = built("spectrum", Pointwise().build((8, 8), 2))
    x, sigma, noise = drawn(6), torch.logspace(-1, 1, 6), normal(6, 8, 8).float()
    denoised = module(x + sigma[:, None, None] * noise, sigma)
    expected = (denoised - x).square().mean(dim=(1, 2)) / module.base.error(sigma) ** 2
    torch.testing.assert_close(module.loss(x, sigma, noise), expected, rtol=1e-4, atol=0)


class Two:
    """+-a at one point with probability a half each, and its exact denoiser a tanh(a x / s^2)."""

    a = 1.7

    def draw(self, count: int) -> Tensor:
        return self.a * normal(count, 1, 1).sign().float()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.a * torch.tanh(self.a * x / sigma.reshape(-1, 1, 1) ** 2)


def test_that_the_exact_denoiser_minimises_the_loss():
    law, count, sigma = Two(), 40_000, 1.5
    x, noise, level = (
        law.draw(count),
        normal(count, 1, 1, seed=4).float(),
        torch.full((40_000,), 1.5),
    )
    plain = built("components", samples=x)

    def exact(inputs: Tensor, time: Tensor) -> Tensor:
        # Network inputs back to x, and the exact denoiser to what the network should say.
        taken, kept = plain.base.taken(level[:1]), plain.base.kept(level[:1])
        linear = inputs[:, 1] * kept + plain.base.mean
        noisy = inputs[:, 0] * taken + linear
        return ((law.denoise(noisy, level) - linear) / plain.base.error(level[:1])).unsqueeze(1)

    def loss(answer) -> float:
        module = built("components", Said(answer), x)
        return float(module.loss(x, level, noise).mean())

    module = built("components", Said(exact), x)
    noisy = x + sigma * noise
    torch.testing.assert_close(module(noisy, level), law.denoise(noisy, level), atol=1e-5, rtol=0)
    best = loss(exact)
    assert best < loss(none) - 0.05
    # In any direction the loss grows by the square of the step: there is no slope.
    for bump in (
        lambda x: torch.ones_like(x[:, :1]),
        lambda x: x[:, :1],
        lambda x: torch.sin(2 * x[:, :1]),
    ):
        up, down = (loss(lambda x, t, h=h, b=bump: exact(x, t) + h * b(x)) for h in (0.1, -0.1))
        assert min(up, down) > best
        assert (up - down) / (up + down - 2 * best) == pytest.approx(0, abs=0.15)


def test_that_the_network_sees_what_is_taken_for_noise_and_what_is_kept():
    network: Any = Said(none)
    module = built("components", network)
    x, sigma = normal(4, 8, 8).float(), torch.tensor([0.1, 1.0, 5.0, 50.0])
    module(x, sigma)
    asked, time = network.asked
    wide, base = sigma[:, None, None], module.base
    assert asked.shape == (4, 2, 8, 8)
    linear = base.denoise(x, sigma)
    taken, kept = base.taken(sigma).reshape(wide.shape), base.kept(sigma).reshape(wide.shape)
    torch.testing.assert_close(asked[:, 0], (x - linear) / taken)
    torch.testing.assert_close(asked[:, 1], (linear - base.mean) / kept)
    assert torch.equal(time, times(sigma))


def test_that_what_the_network_sees_is_of_order_one_at_every_level():
    x = drawn(2000)
    network: Any = Said(none)
    module = built("spectrum", network, x)
    for sigma in (0.002, 0.1, 1.0, 80.0):
        module(x + sigma * normal(2000, 8, 8).float(), torch.full((2000,), sigma))
        for seen in network.asked[0].unbind(dim=1):
            assert float(seen.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
def test_that_with_a_white_base_both_inputs_are_the_published_one(sigma):
    network: Any = Said(none)
    x, level = normal(4, 8, 8).float(), torch.full((4,), sigma)
    built("white", network)(x, level)
    for seen in network.asked[0].unbind(dim=1):
        torch.testing.assert_close(seen, x / (1 + sigma**2) ** 0.5, rtol=2e-3, atol=2e-3)


def test_that_times_are_linear_in_the_logarithm():
    found = times(torch.tensor([LOWEST, (LOWEST * HIGHEST) ** 0.5, HIGHEST]))
    torch.testing.assert_close(found, torch.tensor([0.0, TIMES / 2, TIMES]), atol=1e-3, rtol=0)


def filled(network: nn.Module) -> nn.Module:
    """The network with random weights, also where it begins with zeros."""
    torch.manual_seed(1)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    return network


def test_that_rows_do_not_see_each_other():
    module = built("components", filled(UNet((4, 8), groups=4).build((8, 8), 2)))
    x, sigma = normal(5, 8, 8).float(), torch.tensor([0.1, 0.4, 1.0, 3.0, 30.0])
    with torch.no_grad():
        whole = module(x, sigma)
        changed = x.clone()
        changed[1:] = float("nan")
        assert torch.equal(module(changed, sigma)[0], whole[0])
        for k in range(5):
            alone = module(x[k : k + 1], sigma[k : k + 1])
            torch.testing.assert_close(alone[0], whole[k], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [1, 2])
def test_that_a_periodic_network_commutes_with_shifts(patch):
    x = drawn(4, size=16)
    base, sigma = fitted("white", x), torch.full((4,), 0.7)
    step = 2 * patch  # the grid of the network is halved once

    def difference(periodic: bool) -> float:
        network = UNet((4, 8), groups=4, patch=patch, periodic=periodic).build((16, 16), 2)
        module = Preconditioned(filled(network), base, (16, 16))
        with torch.no_grad():
            shifted = module(x.roll((step, -step), (1, 2)), sigma)
            return float((shifted - module(x, sigma).roll((step, -step), (1, 2))).abs().max())

    assert difference(True) < 1e-4
    assert difference(False) > 1e-2


def test_that_bfloat16_is_for_the_network_alone():
    module = built("components", filled(UNet((4, 8), groups=4).build((8, 8), 2)))
    x, sigma = normal(5, 8, 8).float(), torch.full((5,), 0.6)
    with torch.no_grad():
        linear, error, full = module.parts(x, sigma)
        module.precision = "bfloat16"
        again, same, short = module.parts(x, sigma)
        answer = module(x, sigma)
    assert torch.equal(again, linear)
    assert torch.equal(same, error)
    assert short.dtype == answer.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in module.parameters())
    assert not torch.equal(short, full)
    assert float((short - full).norm() / full.norm()) < 0.03


def test_that_channels_are_planes_of_their_own():
    x = normal(4, 3, 8, 8).float()
    module = built("components", samples=x, network=Pointwise().build((3, 8, 8), 2))
    assert module(x, torch.ones(4)).shape == (4, 3, 8, 8)
    assert module.loss(x, torch.ones(4), x).shape == (4,)


def test_that_it_learns_the_law_of_a_gaussian_with_a_white_base():
    # The best correction to the white base is linear, and the spectrum's denoiser says which.
    x, sigma = drawn(3000), 0.8
    gaussian = stationary()
    noise, level = normal(3000, 8, 8, seed=5).float(), torch.full((3000,), sigma)
    white = built("white", samples=x)
    noisy = x + sigma * noise
    base = white.base

    def exact(inputs: Tensor, time: Tensor) -> Tensor:
        best = gaussian.denoise(noisy.double(), sigma).float()
        return ((best - base.denoise(noisy, level)) / base.error(level[:1])).unsqueeze(1)

    module = built("white", Said(exact), x)
    expected = float((gaussian.variance * sigma**2 / (gaussian.variance + sigma**2)).mean())
    found = float(module.loss(x, level, noise).mean()) * float(base.error(level[:1])) ** 2
    assert found == pytest.approx(expected, rel=0.02)
    assert isinstance(gaussian, enkg.Prior)
