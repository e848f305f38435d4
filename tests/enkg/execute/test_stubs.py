"""The worker loops that are copied beside programs in Python, C and Fortran."""

import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import enkg
from enkg.execute.frames import Frame, Kind
from enkg.failure import Cause, MemberFailed
from tests.enkg.execute.stub_programs import (
    LANGUAGES,
    MPI_C_SIDE,
    MPI_FORTRAN,
    MPI_PYTHON,
    STUBS,
    TRICKY,
    compiled,
    driver_of,
    field,
)
from tests.enkg.execute.workers import JOB


@pytest.mark.parametrize("named", [False, True], ids=["pipe", "fifo"])
@pytest.mark.parametrize("memory", ["pipe", "shared"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_that_the_example_doubles(drive, build, language, memory, named):
    command = build(language)
    driver = driver_of(drive, command, memory=memory, named=named, shape=(90, 100), batch=3)
    for rows in (3, 1, 2):
        x = field(rows, 90, 100)
        y = driver.call(x, JOB, 20.0)
        np.testing.assert_array_equal(y, 2 * x)
        assert (driver._shared is not None) == (memory == "shared")
        assert y.base is None  # the caller's own, not the shared memory


@pytest.mark.parametrize("language", LANGUAGES)
def test_that_a_stub_leaves_shared_memory_that_it_cannot_open(drive, build, language, monkeypatch):
    monkeypatch.setattr("enkg.execute.channel._SEALS", 0)
    driver = driver_of(drive, ("env", "ENKG_SHM=/absent", *build(language)), memory="shared")
    x = field(1, 64)
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), 2 * x)
    assert driver._shared is None


@pytest.mark.parametrize("memory", ["pipe", "shared"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_that_a_failed_member_harms_neither_neighbours_nor_the_next(drive, build, language, memory):
    driver = driver_of(drive, build(language, TRICKY[language]), memory=memory, batch=3)
    x = field(3, 64)
    right = 2 * x
    right[:, -1] = np.nan  # never what an earlier call left there
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), right)
    pid = driver._process.pid
    x[1, 0] = -1
    if language == "python":
        with pytest.raises(MemberFailed, match=r"ValueError: negative depth \(.*main.py:7\)") as e:
            driver.call(x, JOB, 20.0)
        assert e.value.failure.cause is Cause.EXCEPTION
    else:
        right[1] = np.nan
        np.testing.assert_array_equal(driver.call(x, JOB, 20.0), right)
    x[1, 0], right[1] = 1, [2, *2 * x[1, 1:-1], np.nan]
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), right)
    assert driver._process.pid == pid


@pytest.mark.parametrize("memory", ["pipe", "shared"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_that_single_precision_works(drive, build, language, memory):
    if language == "fortran":
        command = _single_fortran(build)
    else:
        command = build(language, None, *(("-DENKG_REAL=float",) if language == "c" else ()))
    driver = driver_of(drive, command, memory=memory, dtype="float32", batch=2)
    x = field(2, 64, dtype="float32")
    y = driver.call(x, JOB, 20.0)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, 2 * x)


def _single_fortran(build) -> tuple[str, ...]:
    folder = Path(build("fortran", "! single\n" + (STUBS / "fortran/example.f90").read_text())[0])
    stub = folder.parent / "enkg_worker.f90"
    stub.write_text(stub.read_text().replace("enkg_real = c_double", "enkg_real = c_float"))
    return compiled("fortran", folder.parent, None, ())


@pytest.mark.parametrize("language", ["c", "fortran"])
def test_that_the_wrong_precision_is_refused_with_its_reason(drive, build, language):
    driver = driver_of(drive, build(language), dtype="float32")
    with pytest.raises(MemberFailed, match="this program computes in float64") as error:
        driver.call(field(1, 64, dtype="float32"), JOB, 20.0)
    assert error.value.failure.cause is Cause.REPORTED


def test_that_fortran_sees_a_field_by_its_columns(drive, build):
    source = """
program rows
  use enkg_worker
  implicit none
  call enkg_serve(simulate)
contains
  subroutine simulate(x, y, status)
    real(enkg_real), intent(in) :: x(:)
    real(enkg_real), intent(out) :: y(:)
    integer, intent(out) :: status
    call add(x, y)
    status = 0
  end subroutine
  subroutine add(u, v)
    real(enkg_real), intent(in) :: u(3, 5)
    real(enkg_real), intent(out) :: v(3, 5)
    v = u
    v(2, :) = 100
  end subroutine
end program
"""
    driver = driver_of(drive, build("fortran", source), shape=(3, 5), order="F")
    x = field(1, 3, 5)
    right = x.copy()
    right[:, 1, :] = 100
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), right)


def test_that_the_c_header_is_cpp_too(drive, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    shutil.copy(STUBS / "c/enkg_worker.h", tmp_path)
    shutil.copy(STUBS / "c/example.c", tmp_path / "example.cpp")
    subprocess.run(["g++", "-Wall", "-Wextra", "example.cpp", "-o", "e"], cwd=tmp_path, check=True)
    x = field(1, 64)
    y = driver_of(drive, (str(tmp_path / "e"),)).call(x, JOB, 20.0)
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("serve(lambda x: x[:3])", r"returned shape \(3,\); expected 64 numbers"),
        ("serve(lambda x: x * 1j)", "complex numbers"),
        ("serve(lambda x: x, shape=(3, 3))", "cannot reshape"),
        ("serve(lambda x: x[:1], batched=True)", r"shape \(1, 64\); expected 128 numbers"),
    ],
)
def test_that_python_says_what_is_wrong_with_an_answer(drive, build, body, message):
    driver = driver_of(drive, build("python", f"from enkg_worker import serve\n{body}"), batch=2)
    with pytest.raises(MemberFailed, match=message) as error:
        driver.call(field(2, 64), JOB, 20.0)
    assert error.value.failure.cause is Cause.EXCEPTION


def test_that_python_takes_whole_batches_and_shapes(drive, build):
    source = """
from enkg_worker import serve
def simulate(x):
    assert x.ndim == 3
    return x.swapaxes(1, 2)[:, ::-1].astype("f4")
serve(simulate, batched=True, shape=(6, 7))
"""
    driver = driver_of(drive, build("python", source), shape=(42,), batch=4, memory="shared")
    x = field(4, 42)
    right = x.astype("f4").reshape(4, 6, 7).swapaxes(1, 2)[:, ::-1].reshape(4, 42)
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), right)


@pytest.mark.parametrize("language", LANGUAGES)
def test_that_a_program_started_by_hand_says_who_starts_it(build, language):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ENKG_")}
    done = subprocess.run(build(language), env=clean, capture_output=True, timeout=20, check=False)
    assert done.returncode != 0
    assert b"this program is started by enkg" in done.stderr


@pytest.mark.parametrize("end", [b"", Frame(Kind.BYE).pack()], ids=["end of file", "BYE"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_that_a_worker_ends_when_enkg_does(build, language, end):
    code, answer, _ = talk(build(language), Frame(Kind.HELLO, 0, 2, batch=8, n=8).pack() + end)
    assert code == 0
    assert len(answer) == 64


@pytest.mark.parametrize("language", LANGUAGES)
def test_that_rubbish_ends_a_worker_with_an_error(build, language):
    """Changed and cut calls: an answer or a message and an exit, never a crash or a hang."""
    rng = random.Random(3)
    hello = Frame(Kind.HELLO, 0, 2, batch=8, n=8).pack()
    call = Frame(Kind.EVAL, 1, 2, 0, 1, 8, 64).pack() + struct.pack("<8d", *range(8))
    for case in range(6 if language == "python" else 20):
        data = bytearray(hello + call)
        if case % 2:
            data = data[: rng.randrange(129, len(data) - 1)]
        else:
            data[rng.choice([64, 65, 66, 67, 68, 69, 88, 96, 104, 111])] ^= 1 << rng.randrange(3, 8)
        code, _, message = talk(build(language), bytes(data))
        assert code == 1
        assert b"enkg_worker: " in message


def talk(command, data: bytes) -> tuple[int, bytes, bytes]:
    """The exit status, the answers and the messages of a worker that gets these bytes."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    env = dict(os.environ, ENKG_IN=f"/dev/fd/{theirs_in}", ENKG_OUT=f"/dev/fd/{theirs_out}")
    process = subprocess.Popen(
        command, env=env, pass_fds=(theirs_in, theirs_out), stderr=subprocess.PIPE
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with os.fdopen(ours_out, "wb") as out, os.fdopen(ours_in, "rb") as back:
        out.write(data)
        out.close()
        _, message = process.communicate(timeout=20)
        return process.returncode, back.read(), message


@pytest.fixture(scope="module")
def mpi_programs(build, tmp_path_factory):
    """The commands of MPI workers in C, Fortran and Python."""
    mpicc = Path(sys.executable).with_name("mpicc")
    if not mpicc.exists() or not Path(sys.executable).with_name("mpiexec").exists():
        pytest.skip("there is no mpicc beside this Python; pip install mpich")
    folder = tmp_path_factory.mktemp("mpi")
    for file in (*(STUBS / "c").iterdir(), *(STUBS / "fortran").iterdir()):
        shutil.copy(file, folder)

    def run(*command):
        subprocess.run(command, cwd=folder, check=True)

    run(mpicc, "-O2", "-Wall", "-Werror", "-o", "c", "example_mpi.c")
    commands = {"c": (str(folder / "c"),), "python": build("python", MPI_PYTHON)}
    if shutil.which("gfortran"):
        (folder / "main.f90").write_text(MPI_FORTRAN)
        (folder / "side.c").write_text(MPI_C_SIDE)
        run("gfortran", "-c", "enkg_worker.f90", "main.f90")
        run(mpicc, "-o", "f", "side.c", "main.o", "enkg_worker.o", "-lgfortran", "-lm")
        commands["fortran"] = (str(folder / "f"),)
    return commands


@pytest.mark.parametrize("memory", ["pipe", "shared"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_that_two_ranks_share_a_call(drive, mpi_programs, language, memory):
    if language not in mpi_programs:
        pytest.skip("there is no gfortran")
    if language == "python":
        pytest.importorskip("mpi4py")
    driver = driver_of(drive, mpi_programs[language], memory=memory, ranks=2)
    for seed in range(3):
        x = field(1, 64) + seed / 10
        right = 2 * x
        if language == "fortran":
            right[0, 0] += 2  # the sum over both ranks of 1
        np.testing.assert_allclose(driver.call(x, JOB, 20.0), right, rtol=1e-15)
    assert (driver._shared is not None) == (memory == "shared")
    ranks = psutil.Process(driver._process.pid).children(recursive=True)
    assert sum(Path(r.exe()).name != "hydra_pmi_proxy" for r in ranks) == 2


def test_that_an_exception_on_one_rank_is_reported(drive, mpi_programs):
    pytest.importorskip("mpi4py")
    driver = driver_of(drive, mpi_programs["python"], ranks=2)
    x = field(1, 64) + 3
    driver.call(x, JOB, 20.0)
    bad = x.copy()
    bad[0, 0] = 0
    with pytest.raises(MemberFailed, match="rank 1: ValueError: no convergence") as error:
        driver.call(bad, JOB, 20.0)
    assert error.value.failure.cause is Cause.EXCEPTION
    bad[0, 0] = 1  # and the other rank waits for it
    with pytest.raises(MemberFailed, match="ValueError: no convergence on this rank") as error:
        driver.call(bad, JOB, 20.0)
    assert error.value.failure.cause is Cause.EXIT
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), 2 * x)


def test_that_a_rank_that_dies_fails_the_call(drive, mpi_programs):
    pytest.importorskip("mpi4py")
    driver = driver_of(drive, mpi_programs["python"], ranks=2)
    x = field(1, 64) + 3
    bad = x.copy()
    bad[0, 0] = 2
    with pytest.raises(MemberFailed) as error:
        driver.call(bad, JOB, 20.0)
    assert error.value.failure.cause is Cause.SIGNAL
    np.testing.assert_array_equal(driver.call(x, JOB, 20.0), 2 * x)


def test_that_a_world_of_one_where_two_were_started_is_an_error(drive, mpi_programs, monkeypatch):
    """Started by something that is not its MPI's launcher, each rank is alone."""
    monkeypatch.setattr("enkg.execute.launcher.prefix", lambda mpi, threads: ["env"])
    driver = driver_of(drive, mpi_programs["c"], ranks=2)
    with pytest.raises(MemberFailed, match="1 ranks") as error:
        driver.call(field(1, 64), JOB, 20.0)
    assert error.value.failure.cause is Cause.WORLD


def test_that_a_worker_ends_with_an_enkg_that_is_killed(build, tmp_path):
    """SIGKILL leaves no time to say good-bye."""
    command = build("c")
    script = f"""
import os, numpy as np
from pathlib import Path
from enkg.execute.manifest import Manifest, Port, Worker
from enkg.execute.slots import Job
from enkg.execute.worker import WorkerDriver
m = Manifest("x", Port((8,)), Port((8,)), worker=Worker({command!r}, memory="shared"),
             folder=Path({str(tmp_path)!r}))
d = WorkerDriver(m)
d.call(np.zeros((1, 8)), Job(0, 0, 0), 20.0)
Path("pid").write_text(str(d._process.pid))
os.kill(os.getpid(), 9)
"""
    env = dict(os.environ, PYTHONPATH=str(Path(enkg.__file__).parents[1]))
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=False, timeout=60)
    pid = int((tmp_path / "pid").read_text())
    limit = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_that_the_stubs_are_at_hand_beside_the_simulators():
    beside = Path(enkg.__file__).parents[1] / "simulators" / "stubs"
    assert beside.resolve() == STUBS.resolve()
