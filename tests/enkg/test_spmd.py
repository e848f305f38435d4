"""The same posterior, to the last bit, on any number of ranks of any kind."""

import json

import pytest

from enkg.comm import ALONE
from tests.enkg import spmd
from tests.enkg.ranks import ROOT, launcher

SCRIPT = ROOT / "tests" / "enkg" / "spmd.py"


def on_ranks(form, ranks, tmp_path, *what) -> dict:
    done = launcher(form).run(ranks, SCRIPT, tmp_path / "found.json", *what)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found.json").read_text())


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    return spmd.found([], ALONE)


@pytest.mark.parametrize(
    ("form", "ranks"),
    [("mpich", 1), ("mpich", 2), ("mpich", 3), ("mpich", 4), ("openmpi", 3), ("torchrun", 2)],
)
def test_that_every_method_gives_the_same_bits_on_any_ranks(form, ranks, alone, tmp_path):
    assert on_ranks(form, ranks, tmp_path) == {"ranks": ranks, **alone}


@pytest.mark.parametrize(("form", "ranks"), [("mpich", 2), ("openmpi", 2)])
def test_that_navier_stokes_gives_the_same_bits_on_two_ranks(form, ranks, tmp_path):
    pytest.importorskip("jax")
    expected = on_ranks("mpich", 1, tmp_path, "navier-stokes")
    found = on_ranks(form, ranks, tmp_path, "navier-stokes")
    assert found == {**expected, "ranks": ranks}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_that_navier_stokes_gives_the_same_bits_on_more_ranks(ranks, tmp_path):
    expected = on_ranks("mpich", 1, tmp_path, "navier-stokes")
    found = on_ranks("mpich", ranks, tmp_path, "navier-stokes")
    assert found == {**expected, "ranks": ranks}
