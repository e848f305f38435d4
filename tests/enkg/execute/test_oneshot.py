"""One-shot programs: what a call puts there, what counts as an answer, and what is left behind."""

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from enkg.execute.manifest import Environment, Manifest, Mpi, OneShot, Port
from enkg.execute.oneshot import OneShotDriver
from enkg.execute.slots import Job
from enkg.failure import Cause, MemberFailed

X = np.random.default_rng(0).standard_normal((1, 3, 4))
JOB = Job(batch=2, member=7, attempt=1)
COPY = 'cp "$1" "$2"'


class Bench:
    """A folder with a program, and drivers that are closed at the end."""

    def __init__(self, where: Path) -> None:
        self.folder, self.kept, self.scratch = where / "a folder", where / "kept", where / "runs"
        self.folder.mkdir()
        self.drivers = []

    def manifest(self, script, *, ports=None, oneshot=None, **others) -> Manifest:
        program = self.folder / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        command = (str(program), "{input}", "{output}")
        return Manifest(
            name="bench",
            input=Port((3, 4), **(ports or {})),
            output=Port((3, 4), **(ports or {})),
            oneshot=dataclasses.replace(OneShot(command), **(oneshot or {})),
            folder=self.folder,
            grace=0.5,
            **others,
        )

    def driver(self, script, **others) -> OneShotDriver:
        scratch = others.pop("scratch", self.scratch)
        kept = others.pop("kept", self.kept)
        self.drivers.append(OneShotDriver(self.manifest(script, **others), kept, scratch))
        return self.drivers[-1]

    def call(self, script, timeout=None, **others) -> np.ndarray:
        return self.driver(script, **others).call(X, JOB, timeout)

    def failure(self, script, timeout=None, **others):
        with pytest.raises(MemberFailed) as raised:
            self.call(script, timeout, **others)
        assert "\n" not in raised.value.failure.detail
        return raised.value.failure

    def lines(self, script, **others) -> list[str]:
        """What a program wrote, beside its answer, to the file `said` in the folder."""
        self.call(f'{{ {script}\n}} > "$ENKG_FOLDER/said"\n{COPY}', **others)
        return (self.folder / "said").read_text().splitlines()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    for driver in bench.drivers:
        driver.close()
    assert not bench.scratch.exists() or not os.listdir(bench.scratch)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("format", ["npy", "raw", "text", "netcdf"])
def test_that_a_program_that_copies_gives_the_identity(bench, format, dtype, order):
    ports = {"format": format, "dtype": dtype, "order": order, "variable": "x"}
    y = bench.call(COPY, ports=ports)
    assert (y.shape, y.dtype) == ((1, 3, 4), np.dtype(dtype))
    np.testing.assert_array_equal(y, X.astype(dtype))


@pytest.mark.parametrize(
    ("script", "cause", "detail"),
    [
        ("echo trouble >&2; exit 7", Cause.EXIT, "trouble"),
        (COPY + "; exit 7", Cause.EXIT, "7"),
        (COPY + "; kill -SEGV $$", Cause.SIGNAL, "SIGSEGV"),
        (COPY + "; kill -KILL $$", Cause.SIGNAL, "SIGKILL"),
        ("echo forgot it >&2", Cause.MISSING, "not written; the program said last: forgot it"),
        ('rm -r "$PWD"', Cause.MISSING, "the run directory"),
        ('head -c 150 "$1" > "$2"', Cause.TRUNCATED, "2 of 12 numbers"),
        (': > "$2"', Cause.TRUNCATED, "empty"),
        (COPY + '; echo more >> "$2"', Cause.MALFORMED, "5 bytes after"),
        ('echo "1 2 3" > "$2"', Cause.MALFORMED, "not an npy file"),
        (COPY + '; mv "$2" there; ln -s there "$2"', Cause.MALFORMED, "symbolic link"),
        ('ln -s /dev/zero "$2"', Cause.MALFORMED, "symbolic link"),
        ('mkdir "$2"', Cause.MALFORMED, "directory"),
        ('mkfifo "$2"', Cause.MALFORMED, "pipe"),
        ('truncate -s 10T "$2"', Cause.MALFORMED, "not an npy file"),
        ('cat "$1" "$1" > "$2"; truncate -s 10T "$2"', Cause.MALFORMED, "bytes after"),
    ],
)
def test_that_every_way_to_fail_is_told(bench, script, cause, detail):
    failure = bench.failure(script)
    assert failure.cause == cause
    assert detail in failure.detail


def test_that_other_shapes_and_more_numbers_are_told(bench):
    np.save(bench.folder / "other.npy", np.zeros((4, 3)))
    script = 'cp "$ENKG_FOLDER/other.npy" "$2"'
    assert bench.failure(script).cause == Cause.SHAPE
    raw = bench.failure('cat "$1" "$1" > "$2"', ports={"format": "raw"})
    assert (raw.cause, "192 bytes" in raw.detail) == (Cause.SHAPE, True)


def test_that_nan_is_an_answer_for_the_policy_to_judge(bench):
    y = bench.call(
        "printf 'NaN %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 > output.txt", ports={"format": "text"}
    )
    assert np.isnan(y).all()


def test_that_an_answer_of_an_earlier_attempt_never_passes(bench):
    driver = bench.driver('[ "$ENKG_ATTEMPT" = 0 ] && cp "$1" "$2"; exit 0')
    driver.call(X, dataclasses.replace(JOB, attempt=0), None)
    with pytest.raises(MemberFailed) as raised:
        driver.call(X, JOB, None)
    assert raised.value.failure.cause == Cause.MISSING


def test_that_a_flood_of_output_neither_blocks_nor_fills_anything(bench):
    y = bench.call(f"head -c 104857600 /dev/zero; {COPY}")
    np.testing.assert_array_equal(y, X)


def running(marker: str) -> list[str]:
    """Processes whose arguments hold the marker."""
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if marker in line]


def test_that_a_program_that_hangs_is_ended_with_its_children(bench):
    script = "sleep 61.5\n(trap '' TERM; sleep 62.5) &\nsetsid sleep 63.5 &\nwait"
    begin = time.monotonic()
    failure = bench.failure("(trap '' TERM; sleep 61.25; sleep 61.25) &\n" + script, 0.3)
    assert (failure.cause, failure.detail) == (Cause.TIMEOUT, "ran longer than 0.3 s")
    assert time.monotonic() - begin < 20
    assert [p for s in ("61.25", "61.5", "62.5", "63.5") for p in running(f"sleep {s}")] == []


def test_that_the_timeout_of_the_manifest_holds_where_none_is_given(bench):
    driver = OneShotDriver(bench.manifest("sleep 64.5", timeout=0.2), None, bench.scratch)
    bench.drivers.append(driver)
    with pytest.raises(MemberFailed, match=r"ran longer than 0.2 s"):
        driver.call(X, JOB, None)


def test_that_the_run_directory_holds_what_the_manifest_names(bench):
    (bench.folder / "set").mkdir()
    (bench.folder / "set" / "up.in").write_text("&run i = '{input}', n = {member}{{member}} /\r\n")
    (bench.folder / "table.dat").write_text("table")
    (bench.folder / "mesh").mkdir()
    (bench.folder / "mesh" / "a").write_text("a mesh")
    (bench.folder / "extra").mkdir()
    (bench.folder / "extra" / "b").write_text("b")
    oneshot = {"templates": ("set/up.in",), "copy": ("table.dat", "extra"), "link": ("mesh",)}
    said = bench.lines(
        "pwd; stat -c %a .; cat set/up.in; cat table.dat; echo\n"
        "cat mesh/a; echo; cat extra/b; echo; readlink mesh; ls -A",
        oneshot=oneshot,
    )
    run = said[0]
    assert Path(run).name == "batch0002-member00007-attempt1"
    assert said[1:8] == [
        "700",
        f"&run i = '{run}/input.npy', n = 7{{member}} /",
        "table",
        "a mesh",
        "b",
        str(bench.folder / "mesh"),
        "extra",
    ]
    assert said[8:] == ["input.npy", "mesh", "set", "table.dat"]
    assert not Path(run).exists()
    assert (bench.folder / "mesh" / "a").exists()


def test_that_arguments_and_environment_tell_the_call(bench):
    oneshot = {
        "command": (
            *(str(bench.folder / "program"), "{input}", "{output}", "{run}", "{folder}"),
            *(
                "m{member}b{batch}a{attempt}t{threads}r{ranks}",
                "$(echo no) ; `no` * 'x' {{run}} {}",
            ),
        )
    }
    said = bench.lines(
        'for a in "$@" "$PWD" "$ENKG_MEMBER.$ENKG_BATCH.$ENKG_ATTEMPT.$ENKG_RANKS" "$ENKG_RUN" '
        '"$ENKG_FOLDER" "$OMP_NUM_THREADS" "$CASE" "$HOME"; do echo "$a"; done',
        oneshot=oneshot,
        threads=3,
        environment=Environment(set={"CASE": "{run}/{member}"}, unset=("HOME",)),
    )
    run = said[2]
    assert said == [
        *(f"{run}/input.npy", f"{run}/output.npy", run, str(bench.folder), "m7b2a1t3r1"),
        *("$(echo no) ; `no` * 'x' {run} {}", run, "7.2.1.1", run, str(bench.folder), "3"),
        *(f"{run}/7", ""),
    ]


def test_that_a_file_is_read_as_standard_input(bench):
    (bench.folder / "commands").write_text("first {member}\nsecond\n")
    oneshot = {"templates": ("commands",), "stdin": "commands"}
    assert bench.lines("cat", oneshot=oneshot) == ["first 7", "second"]
    assert bench.lines("cat") == []


def test_that_files_may_lie_in_folders_of_the_run_directory(bench):
    manifest = bench.manifest(COPY)
    ports = {
        name: dataclasses.replace(getattr(manifest, name), file=f"{name}/deep/data.npy")
        for name in ("input", "output")
    }
    driver = OneShotDriver(dataclasses.replace(manifest, **ports), None, bench.scratch)
    bench.drivers.append(driver)
    np.testing.assert_array_equal(driver.call(X, JOB, None), X)


def test_that_an_error_file_means_failure_and_gives_the_reason(bench):
    oneshot = {"error_file": "ERROR"}
    np.testing.assert_array_equal(bench.call(COPY, oneshot=oneshot), X)
    failure = bench.failure(f"{COPY}; printf 'did not\\tconverge\\nmore' > ERROR", oneshot=oneshot)
    assert (failure.cause, failure.detail) == (Cause.REPORTED, "did not converge")
    failure = bench.failure("echo did not converge > ERROR; exit 3", oneshot=oneshot)
    assert (failure.cause, failure.detail) == (Cause.EXIT, "3: did not converge")
    failure = bench.failure(f"{COPY}; : > ERROR", oneshot=oneshot)
    assert (failure.cause, failure.detail) == (Cause.REPORTED, "ERROR is there")
    failure = bench.failure(f"{COPY}; mkfifo ERROR", oneshot=oneshot)
    assert failure.cause == Cause.REPORTED


def test_that_a_program_that_is_gone_by_now_is_a_launch_failure(bench):
    driver = bench.driver(COPY)
    (bench.folder / "program").unlink()
    with pytest.raises(MemberFailed) as raised:
        driver.call(X, JOB, None)
    assert raised.value.failure.cause == Cause.LAUNCH


def test_that_calls_leave_nothing_behind(bench):
    driver = bench.driver(f'mkdir -p a/b; chmod 0 a; [ "$ENKG_MEMBER" = 1 ] || {COPY}')
    driver.call(X, JOB, None)
    before = len(os.listdir("/dev/fd"))
    for member in (0, 1, 2):
        try:
            driver.call(X, dataclasses.replace(JOB, member=member), None)
        except MemberFailed:
            assert member == 1
    assert len(os.listdir("/dev/fd")) == before
    (own,) = bench.scratch.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert list(own.iterdir()) == []
    driver.close()
    assert list(bench.scratch.iterdir()) == []


def test_that_an_interrupt_ends_the_call_being_made(bench):
    driver = bench.driver("touch begun; sleep 65.5")

    def interrupt():
        (own,) = bench.scratch.iterdir()
        while not list(own.glob("*/begun")):
            time.sleep(0.005)
        driver.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(MemberFailed) as raised:
        driver.call(X, JOB, 30.0)
    thread.join()
    assert raised.value.failure.cause == Cause.CUT
    assert running("sleep 65.5") == []


def test_that_an_interrupt_between_calls_does_nothing(bench):
    driver = bench.driver(COPY)
    driver.interrupt()
    np.testing.assert_array_equal(driver.call(X, JOB, None), X)
    driver.interrupt()
    np.testing.assert_array_equal(driver.call(X, JOB, None), X)


def test_that_more_than_one_member_a_call_is_refused(bench):
    with pytest.raises(ValueError, match="2 rows"):
        bench.driver(COPY).call(np.concatenate([X, X]), JOB, None)


FORTRAN = """
program columns
  implicit none
  real(8) :: x(3, 4)
  integer :: i, j
  character(16) :: kind
  call get_command_argument(1, kind)
  if (kind == "raw") then
    open (10, file="input.bin", access="stream", form="unformatted"); read (10) x
  else
    open (10, file="input.txt"); read (10, *) x
  end if
  do j = 1, 4; do i = 1, 3; x(i, j) = x(i, j) * (i + 10 * j); end do; end do
  if (kind == "raw") then
    open (11, file="output.bin", access="stream", form="unformatted"); write (11) x
  else
    open (11, file="output.txt"); write (11, "(3d25.17)") x
  end if
end program
"""


@pytest.mark.parametrize("format", ["raw", "text"])
def test_that_a_fortran_program_sees_its_own_indices(bench, format):
    compiler = shutil.which("gfortran")
    if compiler is None:
        pytest.skip("needs gfortran")
    (bench.folder / "a.f90").write_text(FORTRAN)
    subprocess.run([compiler, "a.f90", "-o", "a.out"], cwd=bench.folder, check=True)
    command = (str(bench.folder / "a.out"), format)
    y = bench.call("", oneshot={"command": command}, ports={"format": format, "order": "F"})
    i, j = np.mgrid[1:4, 1:5]
    np.testing.assert_array_equal(y[0], X[0] * (i + 10 * j))


MPI = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
  int rank, size; double y[12];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank); MPI_Comm_size(MPI_COMM_WORLD, &size);
  double mine = rank + 1, sum;
  MPI_Reduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  if (rank == 0) {
    for (int i = 0; i < 12; i++) y[i] = 10 * size + sum;
    FILE *f = fopen(argv[1], "wb"); fwrite(y, 8, 12, f); fclose(f);
  }
  MPI_Finalize(); return argc > 2 && rank == 1 ? 9 : 0;
}
"""


def test_that_an_mpi_program_gets_its_ranks(bench):
    compiler = Path(sys.executable).with_name("mpicc")
    if not compiler.exists():
        pytest.skip("needs mpicc beside Python, as in the package mpich")
    (bench.folder / "a.c").write_text(MPI)
    subprocess.run([compiler, "a.c", "-o", "a.out"], cwd=bench.folder, check=True)
    command = (str(bench.folder / "a.out"), "{output}")
    others = {"ports": {"format": "raw"}, "mpi": Mpi(ranks=2)}
    y = bench.call("", oneshot={"command": command}, **others)
    assert (y == 2 * 10 + 1 + 2).all()
    failure = bench.failure("", oneshot={"command": (*command, "fail")}, **others)
    assert (failure.cause, "9" in failure.detail) == (Cause.EXIT, True)
