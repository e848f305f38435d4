"""The sign of life of a run: what it says, who writes it, and disks that refuse."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

import enkg
from enkg import beat, store
from enkg.beat import PROGRESS, Beat, State
from enkg.comm import Alone
from enkg.forward import Count
from enkg.guidance import Info
from tests.enkg.watching import (
    PROBLEM,
    experiment,
    interrupted,
    one,
    shown,
    until,
    watched,
)


@pytest.fixture
def stopped(tmp_path) -> Path:
    return interrupted(tmp_path / "my run")


class Seen:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def started(self, experiment: enkg.Experiment, sweeps: int) -> None:
        self.words.append(f"started {sweeps}")

    def simulating(self, done: int, total: int) -> None:
        self.words.append(f"{done} of {total}")

    def stepped(self, info: Info, row: Mapping[str, float]) -> None:
        self.words.append(f"step {info.step}")

    def ended(self) -> None:
        self.words.append("ended")


def test_that_everything_is_passed_on(tmp_path):
    alone, behind = Seen(), Seen()
    enkg.run(experiment(), observer=alone)
    watched(experiment(), tmp_path / "run", observer=behind)
    assert behind.words == alone.words
    assert alone.words[:2] == ["started 3", "4 of 16"]


class Second(Alone):
    """The second of two ranks, as far as a sign of life goes."""

    rank, size = 1, 2


def test_that_only_the_first_rank_writes(tmp_path):
    life = Beat(tmp_path, comm=Second())
    life.begin()
    life.end(State.STOPPED)
    assert list(tmp_path.iterdir()) == []


def info(step: int, progress: float) -> Info:
    return Info(step=step, sigma=1.0, progress=progress, beta=0.25, evaluated=((None, None),))  # type: ignore[arg-type]


ROW = {"misfit_per_datum": 2.0, "spread": float("nan"), "calls": 10, "failed": 3, "seconds": 20.0}


def test_that_failures_are_told_by_cause(stopped):
    life = Beat(stopped)
    life.counts = Count(batches=7, calls=30, failed=12, causes=Counter(signal=3, timeout=9))
    life.begin()
    life.stepped(info(0, 0.1), ROW)
    life.end(State.STOPPED)
    assert one(stopped).told["spread"] is None
    assert one(stopped).told["sweep"] == 7
    lines = shown(one(stopped)).splitlines()
    rows = [line.strip("│ ").split() for line in lines if line.startswith("│")]
    place = rows.index(["failed", "calls", "│", "12"])
    assert rows[place + 1 : place + 3] == [["by", "timeout", "│", "9"], ["by", "signal", "│", "3"]]


def test_that_low_fidelity_calls_are_told_where_there_are_any(stopped):
    assert "low-fidelity" not in shown(one(stopped))
    life = Beat(stopped)
    life.begin()
    life.stepped(info(0, 0.1), ROW | {"low_calls": 4321})
    life.end(State.STOPPED)
    lines = [line.strip("│ ").split() for line in shown(one(stopped)).splitlines()]
    assert ["low-fidelity", "calls", "│", "4,321"] in lines
    file = stopped / PROGRESS
    told = beat.load(file)
    del told["low_calls"]  # as version 0.3 wrote it
    file.write_text(json.dumps(told))
    assert beat.load(file)["low_calls"] == 0


def test_that_the_time_left_follows_the_share_that_this_process_has_done(tmp_path, monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(beat.time, "monotonic", lambda: now.seconds)
    life = Beat(tmp_path)
    life.begin()
    life.started(experiment(), 10)
    now.seconds += 20
    life.stepped(info(0, 0.1), ROW)
    now.seconds += 10
    life.simulating(8, 16)  # half of the second sweep of ten
    now.seconds += 4
    told = life._told(State.RUNNING, "")
    assert told["share"] == pytest.approx(0.15)
    assert told["seconds"] == pytest.approx(20 + 14)
    assert told["seconds_left"] == pytest.approx(30 * 0.85 / 0.15 - 4)
    life.end(State.STOPPED)

    again = Beat(tmp_path)
    again.begin(resumed=True)
    assert again._told(State.RUNNING, "")["seconds_left"] is None
    now.seconds += 15
    again.started(experiment(), 10)
    again.stepped(info(1, 0.3), ROW | {"seconds": 49.0})
    told = again._told(State.RUNNING, "")
    assert (told["step"], told["sweep"], told["seconds"]) == (2, 2, 49.0)
    assert told["seconds_left"] == pytest.approx(15 * 0.7 / 0.15)
    again.end(State.STOPPED)


def test_that_a_new_run_forgets_the_numbers_of_the_old_one(stopped):
    life = Beat(stopped)
    life.begin()
    assert one(stopped).told["step"] == 0
    life.end(State.STOPPED)
    life = Beat(stopped)
    (stopped / PROGRESS).write_text("{")
    life.begin(resumed=True)  # nothing to go on from is no error
    assert one(stopped).told["step"] == 0
    life.end(State.STOPPED)


# --- disks that refuse ----------------------------------------------------------------------


def full(file: Path) -> None:
    file.symlink_to("/dev/full")


def at_last(make: Callable[[], object]) -> None:
    """Makes something in the place of a file that comes and goes."""
    while True:
        try:
            make()
            return
        except FileExistsError:
            continue


@pytest.mark.parametrize("refuse", [full, Path.mkdir])
def test_that_a_disk_that_refuses_does_not_end_the_run(tmp_path, refuse):
    folder = tmp_path / "run"
    refused = folder / (PROGRESS + ".partial")
    began = False

    def simulator(x):
        nonlocal began
        if not began:
            at_last(lambda: refuse(refused))
        began = True
        until(lambda: PROGRESS in (folder / store.LOG).read_text())
        return PROBLEM.simulate(x)

    watched(experiment(simulator), folder)
    assert one(folder).state is State.FINISHED
    assert (folder / store.LOG).read_text().count(f"cannot write {PROGRESS}") == 1


def test_that_a_refusal_is_reported_once(tmp_path, caplog):
    (tmp_path / (PROGRESS + ".partial")).mkdir()
    life = Beat(tmp_path)
    life.begin()
    life.end(State.STOPPED)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_that_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(beat, "PATIENCE", 0.05)
    pipe = tmp_path / (PROGRESS + ".partial")
    life = Beat(tmp_path, every=0.001)
    life.begin()
    thread = life._thread
    assert thread is not None
    at_last(lambda: os.mkfifo(pipe))
    life.simulating(1, 2)
    until(lambda: not life._news)  # from here on it waits for a reader of the pipe
    life.end(State.STOPPED)
    assert json.loads((tmp_path / PROGRESS).read_text())["state"] == "running"
    assert thread.is_alive()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    thread.join(60)
    os.close(reader)
    assert not thread.is_alive()
