"""The interferometer and its program under bad input and failing members."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulators.black_hole import MICROARCSECOND, BlackHole, coverage, minimal_closures
from simulators.black_hole.__main__ import BAD_INPUT, FAILED_MEMBER, GOOD, main

PIXELS, FIELD = 16, 100.0


def interferometer(**changes):
    """Five stations during one night."""
    track = coverage(("AA", "LM", "AZ", "PV", "SM"), hours=np.arange(1.0, 9.0))
    sets = minimal_closures(track.time, track.station1, track.station2)
    return BlackHole(track.u, track.v, *sets, pixels=PIXELS, field_of_view=FIELD, **changes)


@pytest.fixture(scope="module")
def simulator():
    return interferometer()


@pytest.fixture
def images():
    return np.random.default_rng(0).random((7, PIXELS, PIXELS))


def test_that_a_bad_member_is_a_row_of_nan_and_leaves_the_others_unmoved(simulator, images):
    good = simulator(images)
    bad = images.copy()
    bad[1, 0, 0] = np.nan
    bad[3, 5, 5] = np.inf
    bad[4] = 0
    y = simulator(bad)
    dead = [1, 3, 4]
    assert np.isnan(y[dead]).all()
    np.testing.assert_array_equal(np.delete(y, dead, 0), np.delete(good, dead, 0))
    gradient = simulator.vjp(bad, np.ones_like(y))
    assert np.isnan(gradient[dead]).all()
    assert np.isfinite(np.delete(gradient, dead, 0)).all()


def test_that_an_empty_image_fails_where_closures_are_asked_for_only(simulator):
    empty = np.zeros((1, PIXELS, PIXELS))
    linear = interferometer(products=("visibility", "amplitude", "total_flux"))
    assert (linear(empty) == 0).all()
    assert np.isfinite(linear.vjp(empty, np.ones((1, *linear.y_shape)))).all()
    assert np.isnan(simulator(empty)).all()


def test_that_a_visibility_that_vanishes_is_a_failed_member():
    # Two equal points half a fringe apart: no flux is left on this baseline.
    fringe = 1 / (2 * 20 * MICROARCSECOND)
    u = np.array([fringe, 1e9, 1e9 + fringe])
    simulator = BlackHole(u, 0 * u, np.array([[0, 1, 2]]), np.empty((0, 4), int), 10, 100.0)
    image = np.zeros((1, 10, 10))
    image[0, 5, 3] = image[0, 5, 5] = 1.0
    assert np.isnan(simulator(image)).all()


@pytest.mark.parametrize("shape", [(PIXELS, PIXELS), (2, PIXELS, 8), (2, PIXELS * PIXELS), (3,)])
def test_that_images_of_another_shape_are_refused_with_both_shapes(simulator, shape):
    with pytest.raises(ValueError, match=r"expected \(B, 16, 16\)") as caught:
        simulator(np.ones(shape))
    assert str(shape) in str(caught.value)


def test_that_complex_images_are_refused(simulator):
    with pytest.raises(ValueError, match="real numbers"):
        simulator(np.ones((1, PIXELS, PIXELS), dtype=complex))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": np.ones(3)}, "two vectors of the same length"),
        ({"u": np.full(10, np.nan), "v": np.ones(10)}, "NaN or infinity"),
        ({"triangles": [[0, 1, 10]]}, "expected 0 to 9"),
        ({"triangles": [[0, 1]]}, r"shape \(any, 3\)"),
        ({"quadrangles": [[0.0, 1.0, 2.0, 3.0]]}, "whole numbers"),
        ({"products": ("closure_phases",)}, "names out of"),
        ({"products": ()}, "one or more"),
        ({"pixels": 0}, "at least 1"),
        ({"field_of_view": -1.0}, "microarcseconds"),
        ({"dtype": "float16"}, "float32"),
    ],
)
def test_that_a_wrong_interferometer_is_refused_with_what_to_give(change, sentence):
    settings = {
        "u": np.linspace(1e9, 2e9, 10),
        "v": np.zeros(10),
        "triangles": [[0, 1, 2]],
        "quadrangles": [[0, 1, 2, 3]],
        "pixels": 4,
        "field_of_view": 100.0,
    }
    with pytest.raises(ValueError, match=sentence):
        BlackHole(**{**settings, **change})


def test_that_a_baseline_stored_backwards_or_twice_is_refused():
    with pytest.raises(ValueError, match="lower to the higher"):
        minimal_closures([0.0, 0.0], [0, 2], [1, 1])
    with pytest.raises(ValueError, match="twice"):
        minimal_closures([0.0, 0.0], [0, 0], [1, 1])


def test_that_unknown_stations_and_a_source_below_the_horizon_are_refused():
    with pytest.raises(ValueError, match="codes out of"):
        coverage(("AA", "XX"), hours=[4.0])
    with pytest.raises(ValueError, match="no two of"):
        coverage(("AA", "SP"), hours=[4.0])


# -- the program ---------------------------------------------------------------------------------


def run(*arguments):
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "simulators.black_hole", *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_that_the_program_gives_what_the_function_gives(tmp_path):
    assert run("--example", tmp_path).returncode == GOOD
    images, geometry, out = (tmp_path / k for k in ("images.npy", "geometry.npz", "out.npy"))
    done = run(images, geometry, out)
    assert done.returncode == GOOD, done.stderr
    np.testing.assert_allclose(
        np.load(out), BlackHole.load(geometry)(np.load(images)), rtol=1e-5, atol=1e-6
    )
    help_text = run("--help").stdout
    assert "triangles" in help_text
    assert "exit status" in help_text


def test_that_the_program_takes_one_image_and_reports_failed_members(tmp_path, capsys):
    assert main(["--example", str(tmp_path)]) == GOOD
    images, geometry, out = (str(tmp_path / k) for k in ("images.npy", "geometry.npz", "out.npy"))
    batch = np.load(images)
    np.save(images, batch[0])
    assert main([images, geometry, out]) == GOOD
    assert np.load(out).shape == BlackHole.load(geometry).y_shape
    batch[1] = 0
    np.save(images, batch)
    assert main([images, geometry, out]) == FAILED_MEMBER
    assert "failed members" in capsys.readouterr().err
    assert np.isnan(np.load(out)).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "damage", ["no images", "no geometry", "text for images", "cut geometry", "shape", "no folder"]
)
def test_that_the_program_refuses_bad_input_in_one_line_and_writes_nothing(
    tmp_path, capsys, damage
):
    assert main(["--example", str(tmp_path)]) == GOOD
    images, geometry, out = (tmp_path / k for k in ("images.npy", "geometry.npz", "out.npy"))
    if damage == "no images":
        images.unlink()
    elif damage == "no geometry":
        geometry.unlink()
    elif damage == "text for images":
        images.write_text("not an array")
    elif damage == "cut geometry":
        geometry.write_bytes(geometry.read_bytes()[:500])
    elif damage == "shape":
        np.save(images, np.ones((2, 5, 5)))
    else:
        out = tmp_path / "absent" / "out.npy"
    capsys.readouterr()
    assert main([str(images), str(geometry), str(out)]) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
