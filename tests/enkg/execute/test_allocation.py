"""The nodes of an allocation: which there are, what fits on them, and what srun is told of it."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from enkg.errors import InputError
from enkg.execute import Program, allocation, launcher
from enkg.execute.allocation import Node, places
from enkg.execute.manifest import Mpi
from enkg.failure import FailurePolicy
from tests.slurm.fakes import Fakes

X = np.arange(24.0).reshape(6, 4)
MANIFEST = """\
name = "doubling"
[input]
shape = [4]
[output]
shape = [4]
[{kind}]
command = ["python3", "{{folder}}/double.py", "{{input}}", "{{output}}"]
[mpi]
ranks = {ranks}
launcher = "srun"
"""
DOUBLE = """\
import sys, numpy as np
np.save(sys.argv[2], 2 * np.load(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """Outside any job, whatever surrounds the tests."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "PMI", "OMPI_COMM")):
            monkeypatch.delenv(name)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    fakes = Fakes(tmp_path / "bin")
    fakes.make("scontrol", out="n1\nn2\nn3\n")
    fakes.srun()
    monkeypatch.setenv("PATH", f"{fakes.folder}:{os.environ['PATH']}")
    return fakes


@pytest.fixture
def three(fakes, monkeypatch):
    """The batch script of an allocation of three nodes, of 4, 4 and 2 cores, on the first one."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "4(x2),2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return fakes


def program(folder: Path, ranks: int = 2, kind: str = "oneshot", **options) -> Program:
    folder.mkdir(exist_ok=True)
    text = MANIFEST.format(kind=kind, ranks=ranks)
    if kind == "worker":
        text = text.replace(', "{input}", "{output}"', "")
    (folder / "simulator.toml").write_text(text)
    (folder / "double.py").write_text(DOUBLE)
    return Program(folder, **options)


def where(call: list[str]) -> tuple[str, str]:
    """The options of a step that say on which nodes it lies."""
    return call[call.index("-w") - 1], call[call.index("-w") + 1]


def test_that_there_is_one_node_outside_an_allocation():
    (node,) = allocation.nodes()
    assert node.cores == allocation.usable_cores()


def test_that_a_batch_script_has_all_nodes(three):
    assert allocation.nodes() == (Node("n1", 4), Node("n2", 4), Node("n3", 2))
    assert three.calls("scontrol") == [["show", "hostnames", "n[1-3]"]]


def test_that_a_process_alone_in_a_step_has_all_nodes(three, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert len(allocation.nodes()) == 3


@pytest.mark.parametrize("size", ["SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_that_one_of_several_ranks_has_its_own_node(three, monkeypatch, size):
    monkeypatch.setenv(size, "2")
    assert allocation.nodes() == (Node("n1", allocation.usable_cores()),)


def test_that_an_allocation_that_cannot_be_read_is_an_error(three, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "4(x2)")
    with pytest.raises(InputError, match="names 3 nodes and SLURM_JOB_CPUS_PER_NODE 2"):
        allocation.nodes()
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "many")
    with pytest.raises(InputError, match="expected counts such as"):
        allocation.nodes()
    three.make("scontrol", err="Invalid hostlist\n", code=1)
    with pytest.raises(InputError, match="scontrol says: Invalid hostlist"):
        allocation.nodes()
    (three.folder / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(three.folder))
    with pytest.raises(InputError, match="cannot be listed"):
        allocation.nodes()


NODES = (Node("a", 4), Node("b", 8), Node("c", 2))


def test_that_slots_fill_the_nodes_in_turn():
    assert places(NODES, 2, 1) == [(n,) for n in "abcabbb"]
    assert places(NODES, 1, 4) == [(n,) for n in "abb"]
    assert places(NODES, 2, 1, slots=4) == [(n,) for n in "abca"]


def test_that_a_member_too_large_for_a_node_takes_several():
    assert places(NODES, 12, 1) == [("a", "b")]
    same = [Node(name, 4) for name in "abcde"]
    assert places(same, 8, 1) == [("a", "b"), ("c", "d")]
    assert places(same, 2, 3) == [("a", "b"), ("c", "d")]  # one rank of three cores on each


def test_that_what_has_no_room_is_refused():
    with pytest.raises(InputError, match=r"takes 15 ranks of 1 cores.*14 cores on 3 nodes"):
        places(NODES, 15, 1)
    with pytest.raises(InputError, match="takes 1 ranks of 9 cores"):
        places(NODES, 1, 9)
    with pytest.raises(InputError, match=r"slots is 8.*room for 7"):
        places(NODES, 2, 1, slots=8)


def test_that_members_run_on_all_nodes(three, tmp_path):
    simulator = program(tmp_path / "program")
    assert simulator.count == 5
    with simulator.opened(FailurePolicy(), tmp_path / "run/failed") as evaluator:
        scratch = [path.parent for path in (tmp_path / "run").glob("enkg-*")]
        np.testing.assert_array_equal(evaluator.evaluate(X).y, 2 * X)
    assert set(scratch) == {tmp_path / "run"}  # which all nodes see
    assert not list((tmp_path / "run").iterdir())
    calls = three.calls("srun")
    assert len(calls) == 6
    assert {where(call) for call in calls} <= {("--nodes=1", f"n{k}") for k in (1, 2, 3)}
    assert {where(call)[1] for call in calls} > {"n1"}
    for call in calls:
        assert call[:7] == [
            *("-n", "2", "--exact", "--mem=0", "--cpus-per-task=1", "--kill-on-bad-exit=1"),
            "--nodes=1",
        ]
        assert "--overlap" not in call


def test_that_a_large_member_names_all_its_nodes(three, tmp_path):
    simulator = program(tmp_path / "program", ranks=8)
    assert simulator.count == 1
    np.testing.assert_array_equal(simulator.evaluate(X[:1]).y, 2 * X[:1])
    assert where(three.calls("srun")[0]) == ("--nodes=2", "n1,n2")


def test_that_one_of_several_ranks_starts_its_members_beside_itself(three, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    program(tmp_path / "program", slots=1).evaluate(X[:1])
    (call,) = three.calls("srun")
    assert where(call) == ("--nodes=1", "n2")
    assert "--overlap" in call


def test_that_the_scratch_that_was_named_is_taken(three, tmp_path):
    simulator = program(tmp_path / "program", scratch=tmp_path / "mine")
    with simulator.opened(FailurePolicy(), tmp_path / "run/failed"):
        assert len(list((tmp_path / "mine").glob("enkg-*"))) == 5


def test_that_a_step_without_room_is_tried_again(three, tmp_path):
    three.srun(busy=3)
    simulator = program(tmp_path / "program", slots=1)
    policy = FailurePolicy(retries=3)
    with simulator.opened(policy, None) as evaluator:
        result = evaluator.evaluate(X[:2])
    np.testing.assert_array_equal(result.y, 2 * X[:2])
    assert result.calls == 4


def test_that_workers_stay_on_this_node_and_say_so(three, tmp_path, caplog):
    simulator = program(tmp_path / "program", kind="worker")
    with caplog.at_level(logging.WARNING, "enkg"), simulator.opened(FailurePolicy(), None):
        pass
    assert "2 other nodes of the allocation are idle" in caplog.text
    prefix = launcher.prefix(simulator.manifest.mpi)
    assert where(prefix) == ("--nodes=1", "n1")


def test_that_programs_on_all_nodes_give_no_warning(three, tmp_path, caplog):
    with program(tmp_path / "program").opened(FailurePolicy(), tmp_path / "run/failed"):
        pass
    assert caplog.text == ""


def test_that_one_node_needs_no_name(fakes, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert launcher.prefix(Mpi(2, "srun"))[-1] == "--kill-on-bad-exit=1"
