import contextlib
import os
import resource
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from enkg.failure import Cause, MemberFailed
from tests.enkg.execute.processes import ended, start

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks into /proc"),
    pytest.mark.usefixtures("no_descriptor_left"),
]


def prepared(folder: Path) -> Path:
    (folder / "plain").write_text("print('no first line')\n")
    (folder / "plain").chmod(0o755)
    (folder / "script").write_text("#!/no/such/shell\n")
    (folder / "script").chmod(0o755)
    (folder / "data").write_text("")
    return folder


@pytest.mark.parametrize(
    ("argv", "options", "words"),
    [
        (["./none"], {}, "no such file"),
        (["no-such-program"], {}, "on the PATH"),
        (["./data"], {}, "chmod +x"),
        (["/tmp/"], {}, "folder"),
        (["./plain"], {}, "#!"),
        (["./script"], {}, "/no/such/shell is missing"),
        (["true", "a\0b"], {}, "null byte"),
        (["true"], {"env": {"A": "a\0b"}}, "null byte"),
        (["true"], {"env": {"A=B": ""}}, "illegal environment variable"),
        (["true"], {"stdin": Path("/no/such/input")}, "/no/such/input"),
        (["true", "x" * (1 << 22)], {}, "too long"),
        (["true"], {"cwd": Path("/no/such/folder")}, "/no/such/folder cannot be entered"),
        (["true"], {"cwd": Path("/dev/null")}, "/dev/null cannot be entered"),
    ],
)
def test_that_a_program_that_cannot_start_says_why(mark, argv, options, words):
    options = {"cwd": prepared(mark), **options}
    with pytest.raises(MemberFailed) as caught:
        start(argv, mark, **options)
    assert caught.value.failure.cause is Cause.LAUNCH
    assert words in caught.value.failure.detail


def test_that_a_program_being_written_is_awaited_and_then_refused(mark):
    program = mark / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    with program.open("ab") as file:
        with pytest.raises(MemberFailed, match="open for writing"):
            start([str(program)], mark, mark)
        threading.Timer(0.02, file.close).start()
        assert ended(start([str(program)], mark, mark)).failure() is None


@contextmanager
def crowded(free: int):
    """Leaves room for so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0)]
    try:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(free):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("free", range(14))
def test_that_the_limit_of_open_files_is_named_or_does_no_harm(mark, free):
    def attempt(code):
        with crowded(free):
            try:
                process = start(code, mark, mark)
                process.wait(10 if code == "pass" else 0)
                process.kill()
            except MemberFailed as caught:
                return caught.failure
        assert process.returncode == (0 if code == "pass" else -signal.SIGTERM)
        return None

    for code in "pass", "import time; time.sleep(1000)":
        failure = attempt(code)
        assert failure or free > 6
        assert not failure or failure.cause is Cause.LAUNCH
        assert not failure or "ulimit -n" in failure.detail
