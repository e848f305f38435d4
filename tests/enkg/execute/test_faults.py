"""Faults, injected for real: a run ends with a posterior and an honest count, or with one error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import enkg
from enkg.execute import opened
from tests.enkg.execute.linear import (
    MANIFEST,
    MEMBERS,
    STUBS,
    build,
    experiment,
    left_running,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("faulty"))


POLICY = enkg.FailurePolicy(timeout=0.5, retries=0)


def numbers(tree) -> dict:
    return json.loads(tree.attrs["summary"])


# fault: causes in mode worker, causes in mode one-shot (None: is no failure there)
FAULTS = {
    "exit": ({"exit code"}, {"exit code"}),
    "kill": ({"signal"}, {"signal"}),
    "crash": ({"signal"}, {"signal"}),
    "hang": ({"timeout"}, {"timeout"}),
    "stubborn": ({"timeout"}, {"timeout"}),
    "nan": ({"NaN or infinity"}, {"NaN or infinity"}),
    "infinity": ({"NaN or infinity"}, {"NaN or infinity"}),
    "blow-up": ({"blow-up"}, {"blow-up"}),
    "talk": (None, None),
    "daemon": (None, None),
    "missing": (None, {"missing output"}),
    "half": (None, {"truncated output"}),
    "long": (None, {"wrong shape"}),
}


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
@pytest.mark.parametrize("fault", FAULTS)
def test_that_a_run_survives_its_faults(fault, mode, folder, monkeypatch):
    monkeypatch.setenv("FAULT", fault)
    expected = FAULTS[fault][mode == "oneshot"]
    simulator = enkg.Program(folder, slots=2, mode=mode)
    tree = enkg.run(experiment(simulator, failure=POLICY))
    found = numbers(tree)
    assert set(found["causes"]) == (expected or set())
    assert found["failed"] == sum(found["causes"].values())
    assert (found["failed"] > 0) == bool(expected)
    x = tree["posterior"].to_dataset()["x"].values
    assert x.shape == (MEMBERS, 4)
    assert np.isfinite(x).all()
    assert left_running(str(folder)) == []


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_the_survivors_are_those_of_a_run_without_faults(mode, folder, monkeypatch):
    """A member that fails moves no other: dead by a signal or dead by NaN is the same."""
    found = []
    for fault in ("kill", "nan"):
        monkeypatch.setenv("FAULT", fault)
        simulator = enkg.Program(folder, slots=2, mode=mode)
        tree = enkg.run(experiment(simulator, failure=POLICY))
        found.append(tree["posterior"].to_dataset()["x"].values)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_all_failing_is_one_clear_error(mode, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FAULT", "all")
    simulator = enkg.Program(folder, slots=2, mode=mode)
    with pytest.raises(
        enkg.EnsembleFailure,
        match=r"failed for all .* members that were tried, of 24.*depth is negative",
    ):
        enkg.run(experiment(simulator, failure=POLICY), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert left_running(str(folder)) == []


def test_that_the_files_of_failed_members_are_kept_and_named(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FAULT", "exit")
    simulator = enkg.Program(folder, slots=2, mode="oneshot")
    enkg.run(experiment(simulator, failure=POLICY), tmp_path / "run")
    kept = sorted((tmp_path / "run" / "failed").iterdir())
    assert kept
    assert "depth is negative" in (kept[0] / "stderr.txt").read_text()
    assert (kept[0] / "input.bin").stat().st_size == 32
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "exit code" in log
    assert str(tmp_path / "run" / "failed") in log


def test_that_a_program_that_vanishes_is_a_launch_failure(tmp_path):
    folder = build(tmp_path / "gone")
    simulator = enkg.Program(folder, slots=1, mode="oneshot")
    (folder / "faulty").unlink()
    with pytest.raises(enkg.EnsembleFailure, match="launch failure"):
        enkg.run(experiment(simulator, failure=enkg.FailurePolicy(retries=0)))


def test_that_a_full_disk_is_said_and_costs_only_its_members(folder, monkeypatch, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    monkeypatch.setenv("FAULT", "full")
    try:
        simulator = enkg.Program(folder, slots=1, mode="oneshot", scratch=small)
        found = numbers(enkg.run(experiment(simulator, failure=POLICY)))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert found["failed"] > 0
    assert set(found["causes"]) == {"disk full"}


HOST = """
import sys
import enkg
from tests.enkg.execute.linear import experiment
simulator = enkg.Program(sys.argv[1], slots=2, mode=sys.argv[2])
enkg.run(experiment(simulator, failure=enkg.FailurePolicy(timeout=600.0)))
"""


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("worker", signal.SIGKILL),
        ("oneshot", signal.SIGKILL),
        ("worker", signal.SIGTERM),
        ("oneshot", signal.SIGINT),
    ],
)
def test_that_nothing_is_left_when_enkg_itself_is_killed(mode, number, folder):
    env = os.environ | {"FAULT": "stubborn", "PYTHONPATH": os.getcwd()}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder), mode], env=env, stderr=subprocess.DEVNULL
    )
    try:
        # Both slots hang in a stubborn member, each with a child of its own.
        until(lambda: len(left_running(str(folder / "faulty"))) >= 4)
        host.send_signal(number)
        host.wait(30)
        until(lambda: left_running(str(folder / "faulty")) == [])
    finally:
        host.kill()
        host.wait()


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, [p.info for p in psutil.process_iter(["cmdline"])]
        time.sleep(0.05)


def test_that_a_worker_killed_from_outside_is_started_again(folder):
    """kill -9 in mid-run: the member that it had is tried again, and nobody is lost."""
    killed = []

    def kill(done, total):
        for process in psutil.Process().children(recursive=True):
            if not killed and str(folder / "faulty") in process.cmdline():
                process.kill()
                killed.append(process.pid)

    x = np.random.default_rng(0).normal(size=(400, 4))
    with enkg.Program(folder, slots=2).opened(enkg.FailurePolicy(), None) as evaluator:
        evaluator.evaluate(x[:2])
        for _ in range(3):
            result = evaluator.evaluate(x, kill)
            assert result.failures == (None,) * len(x)
    assert killed


TALKER = """
import os, signal, sys
import numpy as np
from enkg_worker import serve

def simulate(x):
    if x[0] == 1:
        print("warning: negative depth", file=sys.stderr, flush=True)
        return np.full(3, np.nan)
    if x[0] == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x[:3]

serve(simulate)
"""


def test_that_a_member_is_not_blamed_with_the_words_of_another(tmp_path):
    shutil.copy(STUBS / "python" / "enkg_worker.py", tmp_path)
    (tmp_path / "talker.py").write_text(TALKER)
    (tmp_path / "simulator.toml").write_text(
        MANIFEST.replace('[worker]\ncommand = ["./faulty"]', '[worker]\ncommand = ["python", "x"]')
        .replace('"x"', '"{folder}/talker.py"')
        .replace('[oneshot]\ncommand = ["./faulty", "{input}", "{output}"]\n', "")
    )
    x = np.zeros((5, 4))
    x[[1, 3], 0] = 1, 2
    with opened(enkg.Program(tmp_path, slots=1), enkg.FailurePolicy(retries=0)) as evaluator:
        failures = evaluator.evaluate(x).failures
    assert [failure is None for failure in failures] == [True, False, True, False, True]
    assert "last words: warning: negative depth" in str(failures[1])
    assert str(failures[3]).startswith("signal: SIGSEGV")
    assert "depth" not in str(failures[3])


def test_that_sigterm_ends_a_run_of_the_command_line_in_order(folder, tmp_path):
    (tmp_path / "stuck.py").write_text(
        "import enkg\nfrom tests.enkg.execute.linear import experiment as made\n"
        f"experiment = made(enkg.Program({str(folder)!r}, slots=2, mode='oneshot'))\n"
    )
    env = os.environ | {"FAULT": "hang", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "enkg", "run", str(tmp_path / "stuck.py"), "--out"]
    run = subprocess.Popen(
        [*command, str(tmp_path / "run")],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: len(left_running(str(folder / "faulty"))) >= 2)
        run.terminate()
        _, words = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 75
    assert b"stopped by SIGTERM; the run is not finished" in words
    assert left_running(str(folder / "faulty")) == []
    assert not list(Path("/dev/shm").glob(f"enkg-*-{run.pid}-*"))
    assert "stopped by SIGTERM" in (tmp_path / "run" / "log.txt").read_text()
