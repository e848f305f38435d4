"""The vorticity simulator as a program: its bits, its exit status, its sentences."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax_cfd", reason="needs the extra enkg[fluids]")

from enkg.execute.program import Program
from simulators.navier_stokes import NavierStokes2D
from simulators.navier_stokes.__main__ import main

ROOT = Path(__file__).parents[2]
SIZE = 32
FLOW = NavierStokes2D(size=SIZE, chunk=4)


def vortices(members: int) -> np.ndarray:
    """Fields of two interacting waves, each member with its own phase, (members, 32, 32)."""
    x, y = np.meshgrid(*[np.arange(SIZE) * 2 * np.pi / SIZE] * 2, indexing="ij")
    fields = [np.sin(3 * x + i) * np.cos(2 * y) + np.cos(x - y) for i in range(members)]
    return np.array(fields, dtype=np.float32)


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulators.navier_stokes", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_that_the_import_does_not_load_jax():
    code = "import sys, simulators.navier_stokes; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_that_the_program_gives_the_function_s_bits_and_leaves_one_file(tmp_path):
    x = vortices(1)[0]
    np.save(tmp_path / "in.npy", x)
    done = program(tmp_path / "in.npy", tmp_path / "out.npy", "--every", 2, "--chunk", 4)
    assert (done.returncode, done.stderr) == (0, "")
    y = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(y, FLOW(x[None])[0, ::2, ::2])
    assert y.dtype == np.float32
    assert sorted(os.listdir(tmp_path)) == ["in.npy", "out.npy"]


def test_that_the_program_says_which_members_failed(tmp_path):
    x = vortices(3)
    x[1] = np.nan
    np.save(tmp_path / "in.npy", x)
    done = program(tmp_path / "in.npy", tmp_path / "out.npy", "--chunk", 4)
    assert done.returncode == 3
    assert "failed members" in done.stderr
    assert done.stderr.rstrip().endswith(": 1")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), FLOW(x))


def test_that_bad_input_ends_with_2_and_writes_nothing(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, SIZE, SIZE)))
    np.save(tmp_path / "flat.npy", np.zeros(SIZE))
    (tmp_path / "text.npy").write_text("not numbers")
    out = tmp_path / "out.npy"
    cases = [
        ([tmp_path / "absent.npy", out], "No such file"),
        ([tmp_path / "flat.npy", out], "expected (B, s, s)"),
        ([tmp_path / "text.npy", out], "not a .npy file of numbers"),
        ([tmp_path / "in.npy", out, "--size", 64], "expected (B, 64, 64)"),
        ([tmp_path / "in.npy", out, "--every", 5], "does not divide"),
        ([tmp_path / "in.npy", out, "--reynolds", -1], "reynolds is -1.0"),
        ([tmp_path / "in.npy", tmp_path / "nowhere" / "out.npy"], "does not exist"),
    ]
    for arguments, sentence in cases:
        done = program(*arguments)
        assert done.returncode == 2, arguments
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["flat.npy", "in.npy", "text.npy"]


def test_that_help_explains_files_and_exit_status():
    done = program("--help")
    assert done.returncode == 0
    for word in ("IN", "OUT", "exit status", "--every", "NaN", "example"):
        assert word in done.stdout


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_served_or_started_anew_the_bits_are_the_function_s(mode):
    flow = NavierStokes2D(size=64)
    place = np.arange(64) * 2 * np.pi / 64
    wave = np.sin(2 * place)[:, None] * np.cos(place)
    x = np.stack([wave, np.full_like(wave, np.nan), 2 * wave.T]).astype(np.float32)
    x = x if mode == "worker" else x[:1]
    found = Program(ROOT / "simulators" / "navier_stokes", slots=1, mode=mode).evaluate(x)
    np.testing.assert_array_equal(found.y, flow(x)[:, ::2, ::2])
    assert [failure is None for failure in found.failures] == [True, False, True][: len(x)]


def test_that_a_flow_that_cannot_be_is_refused_before_anything_is_served(capsys):
    assert main(["--serve", "--every", "5"]) == 2
    assert "does not divide" in capsys.readouterr().err
