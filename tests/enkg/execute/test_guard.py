import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from enkg.execute import guard
from enkg.execute.process import Wake
from tests.enkg.execute.processes import ALONE, DEAF, ROOT, become, living, start

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks into /proc")

SCRIPT = f"""
{ALONE.format(root=str(ROOT))}
import time
from tests.enkg.execute.processes import DAEMON, DEAF, start
from enkg.execute import guard
folder = sys.argv[1]
"""
"""A Python program that starts others by enkg."""
LONG = "start('import time; time.sleep(1000)', folder, folder)\n"


def guarded(enkg: int) -> bool:
    """Whether this process has a guard."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if guard.__file__.encode() in words and str(enkg).encode() in words:
            return True
    return False


@contextmanager
def script(text, folder):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT + text, str(folder)],
        stdout=subprocess.PIPE,
    ) as enkg:
        assert enkg.stdout is not None
        try:
            yield enkg, enkg.stdout
        finally:
            enkg.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "program",
    ["time.sleep(1000)", f"{DEAF}time.sleep(1000)", "detached(False); time.sleep(1000)"],
)
def test_that_programs_and_guard_end_when_enkg_is_killed(mark, number, program):
    text = f"start(DAEMON + {program!r}, folder, folder)\nprint('up', flush=True)\ntime.sleep(1000)"
    with script(text, mark) as (enkg, said):
        assert said.readline() == b"up\n"
        assert become(lambda: guarded(enkg.pid))
        assert become(lambda: len(living(mark)) == 1 + ("detached" in program))
        enkg.send_signal(number)
        enkg.wait()
    assert become(lambda: not living(mark))
    assert become(lambda: not guarded(enkg.pid))


def test_that_a_program_running_when_python_exits_ends_before_it(mark):
    with script(LONG, mark) as (enkg, _):
        assert enkg.wait() == 0
        assert not living(mark)
    assert become(lambda: not guarded(enkg.pid))


def test_that_the_guard_leaves_a_program_alone_that_enkg_has_released(mark):
    text = f"start(DAEMON + {'detached(False)'!r}, folder, folder).wait(20)\nos._exit(0)"
    with script(text, mark) as (enkg, _):
        assert enkg.wait() == 0
    assert become(lambda: not guarded(enkg.pid))


def test_that_a_forked_enkg_has_its_own_guard(mark):
    with start("import time; time.sleep(1000)", mark / "parent", mark) as mine:
        child = os.fork()
        if child == 0:
            mine.kill()  # not the child's to kill
            start("import time; time.sleep(1000)", mark / "child", mark)
            time.sleep(1000)
            os._exit(0)
        assert become(lambda: living(mark / "child"))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert become(lambda: not living(mark / "child"))
        assert mine.wait(0.2) is Wake.TIMEOUT, "the parent's program goes on"


def test_that_a_forked_child_does_not_keep_the_programs_of_its_dead_parent_alive(mark):
    text = LONG + "child = os.fork()\nchild and print(child, flush=True)\ntime.sleep(1000)"
    with script(text, mark) as (enkg, said):
        child = int(said.readline())
        try:
            enkg.kill()
            assert become(lambda: not living(mark))
        finally:
            os.kill(child, signal.SIGKILL)


def test_that_a_guard_that_was_killed_is_replaced(mark):
    text = (
        LONG
        + "guard._state.process.kill(); guard._state.process.wait()\n"
        + LONG
        + "print('up', flush=True)\ntime.sleep(1000)"
    )
    with script(text, mark) as (enkg, said):
        assert said.readline() == b"up\n"
        assert become(lambda: len(living(mark)) == 2)
        enkg.kill()
        assert become(lambda: not living(mark))


def test_that_a_guard_that_hangs_delays_nobody(mark):
    with start("import time; time.sleep(1000)", mark, mark):
        process = guard._state.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(5000):  # more than its pipe holds
                guard.watch(1 << 30, 0, 0)
                guard.release(1 << 30)
        finally:
            process.send_signal(signal.SIGCONT)


def test_that_an_enkg_below_another_is_ended_with_its_programs(mark):
    inner = SCRIPT + DEAF + LONG + LONG + "print('up', flush=True)\ntime.sleep(1000)"
    outer = start([sys.executable, "-c", inner, str(mark)], mark, mark)
    assert become(lambda: outer.wait(0.01) is Wake.TIMEOUT and outer.stdout == "up\n")
    assert become(lambda: len(living(mark)) == 3)
    outer.kill()
    assert not living(mark)


def test_that_a_pid_that_now_is_another_process_is_spared(mark):
    with start("import time; time.sleep(1000)", mark, mark) as process:
        begun = guard.started(process.pid)
        assert begun is not None
        assert guard.end("no-such-tag", {process.pid: begun + 1}, 0.0, time.sleep) == {}
        assert process.wait(0.1) is Wake.TIMEOUT
        assert set(guard.family("no-such-tag", {process.pid: begun})) == {process.pid}
