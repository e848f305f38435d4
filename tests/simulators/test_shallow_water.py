"""The shallow-water simulator: its laws, the program with and without MPI, and its inversion."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import enkg
from experiments.references.shallow_water_exact import closed_form, compare
from experiments.shallow_water import inversion, source
from simulators.shallow_water import FOLDER, SIDE, gauges

PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
MPIEXEC, MPICC = shutil.which("mpiexec", path=PLACES), shutil.which("mpicc", path=PLACES)
GRAVITY = 9.81
IMPOSSIBLE = 1e5  # metres; waves that the time step cannot follow

if not all(shutil.which(tool) for tool in ("gfortran", "cc", "make")):
    pytest.skip("needs gfortran, a C compiler and make", allow_module_level=True)
with_mpi = pytest.mark.skipif(not (MPIEXEC and MPICC), reason="needs an MPI: mpicc and mpiexec")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of swe2d_serial and, where there is an MPI, of swe2d."""
    out = tmp_path_factory.mktemp("swe2d")
    command = ["make", "-C", str(FOLDER), f"OUT={out}"]
    command += [f"MPICC={MPICC}"] if MPIEXEC and MPICC else ["serial"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


@pytest.fixture
def small(built, tmp_path) -> Path:
    """A simulator's folder with 32 x 32 cells."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("simulator.toml", "case.nml", "gauges.txt"):
        (folder / name).write_text((FOLDER / name).read_text().replace("64", "32"))
    shutil.copy(
        built / ("swe2d" if (built / "swe2d").exists() else "swe2d_serial"), folder / "swe2d"
    )
    return folder


class Runner:
    """Runs the program in a folder of its own."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.built, self.folder = built, folder
        shutil.copy(FOLDER / "gauges.txt", folder)

    def __call__(
        self, field: np.ndarray, ranks: int = 0, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """ranks: 0 starts the program without MPI."""
        self.write(field, **settings)
        command = [str(self.built / "swe2d_serial"), "case.nml"]
        if ranks:
            command = [str(MPIEXEC), "-n", str(ranks), str(self.built / "swe2d"), "case.nml"]
        return self.start(*command)

    def start(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def write(self, field: np.ndarray, **settings: Any) -> None:
        field.astype("<f8").tofile(self.folder / "in.bin")
        case = {"input": "in.bin", "output": "out.npy", "gauges": "gauges.txt", "n": len(field)}
        lines = [f"  {key} = {value!r}" for key, value in (case | settings).items()]
        (self.folder / "case.nml").write_text("\n".join(["&case", *lines, "/", ""]))

    def levels(self, field: np.ndarray, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
        """Gauges (12, minutes) and the surface at the end, without MPI."""
        done = self(field, surface="end.npy", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return np.load(self.folder / "out.npy"), np.load(self.folder / "end.npy")


@pytest.fixture
def swe2d(built, tmp_path) -> Runner:
    return Runner(built, tmp_path)


def hump(size: int, height: float = 2.0, width: float = 30e3, at=(0.4 * SIDE, 0.5 * SIDE)):
    """A Gaussian hump; at: x and y in metres."""
    place = (np.arange(size) + 0.5) * SIDE / size
    squares = (place[None, :] - at[0]) ** 2 + (place[:, None] - at[1]) ** 2
    return height * np.exp(-squares / (2 * width**2))


def test_that_still_water_stays_still(swe2d):
    levels, end = swe2d.levels(np.zeros((16, 16)))
    assert levels.shape == (12, 60)
    assert not levels.any()
    assert not end.any()


@pytest.mark.parametrize("size", [32, 64])
def test_that_no_water_is_lost(swe2d, size):
    start = hump(size)
    _, end = swe2d.levels(start)
    assert start.mean() == pytest.approx(4 * np.pi * (30e3 / SIDE) ** 2, rel=1e-3)
    assert end.mean() == pytest.approx(start.mean(), abs=1e-15)


@pytest.mark.parametrize("axis", [0, 1])
def test_that_a_standing_wave_follows_the_dispersion_relation(swe2d, axis):
    # In a basin of even depth, cos(pi k x) is a mode of the cells, and its amplitude obeys
    # a(t + dt) - 2 a(t) + a(t - dt) = -4 sin(theta / 2)^2 a(t), exactly for waves that are small.
    n, k, depth, amplitude = 32, 3, 1000.0, 1e-9
    wave = np.cos(np.pi * k * (np.arange(n) + 0.5) / n)
    start = amplitude * np.broadcast_to(wave[:, None] if axis == 0 else wave, (n, n))
    _, end = swe2d.levels(start, deep=depth, shallow=depth)
    speed, dx = np.sqrt(GRAVITY * depth), SIDE / n
    steps = 60 * np.ceil(60 * speed / (0.4 * dx))
    ratio = speed * (3600 / steps) / dx
    theta = 2 * np.arcsin(ratio * np.sin(np.pi * k / (2 * n)))
    factor = np.cos((steps + 0.5) * theta) / np.cos(theta / 2)
    np.testing.assert_allclose(end, factor * start, rtol=0, atol=1e-9 * amplitude)
    assert factor == pytest.approx(np.cos(np.pi * k / SIDE * speed * 3600), abs=0.05)


def test_the_highest_water_after_an_hour(swe2d):
    # Regression; the limit of fine grids is 1.10 m.
    highest = {n: swe2d.levels(hump(n))[1].max() for n in (64, 128)}
    assert highest == pytest.approx({64: 0.987013, 128: 1.079059}, abs=2e-6)


def test_that_each_gauge_stands_at_its_place(swe2d):
    seen = [swe2d.levels(hump(64, width=25e3, at=tuple(at)), minutes=1)[0] for at in gauges()]
    assert [int(levels[:, 0].argmax()) for levels in seen] == list(range(12))


def test_that_a_gauge_between_cells_reads_between_them(swe2d):
    (swe2d.folder / "three.txt").write_text("# x y\n187500 212500\n200000 206250\n212500 200000\n")
    levels, _ = swe2d.levels(hump(16, 0.5, 90e3), gauges="three.txt", minutes=3)
    np.testing.assert_allclose(levels[1], _bilinear(swe2d, levels), rtol=1e-12)


def _bilinear(swe2d: Runner, levels: np.ndarray) -> np.ndarray:
    """The middle gauge from the four cells around it."""
    corners = "187500 212500\n187500 187500\n212500 212500\n212500 187500\n"
    (swe2d.folder / "four.txt").write_text(corners)
    nw, sw, ne, se = swe2d.levels(hump(16, 0.5, 90e3), gauges="four.txt", minutes=3)[0]
    np.testing.assert_array_equal(nw, levels[0])
    return 0.75 * (nw + ne) / 2 + 0.25 * (sw + se) / 2


def test_that_text_and_npy_hold_the_same_numbers(swe2d):
    levels, _ = swe2d.levels(hump(16))
    assert swe2d(hump(16), output="out.txt").returncode == 0
    np.testing.assert_array_equal(np.loadtxt(swe2d.folder / "out.txt"), levels)


@with_mpi
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_that_the_gauges_do_not_depend_on_the_number_of_ranks(swe2d, ranks):
    start = hump(32, 50.0, at=(0.8 * SIDE, 0.3 * SIDE))  # high enough to be nonlinear
    levels, end = swe2d.levels(start)
    assert swe2d(start, ranks=ranks, surface="end.npy").returncode == 0
    np.testing.assert_array_equal(np.load(swe2d.folder / "out.npy"), levels)
    np.testing.assert_array_equal(np.load(swe2d.folder / "end.npy"), end)


def test_that_bad_input_ends_with_2_and_a_sentence(swe2d):
    (swe2d.folder / "bad.txt").write_text("# x y\n1000 1000\n1000 north\n")
    field = hump(16)
    cases = [
        (field * np.nan, {}, "in.bin holds NaN or infinity"),
        (field, {"n": 32}, "in.bin holds 2048 bytes; expected 8 x 32 x 32 of float64"),
        (field, {"n": 2}, "n is the number of cells per side"),
        (field, {"depth": 3}, "Cannot match namelist object name depth"),
        (field, {"input": "absent"}, "'absent': No such file"),
        (field, {"gauges": "bad.txt"}, "bad.txt, line 3: expected two numbers"),
        (field, {"side": 200e3}, "gauges.txt, line 3: the gauge is outside of the basin"),
        (field, {"output": ""}, "output names no file"),
        (field, {"output": "nowhere/out.npy"}, "nowhere/out.npy.part"),
        (field, {"sleep": -1.0}, "sleep must be at least 0"),
    ]
    for x, settings, sentence in cases:
        done = swe2d(x, **settings)
        assert done.returncode == 2, settings
        assert sentence in done.stderr
        assert done.stderr.startswith("swe2d: ")
        assert done.stderr.count("\n") == 1
    assert swe2d.start(str(swe2d.built / "swe2d_serial")).returncode == 2
    assert sorted(os.listdir(swe2d.folder)) == ["bad.txt", "case.nml", "gauges.txt", "in.bin"]


def test_that_impossible_water_ends_with_3(swe2d):
    for field, minute in ((hump(16, -4500.0, 80e3), 0), (hump(16, IMPOSSIBLE), 1)):
        done = swe2d(field)
        assert done.returncode == 3
        assert f"minute {minute}: the depth of the water is not positive" in done.stderr
    assert not list(swe2d.folder.glob("out*"))


@with_mpi
def test_that_the_exit_code_comes_through_the_launcher(swe2d):
    for field, code in ((hump(16) * np.nan, 2), (hump(16, IMPOSSIBLE), 3)):
        done = swe2d(field, ranks=2)
        assert done.returncode == code
        assert done.stderr.count("swe2d: ") == 1  # one rank speaks for all
    assert not list(swe2d.folder.glob("out*"))


@with_mpi
def test_that_a_world_of_the_wrong_size_is_noticed(swe2d):
    swe2d.write(hump(16))
    done = swe2d.start(str(swe2d.built / "swe2d"), "case.nml", ENKG_RANKS="2")
    assert done.returncode == 2
    assert "world of size 1, expected 2: launcher and MPI library do not match" in done.stderr


def test_that_help_explains_files_and_exit_status(swe2d):
    done = swe2d.start(str(swe2d.built / "swe2d_serial"), "--help")
    assert done.returncode == 0
    for word in ("CASE", "--serve", "namelist", "x fastest", "metres", "exit status", "mpiexec"):
        assert word in done.stdout


@with_mpi
def test_that_a_program_that_stays_up_gives_the_bits_of_one_that_starts_anew(small, swe2d):
    x = np.stack([hump(32), hump(32, IMPOSSIBLE), hump(32, -1.0)])
    kept = enkg.Program(small, slots=1).evaluate(x)
    anew = enkg.Program(small, slots=1, mode="oneshot").evaluate(x)
    np.testing.assert_array_equal(kept.y, anew.y)
    np.testing.assert_array_equal(kept.y[0], swe2d.levels(hump(32))[0])
    for result in (kept, anew):
        assert [failure is None for failure in result.failures] == [True, False, True]
        assert np.isnan(result.y[1]).all()
    assert "minute 1: the depth" in str(anew.failures[1])


@with_mpi
@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_a_hanging_member_is_killed_with_all_its_ranks(small, mode):
    case = small / "case.nml"
    case.write_text(case.read_text().replace("n = 32", "n = 32\n  sleep = 600.0"))
    program = enkg.Program(small, slots=1, mode=mode)
    policy = enkg.FailurePolicy(timeout=1.0, retries=0)
    begin = time.monotonic()
    with (
        pytest.raises(enkg.EnsembleFailure, match="timeout"),
        program.opened(policy, None) as evaluator,
    ):
        evaluator.evaluate(hump(32)[None])
    assert time.monotonic() - begin < 60
    assert _running(small / "swe2d") == []


def _running(program: Path) -> list[str]:
    """Processes of that executable, where the system can tell."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "exe").readlink() == program:
                found.append(process.name)
        except OSError:
            continue
    return found


def test_that_the_source_has_the_covariance_that_was_asked_for():
    prior = source(32)
    root = prior.transform.inverse(torch.diag(prior.scales)).flatten(1)
    std = (root**2).sum(dim=0).sqrt().reshape(32, 32)
    assert float(std[16, 11]) == pytest.approx(1, abs=1e-3)  # the middle of the box
    assert not std[:8].any()  # south of it
    assert not std[:, 20:].any()  # east of it
    a, b = 16 * 32 + 11, 16 * 32 + 14
    distance = 3 * SIDE / 32
    known = np.exp(-0.5 * (distance / 40e3) ** 2)
    assert float(root[:, a] @ root[:, b]) == pytest.approx(known, abs=1e-3)


def test_that_the_posterior_is_that_of_the_closed_form(small, tmp_path):
    program = enkg.Program(small, slots=1, ranks=1)
    experiment = inversion(program, truth=0, std=1.0, noise=0.02)
    tree = enkg.run(experiment)
    found = torch.from_numpy(tree["posterior"].to_dataset()["displacement"].values)
    difference = compare(experiment, closed_form(experiment), found)
    assert difference.mean < 0.12
    assert difference.error < 0.01
    assert difference.std == pytest.approx(1, abs=0.1)

    assert experiment.analyse is not None
    analysis = experiment.analyse(tree, tmp_path)
    assert 0.8 < analysis.metrics["coverage_90_in_box"] <= 1
    volume = next(row for row in analysis.tables[0].rows if row[0] == "volume [km3]")
    assert volume[1] == pytest.approx(float(experiment.truth.sum()) * 12.5**2 / 1e3, rel=1e-5)
    assert volume[2] == pytest.approx(volume[1], abs=0.5)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
