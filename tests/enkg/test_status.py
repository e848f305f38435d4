"""What can be told of a run from another terminal, while it runs and after it has ended."""

import os
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import enkg
from enkg import beat, grid, status, store
from enkg.beat import PROGRESS, State
from enkg.status import GridStatus, Status
from tests.enkg.watching import (
    HERE,
    MEMBERS,
    PROBLEM,
    UPDATES,
    ago,
    change,
    experiment,
    held,
    interrupted,
    one,
    place,
    shown,
    until,
    watched,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("status") / "finished"
    watched(experiment(truth=PROBLEM.mean), folder)
    return folder


@pytest.fixture
def stopped(tmp_path) -> Path:
    return interrupted(tmp_path / "my run")


# --- a run that lives -----------------------------------------------------------------------


def test_that_a_living_run_tells_step_members_calls_and_time_left(tmp_path):
    with held(tmp_path / "run", number=7):  # the third of four calls of the second sweep
        until(lambda: place(tmp_path / "run") == (2, 8))
        found = one(tmp_path / "run")
        out = shown(found)
    assert found.state is State.RUNNING
    told = found.told
    assert (told["step"], told["sweep"], told["sweeps"]) == (1, 2, UPDATES)
    assert (told["members_done"], told["members_total"]) == (8, MEMBERS)
    assert (told["calls"], told["failed"], told["ranks"]) == (MEMBERS, 0, 1)
    assert (told["host"], told["pid"]) == (HERE, os.getpid())
    assert told["share"] == pytest.approx((1 + 0.5) / UPDATES)
    assert told["misfit_per_datum"] > 0
    assert told["seconds_left"] > 0
    first = out.splitlines()[0]
    assert first.startswith(
        f"running on host {HERE}, step 1 done, sweep 2 of at most 3, 8 of 16 members, about "
    )
    for part in ("ESMDA, 16 members", "50%", "misfit per datum", "the end of log.txt", "seed 0"):
        assert part in out


def test_that_a_look_leaves_the_lock_to_the_run_and_to_the_next_one(tmp_path, stopped):
    with held(tmp_path / "run", number=2):
        one(tmp_path / "run")
        with pytest.raises(enkg.StoreError, match="another run"):
            enkg.run(experiment(), tmp_path / "run")
    one(stopped)
    assert not (stopped / store.LOCK).exists()
    (stopped / store.LOCK).touch()
    change(stopped, state="running")
    one(stopped)
    with store.claimed(stopped):
        pass


def test_that_a_run_that_has_not_said_anything_yet_is_starting(stopped):
    (stopped / PROGRESS).unlink()
    with store.claimed(stopped):
        assert one(stopped).sentence == "running: it is starting"
    assert one(stopped).state is State.KILLED
    assert "ended before it began" in one(stopped).sentence


def test_that_a_run_lives_while_its_simulator_says_nothing_for_long(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with held(folder, number=2):
        until(lambda: place(folder) == (1, 4))  # the last news for long
        change(folder, updated=ago(1000))
        monkeypatch.setattr(beat, "QUIET", 0.0)
        until(lambda: (one(folder).age or 0) < 900)


def test_that_an_old_sign_of_life_is_told_where_the_lock_is_held(tmp_path, stopped):
    change(stopped, state="running", updated=ago(125))
    with store.claimed(stopped):
        assert one(stopped).state is State.RUNNING
        assert f"but it last wrote {PROGRESS} 2:0" in one(stopped).sentence


# --- a run that has ended -------------------------------------------------------------------


def test_that_a_finished_run_leaves_its_numbers_and_no_sign_of_life(finished):
    assert not list(finished.glob(PROGRESS + "*"))
    found = one(finished)
    assert found.state is State.FINISHED
    assert found.sentence.startswith("finished: ")
    out = shown(found)
    assert out.splitlines()[0] == found.sentence
    assert f"{(UPDATES + 1) * MEMBERS}" in out
    assert out.rstrip().splitlines()[-1].startswith(("trusted:", "not trusted:"))


def test_that_a_stopped_run_says_why_and_how_to_go_on(stopped):
    found = one(stopped)
    assert found.state is State.STOPPED
    assert found.sentence == (
        "stopped after step 1 (by SIGTERM); the script that began it goes on by "
        "enkg.run(..., resume=True)"
    )
    assert found.told["seconds_left"] is None
    record = store.recorded(stopped) | {"source": "begun_by.py"}
    store.write_json(stopped / store.RECORD, record)
    assert one(stopped).sentence.endswith(f"; `enkg resume '{stopped}'` goes on")


def test_that_a_failed_run_says_why(tmp_path):
    def dead(x):
        return PROBLEM.simulate(x) * float("nan")

    with pytest.raises(enkg.EnsembleFailure):
        watched(experiment(dead), tmp_path / "run")
    found = one(tmp_path / "run")
    assert found.state is State.FAILED
    assert sum(found.told["causes"].values()) == MEMBERS
    assert found.sentence.startswith("failed before step 1: ")
    assert "once that is mended, the script that began it goes on" in found.sentence


SCRIPT = """
import sys, time
from pathlib import Path
from tests.enkg import watching
from tests.enkg.problems import small_problem

calls = 0
def hangs(x):
    global calls
    calls += 1
    if calls == 6:
        time.sleep(600)
    return small_problem().simulate(x)

watching.watched(watching.experiment(hangs), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_that_a_killed_run_is_found_dead(tmp_path):
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=Path.cwd())
    try:
        until(lambda: place(folder) == (2, 4))
        assert one(folder).state is State.RUNNING
        assert one(folder).told["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
    found = one(folder)
    assert found.told["state"] == "running"
    assert found.state is State.KILLED
    assert "its lock is free: it was killed after step 1" in found.sentence
    assert "resume=True" in found.sentence


# --- from another node ----------------------------------------------------------------------


def test_that_a_free_lock_proves_nothing_on_another_host(stopped):
    change(stopped, state="running", host="node17", updated=ago(30))
    assert one(stopped).state is State.RUNNING
    change(stopped, updated=ago(185))
    found = one(stopped)
    assert found.state is State.SILENT
    assert "(3:0" in found.sentence
    assert "look on node17" in found.sentence
    assert "killed" not in found.sentence


def test_that_a_held_lock_proves_life_on_any_host(stopped):
    change(stopped, state="running", host="node17", updated=ago(185))
    with store.claimed(stopped):
        assert one(stopped).state is State.RUNNING


# --- directories that are none --------------------------------------------------------------


def test_that_other_directories_are_refused_with_advice(tmp_path):
    with pytest.raises(enkg.StoreError, match="there is no directory"):
        status.read(tmp_path / "none")
    with pytest.raises(enkg.StoreError, match=r"no experiment\.json.*--out"):
        status.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read"),
        ("[]", "holds a list"),
        ('{"done": 3}', "format None"),
        ('{"format": 99}', "reads format 1"),
        ('{"format": 1, "state": "running"}', "was not written by a run"),
        (None, "state or updated missing"),
    ],
)
def test_that_a_foreign_file_in_place_of_the_sign_of_life_is_refused(stopped, text, says):
    if text is None:
        change(stopped, state="flying")
    else:
        (stopped / PROGRESS).write_text(text)
    with pytest.raises(enkg.StoreError, match=says):
        status.read(stopped)


# --- a grid ---------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, finished, stopped) -> Path:
    """Six runs: finished, stopped, running, failed, broken and one that has not begun."""
    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "0000").symlink_to(finished)
    for number in range(1, 5):
        (folder / f"{number:04d}").mkdir()
        for name in (PROGRESS, store.RECORD):
            (folder / f"{number:04d}" / name).write_text((stopped / name).read_text())
    change(folder / "0002", state="running", share=0.4)
    change(folder / "0003", state="failed")
    (folder / "0004" / PROGRESS).write_text("{")
    configurations = [{"seed": str(k), "guidance.members": "16"} for k in range(6)]
    store.write_json(folder / grid.FILE, {"format": 1, "configurations": configurations})
    return folder


def test_that_a_grid_is_one_line_for_each_configuration(runs):
    with store.claimed(runs / "0002"):
        found = status.read(runs)
        out = shown(found)
    assert isinstance(found, GridStatus)
    assert [run.state for run in found.runs] == [
        State.FINISHED,
        State.STOPPED,
        State.RUNNING,
        State.FAILED,
        State.BROKEN,
        State.MISSING,
    ]
    assert out.splitlines()[0] == (
        "6 configurations: 1 running, 1 stopped, 1 failed, 1 finished, 1 missing, 1 unreadable"
    )
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 6
    for word in ("0000", "finished", f"{(UPDATES + 1) * MEMBERS}"):
        assert word in rows[0]
    error = enkg.summary(runs / "0000")["metrics"]["relative_error"]
    assert f"{error:.3g}" in rows[0]
    assert "running, 40%" in rows[2]
    assert "0004: cannot read" in out
    for part in ("seed", "guidance.members", "misfit per datum", "relative error"):
        assert part in out


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_that_a_foreign_grid_is_refused(tmp_path, text):
    (tmp_path / grid.FILE).write_text(text)
    with pytest.raises(enkg.StoreError, match=r"grid\.json"):
        status.read(tmp_path)


# --- following ------------------------------------------------------------------------------


def test_that_following_ends_with_the_run(tmp_path):
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    ends: list[Status | GridStatus] = []

    def follow() -> None:
        ends.append(status.follow(tmp_path / "run", console, every=0.01))

    with held(tmp_path / "run", number=6):
        follower = threading.Thread(target=follow)
        follower.start()
        until(lambda: "running on host" in console.file.getvalue())  # type: ignore[attr-defined]
        assert follower.is_alive()
    follower.join(60)
    (end,) = ends
    assert isinstance(end, Status)
    assert end.state is State.FINISHED
    assert "finished: " in console.file.getvalue()  # type: ignore[attr-defined]


def test_that_a_run_in_the_queue_is_told_by_its_job(tmp_path):
    (tmp_path / "job.id").write_text("4711\n")
    found = status.read(tmp_path)
    assert isinstance(found, Status)
    assert found.sentence.startswith("submitted as job 4711, and not begun")
    console = Console(file=StringIO(), width=100)
    status.show(found, console)
    assert "job 4711" in console.file.getvalue()  # type: ignore[attr-defined]
