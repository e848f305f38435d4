"""Workers: answers, and everything that can go wrong between enkg and a program that stays up."""

import os
import random
import re
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest

from enkg.errors import InputError
from enkg.execute.channel import Channel, NoAnswerError
from enkg.execute.frames import BadFrameError, Frame, Kind, output_offset, unpack
from enkg.execute.manifest import Environment, Manifest, Mpi, Port, Worker
from enkg.execute.process import Process
from enkg.execute.slots import Job
from enkg.execute.worker import WorkerDriver
from enkg.failure import Cause, MemberFailed
from tests.enkg.execute.rogue import MODES

ROGUE = Path(__file__).with_name("rogue.py")
JOB = Job(0, 3, 0)
N = 1000


def manifest(tmp_path, start="", *, n=N, grace=0.2, startup=20.0, **changes) -> Manifest:
    command = (sys.executable, "-I", "-S", str(ROGUE), start, str(tmp_path / "started"))
    worker = Worker(command, startup=startup, batch=changes.pop("batch", 1))
    ports = {"input": Port((n,)), "output": Port((n,))} | changes
    return Manifest("rogue", worker=worker, grace=grace, folder=tmp_path, **ports)


def member(mode: str, n: int = N, rows: int = 1) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(rows, n))
    x[0, 0] = MODES.index(mode)
    return x


def starts(tmp_path) -> int:
    return len((tmp_path / "started").read_text().split())


def traces() -> tuple[int, set[str], set[int]]:
    """Open descriptors, named leftovers and descendants of this process."""
    named = {
        str(path)
        for folder in (tempfile.gettempdir(), "/dev/shm")
        for path in Path(folder).glob("enkg-*")
    }
    living = {p.pid for p in psutil.Process().children(recursive=True) if p.status() != "zombie"}
    return len(os.listdir("/dev/fd")), named, living


@pytest.fixture(scope="module", autouse=True)
def _guard():
    """Starts the orphan guard, which stays."""
    with Process(["true"], cwd=Path("/"), env=dict(os.environ)) as process:
        process.wait(10)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = traces()
    yield
    fds, named, living = traces()
    assert fds == before[0]
    assert named <= before[1]
    assert living <= before[2]


@pytest.fixture
def drive():
    """Makes drivers that are closed after the test."""
    drivers = []

    def make(*arguments, **options) -> WorkerDriver:
        drivers.append(WorkerDriver(*arguments, **options))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def failure(driver: WorkerDriver, mode: str, timeout: float = 10.0, n: int = N):
    with pytest.raises(MemberFailed) as caught:
        driver.call(member(mode, n), JOB, timeout)
    return caught.value.failure


def test_that_a_frame_is_64_bytes_and_comes_back():
    frame = Frame(Kind.RESULT, 1 << 60, 2, -5, 3, 4, 96, 7, 8)
    assert len(frame.pack()) == 64
    assert unpack(frame.pack()) == frame
    assert frame.pack()[:8] == b"EKG1\x04\0\0\0"


def test_that_the_output_lies_on_the_next_page():
    assert [output_offset(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


@pytest.mark.parametrize("named", [False, True])
def test_that_calls_are_answered_by_one_process(tmp_path, drive, named):
    driver = drive(manifest(tmp_path), named=named)
    for seed in range(5):
        x = np.random.default_rng(seed).uniform(0, 0.9, size=(1, N))
        np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)
    assert starts(tmp_path) == 1


def test_that_nothing_is_started_before_the_first_call(tmp_path, drive):
    drive(manifest(tmp_path)).close()
    assert not (tmp_path / "started").exists()


def test_that_no_members_give_no_rows_and_start_nothing(tmp_path, drive):
    driver = drive(manifest(tmp_path, output=Port((N,), "float32")))
    y = driver.call(np.empty((0, N)), JOB, 1.0)
    assert (y.shape, y.dtype) == ((0, N), np.float32)
    assert not (tmp_path / "started").exists()


def test_that_several_members_go_into_one_call(tmp_path, drive):
    driver = drive(manifest(tmp_path, batch=3))
    for rows in (3, 1, 2):
        x = member("fine", rows=rows)
        np.testing.assert_array_equal(driver.call(x, JOB, 10.0), 2 * x)


@pytest.mark.parametrize("shape", [(1, N + 1), (2, N), (1, 2, N)])
def test_that_members_of_another_shape_are_refused(tmp_path, drive, shape):
    with pytest.raises(InputError, match="handed members of shape"):
        drive(manifest(tmp_path)).call(np.zeros(shape), JOB, 1.0)


@pytest.mark.parametrize(
    ("given", "taken", "wire"),
    [("float32", "float32", 4), ("float64", "float32", 8), ("float32", "float64", 8)],
)
def test_that_numbers_have_the_precision_of_the_manifest(tmp_path, drive, given, taken, wire):
    driver = drive(manifest(tmp_path, input=Port((N,), given), output=Port((N,), taken)))
    x = member("fine")
    y = driver.call(x, JOB, 10.0)
    assert y.dtype == taken
    np.testing.assert_array_equal(y, 2 * x.astype(given).astype(taken))
    assert driver._dtype.itemsize == wire


def test_that_a_program_that_stores_by_columns_gets_columns(tmp_path, drive):
    """The program doubles what it gets in order; only the host knows of the columns."""
    driver = drive(manifest(tmp_path, input=Port((5, 4, 50), order="F"), output=Port((N,))))
    x = np.random.default_rng(0).uniform(0, 0.9, size=(1, 5, 4, 50))
    np.testing.assert_array_equal(driver.call(x, JOB, 10.0)[0], 2 * x[0].ravel(order="F"))


def test_that_an_answer_stored_by_columns_is_turned(tmp_path, drive):
    driver = drive(manifest(tmp_path, output=Port((5, 4, 50), order="F")))
    x = member("fine")
    y = driver.call(x, JOB, 10.0)
    np.testing.assert_array_equal(y[0], 2 * x[0].reshape((5, 4, 50), order="F"))
    assert y.flags.c_contiguous


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


def test_that_the_time_of_the_start_does_not_count(tmp_path, drive):
    driver = drive(manifest(tmp_path, "slow reader"))
    assert driver.call(member("fine"), JOB, 0.25).shape == (1, N)


def test_that_the_limit_of_the_manifest_holds_where_none_is_given(tmp_path, drive):
    driver = drive(manifest(tmp_path, timeout=0.1))
    with pytest.raises(MemberFailed, match=r"within 0\.1 s"):
        driver.call(member("hang"), JOB, None)


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


@pytest.mark.parametrize("named", [False, True])
def test_that_payloads_larger_than_any_pipe_pass(tmp_path, drive, named):
    n = 200_000
    driver = drive(manifest(tmp_path, n=n), named=named)
    x = member("fine", n)
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


def test_that_the_program_finds_its_place_and_its_variables(tmp_path, drive):
    """Working directory, ENKG_FOLDER, and placeholders in arguments and variables."""
    script = (
        "import os, pathlib, sys; assert os.getcwd() == os.environ['ENKG_FOLDER'];"
        "sys.exit(' '.join([sys.argv[1], os.environ['GRID'], os.environ['ENKG_RANKS']]))"
    )
    worker = Worker((sys.executable, "-I", "-S", "-c", script, "{folder}/grid"))
    driver = drive(
        Manifest(
            "x",
            Port((N,)),
            Port((N,)),
            worker=worker,
            folder=tmp_path.resolve(),
            environment=Environment(set={"GRID": "{threads} {{threads}}"}),
            threads=3,
        )
    )
    assert f"{tmp_path.resolve()}/grid 3 {{threads}} 1" in failure(driver, "fine").detail


def test_that_a_worker_that_does_not_leave_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("enkg.execute.worker.FAREWELL", 0.1)
    driver = WorkerDriver(manifest(tmp_path, "stays"))
    pid = int(driver.call(member("pid"), JOB, 10.0)[0, 0])
    driver.close()
    assert not psutil.pid_exists(pid)
    driver.close()


def test_that_a_driver_without_a_worker_is_refused():
    with pytest.raises(InputError, match="no \\[worker\\]"):
        WorkerDriver(Manifest("x", Port((1,)), Port((1,))))


def test_that_any_bytes_are_an_answer_or_an_error_and_cost_no_memory():
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
