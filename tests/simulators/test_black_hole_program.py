"""The interferometer as a program that simulator.toml describes, for M87 on 11 April 2017."""

import os
from pathlib import Path

import numpy as np
import pytest

from enkg.execute.program import Program
from experiments.m87 import uvfits
from simulators.black_hole import BlackHole
from simulators.black_hole.__main__ import main

FOLDER = Path(__file__).parents[2] / "simulators" / "black_hole"
M87 = BlackHole.load(FOLDER / "m87.npz")
IMAGES = np.exp(np.random.default_rng(1).standard_normal((5, 64, 64)).astype(np.float32))


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_served_or_started_anew_the_bits_are_the_function_s(mode):
    x = IMAGES.copy()
    x[1] = 0  # an empty image has no closures
    x = x if mode == "worker" else x[:2]
    found = Program(FOLDER, slots=1, mode=mode).evaluate(x)
    good = np.arange(len(x)) != 1
    np.testing.assert_array_equal(found.y[good], M87(x[good]))
    assert np.isnan(found.y[1]).all()
    assert [failure is None for failure in found.failures] == good.tolist()


def test_that_a_missing_interferometer_is_refused_before_anything_is_served(tmp_path, capsys):
    assert main(["--serve", str(tmp_path / "absent.npz")]) == 2
    assert "absent.npz does not exist" in capsys.readouterr().err


def test_that_the_stored_interferometer_is_that_of_the_measurement():
    folder = os.environ.get("ENKG_DATA")
    if not folder or not list(Path(folder).rglob(uvfits.FILE)):
        pytest.skip(f"needs {uvfits.FILE} below the folder that ENKG_DATA names")
    pytest.importorskip("ehtim", reason="needs the extra enkg[radio]")
    measured = uvfits.read_uvfits().simulator(64, 128.0)
    for name in ("u", "v", "triangles", "quadrangles"):
        np.testing.assert_array_equal(getattr(M87, name), getattr(measured, name))
    assert (M87.products, M87.dtype) == (measured.products, measured.dtype)
    assert (M87.pixels, M87.field_of_view) == (64, 128.0)
