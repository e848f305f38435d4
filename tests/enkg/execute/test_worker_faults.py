"""Workers that crash, hang, leave or answer rubbish: one call fails, the next is answered."""

import os
import random
import re
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest

from enkg.execute.channel import Channel, NoAnswerError
from enkg.execute.frames import BadFrameError, Frame, Kind
from enkg.execute.manifest import Manifest, Mpi, Port, Worker
from enkg.execute.process import Process
from enkg.execute.worker import WorkerDriver
from enkg.failure import Cause, MemberFailed
from tests.enkg.execute.workers import JOB, N, failure, manifest, member, starts


@pytest.mark.parametrize(
    ("mode", "cause", "detail"),
    [
        ("killed", Cause.SIGNAL, "SIGKILL"),
        ("crash", Cause.SIGNAL, "SIGSEGV.*index out of bounds"),
        ("exit 7", Cause.EXIT, "7: no convergence"),
        ("exit 0", Cause.EXIT, "0, in the middle of a call"),
        ("between", Cause.EXIT, "5"),
        ("half", Cause.TRUNCATED, "after 4064 bytes"),
        ("seq", Cause.PROTOCOL, "RESULT to call 1.*expected RESULT to call 2"),
        ("magic", Cause.PROTOCOL, "HTTP"),
        ("huge", Cause.PROTOCOL, "1152921504606846976 bytes of payload; expected 8000"),
        ("short", Cause.PROTOCOL, "7992 bytes of payload; expected 8000"),
        ("n", Cause.SHAPE, "1 members of 1001 numbers; expected 1 of 1000"),
        ("batch", Cause.SHAPE, "2 members"),
        ("dtype", Cause.PROTOCOL, "dtype 1; expected"),
        ("kind", Cause.PROTOCOL, "kind 77"),
        ("huge error", Cause.PROTOCOL, "error text of 1099511627776 bytes"),
        ("error seq", Cause.PROTOCOL, "another call"),
        ("junk", Cause.PROTOCOL, "Traceback"),
        ("child", Cause.EXIT, "4"),
    ],
)
def test_that_a_broken_answer_fails_one_call_with_its_cause(tmp_path, drive, mode, cause, detail):
    driver = drive(manifest(tmp_path))
    x = member("fine")
    np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)
    found = failure(driver, mode)
    assert found.cause is cause
    assert re.search(detail, found.detail), found.detail
    np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)
    assert starts(tmp_path) == 2


@pytest.mark.parametrize("mode", ["hang", "ignore SIGTERM", "half hang"])
def test_that_a_hanging_worker_is_killed_at_its_timeout(tmp_path, drive, mode):
    driver = drive(manifest(tmp_path))
    driver.call(member("fine"), JOB, 10.0)
    begin = time.monotonic()
    found = failure(driver, mode, timeout=0.2)
    assert found.cause is Cause.TIMEOUT
    assert "no answer within 0.2 s" in found.detail
    assert 0.2 <= time.monotonic() - begin < 5
    assert driver.call(member("fine"), JOB, 10.0).shape == (1, N)


def test_that_a_closed_channel_is_no_hang(tmp_path, drive, monkeypatch):
    monkeypatch.setattr("enkg.execute.channel.LAST_BREATH", 0.1)
    found = failure(drive(manifest(tmp_path)), "closed")
    assert (found.cause, found.detail) == (
        Cause.PROTOCOL,
        "the program closed its channel and runs on",
    )


def test_that_a_reported_failure_leaves_the_worker_up(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    found = failure(driver, "report")
    assert (found.cause, found.detail) == (Cause.REPORTED, "the time step is too long")
    driver.call(member("fine"), JOB, 10.0)
    assert starts(tmp_path) == 1


def test_that_bytes_after_an_answer_do_not_harm_the_next_call(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    for mode in ("extra", "fine"):
        x = member(mode)
        np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)
    assert starts(tmp_path) == 2


def test_that_a_worker_killed_between_two_calls_is_replaced(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    pid = int(driver.call(member("pid"), JOB, 10.0)[0, 0])
    worker = psutil.Process(pid)
    worker.kill()
    while worker.is_running() and worker.status() != "zombie":
        time.sleep(0.001)
    assert driver.call(member("pid"), JOB, 10.0)[0, 0] != pid


def test_that_a_worker_killed_in_mid_call_fails_with_the_signal(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    pid = int(driver.call(member("pid"), JOB, 10.0)[0, 0])
    timer = threading.Timer(0.1, lambda: os.kill(pid, 9))
    timer.start()
    found = failure(driver, "hang")
    timer.join()
    assert found.cause is Cause.SIGNAL
    assert "SIGKILL" in found.detail


def test_that_100_mib_on_standard_output_disturb_nothing(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    x = member("print")
    np.testing.assert_array_equal(driver.call(x, JOB, 60.0), 2 * x)


def test_that_a_worker_killed_while_it_is_written_to_fails_the_call(tmp_path, drive):
    n = 200_000
    driver = drive(manifest(tmp_path, n=n))
    assert failure(driver, "killed", n=n).cause is Cause.SIGNAL
    os.kill(int(driver.call(member("pid", n), JOB, 30.0)[0, 0]), 19)  # SIGSTOP
    found = failure(driver, "fine", timeout=0.2, n=n)
    assert found.cause is Cause.TIMEOUT


def test_that_an_interrupt_ends_the_call(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    driver.call(member("fine"), JOB, 10.0)
    timer = threading.Timer(0.1, driver.interrupt)
    timer.start()
    assert failure(driver, "hang", timeout=60.0).cause is Cause.CUT
    timer.join()
    assert driver.call(member("fine"), JOB, 10.0).shape == (1, N)


def test_that_an_interrupt_ends_the_start(tmp_path, drive):
    driver = drive(manifest(tmp_path, "hangs"))
    timer = threading.Timer(0.2, driver.interrupt)
    timer.start()
    assert failure(driver, "fine").cause is Cause.CUT
    timer.join()


def test_that_an_interrupt_between_calls_does_nothing(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    driver.interrupt()
    driver.call(member("fine"), JOB, 10.0)
    driver.interrupt()
    driver.call(member("fine"), JOB, 10.0)
    assert starts(tmp_path) == 1


def test_that_interrupts_at_any_moment_neither_hang_nor_mix_answers(tmp_path, drive):
    driver = drive(manifest(tmp_path))
    over = threading.Event()

    def nag() -> None:
        moment = random.Random(0)
        while not over.wait(moment.uniform(0, 0.03)):
            driver.interrupt()

    thread = threading.Thread(target=nag)
    thread.start()
    causes = set()
    try:
        for seed in range(40):
            x = np.random.default_rng(seed).uniform(0, 0.9, size=(1, N))
            try:
                np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)
            except MemberFailed as error:
                causes.add(error.failure.cause)
    finally:
        over.set()
        thread.join()
    assert causes <= {Cause.CUT}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("start", "cause", "detail"),
    [
        ("dies", Cause.LAUNCH, "ended before it was ready.*3: no licence found"),
        ("hangs", Cause.LAUNCH, "not ready after 0.3 s.*waiting for a licence"),
        ("silent", Cause.LAUNCH, "not ready after 0.3 s"),
        ("refuses", Cause.REPORTED, "this grid is too large"),
        ("other sizes", Cause.SHAPE, "takes 1001 numbers and answers 1000"),
        ("no ready", Cause.PROTOCOL, "at the start, .*RESULT.*expected READY"),
    ],
)
def test_that_a_bad_start_fails_the_call(tmp_path, drive, start, cause, detail, named):
    startup = 0.3 if detail.startswith("not ready") else 20.0
    driver = drive(manifest(tmp_path, start, startup=startup), named=named)
    found = failure(driver, "fine")
    assert found.cause is cause
    assert re.search(detail, found.detail), found.detail


def test_that_a_missing_program_is_a_launch_failure(tmp_path, drive):
    worker = Worker((str(tmp_path / "absent"),))
    driver = drive(Manifest("x", Port((N,)), Port((N,)), worker=worker, folder=tmp_path))
    found = failure(driver, "fine")
    assert found.cause is Cause.LAUNCH
    assert "there is no such file" in found.detail


@pytest.mark.parametrize(("start", "detail"), [("world", "1 ranks.*2"), ("", "knows of no MPI")])
def test_that_a_wrong_world_is_noticed(tmp_path, drive, monkeypatch, start, detail):
    """env in the launcher's place: like one of another MPI, it starts a world of one."""
    monkeypatch.setattr("enkg.execute.launcher.prefix", lambda mpi, threads: ["env"])
    found = failure(drive(manifest(tmp_path, start, mpi=Mpi(2))), "fine")
    assert found.cause is Cause.WORLD
    assert re.search(detail, found.detail), found.detail


def test_that_a_worker_that_does_not_leave_is_killed(tmp_path, nothing_left, monkeypatch):
    monkeypatch.setattr("enkg.execute.worker.FAREWELL", 0.1)
    driver = WorkerDriver(manifest(tmp_path, "stays"))
    pid = int(driver.call(member("pid"), JOB, 10.0)[0, 0])
    driver.close()
    assert not psutil.pid_exists(pid)
    driver.close()


def test_that_any_bytes_are_an_answer_or_an_error_and_cost_no_memory(nothing_left):
    """Changed, cut and random frames: what is accepted is exactly what is right."""
    rng = random.Random(0)
    want = Frame(Kind.RESULT, 5, 2, 0, 1, 25, 200)
    right = want.pack() + bytes(range(200))

    def check(frame: Frame) -> None:
        if frame._replace(nbytes=0, member0=0, reserved=0, status=0) != want._replace(nbytes=0):
            raise BadFrameError

    accepted = 0
    tracemalloc.start()
    with Process(["sleep", "600"], cwd=Path("/"), env=dict(os.environ)) as process:
        for case in range(600):
            data = bytearray(right)
            if case % 3 == 0:
                for _ in range(rng.randint(1, 3)):
                    data[rng.randrange(64)] = rng.choice([0, 1, 5, 127, 255])
            elif case % 3 == 1:
                data = data[: rng.randrange(len(data))]
            else:
                data = bytearray(rng.choice([b"EKG1", b""]) + rng.randbytes(rng.randrange(300)))
            channel = Channel(False, 200, 0)
            theirs = os.dup(channel.pass_fds[1])
            channel.connect(process, time.monotonic())
            os.write(theirs, data)
            into = bytearray(200)
            try:
                frame, text = channel.receive(process, time.monotonic(), memoryview(into), check)
                accepted += 1
                assert frame.kind == Kind.ERROR or (frame.nbytes, into) == (200, right[64:])
                assert len(text) <= 300
            except (BadFrameError, NoAnswerError):
                pass
            finally:
                process.wait(0)  # forgets the descriptor
                channel.close()
                os.close(theirs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < accepted < 200
    assert peak < 4 << 20
