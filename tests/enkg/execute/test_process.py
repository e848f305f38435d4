import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enkg.execute.process import Wake
from enkg.failure import Cause
from tests.enkg.execute.processes import DAEMON, DEAF, become, ended, living, start

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks into /proc"),
    pytest.mark.usefixtures("no_descriptor_left"),
]


def test_that_a_program_that_succeeds_has_no_failure(mark):
    process = ended(start("import sys; print('one'); print('two', file=sys.stderr)", mark, mark))
    assert (process.returncode, process.failure()) == (0, None)
    assert (process.stdout, process.stderr) == ("one\n", "two\n")


def test_that_the_exit_status_and_the_last_line_are_told(mark):
    code = "import sys; print('step 1\\nno convergence\\n', file=sys.stderr); sys.exit(7)"
    failure = ended(start(code, mark, mark)).failure()
    assert failure is not None
    assert (failure.cause, failure.detail) == (Cause.EXIT, "7: no convergence")


def test_that_of_a_python_traceback_the_last_line_is_told(mark):
    failure = ended(start("def f(): raise ValueError('depth < 0')\nf()", mark, mark)).failure()
    assert failure is not None
    assert (failure.cause, failure.detail) == (Cause.EXIT, "1: ValueError: depth < 0")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGFPE])
def test_that_the_signal_is_named(mark, number):
    code = f"import os; os.kill(os.getpid(), {number.value})"
    process = ended(start(code, mark, mark))
    failure = process.failure()
    assert failure is not None
    assert process.returncode == -number
    assert (failure.cause, failure.detail) == (Cause.SIGNAL, number.name)


def test_that_a_program_runs_without_input_in_its_folder_with_its_environment(mark):
    code = "import os, sys; print(repr(sys.stdin.read()), os.getcwd(), os.environ['DEPTH'])"
    process = ended(start(code, mark, mark, env={"DEPTH": "3"}))
    assert process.stdout == f"'' {os.path.realpath(mark)} 3\n"


def test_that_a_file_can_be_the_input(mark):
    (mark / "in").write_text("rain")
    process = start("import sys; print(sys.stdin.read())", mark, mark, stdin=mark / "in")
    assert ended(process).stdout == "rain\n"


def test_that_only_descriptors_passed_on_stay_open(mark):
    passed, kept = os.pipe()
    os.set_inheritable(kept, True)
    code = f"""
import os
for fd in {passed}, {kept}:
    try:
        os.fstat(fd)
        print("open")
    except OSError:
        print("closed")
"""
    process = start(code, mark, mark, pass_fds=[passed])
    os.close(passed)
    os.close(kept)
    assert ended(process).stdout == "open\nclosed\n"


def test_that_100_mib_of_output_neither_block_the_program_nor_fill_the_memory(mark):
    code = """
import os
os.write(1, b"first line\\n")
for _ in range(100):
    data = memoryview(bytes(1 << 20))
    while data:
        data = data[os.write(1, data):]
os.write(1, b"last line\\n")
"""
    tracemalloc.start()
    process = ended(start(code, mark, mark))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert process.returncode == 0
    assert process.stdout.startswith("first line\n")
    assert process.stdout.endswith("last line\n")
    assert f"[{(100 << 20) + 21 - 2 * 65536} bytes left out]" in process.stdout
    assert peak < 4 << 20


def test_that_a_program_that_hangs_is_timed_out_and_killed(mark):
    process = start("import time; time.sleep(1000)", mark, mark)
    begin = time.monotonic()
    assert process.wait(0.1) is Wake.TIMEOUT
    assert 0.1 <= time.monotonic() - begin < 2
    process.kill()
    assert process.returncode == -signal.SIGTERM
    assert not living(mark)


def test_that_a_program_asked_to_end_may_write_its_last_words(mark):
    code = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("up", flush=True)
signal.sigwait([signal.SIGTERM])
print("x" * 200000 + "good bye")
"""
    process = start(code, mark, mark, grace=10)
    assert become(lambda: process.wait(0.01) is Wake.TIMEOUT and process.stdout == "up\n")
    process.kill()
    assert process.stdout.endswith("good bye\n")
    assert process.returncode == 0


def test_that_a_program_deaf_to_the_request_is_killed_after_the_grace(mark):
    process = start(DEAF + "import time\nprint('up', flush=True)\ntime.sleep(1000)", mark, mark)
    assert become(lambda: process.wait(0.01) is Wake.TIMEOUT and process.stdout == "up\n")
    begin = time.monotonic()
    process.kill()
    assert 0.3 <= time.monotonic() - begin < 1.3
    assert process.returncode == -signal.SIGKILL


def test_that_a_stopped_program_is_killed(mark):
    process = start("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", mark, mark)
    assert process.wait(0.2) is Wake.TIMEOUT
    process.kill()
    assert process.returncode is not None


@pytest.mark.parametrize("keep_open", [True, False])
@pytest.mark.parametrize("deaf", ["", DEAF])
def test_that_a_detached_descendant_is_killed_too(mark, keep_open, deaf):
    code = f"{DAEMON}{deaf}detached({keep_open}); time.sleep(1000)"
    process = start(code, mark, mark)
    assert become(lambda: len(living(mark)) == 2)
    process.kill()
    assert not living(mark)


def test_that_a_descendant_with_an_empty_environment_is_killed_too(mark):
    code = """
import os, time
if os.fork() == 0:
    os.execve("/bin/sleep", ["sleep", "1234.5"], {})
print("up", flush=True)
time.sleep(1000)
"""

    def sleepers():
        paths = Path("/proc").glob("[0-9]*/cmdline")
        return [p for p in paths if p.exists() and p.read_bytes() == b"sleep\x001234.5\0"]

    process = start(code, mark, mark)
    assert become(sleepers)
    process.kill()
    assert not sleepers()


def test_that_a_shell_script_is_killed_with_its_commands(mark):
    script = "trap '' TERM; sleep 1000 & (sleep 1000; sleep 1000); wait"
    process = start(["/bin/sh", "-c", script], mark, mark)
    assert become(lambda: len(living(mark)) >= 3)
    process.kill()
    assert not living(mark)


@pytest.mark.parametrize("leave", ["detached(True)", "os.fork() or time.sleep(1000)"])
def test_that_what_a_program_leaves_behind_neither_blocks_nor_stays(mark, leave):
    process = start(f"{DAEMON}{leave}\nprint('done', flush=True); os._exit(3)", mark, mark)
    assert process.wait(20) is Wake.EXIT
    assert not living(mark)
    assert (process.returncode, process.stdout) == (3, "done\n")


def test_that_a_kill_after_the_end_changes_nothing(mark):
    process = ended(start("raise SystemExit(4)", mark, mark))
    process.kill()
    process.kill()
    process.interrupt()
    assert process.returncode == 4


def test_that_the_end_of_a_with_block_kills(mark):
    with start("import time; time.sleep(1000)", mark, mark) as process:
        assert process.wait(0) is Wake.TIMEOUT
    assert process.returncode == -signal.SIGTERM


def test_that_data_wake_the_waiting_and_come_before_the_exit(mark):
    reader, writer = os.pipe()
    code = f"import os, time; os.write({writer}, b'ab'); print('told')"
    process = start(code, mark, mark, pass_fds=[writer])
    os.close(writer)
    assert process.wait(20, [reader]) is Wake.READABLE
    assert os.read(reader, 1) == b"a"
    ended(process)
    assert process.wait(20, [reader]) is Wake.READABLE
    assert os.read(reader, 1) == b"b"
    assert process.wait(20, [reader]) is Wake.READABLE, "the end of a pipe is news too"
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert process.wait(20) is Wake.EXIT


def test_that_descriptors_can_change_between_waits(mark):
    (a, b), (c, d) = os.pipe(), os.pipe()
    with start("import time; time.sleep(1000)", mark, mark) as process:
        os.write(b, b"x")
        assert process.wait(0, [c]) is Wake.TIMEOUT
        assert process.wait(0, [a, c]) is Wake.READABLE
        os.close(a)
        assert process.wait(0, [c]) is Wake.TIMEOUT
        assert process.wait(0) is Wake.TIMEOUT
    for fd in (b, c, d):
        os.close(fd)


def test_that_another_thread_can_interrupt_the_waiting(mark):
    with start("import time; time.sleep(1000)", mark, mark) as process:
        threading.Timer(0.05, process.interrupt).start()
        assert process.wait(20) is Wake.INTERRUPT
        assert process.wait(20) is Wake.INTERRUPT, "it stays interrupted"


def test_that_another_thread_can_kill_while_one_waits(mark):
    process = start("import time; time.sleep(1000)", mark, mark)
    killers = [threading.Timer(0.05, process.kill) for _ in range(3)]
    for killer in killers:
        killer.start()
    assert process.wait(20) is Wake.INTERRUPT
    for killer in killers:
        killer.join()
    assert process.wait(20) is Wake.EXIT
    assert process.returncode == -signal.SIGTERM


def test_that_it_works_where_the_system_has_no_pidfd(mark, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.delattr(os, "eventfd", raising=False)
    process = start("import time; time.sleep(0.05); print('x'); raise SystemExit(5)", mark, mark)
    assert process.wait(0) is Wake.TIMEOUT
    assert (ended(process).returncode, process.stdout) == (5, "x\n")
    with start("import time; time.sleep(1000)", mark, mark) as process:
        threading.Timer(0.05, process.interrupt).start()
        assert process.wait(20) is Wake.INTERRUPT
    assert process.returncode == -signal.SIGTERM


def test_that_the_memory_limit_holds_and_its_breach_is_told(mark):
    code = "import time; time.sleep(0.1); bytearray(1 << 28)"
    failure = ended(start(code, mark, mark, memory=200)).failure()
    assert failure is not None
    assert (failure.cause, failure.detail) == (Cause.MEMORY, "limit 200 MiB: MemoryError")
    assert ended(start(code, mark, mark, memory=2000)).failure() is None


def test_that_a_status_taken_by_somebody_else_is_not_a_success(mark):
    process = start("raise SystemExit(3)", mark, mark)
    os.waitpid(process.pid, 0)
    failure = ended(process).failure()
    assert failure is not None
    assert failure.cause is Cause.LOST


def test_that_many_programs_leave_neither_descriptors_nor_zombies(mark):
    ended(start(["true"], mark, mark))
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(30):
        ended(start(["true"], mark, mark))
        start(["sleep", "100"], mark, mark).kill()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert os.waitpid(-1, os.WNOHANG) == (0, 0), "no child but the guard, which lives"


def test_that_many_threads_can_start_and_kill_at_once(mark):
    def one(number):
        process = start("import time; time.sleep(1000)", mark, mark)
        if number % 2:
            threading.Timer(0.01, process.kill).start()
            assert process.wait(20) in (Wake.INTERRUPT, Wake.EXIT)
        process.kill()
        return process.returncode

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [-signal.SIGTERM] * 40
    assert not living(mark)
