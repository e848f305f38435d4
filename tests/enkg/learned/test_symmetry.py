"""Symmetries: groups of maps, drawn anew for each row."""

import math
import pickle

import pytest
import torch
from torch import Tensor

import enkg
from enkg.learned.symmetry import Reflect, Rotate, Shift, symmetrised
from tests.enkg.problems import normal

SIZE = 64
Y = torch.arange(SIZE).double() * 2 * math.pi / SIZE
STIRRING = (-4 * torch.cos(4 * Y)).expand(SIZE, SIZE)  # axis 0 is x, axis 1 is y
GLIDE = Reflect((0,), sign=-1.0, periodic=True, shift=(1, SIZE // 8))
FLOW = (Shift(0), Shift(1, step=SIZE // 4), GLIDE, Reflect((0, 1), periodic=True))
ALL = [
    Shift(0),
    Shift(-1, step=2),
    Reflect((1,)),
    Reflect((0, 1), -1.0, periodic=True),
    Reflect((-1,), shift=(0, 4)),
    Rotate(),
]


def keyed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectrum(x: Tensor) -> Tensor:
    """Mean power of each wavenumber."""
    return torch.fft.fft2(x).abs().square().mean(dim=0)


def drawn(symmetry, x: Tensor, count: int) -> set[tuple[float, ...]]:
    """All that a symmetry makes of one member, by many draws."""
    moved = symmetry(x.expand(count, *x.shape), keyed())
    return {tuple(row.flatten().tolist()) for row in moved}


@pytest.mark.parametrize("symmetry", ALL, ids=str)
def test_that_each_row_is_a_rearrangement_of_itself_up_to_the_sign(symmetry):
    x = normal(32, 8, 8)
    moved = symmetry(x, keyed())
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    same = moved.flatten(1).abs().sort(dim=1).values
    assert torch.equal(same, x.flatten(1).abs().sort(dim=1).values)
    assert not torch.equal(moved, x)


@pytest.mark.parametrize("symmetry", ALL, ids=str)
def test_that_the_generator_alone_decides(symmetry):
    x = normal(16, 8, 8)
    assert torch.equal(symmetry(x, keyed(3)), symmetry(x, keyed(3)))
    assert not torch.equal(symmetry(x, keyed(3)), symmetry(x, keyed(4)))
    half = symmetry(x.half(), keyed(3))
    assert half.dtype == torch.float16
    assert torch.equal(half, symmetry(x, keyed(3)).half())


def test_that_a_shift_makes_every_translation_and_no_other():
    x = normal(12)
    expected = {tuple(x.roll(3 * k).tolist()) for k in range(4)}
    assert drawn(Shift(0, step=3), x, 200) == expected


def test_that_a_shift_moves_its_own_axis_alone():
    x = torch.arange(3.0)[:, None].expand(3, 5)
    assert torch.equal(Shift(-1)(x.expand(20, 3, 5), keyed()), x.expand(20, 3, 5))
    assert len(drawn(Shift(-2), x, 100)) == 3


def test_that_a_rotation_makes_the_four_turns():
    x = normal(2, 3, 3)
    expected = {tuple(x.rot90(k, (1, 2)).flatten().tolist()) for k in range(4)}
    assert drawn(Rotate(), x, 200) == expected


@pytest.mark.parametrize("periodic", [False, True])
def test_that_two_reflections_are_none(periodic):
    x = normal(3, 7, 8)
    mirror = Reflect((0, -1), sign=-1.0, periodic=periodic)
    assert not torch.equal(mirror.reflected(x), x)
    assert torch.equal(mirror.reflected(mirror.reflected(x)), x)
    assert drawn(mirror, x[0], 50) == {
        tuple(r.flatten().tolist()) for r in (x[0], mirror.reflected(x)[0])
    }


def test_that_a_periodic_reflection_leaves_point_0_and_another_one_the_middle():
    x = torch.arange(5.0)[None]
    assert Reflect((0,), periodic=True).reflected(x).tolist() == [[0, 4, 3, 2, 1]]
    assert Reflect((0,)).reflected(x).tolist() == [[4, 3, 2, 1, 0]]


def test_that_two_glides_are_a_translation_by_twice_the_points():
    x = normal(2, SIZE, SIZE)
    assert torch.equal(GLIDE.reflected(GLIDE.reflected(x)), x.roll(SIZE // 4, 2))


def test_that_the_glide_reflection_of_the_flow_keeps_what_stirs_it():
    x = STIRRING[None]
    torch.testing.assert_close(GLIDE.reflected(x), x)
    unsigned = Reflect((0,), periodic=True, shift=GLIDE.shift)
    torch.testing.assert_close(unsigned.reflected(x), -x)
    moved = symmetrised(x.expand(64, SIZE, SIZE), FLOW, keyed())
    torch.testing.assert_close(moved, x.expand(64, SIZE, SIZE))


def test_that_the_symmetries_of_the_flow_commute_with_its_equation():
    # Right side of the vorticity equation: -u . grad w + forcing, u by the stream function.
    k = torch.fft.fftfreq(SIZE, 1 / SIZE).double()
    kx, ky = k[:, None], k[None, :]
    square = (kx**2 + ky**2).clamp(min=1)

    def real(f: Tensor) -> Tensor:
        return torch.fft.ifft2(f).real

    def tendency(w: Tensor) -> Tensor:
        f = torch.fft.fft2(w)
        u, v = real(1j * ky * f / square), real(-1j * kx * f / square)
        return STIRRING - u * real(1j * kx * f) - v * real(1j * ky * f)

    low = ((kx.abs() < 8) & (ky.abs() < 8)).double()
    w = real(torch.fft.fft2(normal(16, SIZE, SIZE)) * low)
    for symmetry in FLOW:
        torch.testing.assert_close(symmetry(tendency(w), keyed()), tendency(symmetry(w, keyed())))
    wrong = Reflect((0,), periodic=True, shift=GLIDE.shift)
    assert (wrong(tendency(w), keyed()) - tendency(wrong(w, keyed()))).abs().max() > 1


def test_that_a_symmetrised_stationary_ensemble_keeps_its_mean_spectrum():
    # Isotropic on a square torus: all translations, reflections and quarter turns keep |F_k|^2 or
    # exchange wavenumbers of equal length. Translations alone keep it exactly.
    k = torch.fft.fftfreq(16, 1 / 16)
    power = (1 + k[:, None] ** 2 + k[None] ** 2) ** -1.5
    x = torch.fft.ifft2(torch.fft.fft2(normal(4000, 16, 16)) * power.sqrt()).real
    shifted = symmetrised(x, (Shift(0), Shift(1)), keyed())
    torch.testing.assert_close(spectrum(shifted), spectrum(x), rtol=1e-5, atol=1e-5)
    group = (Shift(0), Shift(1), Reflect((0,), -1.0, periodic=True), Rotate())
    ratio = spectrum(symmetrised(x, group, keyed())) / spectrum(x)
    assert (ratio - 1).abs().max() < 0.15  # 4.6 sqrt(2 / 2000)


def test_that_shifts_make_any_ensemble_stationary():
    x = torch.zeros(6000, 12)
    x[:, 3] = 1
    mean = symmetrised(x, (Shift(0),), keyed()).mean(dim=0)
    assert (mean - 1 / 12).abs().max() < 0.016  # 4.4 sqrt(1 / 12 / 6000)


def test_that_each_field_of_a_vector_has_its_own_sign():
    x = normal(2, 3, 4, 4)
    moved = Reflect((-1,), sign=(1, -1, 1)).reflected(x)
    assert torch.equal(moved[:, 0], x[:, 0].flip(-1))
    assert torch.equal(moved[:, 1], -x[:, 1].flip(-1))


@pytest.mark.parametrize("symmetry", ALL, ids=str)
def test_that_the_card_can_say_what_a_symmetry_is_and_workers_can_have_it(symmetry):
    assert eval(repr(symmetry)) == symmetry
    assert pickle.loads(pickle.dumps(symmetry)) == symmetry


@pytest.mark.parametrize(
    ("symmetry", "shape", "message"),
    [
        (Shift(2), (4, 4), r"axes \(2,\) of a member of shape \(4, 4\).* between -2 and 1"),
        (Shift(-1, step=3), (4, 4), "3 does not divide the 4 points along axis -1"),
        (Reflect((0, -2)), (4, 4), r"axes \(0, -2\).*give different ones"),
        (Reflect(()), (4, 4), r"axes \(\) of a member"),
        (Reflect((0,), shift=(5, 1)), (4, 4), r"axes \(5,\)"),
        (Reflect((1,), sign=(1, -1)), (3, 4), r"2 signs for a member of shape \(3, 4\)"),
        (Rotate(), (4, 5), r"equally long; these have shape \(4, 5\)"),
        (Rotate(), (4,), r"equally long; these have shape \(4,\)"),
        (lambda x, generator: x[:1], (4,), r"made shape \(1, 4\) of \(2, 4\)"),
    ],
)
def test_that_a_symmetry_that_does_not_fit_the_members_says_so(symmetry, shape, message):
    with pytest.raises(enkg.InputError, match=message):
        symmetrised(normal(2, *shape), (symmetry,), keyed())


def test_that_steps_and_signs_are_checked_at_once():
    with pytest.raises(enkg.InputError, match=r"Shift\(axis=0, step=0\): the step is a number"):
        Shift(0, 0)
    with pytest.raises(enkg.InputError, match="a sign is 1 or -1"):
        Reflect((0,), sign=2.0)
