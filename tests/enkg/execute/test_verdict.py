import pytest

from enkg.execute import verdict
from enkg.failure import Cause

HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 6269 RUNNING AT node7
=   EXIT CODE: {0}
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: {1} (signal {0})
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
RULE = "-" * 74
OPENMPI_SIGNAL = f"""{RULE}
prterun noticed that process rank 1 with PID 1234 on node node7 exited on
signal 11 (Segmentation fault).
{RULE}
"""
OPENMPI_EXIT = f"""negative depth
{RULE}
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-node7-1234@1,1]
   Exit code:    7
{RULE}
"""
OPENMPI_ABORT = f"""negative depth
{RULE}
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
  Proc: [[1,1],1]
  Errorcode: 3

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
{RULE}
"""
SRUN_KILLED = """srun: error: node7: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=4.0
slurmstepd: error: *** STEP 4.0 ON node7 CANCELLED AT 2026-01-01T00:00:00 ***
srun: error: node7: task 0: Terminated
"""
SRUN_CRASH = """negative depth
srun: error: node7: task 1: Segmentation fault (core dumped)
srun: error: node7: tasks 0,2-3: Killed
"""
SRUN_BUSY = """srun: Job 19 step creation temporarily disabled, retrying (Requested nodes are busy)
srun: error: Unable to create step for job 19: Job/step already completing or completed
"""
SRUN_WAITED = """srun: Job 9 step creation temporarily disabled, retrying (Requested nodes are busy)
srun: Step created for job 19
negative depth
srun: error: node7: task 0: Exited with exit code 7
"""
SRUN_EXIT = "negative depth\nsrun: error: node7: task 1: Exited with exit code 7\n"
SRUN_MEMORY = """slurmstepd: error: Detected 1 oom_kill event in StepId=4.0. Some were OOM-killed.
srun: error: node7: task 0: Out Of Memory
"""
ROOT = (
    f"{RULE}\nprterun has detected an attempt to run as root.\n\nRunning as root is bad.\n{RULE}\n"
)
GFORTRAN = """
Program received signal SIGFPE: Floating-point exception - erroneous arithmetic operation.

Backtrace for this error:
#0  0x7f1b4a423d21 in ???
#1  0x561d6b6e21c5 in MAIN__
"""
STOP = """Note: The following floating-point exceptions are signalling: IEEE_DIVIDE_BY_ZERO
ERROR STOP no convergence

Error termination. Backtrace:
#0  0x7fe4 in step_
	at model.f90:12
"""
JULIA = """ERROR: LoadError: DomainError with -1.0:
sqrt was called with a negative real argument
Stacktrace:
 [1] throw_complex_domainerror(f::Symbol, x::Float64)
   @ Base.Math ./math.jl:33
in expression starting at /home/me/model.jl:3
"""


@pytest.mark.parametrize(
    ("argv", "code", "stdout", "stderr", "cause", "detail"),
    [
        (["p"], 7, "", "", Cause.EXIT, "7"),
        (["p"], 7, "ERROR: no mesh\n", "", Cause.EXIT, "7: ERROR: no mesh"),
        (["p"], 139, "", "", Cause.EXIT, "139 (as after SIGSEGV)"),
        (["/bin/sh", "run.sh"], 139, "", "", Cause.SIGNAL, "SIGSEGV"),
        (["p"], -8, "", GFORTRAN, Cause.SIGNAL, None),
        (["p"], 1, "", STOP, Cause.EXIT, None),
        (["mpiexec"], 9, HYDRA.format(9, "Killed"), "", Cause.SIGNAL, "SIGKILL"),
        (["mpiexec"], 9, "", "", Cause.EXIT, "9"),
        (
            ["mpiexec.hydra"],
            11,
            "day 3\n" + HYDRA.format(11, "Segmentation fault"),
            "depth < 0\n",
            Cause.SIGNAL,
            "SIGSEGV: depth < 0",
        ),
        (["mpiexec"], 139, "", OPENMPI_SIGNAL, Cause.SIGNAL, "SIGSEGV"),
        (["mpiexec"], 7, "", OPENMPI_EXIT, Cause.EXIT, "7: negative depth"),
        (["mpiexec"], 3, "", OPENMPI_ABORT, Cause.EXIT, "3: negative depth"),
        (["srun"], 143, "", SRUN_KILLED, Cause.SIGNAL, "SIGKILL"),
        (["srun"], 137, "", SRUN_CRASH, Cause.SIGNAL, "SIGSEGV: negative depth"),
        (["srun"], 7, "", SRUN_EXIT, Cause.EXIT, "7: negative depth"),
        (["srun"], 137, "", "", Cause.SIGNAL, "SIGKILL"),
        (["srun"], 1, "", SRUN_MEMORY, Cause.MEMORY, None),
        (["srun"], 1, "", SRUN_BUSY, Cause.LAUNCH, None),
        (["srun"], 7, "", SRUN_WAITED, Cause.EXIT, "7: negative depth"),
        (["p"], 1, "", "x.py\nMemoryError\n", Cause.MEMORY, "MemoryError"),
        (["p"], -6, "", "terminate\n  what():  std::bad_alloc\n", Cause.MEMORY, None),
        (["p"], 1, "", "sh: Cannot allocate memory\n", Cause.MEMORY, None),
        (["p"], 1, "", "torch.OutOfMemoryError: CUDA out of memory.\n", Cause.MEMORY, None),
        (
            ["mpiexec"],
            255,
            "",
            "[proxy:0@vm] HYDU_create_process (launch.c:73): "
            "execvp error on file ./p (No such file or directory)\n",
            Cause.LAUNCH,
            "mpiexec could not start ./p: No such file or directory",
        ),
        (
            ["srun"],
            2,
            "",
            "slurmstepd: error: execve(): ./p: No such file or directory\n",
            Cause.LAUNCH,
            "srun could not start ./p: No such file or directory",
        ),
    ],
)
def test_that_the_cause_is_read_from_status_and_messages(argv, code, stdout, stderr, cause, detail):
    failure = verdict.read(argv, code, stdout, stderr)
    assert failure is not None
    assert failure.cause is cause
    assert detail is None or failure.detail == detail
    assert "#0" not in failure.detail


def test_that_open_mpi_that_refuses_root_says_what_to_set():
    failure = verdict.read(["mpiexec"], 1, "", ROOT)
    assert failure is not None
    assert failure.cause is Cause.LAUNCH
    assert "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" in failure.detail


def test_that_success_has_no_failure_whatever_was_printed():
    assert verdict.read(["p"], 0, HYDRA.format(9, "Killed"), "MemoryError\n") is None


def test_that_sigkill_is_want_of_memory_only_if_the_system_killed():
    for starved, cause in (False, Cause.SIGNAL), (True, Cause.MEMORY):
        for argv, code, stdout in (["p"], -9, ""), (["mpiexec"], 9, HYDRA.format(9, "Killed")):
            failure = verdict.read(argv, code, stdout, "", starved=starved)
            assert failure is not None
            assert failure.cause is cause


def test_that_a_crash_under_a_memory_limit_names_the_limit():
    failure = verdict.read(["p"], -11, "", "", memory=300)
    assert failure is not None
    assert failure.detail == "SIGSEGV (memory limit 300 MiB)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("\n \n", ""),
        ("one\n\ntwo\n\n", "two"),
        (GFORTRAN, "Program received signal SIGFPE: Floating-point exception - erroneous "),
        (STOP, "ERROR STOP no convergence"),
        (JULIA, "sqrt was called with a negative real argument"),
        ("bad depth\nAbort(3) on node 1 (rank 1 in comm 0): application called\n", "bad depth"),
        ("Abort(3) on node 1\n", "Abort(3) on node 1"),
        ("\x1b[31mred\x1b[0m\tand\x07 loud\n", "red and loud"),
    ],
)
def test_that_the_last_line_says_something(text, line):
    assert verdict.last_line(text).startswith(line)
    assert bool(line) or not verdict.last_line(text)


def test_that_a_long_line_is_shortened():
    assert verdict.last_line("x" * 10_000) == "x" * 197 + "..."


def test_that_the_counter_of_kills_for_memory_can_be_read():
    assert verdict.oom_kills() >= 0
