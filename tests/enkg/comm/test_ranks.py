"""Ranks of a run: what `cases.py` finds on every rank, and how ranks come and go."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enkg.comm import ALONE, share
from enkg.comm.distributed import Distributed
from enkg.comm.world import world
from enkg.errors import InputError
from tests.enkg.comm import cases
from tests.enkg.ranks import launcher

HERE = Path(__file__).parent
SLOW = pytest.mark.slow


@cache
def alone() -> dict:
    """What one process finds, in this process."""
    return {case.__name__: [str(case(ALONE))] for case in cases.CASES}


@given(st.integers(0, 10**6), st.integers(1, 100))
def test_that_shares_are_contiguous_even_and_whole(count, size):
    blocks = [share(count, size, rank) for rank in range(size)]
    assert [k for block in blocks for k in (block.start, block.stop)] == [
        0,
        *(k for block in blocks[:-1] for k in (block.stop, block.stop)),
        count,
    ]
    lengths = [len(block) for block in blocks]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


def test_that_one_process_agrees_with_itself():
    assert set(alone()) == {case.__name__ for case in cases.CASES}


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        ("mpich", 3),
        ("openmpi", 2),
        ("torchrun", 2),
        *(pytest.param("mpich", ranks, marks=SLOW) for ranks in (2, 4)),
        *(pytest.param("openmpi", ranks, marks=SLOW) for ranks in (3, 4)),
        *(pytest.param("torchrun", ranks, marks=SLOW) for ranks in (3, 4)),
    ],
)
def test_that_ranks_agree_with_one_process(form, ranks, tmp_path):
    done = launcher(form).run(ranks, HERE / "cases.py", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["size"] == ranks
    assert report["form"] == ("Distributed" if form == "torchrun" else "Mpi")
    assert report["told"] == alone()


@pytest.mark.parametrize(("form", "code"), [("mpich", 75), ("openmpi", 75), ("torchrun", 1)])
def test_that_one_rank_can_end_all(form, code, tmp_path):
    done = launcher(form).run(2, HERE / "leaves.py", 75, tmp_path)
    assert done.returncode == code, done.stderr
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not left


def last_words(*launch: str, **variables: str) -> str:
    """What a process that looks for its world says at the end, and that it fails."""
    code = "from enkg.comm import world; print(world().size)"
    plain = launcher("torchrun")
    done = subprocess.run(
        [*launch, sys.executable, "-c", code],
        env=plain.environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


def test_that_a_launcher_is_refused_whose_ranks_the_library_does_not_count():
    mpich, openmpi = launcher("mpich"), launcher("openmpi")
    words = last_words(
        *(*mpich.command, "-n", "2"),
        **openmpi.variables,
        LD_LIBRARY_PATH=str(Path(sys.prefix, "openmpi", "lib")),
    )
    assert "mpiexec started 2 ranks, but MPI counts 1: mpi4py uses Open MPI v" in words
    assert "use the mpiexec that belongs to this MPI" in words


def test_that_a_step_is_refused_whose_ranks_the_library_does_not_count():
    launcher("mpich")
    words = last_words(SLURM_STEP_NUM_TASKS="2")
    assert "srun started 2 ranks, but MPI counts 1: mpi4py uses MPICH Version: " in words
    assert "srun --mpi=pmi2" in words


def test_that_a_missing_library_is_said():
    assert "cannot be loaded (cannot load MPI library)" in last_words(
        PMI_SIZE="2", MPI4PY_LIBMPI="/nowhere"
    )


def test_that_several_launchers_around_a_rank_are_understood(monkeypatch):
    for name in "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS":
        monkeypatch.setenv(name, "1")
    assert world() is ALONE


def test_that_ranks_of_a_step_of_helpers_are_counted_by_their_launcher(tmp_path):
    # mpiexec in an allocation starts one helper a node by srun, and the helpers start the ranks.
    done = launcher("mpich").run(2, HERE / "leaves.py", 9, tmp_path, SLURM_STEP_NUM_TASKS=3)
    assert done.returncode == 9, done.stderr  # the ranks came together


def test_that_torch_alone_is_refused_without_its_launcher():
    with pytest.raises(InputError, match="start with torchrun --nproc-per-node"):
        world("torch")
    with pytest.raises(InputError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        Distributed()


def test_that_one_process_is_alone_and_ends_with_its_code():
    assert world("alone") is ALONE
    with pytest.raises(SystemExit) as stopped:
        ALONE.abort(75)
    assert stopped.value.code == 75
