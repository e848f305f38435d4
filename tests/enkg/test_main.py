"""The command line: what each command prints, and one clear sentence for every error."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg import report
from enkg.__main__ import main
from tests.enkg.problems import values

HEAD = """\"\"\"Four numbers of which two are seen.\"\"\"
import torch
import enkg

prior = enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,)))


def simulator(x):
    return x[:, :2]

"""
PLAIN = (
    HEAD
    + """
experiment = enkg.Experiment(
    prior=prior,
    simulator=simulator,
    observation=enkg.Observation(torch.ones(2), std=0.5),
    guidance=enkg.EnKG(members=32, updates=2),
)
"""
)
TYPED = (
    HEAD
    + """
from typing import Literal


def experiment(
    value: float = 1.0, data: int = 2, kind: Literal["one", "many"] = "one", loud: bool = False
) -> enkg.Experiment:
    \"\"\"Sees the first few of four numbers.

    Args:
        value: What every datum says.
    \"\"\"
    assert isinstance(value, float) and isinstance(data, int)
    return enkg.Experiment(
        prior=prior,
        simulator=lambda x: x[:, :data],
        observation=enkg.Observation(torch.full((data,), value), std=2.0 if loud else 0.5),
        guidance=enkg.ESMDA(members=32 if kind == "many" else 16),
    )
"""
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty project; the import path is restored, because experiment files extend it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(report, "figures", lambda tree, folder: [])  # tested elsewhere
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "typed.py").write_text(TYPED)
    return tmp_path


def call(*words: str) -> int:
    """The exit code."""
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


def one_sentence(text: str) -> str:
    """Standard error holds a single line, without a traceback."""
    assert "Traceback" not in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


# --- run ------------------------------------------------------------------------------------


def test_that_run_leaves_a_finished_run_and_prints_its_numbers(here, capsys):
    assert call("run", "plain.py") == 0
    summary = enkg.summary(here / "runs" / "plain")
    assert summary["calls"] == 3 * 32
    record = json.loads((here / "runs" / "plain" / "experiment.json").read_text())
    assert record["source"] == "plain.py"
    out, err = capsys.readouterr()
    assert err == ""
    assert "EnKG, 32 members" in out
    assert "simulator calls" in out
    assert "96" in out
    assert "results in runs/plain/" in out
    assert ("trusted" if summary["trusted"] else "not trusted") in out


def test_that_fields_of_the_experiment_can_be_overridden(here):
    options = ["--seed", "3", "--guidance.members", "16", "--predict", "4", "--double"]
    assert call("run", "plain.py", "--out", "a", *options) == 0
    record = json.loads(Path("a", "experiment.json").read_text())["experiment"]
    assert record["seed"] == 3
    assert record["double"] is True
    assert record["guidance"]["updates"] == 2  # what is not given stays
    assert enkg.summary("a")["calls"] == 2 * 16 + 4


def test_that_the_seed_of_the_command_line_decides(here):
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert call("run", "plain.py", "--out", out, "--seed", seed) == 0
    a, b, c = (values(enkg.open(out), "posterior", "x") for out in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_that_a_method_is_chosen_by_name_and_then_changed(here):
    assert call("run", "plain.py", "--guidance", "es-mda", "--guidance.members", "20") == 0
    summary = enkg.summary(here / "runs" / "plain")
    assert summary["method"] == "ESMDA"
    assert summary["calls"] == (enkg.ESMDA().updates + 1) * 20


def test_that_an_experiment_function_takes_typed_arguments(here):
    options = ["--data", "3", "--value", "2", "--kind", "many", "--loud", "--guidance.updates", "3"]
    assert call("run", "typed.py", *options) == 0
    tree = enkg.open(here / "runs" / "typed")
    np.testing.assert_array_equal(tree["observation"]["y"], [2, 2, 2])
    np.testing.assert_array_equal(tree["observation"]["std"], [2, 2, 2])
    assert enkg.summary(here / "runs" / "typed")["calls"] == 4 * 32


def test_that_an_experiment_function_has_defaults(here):
    assert call("run", "typed.py") == 0
    assert enkg.summary(here / "runs" / "typed")["members"] == 16


def test_that_a_file_may_import_its_neighbours(here):
    (here / "next_door.py").write_text("WIDTH = 0.25\n")
    (here / "sub").mkdir()
    text = "from next_door import WIDTH\n" + PLAIN.replace("std=0.5", "std=WIDTH")
    (here / "sub" / "lodger.py").write_text(text)
    (here / "pyproject.toml").touch()
    assert call("run", "sub/lodger.py") == 0
    tree = enkg.open(here / "runs" / "lodger")
    np.testing.assert_array_equal(tree["observation"]["std"], [0.25, 0.25])


# --- errors of usage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "plain.py", "--guidance.memberz", "16"], "memberz"),
        (["run", "plain.py", "--nonsense"], "nonsense"),
        (["run", "plain.py", "--guidance.members", "many"], "many"),
        (["run", "typed.py", "--data", "two"], "two"),
        (["run", "typed.py", "--kind", "few"], "few"),
        (["run", "plain.py", "--guidance.members", "1"], "needs at least 2"),
        (["run", "plain.py", "--failure.minimum-success", "0"], "minimum_success is 0.0"),
        (["run"], "enkg run"),
        (["fly"], "fly"),
        (["show"], "enkg show"),
        (["export", "somewhere"], "netcdf"),
    ],
)
def test_that_wrong_usage_is_named_and_does_nothing(here, capsys, words, named):
    before = sorted(here.iterdir())
    assert call(*words) == 2
    err = capsys.readouterr().err
    assert named in err
    assert "Traceback" not in err
    assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before


MISTAKES = {
    "no file": (None, "there is no file broken.py"),
    "no experiment": ("x = 1\n", "defines no `experiment`"),
    "not an experiment": ("experiment = 3\n", "`experiment` in broken.py is a int"),
    "syntax": ("x = 1\ny = = 2\n", r"broken.py:2: SyntaxError"),
    "exception": ("x = 1\n\nx = [][3]\n", r"broken.py:3: IndexError: list index out of range"),
    "exception in a function": (
        "import enkg\n\n\ndef experiment() -> enkg.Experiment:\n    return [][3]\n",
        r"broken.py:5: IndexError",
    ),
    "function of something else": (
        "import enkg\n\n\ndef experiment() -> enkg.Experiment:\n    return 3\n",
        "returned a int",
    ),
    "import": ("import no_such_module\n", r"broken.py:1: ModuleNotFoundError.*no_such_module"),
    "bad observation": (
        "import enkg\nimport torch\nenkg.Observation(torch.ones(2), std=0.0)\n",
        r"broken.py:3: the noise std must be positive",
    ),
    "simulator raises": (
        PLAIN.replace("return x[:, :2]", "raise OSError('licence server down')"),
        "failed for all 32 members; first: OSError: licence server down",
    ),
    "simulator of the wrong size": (PLAIN.replace(":2]", ":3]"), r"shape \(3,\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_that_a_mistake_in_the_file_is_one_sentence(here, capsys, mistake):
    text, words = MISTAKES[mistake]
    if text is not None:
        (here / "broken.py").write_text(text)
    assert call("run", "broken.py") == 1
    message = one_sentence(capsys.readouterr().err)
    assert re.search(words, message)
    assert not list(here.rglob("summary.json"))
    assert not list(here.rglob("*.zarr"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--guidance", "magic"], r"no guidance method 'magic'; .*enkg list. shows all"),
        (["--seed=-1"], "seed is -1"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_that_an_impossible_value_is_one_sentence(here, capsys, options, words):
    assert call("run", "plain.py", *options) == 1
    assert re.search(words, one_sentence(capsys.readouterr().err))
    assert not list(here.rglob("summary.json"))


def test_that_a_file_that_is_not_python_is_refused(here, capsys):
    (here / "notes.txt").write_text(PLAIN)
    assert call("run", "notes.txt") == 1
    assert "not a Python file" in one_sentence(capsys.readouterr().err)


def test_that_a_directory_in_use_is_kept_unless_told(here, capsys):
    assert call("run", "plain.py", "--out", "a", "--seed", "1") == 0
    before = values(enkg.open("a"), "posterior", "x")
    capsys.readouterr()
    assert call("run", "plain.py", "--out", "a", "--seed", "2") == 1
    assert "--overwrite" in one_sentence(capsys.readouterr().err)
    np.testing.assert_array_equal(values(enkg.open("a"), "posterior", "x"), before)
    assert call("run", "plain.py", "--out", "a", "--seed", "2", "--overwrite") == 0
    assert (values(enkg.open("a"), "posterior", "x") != before).any()


def test_that_the_keyboard_stops_a_run_that_then_looks_unfinished(here, capsys):
    stopped = PLAIN.replace("return x[:, :2]", "raise KeyboardInterrupt")
    (here / "stopped.py").write_text(stopped)
    assert call("run", "stopped.py", "--out", "a") == 130
    assert "not finished" in capsys.readouterr().err
    assert call("show", "a") == 1
    assert "did not finish" in one_sentence(capsys.readouterr().err)
    assert call("run", "plain.py", "--out", "a") == 0  # nothing was lost by replacing it


def test_that_a_traceback_is_there_for_the_asking(here, capsys):
    (here / "broken.py").write_text("x = [][3]\n")
    assert call("run", "broken.py", "--traceback") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "broken.py:1: IndexError" in err


# --- list, show, export, help ---------------------------------------------------------------


def test_that_list_names_methods_and_what_the_project_holds(here, capsys):
    for room in ("experiments", "priors", "simulators"):
        (here / room).mkdir()
    (here / "experiments" / "mine.py").write_text(PLAIN)
    (here / "experiments" / "helper.py").write_text('"""No experiment here."""\n')
    (here / "experiments" / "broken.py").write_text("x = = 1\n")
    (here / "priors" / "rings.py").write_text('"""Rings of light."""\nraise SystemExit\n')
    (here / "simulators" / "ocean").mkdir()
    (here / "simulators" / "ocean" / "__init__.py").write_text('"""A shallow ocean."""\n')
    (here / "pyproject.toml").touch()
    assert call("list") == 0
    out = capsys.readouterr().out
    for name in enkg.METHODS:
        assert name in out
    told = " ".join(out.replace("│", " ").split())
    assert "es-mda-16 es-mda with updates=16" in told
    assert "eki-published EKI as published" in told
    assert told.count("ES-MDA: ensemble smoother") == 1  # presets do not say it again
    for text in ("mine.py", "Four numbers", "rings.py", "Rings of light", "A shallow ocean"):
        assert text in out
    assert "helper.py" not in out
    assert call("list", str(here)) == 0
    capsys.readouterr()
    assert call("list", "nowhere") == 1
    assert "nowhere is not a folder" in one_sentence(capsys.readouterr().err)


def test_that_show_prints_a_finished_run(here, capsys):
    assert call("run", "plain.py", "--out", "a") == 0
    capsys.readouterr()
    assert call("show", "a") == 0
    out = capsys.readouterr().out
    assert "EnKG, 32 members" in out
    assert enkg.summary("a")["reason"].split(",")[0] in " ".join(out.split())


def test_that_export_writes_netcdf(here, capsys):
    assert call("run", "plain.py", "--out", "a") == 0
    assert call("export", "a", "--netcdf", "a.nc") == 0
    assert Path("a.nc").read_bytes()[:4] == b"\x89HDF"
    capsys.readouterr()
    assert call("export", "a", "--netcdf", "a.nc") == 1
    assert "exists" in one_sentence(capsys.readouterr().err)
    assert call("export", "a", "--netcdf", "a.nc", "--overwrite") == 0


@pytest.mark.parametrize("words", [["show", "nowhere"], ["export", "nowhere", "--netcdf", "a.nc"]])
def test_that_a_directory_without_a_run_is_one_sentence(here, capsys, words):
    assert call(*words) == 1
    assert "not a run directory" in one_sentence(capsys.readouterr().err)
    assert not Path("a.nc").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["run", "list", "show", "export"]),
        (["--help"], ["run", "list", "show", "export"]),
        (["-h"], ["run", "list", "show", "export"]),
        (["run", "--help"], ["--out", "--overwrite", "--guidance"]),
        (["run", "plain.py", "--help"], ["--out", "--guidance.members", "--seed", "--predict"]),
        (["run", "typed.py", "--help"], ["--value", "What every datum says", "--guidance.updates"]),
        (["list", "--help"], ["project to look at"]),
        (["show", "--help"], ["directory"]),
        (["export", "--help"], ["--netcdf"]),
    ],
)
def test_that_help_explains_and_does_nothing(here, capsys, words, expected):
    assert call(*words) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in expected:
        assert text.lower() in out.lower()
    assert not (here / "runs").exists()


# --- the real program -----------------------------------------------------------------------


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "enkg", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"},
    )


def test_that_the_program_runs(here):
    done = program("run", "plain.py", "--out", "a", "--guidance.members", "16")
    assert done.returncode == 0, done.stderr
    assert enkg.summary("a")["members"] == 16
    assert "results in a/" in done.stdout
    assert done.stderr == ""
    assert len(list(Path("a", "figures").glob("*.png"))) == 3


def test_that_the_program_fails_in_one_sentence(here):
    (here / "broken.py").write_text("x = [][3]\n")
    done = program("run", "broken.py")
    assert done.returncode == 1
    assert "broken.py:1: IndexError" in one_sentence(done.stderr)


def test_that_the_program_explains_wrong_usage(here):
    done = program("run", "plain.py", "--guidance.memberz", "3")
    assert done.returncode == 2
    assert "memberz" in done.stderr
    assert "Traceback" not in done.stderr


def test_that_the_version_is_known(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.split() == ["enkg", enkg.__version__]
