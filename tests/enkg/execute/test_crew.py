"""Controller mode under the real mpiexec: rank 0 guides, the others simulate."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.enkg.execute.linear import MANIFEST, STUBS, build, simulate_all
from tests.enkg.execute.processes import MARK, become, living

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BESIDE = Path(sys.executable).parent
PLAIN = np.random.default_rng(3).standard_normal((101, 4))
CASES = HERE / "programs" / "crew.py"
pytestmark = pytest.mark.skipif(
    not (BESIDE / "mpicc").exists(),
    reason="needs MPICH's mpicc and mpiexec beside this Python: pip install mpich",
)
FUNCTIONS = (
    *("many", "few", "slow", "unlucky", "retry", "chunks", "cut", "time", "single", "odd"),
    *("no batch", "unopened", "wrong", "announced", "cached"),
)
PROGRAMS = (
    *("pool", "hang", "straggler", "exit", "range", "shape", "interrupted", "nested", "many"),
)


RANKS = """
name = "ranks"
timeout = 20.0
grace = 0.3
[mpi]
ranks = 2
[input]
shape = [4]
[output]
shape = [4]
[worker]
command = ["./ranks"]
"""


def under_mpi(ranks, folder, *cases):
    pytest.importorskip("mpi4py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(folder)}
    return subprocess.run(
        [BESIDE / "mpiexec", "-n", str(ranks), sys.executable, CASES, folder, *cases],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Seen:
    """What the ranks did, case by case."""

    def __init__(self, folder, crew, done):
        self.folder, self.crew, self.done = folder, crew, done

    def __getitem__(self, case):
        """What rank 0 saw. All ranks of the crew have ended, and in order."""
        seen, stuck = json.loads((self.folder / f"{case}.json").read_text())
        assert stuck == []
        assert len(list(self.folder.glob(f"{case}-served-*"))) == self.crew
        return seen


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """Functions, with three ranks in the crew."""
    folder = tmp_path_factory.mktemp("functions")
    done = under_mpi(4, folder, *FUNCTIONS)
    assert done.returncode == 0, done.stderr
    return Seen(folder, 3, done)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Programs, with one rank in the crew."""
    folder = tmp_path_factory.mktemp("programs")
    for fault in "hang", "exit":
        build(folder / fault, f'{MANIFEST}[environment]\nset = {{FAULT = "{fault}"}}\n')
    build(
        folder / "range", MANIFEST.replace("[output]", "[output]\nminimum = -1.0") + "batch = 4\n"
    )
    (folder / "ranks").mkdir()
    (folder / "ranks/simulator.toml").write_text(RANKS)
    options = ["-I", STUBS / "c", HERE / "programs/ranks.c", "-o", "ranks/ranks", "-lm"]
    path = f"{BESIDE}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    subprocess.run([BESIDE / "mpicc", *options], cwd=folder, env=env, check=True)
    done = under_mpi(2, folder, *PROGRAMS)
    assert done.returncode == 0, done.stderr
    return Seen(folder, 1, done)


def numbered(count):
    x = PLAIN[:count].copy()
    x[:, 0] = np.arange(count)
    return x


def causes(seen):
    """Of the members that failed."""
    return {j: tuple(failure) for j, failure in enumerate(seen["failures"]) if failure}


def test_that_the_answers_come_in_the_order_of_the_members(functions):
    seen = functions["many"]
    y = np.array(seen["y"])
    np.testing.assert_array_equal(y[:, :4], 2 * numbered(101))
    assert set(y[:, 4]) == {1, 2, 3}, "rank 0 simulates nothing"
    assert (seen["calls"], causes(seen)) == (101, {})


def test_that_there_may_be_fewer_members_than_ranks(functions):
    np.testing.assert_array_equal(np.array(functions["few"]["y"])[:, :4], 2 * numbered(2))


def test_that_one_rank_is_a_crew(programs):
    y = np.array(programs["many"]["y"])
    np.testing.assert_array_equal(y, np.c_[2 * numbered(101), np.ones(101)])


def test_that_a_slow_member_holds_nobody_up(functions):
    rank = np.array(functions["slow"]["y"])[:, 4]
    # The first member ends only after the nine others, so these went to the other ranks.
    assert rank[0] not in rank[1:]


def test_that_failures_come_with_their_causes(functions):
    seen = functions["unlucky"]
    assert causes(seen) == {
        1: ("exception", "ValueError: too cold"),
        2: ("exception", "RuntimeError: it called exit(3)"),
        4: ("NaN or infinity", "all values are NaN or infinite"),
    }
    y, good = np.array(seen["y"]), [0, 3, 5, 6]
    np.testing.assert_array_equal(y[good], 2 * numbered(7)[good])
    assert np.isnan(y[[1, 2, 4]]).all()


def test_that_failed_members_are_tried_again(functions):
    seen = functions["retry"]
    assert (seen["calls"], causes(seen)) == (4, {})
    np.testing.assert_array_equal(seen["y"], 2 * numbered(3))


def test_that_a_function_of_chunks_gets_them(functions):
    seen = functions["chunks"]
    y = np.array(seen["y"])
    assert causes(seen) == {5: ("exception", "ValueError: five")}
    good = [j for j in range(10) if j != 5]
    np.testing.assert_array_equal(y[good], np.c_[2 * numbered(10), np.full(10, 4.0)][good])
    assert seen["calls"] == 14, "the four of the bad chunk once more, each alone"


@pytest.mark.parametrize(
    ("case", "cause", "words"),
    [
        ("cut", "straggler cut", "took more than 200 times the median"),
        (
            "time",
            "timeout",
            r"ran longer than 1 s; a function cannot be ended, so it keeps rank \d",
        ),
    ],
)
def test_that_a_function_which_hangs_fails_and_keeps_its_rank_till_it_returns(
    functions, case, cause, words
):
    first, second = functions[case]
    assert [*causes(first)] == [0]
    found, detail = first["failures"][0]
    assert found == cause
    assert re.match(words, detail)
    np.testing.assert_array_equal(first["y"][1:], 2 * numbered(8)[1:])
    # These three members end only if all three ranks are at them at the same time.
    np.testing.assert_array_equal(second["y"], 2 * (numbered(3) + 100))
    assert second["calls"] == 3


def test_that_numbers_keep_their_type(functions):
    seen = functions["single"]
    assert seen["dtype"] == "float32"
    np.testing.assert_array_equal(seen["y"], np.float32(2) * numbered(5).astype("f4"))


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("odd", "the simulator returned members of different shapes: [(2,), (3,)]"),
        ("unopened", "there is no licence on this node; ask for one"),
    ],
)
def test_that_an_unusable_simulator_is_an_input_error(functions, case, error):
    assert functions[case] == ["InputError", error]


@pytest.mark.parametrize("adapter", ["function", "program"])
def test_that_the_error_is_the_same_as_without_the_crew(adapter, request):
    if adapter == "function":
        crew, alone = request.getfixturevalue("functions")["no batch"]
        assert "returned shape (7,)" in crew
    else:
        crew, alone = request.getfixturevalue("programs")["shape"]
        assert "the members have shape (3,), but `input.shape`" in crew
    assert crew == alone


def test_that_a_mistake_of_an_adapter_ends_the_crew_and_is_told(functions):
    kind, text = functions["wrong"]
    assert kind == "RuntimeError"
    assert re.fullmatch(r"rank \d of the crew: TypeError: a mistake of the adapter", text)
    assert "Traceback" in functions.done.stderr


def test_that_every_answer_is_announced(functions):
    assert functions["announced"] == list(range(7))


def test_that_the_ranks_share_a_cache(functions):
    first, second = functions["cached"]
    assert first["calls"] == 5
    assert second["calls"] == 1, "one member is compared with what the cache holds"
    assert first["y"] == second["y"] == (2 * PLAIN[:5]).tolist()


def test_that_a_pool_works_in_the_crew(programs):
    np.testing.assert_array_equal(programs["pool"]["y"], 2 * numbered(5))


@pytest.mark.parametrize(
    ("case", "cause"), [("hang", "timeout"), ("exit", "exit code"), ("range", "out of range")]
)
def test_that_a_program_gives_the_same_to_the_last_bit_as_without_the_crew(programs, case, cause):
    crew, alone = programs[case]
    assert {found for found, _ in causes(crew).values()} == {cause}
    kept = [[path and Path(path).name for path in seen.pop("kept")] for seen in (crew, alone)]
    np.testing.assert_array_equal(crew.pop("y"), alone.pop("y"))
    assert crew == alone
    assert kept[0] == kept[1]
    if case == "exit":
        failed = [j for j, name in enumerate(kept[0]) if name]
        assert failed == [*causes(crew)]
        for j in failed:
            folder = programs.folder / "failed" / str(kept[0][j])
            assert f"member{j:05d}" in folder.name
            assert "depth is negative" in (folder / "stderr.txt").read_text()


def test_that_the_cut_of_a_straggler_ends_its_program(programs):
    seen, next_batch = programs["straggler"]
    assert causes(next_batch) == {}
    assert causes(seen) == {8: ("straggler cut", "took more than 1000 times the median")}


def test_that_an_interrupt_ends_the_crew_in_order(programs):
    assert programs["interrupted"] == ["KeyboardInterrupt", ""]


def test_that_members_may_be_mpi_programs(programs):
    seen = programs["nested"]
    assert causes(seen) == {}
    x, y = numbered(4), np.array(seen["y"])
    np.testing.assert_array_equal(y[:, :3], simulate_all(x))
    assert (y[:, 3] == 2).all(), "ranks of the program's own world"


@pytest.mark.parametrize("case", ["die", "interrupt"])
def test_that_a_rank_that_dies_takes_the_job_with_it(tmp_path, case):
    done = under_mpi(3, tmp_path, case)
    assert done.returncode != 0
    assert not list(tmp_path.glob(f"{case}*")), "nobody went on"
    assert become(lambda: not living(tmp_path))


def test_that_a_rank_which_never_returns_is_named(tmp_path):
    done = under_mpi(2, tmp_path, "endless")
    seen, stuck = json.loads((tmp_path / "endless.json").read_text())
    assert {j: cause for j, (cause, _) in causes(seen).items()} == {2: "timeout", 3: "process lost"}
    np.testing.assert_array_equal(seen["y"][:2], 2 * numbered(2))
    assert stuck == [1]
    assert done.returncode == 75, "the job could be aborted"
    assert become(lambda: not living(tmp_path))


def test_that_a_crew_needs_a_second_rank(tmp_path):
    done = under_mpi(1, tmp_path, "few")
    assert done.returncode == 0, done.stderr
    (kind, text), _ = json.loads((tmp_path / "few.json").read_text())
    assert kind == "InputError"
    assert "at least two ranks" in text


def test_that_no_program_outlives_the_job(programs):
    assert become(lambda: not living(programs.folder))
