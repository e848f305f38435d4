import os
import re
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import pytest

from enkg.errors import InputError
from enkg.execute import launcher, leftovers
from enkg.execute.manifest import Mpi
from enkg.execute.process import Wake
from enkg.failure import Cause, MemberFailed
from tests.enkg.execute.processes import ALONE, MPI, ROOT, become, living, start

BESIDE = Path(sys.executable).parent
VERSIONS = {
    "mpich": "HYDRA build details:\n    Version:                                 5.0.2",
    "openmpi": "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/",
    "openmpi4": "mpirun (Open MPI) 4.1.4",
    "debian": "mpiexec.openmpi (OpenRTE) 4.1.4",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005",
    "other": "mpiexec for Something Else 1.0",
}
needs_mpi = pytest.mark.skipif(
    not (BESIDE / "mpicc").exists() or not os.path.exists("/proc/self"),
    reason="needs MPICH's mpicc and mpiexec beside this Python: pip install mpich",
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine that has these launchers, and no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python3"))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def make(where=folder, **programs):
        where.mkdir(exist_ok=True)
        for name, version in programs.items():
            path = where / name.replace("_", ".")
            path.write_text(f"#!/bin/sh\necho '{VERSIONS.get(version, version)}'\n")
            path.chmod(0o755)
        return where

    return make


@pytest.mark.parametrize("version", ["openmpi", "openmpi4", "debian"])
def test_the_command_line_of_open_mpi(machine, version):
    bin = machine(mpiexec=version)
    assert launcher.prefix(Mpi(3), 2) == [
        *(f"{bin}/mpiexec", "-n", "3", "--bind-to", "none", "--oversubscribe")
    ]


@pytest.mark.parametrize("version", ["mpich", "intel"])
def test_the_command_line_of_mpich(machine, version):
    bin = machine(mpiexec=version)
    assert launcher.prefix(Mpi(3), 2) == [f"{bin}/mpiexec", "-n", "3"]


def test_the_command_line_of_srun(machine):
    bin = machine(srun="slurm 22.05.8", mpiexec="mpich")
    assert launcher.prefix(Mpi(3, "srun", ("--mpi=pmi2",)), 2) == [
        *(f"{bin}/srun", "-n", "3", "--exact", "--mem=0", "--cpus-per-task=2"),
        *("--kill-on-bad-exit=1", "--mpi=pmi2"),
    ]


def test_the_command_line_of_flux(machine):
    bin = machine(flux="commands: 0.50")
    assert launcher.prefix(Mpi(3, "flux"), 2) == [f"{bin}/flux", "run", "-n", "3", "-c", "2"]


def test_that_further_arguments_come_last(machine):
    bin = machine(mpiexec="mpich")
    mpi = Mpi(2, arguments=("-hosts", "a,b"))
    assert launcher.prefix(mpi) == [f"{bin}/mpiexec", "-n", "2", "-hosts", "a,b"]


def test_that_one_rank_needs_a_launcher_only_where_one_is_asked_for(machine):
    assert launcher.prefix(Mpi()) == []
    bin = machine(mpiexec="mpich")
    assert launcher.prefix(Mpi()) == []
    assert launcher.prefix(Mpi(1, "mpich")) == [f"{bin}/mpiexec", "-n", "1"]


def test_that_the_mpiexec_beside_python_comes_before_the_path(machine):
    machine(mpiexec="openmpi")
    beside = machine(Path(sys.executable).parent, mpiexec="mpich")
    assert launcher.detect() == ("mpich", f"{beside}/mpiexec")
    assert launcher.detect("mpich") == ("mpich", f"{beside}/mpiexec")
    assert launcher.detect("openmpi")[0] == "openmpi", "the one asked for, though it comes second"


def test_that_srun_is_taken_in_a_job_without_mpiexec_alone(machine, monkeypatch):
    bin = machine(srun="slurm 22.05.8")
    with pytest.raises(InputError, match="no mpiexec"):
        launcher.detect()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launcher.detect() == ("srun", f"{bin}/srun")
    machine(mpiexec="openmpi")
    assert launcher.detect() == ("openmpi", f"{bin}/mpiexec")


def test_that_names_with_a_flavour_are_found(machine):
    bin = machine(mpiexec="openmpi", mpiexec_mpich="mpich")
    assert launcher.detect("mpich") == ("mpich", f"{bin}/mpiexec.mpich")


def test_that_the_version_is_asked_once(machine, tmp_path):
    bin = machine()
    script = bin / "mpiexec"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\necho 'Open MPI'\n")
    script.chmod(0o755)
    assert launcher.prefix(Mpi(2)) == launcher.prefix(Mpi(2))
    assert (tmp_path / "asked").read_text() == "x\n"


@pytest.mark.parametrize(
    ("programs", "asked", "words"),
    [
        ({}, "auto", "pip install mpich"),
        ({}, "mpich", "no mpiexec on the PATH"),
        ({}, "srun", "no srun on the PATH"),
        ({"mpiexec": "openmpi"}, "mpich", "is of openmpi"),
        ({"mpiexec": "other"}, "auto", "neither MPICH's nor Open MPI's"),
    ],
)
def test_that_a_missing_launcher_is_an_input_error(machine, programs, asked, words):
    machine(**programs)
    with pytest.raises(InputError, match=re.escape(words)):
        launcher.prefix(Mpi(2, asked))


def test_that_an_unknown_mpiexec_is_taken_for_what_the_user_says(machine):
    bin = machine(mpiexec="other")
    assert launcher.prefix(Mpi(2, "mpich")) == [f"{bin}/mpiexec", "-n", "2"]


def test_that_a_program_of_another_mpi_is_told_by_its_world():
    launcher.check_world(2, 2, "mpich")
    with pytest.raises(MemberFailed, match="counts 1 ranks, mpich started 2") as caught:
        launcher.check_world(1, 2, "mpich")
    assert caught.value.failure.cause is Cause.WORLD


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpi")
    (folder / "program.c").write_text(MPI)
    subprocess.run(
        [BESIDE / "mpicc", "program.c", "-o", "program"],
        cwd=folder,
        env={**os.environ, "PATH": f"{BESIDE}:{os.environ['PATH']}"},
        check=True,
    )
    return str(folder / "program")


def ranks(program, mark, *arguments, **options):
    return start([*launcher.prefix(Mpi(2)), program, *arguments], mark, mark, **options)


@needs_mpi
def test_that_the_ranks_are_one_world(program, mark):
    process = ranks(program, mark, "size")
    assert process.wait(20) is Wake.EXIT
    assert (process.failure(), process.stdout) == (None, "2 ranks\n")


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_that_the_signal_that_killed_a_rank_is_told(program, mark, number):
    process = ranks(program, mark, "signal", str(number.value))
    assert process.wait(20) is Wake.EXIT
    failure = process.failure()
    assert failure is not None
    assert (failure.cause, failure.detail) == (Cause.SIGNAL, number.name)


@needs_mpi
@pytest.mark.parametrize(("how", "status"), [("exit", 7), ("abort", 3)])
def test_that_the_status_and_last_line_of_a_rank_are_told(program, mark, how, status):
    process = ranks(program, mark, how)
    assert process.wait(20) is Wake.EXIT
    failure = process.failure()
    assert failure is not None
    assert (failure.cause, failure.detail) == (Cause.EXIT, f"{status}: negative depth")


@needs_mpi
def test_that_a_missing_program_is_a_launch_failure(mark):
    process = ranks("./none", mark)
    assert process.wait(20) is Wake.EXIT
    failure = process.failure()
    assert failure is not None
    assert failure.cause is Cause.LAUNCH
    assert failure.detail == "mpiexec could not start ./none: No such file or directory"


@needs_mpi
@pytest.mark.parametrize("how", ["hang", "deaf"])
def test_that_no_rank_outlives_the_kill(program, mark, how):
    process = ranks(program, mark, how)
    assert become(lambda: process.wait(0.01) is Wake.TIMEOUT and process.stdout == "up up ")
    assert len(living(mark)) >= 4, "mpiexec, its proxy and two ranks"
    process.kill()
    assert not living(mark)


@needs_mpi
def test_that_descendants_of_ranks_are_killed_too(mark):
    process = start(
        [
            *launcher.prefix(Mpi(2)),
            *("/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000"),
        ],
        mark,
        mark,
    )
    assert become(lambda: len(living(mark)) >= 8)
    process.kill()
    assert not living(mark)


@needs_mpi
@pytest.mark.parametrize("size", [1, 2])
def test_that_an_mpi_program_started_by_a_rank_is_a_world_of_its_own(program, mark, size):
    inner = [*launcher.prefix(Mpi(size)), program, "size"]
    outer = f"""
import os, pathlib, subprocess, sys
heard = pathlib.Path(os.environ["PMI_RANK"] + ".heard")
{ALONE.format(root=str(ROOT))}
from enkg.execute.environment import environment
from enkg.execute.manifest import Environment
said = []
for env in environment(Environment(), {{}}), None:
    done = subprocess.run({inner!r}, env=env, stdout=-1, stderr=-1, timeout=20)
    if env or {size} == 1:
        said.append(done.stdout.decode() or "none")
heard.write_text(" ".join(said))
"""
    process = start([*launcher.prefix(Mpi(2)), sys.executable, "-c", outer], mark, mark)
    assert process.wait(60) is Wake.EXIT
    assert process.failure() is None
    one = [str(size), "ranks"] + ["none"] * (size == 1)  # with our own environment it fails
    assert [path.read_text().split() for path in sorted(mark.glob("*.heard"))] == [one] * 2


@needs_mpi
@pytest.mark.parametrize("how", ["hang", "deaf"])
def test_that_no_rank_outlives_a_killed_enkg(program, mark, how):
    argv = [*launcher.prefix(Mpi(2)), program, how]
    text = f"""
{ALONE.format(root=str(ROOT))}
import time
from tests.enkg.execute.processes import start
process = start({argv!r}, {str(mark)!r}, {str(mark)!r})
while process.stdout != "up up ":
    process.wait(0.01)
print("up", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as enkg:
        assert enkg.stdout is not None
        said = enkg.stdout.readline()
        enkg.kill()
    assert said == b"up\n"
    assert become(lambda: not living(mark))


@pytest.fixture
def old_segments(monkeypatch):
    """Makes all files old, and every call look for them."""
    monkeypatch.setattr(leftovers, "AGE", 0.0)
    monkeypatch.setattr(leftovers, "PAUSE", 0.0)
    monkeypatch.setattr(leftovers, "_begun", time.time())


@needs_mpi
def test_that_killed_ranks_leave_no_shared_memory(program, mark, old_segments):
    def segments():
        return set(glob("/dev/shm/mpich_shm_*"))

    before = segments()
    other = ranks(program, mark, "hang")
    assert become(lambda: other.wait(0.01) is Wake.TIMEOUT and other.stdout == "up up ")
    used = segments() - before
    assert used
    process = ranks(program, mark, "signal", "9")
    assert process.wait(20) is Wake.EXIT
    assert segments() & used == used, "those of a running program stay"
    other.kill()
    assert become(lambda: leftovers.sweep() or not segments() & used)


def test_that_files_of_a_starting_program_and_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "PATTERNS", (f"{tmp_path}/segment*",))
    monkeypatch.setattr(leftovers, "PAUSE", 0.0)
    monkeypatch.setattr(leftovers, "_begun", time.time() - 1000)
    path = tmp_path / "segment1"
    path.touch()
    leftovers.sweep()
    assert path.exists(), "it is new"
    monkeypatch.setattr(leftovers, "AGE", 0.0)
    monkeypatch.setattr(leftovers, "_begun", time.time() + 1)
    leftovers.sweep()
    assert path.exists(), "it is older than this run"
    monkeypatch.setattr(leftovers, "_begun", time.time() - 1000)
    leftovers.sweep()
    assert not path.exists()
