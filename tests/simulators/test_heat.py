"""The heat simulator: its physics, its files, its exit status, and the three ways to call it."""

import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import enkg
from experiments import heat as inversion
from simulators import heat
from simulators.heat import Heat

for tool in ("make", "cc"):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here to build simulators/heat", allow_module_level=True)

MEANS = {16: 0.336805, 32: 0.337609, 48: 0.337759, 64: 0.337812}  # of u(0.1), see `wavy`


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the program, the library and the manifest."""
    out = tmp_path_factory.mktemp("heat")
    command = ["make", "-C", str(heat.FOLDER), f"OUT={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # no warning either
    shutil.copy(heat.FOLDER / "simulator.toml", out)
    return out


@pytest.fixture
def program(built, tmp_path):
    """Runs the program in a folder of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(built / "heat2d"), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def field(program, tmp_path):
    """Temperatures at t = 0.1, (n, n), for a conductivity (n, n)."""

    def run(kappa: np.ndarray) -> np.ndarray:
        np.save(tmp_path / "kappa.npy", kappa)
        done = program("--field", "kappa.npy", "u.npy")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return np.load(tmp_path / "u.npy")

    return run


def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def wavy(n: int) -> np.ndarray:
    x, y = np.meshgrid(centres(n), centres(n))
    return np.exp(np.sin(6 * x) * np.cos(5 * y))


def rough(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(size=(n, n)))


def slab(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The series for conductivity 1: u = 1 at x = 0, 0 at x = 1, and 0 everywhere at t = 0."""
    k = np.arange(1, 200) * np.pi
    x, t = x[..., None], t[..., None]
    return 1 - x[..., 0] - (2 / k * np.sin(k * x) * np.exp(-(k**2) * t)).sum(axis=-1)


@pytest.mark.parametrize(("n", "mean"), MEANS.items())
def test_that_the_mean_temperature_is_the_recorded_one(field, n, mean):
    assert field(wavy(n)).mean() == pytest.approx(mean, abs=1e-6)


def test_that_a_uniform_plate_follows_the_series_with_second_order(built):
    heated = Heat(built / heat.LIBRARY)
    t, _, x = np.meshgrid(heat.TIMES, heat.Y, heat.X, indexing="ij")
    exact = slab(x, t).ravel()
    errors = [np.abs(heated(np.ones((n, n))) - exact).max() for n in (16, 32, 64)]
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_that_layers_in_series_reach_the_exact_steady_state(field):
    kappa = np.where(centres(16) < 0.5, 50.0, 200.0)
    resistance = 0.5 / 50 + 0.5 / 200
    x = centres(16)
    exact = 1 - (np.minimum(x, 0.5) / 50 + np.maximum(x - 0.5, 0) / 200) / resistance
    u = field(np.broadcast_to(kappa, (16, 16)))
    np.testing.assert_allclose(u, np.broadcast_to(exact, (16, 16)), rtol=0, atol=1e-10)


def test_that_no_temperature_leaves_the_range_of_the_walls(field):
    kappa = rough(24) ** 3
    u = field(kappa / kappa.max())
    assert u.min() >= -1e-15
    assert u.max() <= 1 + 1e-15


def test_that_turning_the_plate_over_turns_the_temperatures_over(field):
    kappa = rough(16)
    np.testing.assert_allclose(field(kappa[::-1]), field(kappa)[::-1], rtol=0, atol=1e-14)


def test_that_the_sensors_read_between_the_cells(field, built):
    u = field(wavy(20))
    j, i = heat.X * 20 - 0.5, heat.Y * 20 - 0.5
    a, b = j % 1, (i % 1)[:, None]
    j, i = j.astype(int), i.astype(int)[:, None]
    rows = [(1 - a) * u[k, j] + a * u[k, j + 1] for k in (i, i + 1)]
    expected = (1 - b) * rows[0] + b * rows[1]
    last = Heat(built / heat.LIBRARY)(wavy(20))[-24:]
    np.testing.assert_allclose(last, expected.ravel(), rtol=0, atol=1e-14)


def test_that_text_and_npy_and_the_library_agree_bit_for_bit(program, built, tmp_path):
    kappa = rough(16)
    np.save(tmp_path / "kappa.npy", kappa)
    with open(tmp_path / "second.npy", "wb") as file:
        np.lib.format.write_array(file, kappa, version=(2, 0))
    np.savetxt(tmp_path / "kappa.txt", kappa, fmt="%.17g")
    expected = Heat(built / heat.LIBRARY)(kappa)
    for given in ("kappa.npy", "second.npy", "kappa.txt"):
        assert program(given, "y.npy").returncode == 0
        assert program(given, "y.txt").returncode == 0
        y = np.load(tmp_path / "y.npy")
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(np.loadtxt(tmp_path / "y.txt"), expected)
        assert y.dtype == np.float64
    assert (tmp_path / "y.npy").stat().st_size == 128 + 8 * 96
    assert len(list(tmp_path.iterdir())) == 5  # three given, two written


def broken_files(folder: Path) -> None:
    """Files that the program must refuse."""
    good = np.ones((8, 8))
    np.save(folder / "good.npy", good)
    whole = (folder / "good.npy").read_bytes()
    (folder / "short.npy").write_bytes(whole[:-8])
    (folder / "long.npy").write_bytes(whole + b"1")
    (folder / "cut.npy").write_bytes(whole[:40])
    (folder / "future.npy").write_bytes(whole[:6] + b"\x09" + whole[7:])
    (folder / "huge.npy").write_bytes(whole[:6] + b"\x02\x00\xff\xff\xff\x7f" + whole[10:])
    (folder / "noise.npy").write_bytes(b"not an array at all")
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "single.npy", good.astype(np.float32))
    np.save(folder / "columns.npy", np.asfortranarray(np.arange(64.0).reshape(8, 8)))
    np.save(folder / "flat.npy", good.ravel())
    np.save(folder / "cube.npy", np.ones((8, 8, 8)))
    np.save(folder / "oblong.npy", np.ones((8, 9)))
    np.save(folder / "tiny.npy", np.ones((4, 4)))
    np.save(folder / "nan.npy", np.where(np.eye(8), np.nan, 1.0))
    np.savetxt(folder / "oblong.txt", np.ones((8, 9)))
    (folder / "words.txt").write_text("1 2 three 4")
    (folder / "empty.txt").write_text("\n")


REFUSED = {
    "absent.npy": "No such file",
    "short.npy": "63 of 64 numbers",
    "long.npy": "goes on behind its 64 numbers",
    "cut.npy": "ends within its header",
    "future.npy": "version 9.0",
    "huge.npy": "header of",
    "noise.npy": "not a .npy file",
    "empty.npy": "not a .npy file",
    "single.npy": "expected '<f8'",
    "columns.npy": "Fortran order",
    "flat.npy": "shape (64,); expected (n, n)",
    "cube.npy": "shape (8, 8, 8); expected (n, n)",
    "oblong.npy": "shape (8, 9); expected (n, n)",
    "tiny.npy": "4 cells a side; expected 8 to 4096",
    "nan.npy": "row 0, column 0 is nan",
    "oblong.txt": "72 numbers; expected n rows of n",
    "words.txt": 'number 3 is "three"',
    "empty.txt": "0 numbers",
}


def test_that_bad_input_ends_with_2_and_a_sentence_and_writes_nothing(program, tmp_path):
    broken_files(tmp_path)
    before = sorted(tmp_path.iterdir())
    for name, sentence in REFUSED.items():
        done = program(name, "out.npy")
        assert (done.returncode, done.stdout) == (2, ""), name
        assert sentence in done.stderr, name
        assert done.stderr.startswith("heat2d: "), name
        assert done.stderr.count("\n") == 1, name
    for arguments, sentence in (
        ([], "give two files"),
        (["good.npy"], "give two files"),
        (["good.npy", "a.npy", "b.npy"], "one file too many"),
        (["good.npy", "out.csv"], "files end in .npy or .txt"),
        (["--fast", "good.npy", "out.npy"], "unknown option --fast"),
        (["--sleep", "soon", "good.npy", "out.npy"], "--sleep needs seconds"),
        (["good.npy", "out.npy", "--sleep"], "--sleep needs seconds"),
        (["good.npy", "nowhere/out.npy"], "cannot be written"),
        (["--serve", "good.npy"], "--serve takes no file"),
    ):
        done = program(*arguments)
        assert done.returncode == 2, arguments
        assert sentence in done.stderr, arguments
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("value", "sentence"), [(-1.0, "must be positive"), (0.0, "must be positive"), (1e5, "steps")]
)
def test_that_the_impossible_ends_with_3_and_writes_nothing(program, tmp_path, value, sentence):
    kappa = np.ones((16, 16))
    kappa[3, 5] = value
    np.save(tmp_path / "kappa.npy", kappa)
    done = program("kappa.npy", "out.npy")
    assert done.returncode == 3
    assert sentence in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kappa.npy"]
    assert program("--serve").returncode == 1  # nobody to serve


def test_that_help_explains_files_and_exit_status(program):
    done = program("--help")
    assert done.returncode == 0
    for word in ("IN", "OUT", "exit status", "--serve", "--sleep", "kappa", "example"):
        assert word in done.stdout


def test_that_a_program_killed_while_it_sleeps_leaves_no_output(built, tmp_path):
    np.save(tmp_path / "kappa.npy", np.ones((8, 8)))
    command = [str(built / "heat2d"), "--sleep", "30", "kappa.npy", "out.npy"]
    asleep = subprocess.Popen(command, cwd=tmp_path)
    time.sleep(0.2)
    assert asleep.poll() is None
    asleep.terminate()
    assert asleep.wait() == -signal.SIGTERM
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kappa.npy"]


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_an_impossible_member_fails_alone_through_the_manifest(built, mode):
    kappa = np.stack([rough(32, seed) for seed in range(4)])
    kappa[1, 0, 0] = -1
    kappa[2] *= 1e6
    result = enkg.Program(built, slots=2, mode=mode).evaluate(kappa)
    assert [failure is None for failure in result.failures] == [True, False, False, True]
    assert np.isnan(result.y[1:3]).all()
    heated = Heat(built / heat.LIBRARY)
    np.testing.assert_array_equal(result.y[0], heated(kappa[0]))
    np.testing.assert_array_equal(result.y[3], heated(kappa[3]))
    if mode == "oneshot":
        assert "must be positive" in str(result.failures[1])


def test_that_the_library_says_what_is_missing_and_what_is_impossible(built, tmp_path):
    with pytest.raises(FileNotFoundError, match="make -C"):
        Heat(tmp_path / "libheat2d.so")
    with pytest.raises(ValueError, match="must be positive"):
        Heat(built / heat.LIBRARY)(-np.ones((8, 8)))
    with pytest.raises(ValueError, match="60 conductivities"):
        Heat(built / heat.LIBRARY)(np.ones((6, 10)))


def test_that_a_program_that_is_not_built_names_the_command(tmp_path, monkeypatch):
    shutil.copy(heat.FOLDER / "simulator.toml", tmp_path)
    monkeypatch.setattr(heat, "FOLDER", tmp_path)
    with pytest.raises(enkg.InputError, match="make"):
        inversion.experiment()


def test_that_the_inversion_finds_the_conductivity(built, monkeypatch):
    monkeypatch.setattr(heat, "FOLDER", built)
    experiment = replace(inversion.experiment(), guidance=enkg.SLR(members=24, steps=8), predict=16)
    tree = enkg.run(experiment)
    posterior = np.log(tree["posterior"].to_dataset()["conductivity"].values.astype(float))
    truth = np.log(experiment.truth.numpy())
    error = np.linalg.norm(posterior.mean(axis=0) - truth) / np.linalg.norm(truth)
    assert error < 0.4  # the prior's mean has 1
    assert abs(posterior.mean(axis=(1, 2)) - truth.mean()).mean() < 0.1
    times = tree["observation"].to_dataset()["time"].values
    np.testing.assert_array_equal(times, np.repeat(heat.TIMES, 24))
