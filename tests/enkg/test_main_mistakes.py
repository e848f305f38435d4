"""The command line: files that exit, runs of other experiments, folders that have gone."""
# ruff: noqa: F811

import json

import pytest

import enkg
from tests.enkg.test_main import PLAIN, call, here, one_sentence  # noqa: F401


def test_that_a_finished_run_of_another_experiment_is_not_taken_for_this_one(here, capsys):
    assert call("run", "plain.py", "--out", "a", "--seed", "1") == 0
    assert call("run", "plain.py", "--out", "a", "--seed", "1", "--resume") == 0
    capsys.readouterr()
    assert call("run", "plain.py", "--out", "a", "--seed", "2", "--resume") == 1
    assert "experiment.seed changed" in one_sentence(capsys.readouterr().err)


def test_that_a_file_that_exits_is_a_mistake_of_the_file(here, capsys):
    (here / "leaves.py").write_text("import sys\nsys.exit('no licence')\n")
    assert call("run", "leaves.py") == 1
    assert "exit(no licence)" in one_sentence(capsys.readouterr().err)


def test_that_a_member_that_exits_has_failed(here):
    leaves = PLAIN.replace("return x[:, :2]", "return x[:, :2] if x[0, 0] < 1 else exit(3)")
    leaves = leaves.replace("simulator=simulator", "simulator=enkg.Function(simulator, chunk=1)")
    (here / "leaves.py").write_text(leaves)
    assert call("run", "leaves.py") == 0
    assert enkg.summary(here / "runs" / "leaves")["causes"] == {
        "exception": pytest.approx(15, abs=14)
    }


def test_that_a_run_whose_folder_has_gone_is_told_so(here, capsys):
    assert call("run", "plain.py", "--out", "a") == 0
    record = json.loads((here / "a" / "experiment.json").read_text())
    (here / "a" / "experiment.json").write_text(json.dumps({**record, "folder": "/gone/away"}))
    assert call("resume", "a") == 1
    assert "/gone/away, which is not there" in one_sentence(capsys.readouterr().err)
