"""Figures of merit of a learned prior: closed forms of its errors, and samples drawn from it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import enkg
from enkg.errors import InputError
from enkg.learned import merits
from enkg.schedule import karras
from tests.enkg.problems import normal

SIGMAS = (0.03, 0.3, 1.0, 3.0, 30.0)
VARIANCE = torch.linspace(0.1, 4.0, 24, dtype=torch.float64)
GAUSSIAN = enkg.Gaussian(torch.ones(4, 6), VARIANCE, enkg.RealFourier((4, 6)))
HELD_OUT = GAUSSIAN.draw(0, range(3000), 0)


class Network:
    """A denoiser and nothing else, as a learned prior is one."""

    shape = (4, 6)

    def __init__(self, function: Callable[[Tensor, float], Tensor]) -> None:
        self.function = function

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.function(x, sigma)


def closed(sigma: float) -> float:
    return float((VARIANCE * sigma**2 / (VARIANCE + sigma**2)).mean().sqrt())


# --- denoising ------------------------------------------------------------------------------


def test_that_the_true_gaussian_has_the_least_error_in_closed_form():
    found = merits.denoising(GAUSSIAN, HELD_OUT, SIGMAS, GAUSSIAN, GAUSSIAN)
    # 72,000 numbers: a standard error of about 0.4 %.
    assert found.learned == pytest.approx([closed(s) for s in SIGMAS], rel=0.02)
    assert found.linear == found.learned == found.exact
    assert found.ratio == (1,) * 5
    assert found.ratio_error == found.difference == found.excess == (0,) * 5


def test_that_the_wrong_gaussian_has_its_own_closed_form():
    wrong = replace(GAUSSIAN, variance=torch.ones(24))
    found = merits.denoising(wrong, HELD_OUT, SIGMAS, GAUSSIAN, GAUSSIAN)
    assert found.difference is not None
    assert found.excess is not None
    for k, sigma in enumerate(SIGMAS):
        gain = 1 / (1 + sigma**2)
        square = ((1 - gain) ** 2 * VARIANCE + gain**2 * sigma**2).mean()
        best = VARIANCE / (VARIANCE + sigma**2)
        apart = ((best - gain) ** 2 * (VARIANCE + sigma**2)).mean()
        assert found.learned[k] == pytest.approx(float(square.sqrt()), rel=0.02)
        assert found.difference[k] == pytest.approx(float(apart.sqrt()), rel=0.03)
        assert found.ratio[k] == pytest.approx(found.learned[k] / found.linear[k])
        assert 1 + found.excess[k] == pytest.approx(float(square.sqrt()) / closed(sigma), rel=2e-3)


def test_that_a_constant_error_is_the_difference_to_the_exact_denoiser():
    off = Network(lambda x, sigma: GAUSSIAN.denoise(x, sigma) + 0.25)
    found = merits.denoising(off, HELD_OUT[:100], SIGMAS, GAUSSIAN, GAUSSIAN)
    assert found.difference == pytest.approx((0.25,) * 5)


def test_that_the_standard_error_of_the_ratio_is_its_scatter():
    wrong = replace(GAUSSIAN, variance=torch.ones(24))
    found = [
        merits.denoising(wrong, HELD_OUT[50 * i : 50 * i + 50], (1.0,), GAUSSIAN, seed=i)
        for i in range(60)
    ]
    scatter = float(torch.tensor([f.ratio[0] for f in found]).std())
    said = sum(f.ratio_error[0] for f in found) / len(found)
    assert said == pytest.approx(scatter, rel=0.4)  # 9 % standard error of the scatter


def test_that_chunks_agree_and_keep_the_dtype():
    seen = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append((len(x), x.dtype))
        return x / (1 + sigma**2)

    network, few = Network(denoise), HELD_OUT[:10].float()
    one, other = (merits.denoising(network, few, SIGMAS, GAUSSIAN, chunk=c) for c in (3, 64))
    assert one.learned == pytest.approx(other.learned, rel=1e-6)
    assert one.exact is None
    assert max(n for n, _ in seen[: 4 * len(SIGMAS)]) == 3
    assert {kind for _, kind in seen} == {torch.float32}


def test_that_noise_is_keyed_by_seed_and_level():
    few = HELD_OUT[:10]
    one, again, other = (
        merits.denoising(GAUSSIAN, few, (1.0, 1.0), GAUSSIAN, seed=s) for s in (0, 0, 1)
    )
    assert one == again
    assert len({*one.learned, *other.learned}) == 4


# --- draw -----------------------------------------------------------------------------------


BARE = Network(GAUSSIAN.denoise)


def after(levels: int, eta: float) -> Tensor:
    """Variance that the reverse SDE of the Gaussian ends with, step by step in closed form."""
    variance = torch.full_like(VARIANCE, 80.0**2)
    for sigma, to in pairwise([*karras(levels + 1, 80.0, merits.SIGMA_MIN).tolist(), 0.0]):
        up = eta * to * (1 - (to / sigma) ** 2) ** 0.5
        gain = VARIANCE / (VARIANCE + sigma**2)
        factor = gain + (to**2 - up**2) ** 0.5 / sigma * (1 - gain)
        variance = factor**2 * variance + up**2
    return variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_that_draws_have_the_moments_of_the_prior(eta):
    x = merits.draw(BARE, 2000, 3, eta=eta, chunk=500)
    assert x.dtype == torch.float32
    z = GAUSSIAN.transform.forward(x.double() - GAUSSIAN.mean)
    assert float(z.mean()) == pytest.approx(0, abs=0.03)
    # First-order steps lose variance; second-order ones do not. Standard error: 3.2 %.
    expected = VARIANCE if eta == 0 else after(20, eta)
    torch.testing.assert_close(z.var(dim=0), expected, rtol=0.14, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_that_a_draw_depends_on_its_number_alone(eta):
    like = torch.empty(0, dtype=torch.float64)
    one, other = (merits.draw(BARE, 7, 1, eta=eta, chunk=c, like=like) for c in (2, 64))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(merits.draw(BARE, 3, 1, eta=eta, like=like), one[:3])
    assert not torch.allclose(merits.draw(BARE, 7, 2, eta=eta, like=like), one)


def test_that_draws_ask_as_often_as_they_say():
    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return GAUSSIAN.denoise(x, sigma)

    for eta, expected in ((0.0, 2 * 12 + 2), (1.0, 12 + 2)):  # one more for the centre
        calls.clear()
        merits.draw(Network(denoise), 2, 0, sigma_max=20.0, levels=12, eta=eta)
        assert len(calls) == expected
        assert max(calls) == 20.0


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"chunk": 0}, {"levels": 0}, {"sigma_max": 0.001}, {"eta": 1.5}]
)
def test_that_impossible_draws_are_refused(wrong):
    with pytest.raises(InputError, match="expected whole numbers from 1"):
        merits.draw(BARE, **{"count": 2, "seed": 0, **wrong})


# --- all ------------------------------------------------------------------------------------


def measured(prior=BARE, samples=None, **more) -> merits.Merits:
    samples = GAUSSIAN.draw(7, range(200), 0) if samples is None else samples
    training = GAUSSIAN.draw(5, range(400), 0)
    return merits.measure(prior, HELD_OUT[:300], training, samples, GAUSSIAN, **more)


def test_that_the_true_prior_has_no_fault():
    found = measured(exact=GAUSSIAN)
    assert found.denoising.sigmas == merits.SIGMAS
    assert found.denoising.ratio == pytest.approx((1,) * len(merits.SIGMAS))
    assert found.spectrum is not None
    assert found.spectrum.mean_error < 0.1
    assert found.values.wasserstein < 0.1
    assert found.energy.value < 2 * found.energy.floor
    assert found.memory.ratio == pytest.approx(1, abs=0.1)
    assert found.memory.share < 0.05
    assert found.distance is not None
    assert found.distance_bounds is not None
    assert found.distance_bounds[0] < found.distance < found.distance_bounds[1]
    assert (found.samples, found.lost, found.held_out, found.training) == (200, 0, 300, 400)


def test_that_a_wrong_prior_has_faults_in_every_figure():
    wrong = replace(GAUSSIAN, variance=torch.full((24,), 0.05))
    found = measured(Network(wrong.denoise), wrong.draw(7, range(200), 0), exact=GAUSSIAN)
    assert found.denoising.excess is not None
    assert found.denoising.ratio[5] > 1 + 10 * found.denoising.ratio_error[5]
    assert found.denoising.excess[5] > 0.3
    assert found.spectrum is not None
    assert found.spectrum.mean_error > 5 * found.spectrum.mean_floor
    assert found.values.wasserstein > 5 * found.values.floor
    assert found.energy.value > 5 * found.energy.floor
    assert found.distance is not None
    assert found.distance_bounds is not None
    assert found.distance > found.distance_bounds[1]  # held-out data are no samples of it


def test_that_a_dictionary_of_merits_is_plain():
    def kinds(value) -> set[type]:
        inner = value.values() if isinstance(value, dict) else value
        if not isinstance(value, dict | list):
            return {type(value)}
        return {type(value)}.union(*map(kinds, inner))

    found = measured(sigmas=(0.5, 1.0))
    given = found.as_dict()
    assert kinds(given) == {dict, list, float, int}
    assert "exact" not in given["denoising"]
    assert given["denoising"]["sigmas"] == [0.5, 1.0]
    assert given["values"]["samples"]["kurtosis"] == found.values.samples.kurtosis
    assert json.loads(json.dumps(given, allow_nan=False)) == given


def test_that_lost_samples_are_counted_and_left_out():
    samples = GAUSSIAN.draw(7, range(200), 0)
    broken = samples.clone()
    broken[3, 0, 0], broken[5] = torch.nan, torch.inf
    keep = [k for k in range(200) if k not in (3, 5)]
    found, other = measured(samples=broken), measured(samples=samples[keep])
    assert (found.lost, found.samples) == (2, 198)
    assert replace(found, lost=0) == other


def test_that_no_gradients_are_kept():
    weight = torch.ones((), requires_grad=True)
    kept = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        out = weight * GAUSSIAN.denoise(x, sigma)
        kept.append(out.requires_grad)
        return out

    network = Network(denoise)
    measured(network, sigmas=(1.0,))
    merits.draw(network, 2, 0, levels=2)
    assert not any(kept)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": torch.full((9, 4, 6), torch.nan)}, "finite drawn samples"),
        ({"held_out": normal(9, 6, 4)}, "held-out samples of shape"),
        ({"training": normal(1, 4, 6)}, "at least 2"),
        ({"held_out": torch.ones(9, 4, 6)}, "equal"),
    ],
)
def test_that_samples_that_cannot_be_compared_are_refused(wrong, message):
    given = {name: normal(9, 4, 6) for name in ("held_out", "training", "samples")}
    with pytest.raises(InputError, match=message):
        merits.measure(BARE, **{**given, **wrong}, linear=GAUSSIAN)


def test_that_importing_them_is_light():
    code = "import sys, enkg.learned.merits, enkg.learned.figures; "
    code += "print([m for m in ('scipy.stats', 'matplotlib', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
