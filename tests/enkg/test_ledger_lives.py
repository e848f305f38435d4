"""The ledger: a life after a kill, and one after too many failures."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import enkg
from enkg.execute.cache import Cached
from enkg.execute.function import opened
from enkg.execute.slots import Slots
from enkg.failure import Cause, Failure, FailurePolicy, MemberFailed
from enkg.simulator import Judging
from tests.enkg.execute.helpers import LIGHT, ROOT
from tests.enkg.lives import ask, ends, members, same, the_file

J = 8


# --- too few ---------------------------------------------------------------------------------


class Dying:
    """A driver whose members from the sixth on fail."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def call(self, x, job, timeout):
        self.asked.append(int(x[0, 0]) // 3)
        if self.asked[-1] >= 6:
            raise MemberFailed(Cause.EXIT, "1")
        return x

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def dying() -> Slots:
    return Slots([Dying()], FailurePolicy())


@pytest.mark.parametrize("above", ["ledger", "cache"])
def test_that_a_rest_that_fails_is_judged_with_the_others(tmp_path, above):
    x = members(10)
    expected = dying().evaluate(x)
    if above == "ledger":
        ask(tmp_path, dying(), x)
        file = the_file(tmp_path)
        os.truncate(file, ends(file)[5])
        assert same(ask(tmp_path, dying(), x), expected)
        os.truncate(file, ends(file)[8])
        assert same(ask(tmp_path, dying(), x), expected)
        return
    with opened(Cached(dying_simulator(), tmp_path)) as cached:
        cached.evaluate(x[:6])
        for _ in range(2):
            result = cached.evaluate(x)
            assert result.failures == expected.failures  # all four were tried
            np.testing.assert_array_equal(result.y, expected.y)


def dying_simulator():
    class Simulator:
        def evaluate(self, x, progress=None):
            return self.slots.evaluate(x, progress)

        def identity(self):
            return "dying"

        @property
        def announce(self):
            return self.slots.announce

        @announce.setter
        def announce(self, told):
            self.slots.announce = told

        @property
        def others(self):
            return self.slots.others

        @others.setter
        def others(self, counts):
            self.slots.others = counts

        slots = dying()

    return Simulator()


def test_that_a_batch_that_was_hopeless_stays_so_without_a_call(tmp_path):
    x = members(30)[5:]  # one answer, then failures
    expected = ask(tmp_path, dying(), x)
    assert expected.failures[-1] == Failure(Cause.UNFINISHED, "too few members could still succeed")
    slots = dying()
    assert same(ask(tmp_path, slots, x), expected)
    assert slots.drivers[0].asked == []  # type: ignore[attr-defined]
    assert isinstance(slots, Judging)


def test_that_a_batch_without_one_answer_fails_in_every_life(tmp_path):
    x = members(30)[20:]
    for _ in range(2):
        with pytest.raises(enkg.EnsembleFailure, match="first: exit code: 1") as caught:
            ask(tmp_path, dying(), x)
        assert len(caught.value.failures) == 10


# --- kill -9 ---------------------------------------------------------------------------------

SIMULATOR = """
    import os
    import time

    def note(what, member):
        handle = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{what} {int(member)}\\n".encode())
        os.close(handle)

    def simulate(x):
        member = x[0] // 3
        note("begun", member)
        while os.environ["HANG"] == "yes" and member >= 5:
            time.sleep(0.01)
        return x**0.5
"""
LIFE = """
    import sys
    from pathlib import Path
    import numpy as np
    from enkg.execute.function import Function, opened
    from enkg.execute.pool import Pool
    from enkg.ledger import Ledger
    from life import simulate

    if __name__ == "__main__":
        folder, kind = Path(sys.argv[1]), sys.argv[2]
        simulator = {
            "function": lambda: Function(simulate, batched=False),
            "pool": lambda: Pool(simulate, processes=2),
        }[kind]()
        with opened(simulator) as evaluator:
            x = np.arange(24.0).reshape(8, 3)
            result = Ledger(folder / "answers", 0, 1).evaluate(evaluator, x, 0, 0)
        np.save(folder / "y.npy", result.y)
        print(result.calls)
"""


@pytest.mark.parametrize(("kind", "hanging"), [("function", 1), ("pool", 2)])
def test_that_a_killed_run_repeats_no_finished_call(tmp_path, kind, hanging):
    (tmp_path / "life.py").write_text(textwrap.dedent(SIMULATOR))
    (tmp_path / "main.py").write_text(LIGHT + textwrap.dedent(LIFE))
    notes = tmp_path / "notes"

    def life(hang):
        path = f"{ROOT}:{tmp_path}"
        env = os.environ | {"NOTES": str(notes), "HANG": hang, "PYTHONPATH": path}
        return subprocess.Popen(
            [sys.executable, tmp_path / "main.py", tmp_path, kind],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )

    def recorded() -> int:
        files = list(tmp_path.glob("answers/*.log"))
        return len(ends(files[0])) if files else 0

    def begun() -> list[int]:
        return [int(line.split()[1]) for line in notes.read_text().splitlines()]

    first = life("yes")
    give_up = time.monotonic() + 60
    while recorded() < 5 or len(begun()) < 5 + hanging:
        assert first.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    assert sorted(begun())[:5] == [0, 1, 2, 3, 4]
    notes.write_text("")
    second = life("no")
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert sorted(begun()) == [5, 6, 7]
    assert out.split() == [str(J)]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.sqrt(members()))
