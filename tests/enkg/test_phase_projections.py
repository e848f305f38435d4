"""Phase retrieval by projections: the laws of ER, HIO and OSS on images of 6 x 6 and 8 x 8 points.

Turns by 180 degrees cannot be told apart, so errors are those after alignment.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import enkg
from enkg.guidance.error_reduction import ER
from enkg.guidance.hio import HIO
from enkg.guidance.oss import OSS
from enkg.guidance.phase_projections import AlternatingProjections
from enkg.prior import Gaussian
from enkg.transform import Identity
from simulators import images
from tests.enkg.problems import values

SHAPE = (6, 6)
PHASE = images.Phase(SHAPE)
TRUTH = np.random.default_rng(0).uniform(-1, 1, SHAPE)
METHODS = [ER, HIO, OSS]
every_method = pytest.mark.parametrize("kind", METHODS)


class Seen:
    """Phase retrieval whose answers are kept, and fail for members `dead` says."""

    def __init__(self, dead=lambda x, call: np.zeros(len(x), bool)) -> None:
        self.project, self.dead, self.calls = PHASE.project, dead, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = PHASE(x)
        y[self.dead(x, self.calls)] = np.nan
        self.calls += 1
        return y


def experiment(method, simulator=None, noise: float = 0.0, **changes) -> enkg.Experiment:
    zero = torch.zeros(SHAPE)
    y = PHASE(TRUTH[None])[0]
    y = y + noise * np.random.default_rng(1).standard_normal(y.shape)
    fields = {
        "prior": Gaussian(zero, torch.ones(zero.numel()), Identity(SHAPE)),
        "simulator": simulator or PHASE,
        "observation": enkg.Observation(y, std=max(noise, 1e-3)),
        "guidance": method,
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


def ended(method, **changes) -> np.ndarray:
    return values(enkg.run(experiment(method, **changes)), "posterior", "x")


def error(x: np.ndarray) -> float:
    """Relative error after a turn by 180 degrees, where that helps; the support fixes shifts."""
    turned = min(np.linalg.norm(x - TRUTH), np.linalg.norm(x[::-1, ::-1] - TRUTH))
    return float(turned / np.linalg.norm(TRUTH))


def test_that_hio_recovers_an_image_of_known_support_up_to_a_turn():
    for x in ended(HIO(members=3, iterations=1500, stages=3)):
        assert error(x) < 1e-6


def test_that_the_residual_of_error_reduction_never_increases():
    # The estimate after each single projection, with noise; see the inequality in its docstring.
    tree = enkg.run(experiment(ER(iterations=150, stages=150, best_of=1), noise=0.05))
    misfit = values(tree, "trace", "misfit_per_datum")
    assert len(misfit) == 150
    assert (np.diff(misfit) <= 1e-9 * misfit[:-1]).all()
    assert misfit[-1] < 0.5 * misfit[0]


def test_that_error_reduction_stalls_where_hio_does_not():
    settings = {"members": 3, "iterations": 600, "best_of": 1, "stages": 2}
    stalled = [error(x) for x in ended(ER(**settings))]
    freed = [error(x) for x in ended(HIO(**settings))]
    assert np.median(stalled) > 0.05
    assert np.median(freed) < np.median(stalled)


@every_method
def test_that_the_truth_is_a_fixed_point(kind):
    method: AlternatingProjections = kind(stages=2, iterations=2)
    support = torch.from_numpy(PHASE.project.support)
    u = torch.zeros(1, *support.shape, dtype=torch.float64)
    u[0, : SHAPE[0], : SHAPE[1]] = torch.from_numpy((TRUTH + 1) / 2)
    y = PHASE(TRUTH[None])[0]
    p = torch.from_numpy(PHASE.project.onto(u.numpy(), y))
    torch.testing.assert_close(p, u, rtol=0, atol=1e-12)
    moved = method.moved(u, u, support & (u >= 0), support, 0)
    inside = support.expand_as(u)
    torch.testing.assert_close(moved[inside], u[inside], rtol=0, atol=1e-12)


def test_that_a_step_of_hio_is_fienups():
    u, p = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[0.3, -0.2, 0.4]])
    support = torch.tensor([True, True, False])
    method = HIO(feedback=0.9, iterations=10, stages=2, reduction=4)
    expected = torch.tensor([[0.3, 0.5 + 0.9 * 0.2, 0.5 - 0.9 * 0.4]])
    torch.testing.assert_close(method.moved(u, p, support & (p >= 0), support, 5), expected)
    settled = torch.tensor([[0.3, 0.0, 0.0]])
    torch.testing.assert_close(method.moved(u, p, support & (p >= 0), support, 6), settled)


def test_that_oss_smooths_outside_the_support_alone_and_ever_more():
    method = OSS(iterations=100, stages=10)
    assert method.width(0, 12) == 12
    assert method.width(9, 12) == 1
    support = torch.from_numpy(PHASE.project.support)
    noise = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    obeys, zero = torch.zeros_like(noise, dtype=torch.bool), torch.zeros_like(noise)
    found = [method.moved(noise, zero, obeys, support, k) for k in (0, 50, 99)]
    power = [float(u[:, ~support].square().sum()) for u in found]
    assert all(torch.equal(u[:, support], noise[:, support]) for u in found)
    assert power[0] > 1.3 * power[1] > 10 * power[2]
    # A wave of k = (3, 0) is multiplied by exp(-9 / (2 alpha^2)).
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(12.0).double() / 12)[:, None].expand(12, 12)
    out = method.moved(wave[None], zero, obeys, support, 0)[0]
    factor = np.exp(-9 / (2 * 12**2))
    torch.testing.assert_close(out[~support], factor * wave[~support], rtol=0, atol=1e-12)


def test_that_the_member_is_the_restart_and_stage_with_the_smallest_misfit():
    seen: list[float] = []
    y = PHASE(TRUTH[None])[0]

    class Keeping(Seen):
        def __call__(self, x: np.ndarray) -> np.ndarray:
            seen.append(float(np.linalg.norm(PHASE(x)[0] - y)))
            return super().__call__(x)

    method = OSS(iterations=200, stages=5, best_of=3)
    found = ended(method, simulator=Keeping())
    assert np.linalg.norm(PHASE(found)[0] - y) == pytest.approx(min(seen[:15]), rel=1e-12)


@every_method
def test_that_a_member_alone_is_the_member_in_company(kind):
    method = kind(iterations=30, stages=3, best_of=2, members=5)
    np.testing.assert_array_equal(ended(method)[:2], ended(replace(method, members=2)))


@every_method
def test_that_a_member_whose_simulator_fails_leaves_the_others_alone(kind):
    method = kind(iterations=30, stages=3, best_of=2, members=4)

    def second(x: np.ndarray, call: int) -> np.ndarray:
        return (np.arange(len(x)) == 1) & (call in (1, 2, 3))

    plain, found = ended(method), ended(method, simulator=Seen(second))
    np.testing.assert_array_equal(found[[0, 2, 3]], plain[[0, 2, 3]])
    assert np.isfinite(found).all()


def test_that_a_restart_whose_projection_fails_stays_where_it_was():
    class Failing:
        support, crop = PHASE.project.support, PHASE.project.crop

        def onto(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
            out = PHASE.project.onto(u, y)
            if not y_first:
                out[0] = np.nan
            y_first.clear()
            return out

    y_first = [True]  # the random phases of the start
    simulator = Seen()
    setattr(simulator, "project", Failing())  # noqa: B010
    method = HIO(iterations=20, stages=2, best_of=1)
    found, plain = ended(method, simulator=simulator), ended(method)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], plain[1])


@every_method
def test_that_calls_and_projections_are_counted(kind):
    method = kind(iterations=30, stages=3, best_of=2, members=4)
    summary = json.loads(enkg.run(experiment(method)).attrs["summary"])
    predicted = 4
    assert summary["calls"] - predicted == method.sweeps * 4 == 3 * 2 * 4
    assert summary["vjps"] == 4 * 2 * (30 + 1)
    assert summary["denoiser_calls"] == 0


def test_that_missing_magnitudes_are_left_free():
    y = PHASE(TRUTH[None])[0]
    mask = np.ones_like(y, dtype=bool)
    mask[5:8, 5:8] = False  # high frequencies, around the middle of the spectrum
    observation = enkg.Observation(np.where(mask, y, np.nan), std=1e-3, mask=mask)
    method = HIO(iterations=2000, stages=4)
    assert min(error(x) for x in ended(method, observation=observation)) < 1e-3


def test_that_the_constraint_lives_in_the_simulators_units():
    # Prior units z = x / 4: the same member, the same object.
    method = HIO(iterations=40, stages=2, best_of=2)
    plain = ended(method)
    np.testing.assert_allclose(ended(method, units=enkg.Affine(scale=4.0)), plain, atol=1e-12)
    assert plain.min() >= -1


@every_method
def test_that_a_simulator_without_the_projection_is_refused(kind):
    calls = []

    def plain(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return PHASE(x)

    with pytest.raises(enkg.MissingCapability, match=f"{kind.__name__} needs a simulator of magn"):
        enkg.run(experiment(kind(), simulator=plain))
    assert not calls


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ER, {"best_of": 0}),
        (ER, {"stages": 0}),
        (HIO, {"iterations": 5, "stages": 6}),
        (HIO, {"feedback": 0.0}),
        (HIO, {"reduction": -1}),
        (OSS, {"feedback": -1.0}),
    ],
)
def test_that_impossible_settings_are_refused(kind, fields):
    with pytest.raises(enkg.InputError):
        kind(**fields)


# --- the projection of the operator ----------------------------------------------------------


def test_that_the_projection_has_the_magnitudes_and_is_the_nearest():
    u = np.random.default_rng(2).standard_normal((3, 12, 12))
    y = PHASE(TRUTH[None])[0]
    p = PHASE.project.onto(u, y)
    found = np.abs(np.fft.fft2(p, norm="ortho"))
    np.testing.assert_allclose(found, np.broadcast_to(y, p.shape), rtol=1e-9)
    # Distance in Fourier space is that of the magnitudes: no array with these is nearer.
    gap = np.abs(np.abs(np.fft.fft2(u, norm="ortho")) - y)
    np.testing.assert_allclose(
        np.linalg.norm(p - u, axis=(1, 2)), np.linalg.norm(gap, axis=(1, 2)), rtol=1e-12
    )


def test_that_the_projection_works_row_by_row_to_the_last_bit():
    u = np.random.default_rng(3).standard_normal((7, 12, 12))
    y = PHASE(TRUTH[None])[0]
    whole = PHASE.project.onto(u, y)
    np.testing.assert_array_equal(PHASE.project.onto(u[4:5], y)[0], whole[4])


def test_that_a_cropped_object_has_the_magnitudes_of_its_member():
    u = np.where(PHASE.project.support, np.random.default_rng(4).uniform(size=(2, 12, 12)), 0)
    found = PHASE(PHASE.project.crop(u))
    np.testing.assert_allclose(found, np.abs(np.fft.fft2(u, norm="ortho")), atol=1e-12)
