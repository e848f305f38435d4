"""Run directories: where they are made, which are kept, and what a full disk does."""

import contextlib
import fcntl
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from enkg.errors import InputError
from enkg.execute import scratch
from enkg.execute.manifest import Manifest, OneShot, Port
from enkg.execute.oneshot import OneShotDriver
from enkg.execute.scratch import Scratch
from enkg.execute.slots import Job
from enkg.failure import Cause, MemberFailed

X = np.zeros((1, 100))
COPY = 'cp "$1" "$2"'


@pytest.fixture
def driver(tmp_path):
    """Makes drivers for shell scripts, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(script, where=None, count=100, **oneshot) -> OneShotDriver:
            folder = tmp_path / "folder"
            folder.mkdir(exist_ok=True)
            program = folder / "program"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            manifest = Manifest(
                name="bench",
                input=Port((100,)),
                output=Port((count,)),
                oneshot=OneShot((str(program), "{input}", "{output}"), **oneshot),
                folder=folder,
            )
            made = OneShotDriver(manifest, tmp_path / "kept", where or tmp_path / "runs")
            stack.callback(made.close)
            return made

        yield make


def outcome(driver: OneShotDriver, member=0):
    """The failure of a call, None for success."""
    try:
        driver.call(X, Job(0, member, 0), None)
    except MemberFailed as error:
        return error.failure
    return None


def kept(tmp_path) -> dict[str, list[str]]:
    where = tmp_path / "kept"
    return (
        {p.name: sorted(os.listdir(p)) for p in sorted(where.iterdir())} if where.exists() else {}
    )


def test_that_the_files_of_a_failed_member_are_kept_with_what_it_printed(tmp_path, driver):
    script = "echo to out; echo to err >&2; mkdir deep; echo 1 > deep/er; ln -s deep there; exit 5"
    failure = outcome(driver(script), 3)
    assert failure is not None
    where = tmp_path / "kept" / "batch0000-member00003-attempt0"
    assert failure.kept == where
    texts = {p.relative_to(where).as_posix(): p.read_text() for p in where.rglob("*.txt")}
    assert texts["stdout.txt"] == "to out\n"
    assert texts["stderr.txt"] == "to err\n"
    assert texts["failure.txt"].startswith("exit code: ")
    assert texts["command.txt"].startswith(str(tmp_path / "folder" / "program"))
    assert (where / "deep" / "er").read_text() == "1\n"
    assert os.readlink(where / "there") == "deep"
    np.testing.assert_array_equal(np.load(where / "input.npy"), X[0])


def test_that_keep_says_what_stays(tmp_path, driver):
    for member, keep in enumerate(("never", "failed", "all")):
        assert outcome(driver(COPY, keep=keep), member) is None
        assert outcome(driver("exit 5", keep=keep), member + 10) is not None
    assert list(kept(tmp_path)) == [
        "batch0000-member00002-attempt0",
        "batch0000-member00011-attempt0",
        "batch0000-member00012-attempt0",
    ]


def test_that_files_of_the_program_with_our_names_stay(tmp_path, driver):
    outcome(driver("echo mine > stdout.txt; echo printed; exit 5"))
    where = tmp_path / "kept" / "batch0000-member00000-attempt0"
    assert (where / "stdout.txt").read_text() == "mine\n"
    assert (where / "enkg-stdout.txt").read_text() == "printed\n"


def test_that_as_many_are_kept_as_the_limit_says_good_ones_apart(tmp_path, driver, monkeypatch):
    monkeypatch.setattr(scratch, "KEPT", 2)
    made = driver('[ "$ENKG_MEMBER" -lt 5 ] || exit 5; ' + COPY, keep="all")
    failures = [outcome(made, member) for member in range(10)]
    assert failures[:5] == [None] * 5
    assert [f is not None and f.kept is not None for f in failures[5:]] == [
        True,
        True,
        *[False] * 3,
    ]
    assert [name[10:21] for name in kept(tmp_path)] == [
        *("member00000", "member00001", "member00005", "member00006")
    ]


def test_that_large_files_are_left_out_and_listed(tmp_path, driver, monkeypatch):
    monkeypatch.setattr(scratch, "KEPT_BYTES", 4000)
    made = driver("truncate -s 10T large; head -c 3000 /dev/zero > b; mkfifo pipe; exit 5")
    failures = [outcome(made, member) for member in range(3)]
    assert [f is not None and f.kept is not None for f in failures] == [True, False, False]
    notes = ["command.txt", "failure.txt", "left_out.txt", "stderr.txt", "stdout.txt"]
    assert list(kept(tmp_path).values()) == [sorted([*notes, "b", "input.npy"])]
    where = tmp_path / "kept" / "batch0000-member00000-attempt0" / "left_out.txt"
    assert where.read_text().splitlines() == [
        "pipe: pipe is a pipe or a device; expected a file",
        "large: 10995116277760 bytes",
    ]


def test_that_a_second_run_of_the_same_member_replaces_what_was_kept(tmp_path, driver):
    for text in ("first", "second"):
        outcome(driver(f"echo {text} > {text}; exit 5"))
    (names,) = kept(tmp_path).values()
    assert ("first" in names, "second" in names) == (False, True)


def test_that_a_folder_that_cannot_be_written_costs_the_copy_alone(tmp_path, driver):
    (tmp_path / "kept").touch()
    failure = outcome(driver("exit 5"))
    assert failure is not None
    assert (failure.cause, failure.kept) == (Cause.EXIT, None)


def test_that_scratch_that_cannot_be_written_is_for_the_user_to_mend(tmp_path, driver):
    (tmp_path / "file").touch()
    for where in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match="name another folder as `scratch`"):
            driver(COPY, where)


def test_that_run_directories_are_made_in_memory_if_there_is_ample_room(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "MEMORY", tmp_path)
    room = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert scratch.choose(1000) == tmp_path
    assert scratch.choose(room) != tmp_path
    monkeypatch.setattr(scratch, "LEAST_ROOM", 2 * room)
    assert scratch.choose(1000) != tmp_path
    monkeypatch.setattr(scratch, "MEMORY", tmp_path / "no")
    assert scratch.choose(0).is_dir()


def test_that_scratch_goes_with_its_owner_and_not_with_a_fork(tmp_path):
    first, second = Scratch(tmp_path, 0), Scratch(tmp_path, 0)
    (first.path / "run").mkdir()
    child = os.fork()
    if child == 0:
        first.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert (first.path / "run").is_dir()
    first.close()
    first.close()
    assert list(tmp_path.iterdir()) == [second.path]
    del second
    assert list(tmp_path.iterdir()) == []


def test_that_what_a_killed_process_left_goes_and_nothing_else(tmp_path):
    with subprocess.Popen(["true"]) as dead:
        pass
    gone, held, others = (tmp_path / f"enkg-{os.getuid()}-{dead.pid}-{i}" for i in "abc")
    others = tmp_path / f"enkg-{os.getuid() + 1}-{dead.pid}-c"
    alive = tmp_path / f"enkg-{os.getuid()}-{os.getpid()}-d"
    foreign = tmp_path / f"enkg-{os.getuid()}-x-e"
    for folder in (gone, held, others, alive, foreign):
        (folder / "run").mkdir(parents=True)
    link = tmp_path / f"enkg-{os.getuid()}-{dead.pid}-f"
    link.symlink_to(alive)
    descriptor = os.open(held, os.O_RDONLY)  # as a process of another machine would
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    scratch.sweep(tmp_path)
    os.close(descriptor)
    assert not gone.exists()
    assert {p for p in tmp_path.iterdir() if (p / "run").is_dir()} == {
        *(held, others, alive, foreign, link)
    }


@pytest.fixture
def small(tmp_path):
    """A file system of 64 KiB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", where]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize(
    "script",
    [
        'head -c 200000 /dev/zero > "$2"',  # says so
        'head -c 200000 /dev/zero 2> /dev/null > "$2"; exit 0',  # notices nothing
        'head -c 200000 /dev/zero 2> /dev/null > "$2" || kill -BUS $$',
        'head -c 200000 /dev/zero > other; echo 1 > "$2"; exit 0',
    ],
)
def test_that_a_disk_that_the_program_filled_is_told(tmp_path, driver, small, script):
    failure = outcome(driver(script, small, count=20000))
    assert failure is not None
    assert failure.cause == Cause.DISK
    assert str(small) in failure.detail
    assert "KiB free" in failure.detail
    (own,) = small.iterdir()
    assert list(own.iterdir()) == []


def test_that_a_disk_too_small_for_our_own_files_is_told(tmp_path, driver, small):
    (tmp_path / "folder" / "data").mkdir(parents=True)
    (tmp_path / "folder" / "data" / "large").write_bytes(bytes(200000))
    for copy in ("data", "data/large"):
        failure = outcome(driver(COPY, small, copy=(copy,)))
        assert failure is not None
        assert failure.cause == Cause.DISK
    assert outcome(driver(COPY, small)) is None


def test_that_a_full_run_folder_keeps_nothing_by_half(tmp_path, driver, small):
    (tmp_path / "kept").symlink_to(small)
    failure = outcome(driver("head -c 200000 /dev/zero > large; exit 5"))
    assert failure is not None
    assert (failure.cause, failure.kept) == (Cause.EXIT, None)
    assert list(small.iterdir()) == []


def test_that_drivers_side_by_side_do_not_meet(tmp_path, driver):
    from concurrent.futures import ThreadPoolExecutor

    drivers = [driver(COPY) for _ in range(3)]

    def work(number):
        for member in range(number, 30, 3):
            x = X + member
            y = drivers[number].call(x, Job(0, member, 0), None)
            np.testing.assert_array_equal(y, x)
        return number

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [0, 1, 2]
