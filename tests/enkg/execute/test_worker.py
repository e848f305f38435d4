"""Workers: programs that stay up and answer call after call."""

import sys

import numpy as np
import pytest

from enkg.errors import InputError
from enkg.execute.frames import Frame, Kind, output_offset, unpack
from enkg.execute.manifest import Environment, Manifest, Port, Worker
from enkg.execute.worker import WorkerDriver
from enkg.failure import MemberFailed
from tests.enkg.execute.workers import JOB, N, failure, manifest, member, starts


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


def test_that_the_time_of_the_start_does_not_count(tmp_path, drive):
    driver = drive(manifest(tmp_path, "slow reader"))
    assert driver.call(member("fine"), JOB, 0.25).shape == (1, N)


def test_that_the_limit_of_the_manifest_holds_where_none_is_given(tmp_path, drive):
    driver = drive(manifest(tmp_path, timeout=0.1))
    with pytest.raises(MemberFailed, match=r"within 0\.1 s"):
        driver.call(member("hang"), JOB, None)


@pytest.mark.parametrize("named", [False, True])
def test_that_payloads_larger_than_any_pipe_pass(tmp_path, drive, named):
    n = 200_000
    driver = drive(manifest(tmp_path, n=n), named=named)
    x = member("fine", n)
    np.testing.assert_array_equal(driver.call(x, JOB, 60.0), 2 * x)


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


def test_that_a_driver_without_a_worker_is_refused():
    with pytest.raises(InputError, match="no \\[worker\\]"):
        WorkerDriver(Manifest("x", Port((1,)), Port((1,))))
