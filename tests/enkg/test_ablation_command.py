"""enkg ablate: what it prints, and that no cell is run twice, whatever ends the command."""

import signal
import sys
import time

import pytest

from enkg import ablation_figures, journal, store
from experiments.ablations import linear_gaussian
from tests.enkg.ablating import assert_same, calls, ended, opened, process, write
from tests.enkg.test_main import call, one_sentence

SMALL = ("--quick", "--seeds", "2")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A project with a small ablation; figures are drawn elsewhere."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(ablation_figures, "draw", lambda data, folder: [])
    monkeypatch.setattr(journal, "SHARE", 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    yield write(tmp_path)
    sys.modules.pop("model", None)


def test_that_the_command_ends_in_a_table_and_files(here, capsys):
    assert call("ablate", "grid.py", *SMALL) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "4/4  EnKG, noise 0.2, seed 1: finished, " in out
    assert "Four numbers" in out
    assert "all: noise 0.2; vjps 0 everywhere" in out
    assert "results in runs/grid-quick/" in out
    folder = here / "runs" / "grid-quick"
    data = opened(folder)
    assert calls(here) == int(data["calls"].sum())
    for name in ("ablation.csv", "ablation.tex", "table.md", "ablation.json"):
        assert (folder / name).is_file()
    assert call("show", "runs/grid-quick") == 0
    shown = capsys.readouterr().out
    assert shown.strip() in out
    assert call("ablate", "grid.py", *SMALL, "--resume") == 0
    assert call("ablate", "grid.py", *SMALL, "--only-gather") == 0
    assert calls(here) == int(data["calls"].sum())
    assert_same(opened(folder), data)
    capsys.readouterr()
    assert call("status", "runs/grid-quick") == 0
    assert "4 configurations: 4 finished" in capsys.readouterr().out


def test_that_the_cost_is_told_before_and_not_exceeded(here, capsys):
    assert call("ablate", "grid.py", *SMALL, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "4 cells in runs/grid-quick: 0 finished, 4 to run" in told
    most = int(told.split("at most")[-1].split()[0].replace(",", ""))
    assert not (here / "runs").exists()
    assert calls(here) == 0
    only = ("--only", "guidance=ES-MDA")
    assert call("ablate", "grid.py", *SMALL, *only, "--dry-run") == 0
    exact = int(capsys.readouterr().out.split("at most")[-1].split()[0].replace(",", ""))
    assert call("ablate", "grid.py", *SMALL, *only) == 0
    assert calls(here) == exact == 2 * 3 * 16  # two updates and a prediction, whatever the data
    assert call("ablate", "grid.py", *SMALL) == 0
    assert exact < calls(here) <= most
    capsys.readouterr()
    assert call("ablate", "grid.py", *SMALL, "--dry-run") == 0
    assert "4 finished, 0 to run, at most 0 simulator calls" in capsys.readouterr().out


def test_that_a_cell_that_fails_is_told_and_tried_again(here, capsys):
    (here / "broken").write_text("raise")
    assert call("ablate", "grid.py", *SMALL) == 1
    told = "EnKG, noise 0.2, seed 1: failed, ArithmeticError: too warm today (grid.py:"
    out = capsys.readouterr().out
    assert told in out
    assert "1 of 2, 1 failed" in out
    assert call("status", "runs/grid-quick") == 0
    assert "0003: ArithmeticError: too warm today" in capsys.readouterr().out.replace("\n", " ")
    spent = calls(here)
    (here / "broken").unlink()
    assert call("ablate", "grid.py", *SMALL) == 0
    assert 0 < calls(here) - spent <= spent / 3
    assert (opened(here / "runs" / "grid-quick")["state"] == "finished").all()


def test_that_a_changed_cell_is_shown_with_its_numbers(here, capsys):
    one = ("--only", "seed=1", "--only", "guidance=EnKG")
    assert call("ablate", "grid.py", *SMALL) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EnKG ")]
    text = (here / "grid.py").read_text()
    (here / "grid.py").write_text(text.replace("enkg.EnKG(16,", "enkg.EnKG(24,"))
    spent = calls(here)
    assert call("ablate", "grid.py", *SMALL) == 1
    out = capsys.readouterr().out
    assert "4/4  EnKG, noise 0.2, seed 1: changed, experiment.guidance changed since this" in out
    assert "changed: EnKG, noise 0.2, seed 0; EnKG, noise 0.2, seed 1: experiment.guidance" in out
    shown = [line for line in out.splitlines() if line.startswith("EnKG ")]
    # How many columns share a line depends on the width of the seconds.
    assert shown[0].split()[:5] == rows[0].split()[:5]
    assert any(line.rstrip().endswith("of 2, 2 changed") for line in shown)
    assert call("ablate", "grid.py", *SMALL, "--cell", "3") == 1
    assert "changed: experiment.guidance changed since" in capsys.readouterr().out
    assert call("ablate", "grid.py", *SMALL, "--only-gather", *one) == 1
    assert call("ablate", "grid.py", *SMALL, "--dry-run") == 0
    assert "0 to run, at most 0 simulator calls" in capsys.readouterr().out
    assert call("ablate", "grid.py", *SMALL, "--force") == 0
    (here / "grid.py").write_text(text)
    assert call("ablate", "grid.py", *SMALL) == 0
    assert calls(here) == spent


def test_that_nothing_is_gathered_where_there_is_no_ablation(here, capsys):
    (here / "empty").mkdir()
    for out in ("mistyped", "empty"):
        assert call("ablate", "grid.py", *SMALL, "--only-gather", "--out", out) == 1
        assert f"there is no ablation in {out}" in one_sentence(capsys.readouterr().err)
    assert not (here / "mistyped").exists()
    assert not list((here / "empty").iterdir())


def test_that_nothing_is_gathered_while_a_command_writes(here, capsys):
    one = (*SMALL, "--only", "seed=0", "--only", "guidance=EnKG")
    assert call("ablate", "grid.py", *one, "--out", "out") == 0
    capsys.readouterr()
    before = {file: file.stat().st_mtime_ns for file in (here / "out").iterdir()}
    with store.claimed(here / "out"):
        assert call("ablate", "grid.py", *SMALL, "--only-gather", "--out", "out") == 1
    assert "another run is writing into out" in one_sentence(capsys.readouterr().err)
    assert {file: file.stat().st_mtime_ns for file in (here / "out").iterdir()} == before
    assert call("ablate", "grid.py", *SMALL, "--only-gather", "--out", "out") == 0


@pytest.mark.parametrize(
    ("given", "quick", "whole"), [({}, 2, 5), ({"seeds": 3}, 3, 3), ({"seeds": 1}, 1, 1)]
)
def test_that_a_quick_look_has_the_truths_that_are_asked_for(given, quick, whole):
    assert len(linear_gaussian.ablation(quick=True, **given).grid["seed"]) == quick
    assert len(linear_gaussian.ablation(**given).grid["seed"]) == whole


def test_that_the_help_tells_of_both(here, capsys):
    assert call("ablate", "grid.py", "--help") == 0
    out = capsys.readouterr().out
    for words in ("--workers", "--dry-run", "What grid.py accepts besides", "--seeds", "One noise"):
        assert words in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("grid.py", "--workers", "0"), "--workers is 0"),
        (("grid.py", "--only", "seed=7"), "no value '7'; it has 0, 1"),
        (("grid.py", "--time-limit", "soon"), "'soon' is no length of time"),
        (("nowhere.py",), "there is no file nowhere.py"),
        (("model.py",), "defines no `ablation`; expected ablation = enkg.Ablation"),
        (("grid.py", "--out", "."), "holds files that no ablation wrote"),
        (("grid.py", "--seeds", "0"), "the axis 'seed' has no values"),
    ],
)
def test_that_mistakes_are_one_sentence(here, capsys, words, message):
    assert call("ablate", *words) == 1
    assert message in one_sentence(capsys.readouterr().err)


def test_that_the_file_is_told_from_that_of_an_experiment(here, capsys):
    assert call("run", "grid.py") == 1
    told = one_sentence(capsys.readouterr().err)
    assert "It defines `ablation`, which is for: enkg ablate grid.py" in told
    text = (here / "grid.py").read_text()
    (here / "both.py").write_text(text + "\nexperiment = build(METHODS['EnKG'], 0.2, 0)\n")
    assert call("submit", "both.py") == 1
    assert "both `experiment` and `ablation`" in one_sentence(capsys.readouterr().err)
    (here / "plain.py").write_text(text + "\nablation = ablation(quick=True)\n")
    assert call("ablate", "plain.py", "--seeds", "3") == 1
    assert "takes no arguments, and --seeds 3 is given" in one_sentence(capsys.readouterr().err)


def test_that_the_list_tells_of_ablations(here, capsys):
    (here / "experiments").mkdir()
    (here / "experiments" / "grid.py").write_text((here / "grid.py").read_text())
    assert call("list", str(here)) == 0
    out = capsys.readouterr().out
    assert "ablations" in out
    assert "Two methods, two noise levels." in out


def test_that_the_nearest_methods_are_told(here, capsys):
    text = (here / "grid.py").read_text()
    (here / "file.py").write_text(text + "\nexperiment = build(METHODS['EnKG'], 0.2, 0)\n")
    assert call("run", "file.py", "--guidance", "EnGK") == 1
    told = one_sentence(capsys.readouterr().err)
    assert "no guidance method 'EnGK'; the nearest are " in told
    assert "enkg" in told
    assert "`enkg list` shows all" in told


def test_that_the_job_has_a_task_for_each_cell_that_is_left(here, capsys):
    assert call("submit", "grid.py", *SMALL, "--dry-run", "--at-once", "2") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-3%2" in script
    assert f"--out {here}/runs/grid-quick --cell " in script
    assert "ablate" in script
    assert call("ablate", "grid.py", *SMALL, "--only", "seed=0") == 0
    capsys.readouterr()
    assert call("submit", "grid.py", *SMALL, "--dry-run") == 0
    assert "#SBATCH --array=1,3\n" in capsys.readouterr().out
    assert call("ablate", "grid.py", *SMALL, "--cell", "3") == 0
    assert "EnKG, noise 0.2, seed 1" in capsys.readouterr().out
    assert call("ablate", "grid.py", *SMALL, "--cell", "4") == 1
    assert "has no cell 4" in one_sentence(capsys.readouterr().err)
    for words in (("--ranks-per-node", "2"), ("--vary", "seed=1"), ("--guidance", "enkg")):
        assert call("submit", "grid.py", *SMALL, "--dry-run", *words) == 1
        assert f"{words[0]} is for the runs" in one_sentence(capsys.readouterr().err)


# --- processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The project of an ablation that nothing disturbs, in one process."""
    folder = write(tmp_path_factory.mktemp("whole"))
    ended(process(folder, "ablate", "grid.py", *SMALL, "--out", "out"))
    return folder


def until(true, limit=60.0) -> None:
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_that_a_killed_ablation_repeats_no_finished_cell(tmp_path, whole, number):
    write(tmp_path)
    words = ("ablate", "grid.py", *SMALL, "--out", "out", "--pause", "0.01")
    life = process(tmp_path, *words)
    until(lambda: (tmp_path / "out" / "0001.json").exists() and calls(tmp_path) > 110)
    life.send_signal(number)
    code = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    text = ended(life, code)
    assert number == signal.SIGKILL or "the same command goes on with it" in text
    before = (tmp_path / "out" / "0000" / "summary.json").stat().st_mtime_ns
    ended(process(tmp_path, *words))
    assert (tmp_path / "out" / "0000" / "summary.json").stat().st_mtime_ns == before
    assert_same(opened(tmp_path / "out"), opened(whole / "out"))
    assert calls(tmp_path) <= calls(whole) + 4  # the chunk that was in hand


def test_that_two_workers_give_what_one_does(tmp_path, whole):
    write(tmp_path)
    (tmp_path / "broken").write_text("kill")
    words = ("ablate", "grid.py", *SMALL, "--out", "out", "--workers", "2")
    text = ended(process(tmp_path, *words), 1)
    assert "EnKG, noise 0.2, seed 1: failed, WorkerDied: its process was killed by SIGKILL" in text
    data = opened(tmp_path / "out")
    assert (data["state"] == "finished").sum() == 3
    (tmp_path / "broken").unlink()
    ended(process(tmp_path, *words))
    assert_same(opened(tmp_path / "out"), opened(whole / "out"))
    assert calls(tmp_path) == calls(whole)


@pytest.mark.slow
def test_that_workers_stop_in_order(tmp_path, whole):
    write(tmp_path)
    words = ("ablate", "grid.py", *SMALL, "--out", "out", "--workers", "2", "--pause", "0.02")
    life = process(tmp_path, *words)
    until(lambda: calls(tmp_path) > 40)
    life.terminate()
    assert "the same command goes on with it" in ended(life, 75)
    spent = calls(tmp_path)
    time.sleep(0.5)
    assert calls(tmp_path) == spent  # nobody goes on
    assert '"state": "stopped"' in (tmp_path / "out" / "0000" / "progress.json").read_text()
    ended(process(tmp_path, *words))
    assert_same(opened(tmp_path / "out"), opened(whole / "out"))
    assert calls(tmp_path) <= calls(whole) + 8
