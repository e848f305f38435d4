"""enkg check: wrong gradients, adjoints, pseudo-inverses and SVDs are found, right ones pass."""

import dataclasses

import numpy as np
import pytest
import torch

import enkg
from enkg.check import check
from enkg.findings import Grade
from tests.enkg.problems import Decomposition
from tests.enkg.test_check import grades, text

SIDE = 6
MATRIX = np.random.default_rng(0).standard_normal((SIDE, SIDE * SIDE)) / SIDE
PRIOR = enkg.Gaussian(torch.zeros(SIDE, SIDE), torch.ones(SIDE * SIDE), enkg.Identity((SIDE, SIDE)))


def flat(x):
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)


def linear(x):
    return np.stack([MATRIX @ row for row in flat(x)])


def square(x):
    return linear(x) + 0.5 * linear(x) ** 2


def gradient(x, v):
    return ((v * (1 + linear(x))) @ MATRIX).reshape(x.shape)


def adjoint(v):
    return (v @ MATRIX).reshape(-1, SIDE, SIDE)


def experiment(simulator, **changes) -> enkg.Experiment:
    observation = enkg.Observation(np.ones(SIDE), std=np.linspace(0.1, 0.5, SIDE))
    made = enkg.Experiment(PRIOR, simulator, observation, enkg.EnKG(members=50))
    return dataclasses.replace(made, **changes)


def with_vjp(f, vjp, **changes) -> enkg.Experiment:
    return experiment(enkg.Function(f, vjp=vjp), **changes)


def found(report, subject: str) -> list[Grade]:
    return [f.grade for f in report.findings if f.subject == subject]


def test_that_a_right_gradient_passes_in_two_calls_a_draw():
    counted = []

    def simulator(x):
        counted.append(len(x))
        return square(x)

    told = []
    made = with_vjp(simulator, gradient)
    report = check(made, 4, lambda done, total: told.append((done, total)))
    assert report.sound, text(report)
    assert grades(report)["vjp"] is Grade.GOOD
    assert report.facts["gradient"] == "checked in 8 calls, 8 vjps: vjp"
    assert sum(counted) == 15 + 8
    assert told[-1] == (23, 23)
    assert told == sorted(told)


WRONG = {
    "of the wrong sign": lambda x, v: -gradient(x, v),
    "half as long": lambda x, v: 0.5 * gradient(x, v),
    "a tenth too long": lambda x, v: 1.1 * gradient(x, v),
    "of exchanged axes": lambda x, v: gradient(x, v).swapaxes(1, 2),
    "of the linear part": lambda x, v: adjoint(v),
    "of another member": lambda x, v: gradient(x[::-1], v[::-1]),
    "zero": lambda x, v: np.zeros_like(x),
}


@pytest.mark.parametrize("fault", WRONG)
def test_that_a_wrong_gradient_is_found_out(fault):
    report = check(with_vjp(square, WRONG[fault]))
    assert not report.sound
    assert Grade.UNSOUND in found(report, "vjp"), text(report)
    assert "its sign, its scale, the order of its axes" in text(report)


def nan_spreads(x, v):
    return gradient(x, v) + 0 * v.sum()


BROKEN = {
    "raising": (lambda x, v: 1 // 0, "no finite gradient"),
    "infinite": (lambda x, v: gradient(x, v) / 0, "no finite gradient"),
    "of the shape of the data": (lambda x, v: v, "expected the shape of x"),
    "spoiled by its neighbours": (nan_spreads, "with a NaN among them"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_that_a_broken_gradient_is_found_out(fault):
    vjp, words = BROKEN[fault]
    report = check(with_vjp(square, vjp))
    assert Grade.UNSOUND in found(report, "vjp")
    assert words in text(report)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_that_the_rounding_of_float32_is_no_fault(offset):
    def single(x):
        return (square(x) + offset).astype(np.float32)

    report = check(with_vjp(single, lambda x, v: gradient(x, v).astype(np.float32)))
    assert found(report, "vjp") == [Grade.GOOD], text(report)


def test_that_a_curved_simulator_is_checked_with_a_smaller_step():
    def curved(x):
        return np.sin(30 * linear(x))

    def vjp(x, v):
        return (v * 30 * np.cos(30 * linear(x)) @ MATRIX).reshape(x.shape)

    report = check(with_vjp(curved, vjp))
    assert found(report, "vjp") == [Grade.GOOD], text(report)
    assert "0.001" in text(report)


def test_that_a_rough_simulator_leaves_a_doubt_and_no_verdict():
    def rough(x):
        return square(x) + 0.3 * np.sin(1e9 * linear(x))

    report = check(with_vjp(rough, gradient))
    assert found(report, "vjp") == [Grade.DOUBT], text(report)
    assert "adaptive steps" in text(report)


def test_that_a_draw_on_a_kink_leaves_a_doubt_and_no_verdict():
    kink = {}

    def bent(x):
        if not kink:
            kink["at"] = linear(x)[1]  # the second draw lies on it in all its data
        return np.maximum(linear(x), kink["at"])

    def vjp(x, v):
        return adjoint(v * (linear(x) >= kink["at"]))

    report = check(with_vjp(bent, vjp))
    assert found(report, "vjp") == [Grade.DOUBT], text(report)
    assert "3 of 4 draws" in text(report)


@pytest.mark.parametrize("units", [enkg.Affine(scale=3.0, offset=1.0), enkg.Log(scale=0.3)])
def test_that_the_units_belong_to_the_gradient(units):
    report = check(with_vjp(square, gradient, units=units))
    assert found(report, "vjp") == [Grade.GOOD], text(report)


def test_that_units_torch_cannot_differentiate_are_found():
    class Stiff(enkg.Affine):
        def to_simulator(self, x):
            return super().to_simulator(x).detach()

    report = check(with_vjp(square, gradient, units=Stiff(scale=2.0)))
    assert Grade.UNSOUND in found(report, "vjp")


def test_that_data_outside_the_mask_have_no_say():
    observation = enkg.Observation([1.0, np.nan, 1, 1, 1, 1], std=0.5, mask=np.arange(6) != 1)

    def holes(x):
        y = square(x)
        y[:, 1] = np.nan
        return y

    report = check(with_vjp(holes, gradient, observation=observation))
    assert found(report, "vjp") == [Grade.GOOD], text(report)


def test_that_a_simulator_without_gradient_gets_one_plain_line():
    report = check(experiment(square))
    assert "none; methods that need one are refused" in report.facts["gradient"]
    assert not found(report, "vjp")
    seen = check(with_vjp(square, gradient, observe=lambda y: y))
    assert seen.facts["gradient"].startswith("none with observe=")


# --- linear algebra ---------------------------------------------------------------------------


def pinv(y):
    return (y @ np.linalg.pinv(MATRIX).T).reshape(-1, SIDE, SIDE)


class Shaped(Decomposition):
    """The SVD of MATRIX for members of two axes."""

    def __init__(self):
        super().__init__(MATRIX)

    def vt(self, x):
        return super().vt(flat(x))

    def v(self, z):
        return super().v(z).reshape(-1, SIDE, SIDE)


def linear_with(**given) -> enkg.Experiment:
    return experiment(enkg.Function(lambda x: linear(x) + 2.0, **given))


def test_that_right_linear_algebra_passes():
    report = check(linear_with(adjoint=adjoint, pinv=lambda y: pinv(y - 2), svd=Shaped()))
    assert report.sound, text(report)
    for name in ("vjp", "adjoint", "pinv", "svd"):
        assert set(found(report, name)) == {Grade.GOOD}, text(report)
    assert "vjp, adjoint, pinv, svd" in report.facts["gradient"]


def scaled_svd():
    made = Shaped()
    made.s = 1.1 * made.s
    return made


def skewed_svd():
    made = Shaped()
    made.left, made.right = 2 * made.left, made.right / 2
    return made


def negative_svd():
    made = Shaped()
    made.s, made.left = -made.s, -made.left
    return made


WRONG_ALGEBRA = {
    "adjoint": dict(adjoint=lambda v: 1.1 * adjoint(v)),
    "adjoint, transposed": dict(adjoint=lambda v: adjoint(v).swapaxes(1, 2)),
    "adjoint, misshapen": dict(adjoint=lambda v: v @ MATRIX),
    "adjoint, raising": dict(adjoint=lambda v: v @ MATRIX.T[:5]),
    "pinv": dict(adjoint=adjoint, pinv=lambda y: 1.1 * pinv(y - 2)),
    "svd": dict(svd=scaled_svd()),
    "svd, not orthonormal": dict(svd=skewed_svd()),
    "svd, negative": dict(svd=negative_svd()),
}


@pytest.mark.parametrize("fault", WRONG_ALGEBRA)
def test_that_wrong_linear_algebra_is_found_out(fault):
    report = check(linear_with(**WRONG_ALGEBRA[fault]))
    assert Grade.UNSOUND in found(report, fault.split(",")[0]), text(report)


def test_that_an_adjoint_of_a_nonlinear_simulator_is_found_out():
    report = check(experiment(enkg.Function(square, adjoint=adjoint)))
    assert Grade.UNSOUND in found(report, "adjoint"), text(report)


@pytest.mark.parametrize(("factor", "grade"), [(1.0, Grade.GOOD), (-5.0, Grade.DOUBT)])
def test_that_a_guess_at_the_inverse_of_a_nonlinear_simulator_is_graded_by_its_use(factor, grade):
    def bent(x):
        return linear(x) + 0.1 * linear(x) ** 2

    report = check(experiment(enkg.Function(bent, pinv=lambda y: factor * pinv(y))))
    assert report.sound
    assert found(report, "pinv") == [grade], text(report)
    assert "a guess" in text(report)


# --- the low-fidelity simulator ---------------------------------------------------------------

LOW = {
    "near": (lambda x: 0.9 * square(x), Grade.GOOD, "of the spread of the draws"),
    "far": (lambda x: -square(x), Grade.DOUBT, "another draw would do as well"),
    "misshapen": (lambda x: square(x)[:, :3], Grade.UNSOUND, "the observation has shape (6,)"),
    "dead": (lambda x: square(x) * np.nan, Grade.UNSOUND, "6 of 6 draws failed"),
    "half dead": (
        lambda x: np.where(flat(x)[:, :1] > 0, square(x), np.nan),
        Grade.DOUBT,
        "failed that the simulator answers",
    ),
}


@pytest.mark.parametrize("kind", LOW)
def test_that_the_low_fidelity_simulator_is_tried(kind):
    f, grade, words = LOW[kind]
    report = check(experiment(square, low=enkg.Low(f, cost=0.1)), draws=6)
    assert grade in found(report, "low fidelity"), text(report)
    assert words in text(report)


def test_that_a_decoder_belongs_to_the_gradient():
    white = enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,)))
    weights = torch.from_numpy(np.random.default_rng(3).standard_normal((4, SIDE * SIDE)))

    def decode(z):
        return torch.tanh(z.double() @ weights).reshape(-1, SIDE, SIDE)

    prior = enkg.latent(white, decode, (SIDE, SIDE))
    offered = enkg.Function(lambda x: linear(x) + 2.0, adjoint=adjoint)
    report = check(experiment(offered, prior=prior))
    assert report.sound, text(report)
    assert set(found(report, "vjp") + found(report, "adjoint")) == {Grade.GOOD}


class Magnitudes:
    """Fourier magnitudes of a member with a margin of zeros, and the projection onto them."""

    def __init__(self, factor=1.0):
        self.factor = factor
        self.support = np.pad(np.ones((SIDE, SIDE), dtype=bool), (0, SIDE))

    def __call__(self, x):
        padded = np.pad(x, ((0, 0), (0, SIDE), (0, SIDE)))
        return np.abs(np.fft.fft2(padded, norm="ortho"))

    @property
    def project(self):
        return self

    def crop(self, u):
        return u[:, :SIDE, :SIDE]

    def onto(self, u, y):
        spectrum = np.fft.fft2(u, norm="ortho")
        phase = spectrum / np.abs(spectrum)
        return np.fft.ifft2(self.factor * y * phase, norm="ortho").real


@pytest.mark.parametrize(("factor", "grade"), [(1.0, Grade.GOOD), (1.1, Grade.UNSOUND)])
def test_that_the_projection_onto_magnitudes_is_tried(factor, grade):
    observation = enkg.Observation(np.ones((2 * SIDE, 2 * SIDE)), std=0.3)
    report = check(experiment(Magnitudes(factor), observation=observation))
    assert found(report, "project") == [grade], text(report)


def test_that_a_method_that_needs_more_is_refused_before_a_call():
    class Needy(enkg.EnKG):
        @property
        def needs(self):
            return ("vjp",)

    def never(x):
        raise AssertionError

    with pytest.raises(enkg.MissingCapability, match=r"Needy needs a simulator with a gradient"):
        check(experiment(never, guidance=Needy(members=4)))
