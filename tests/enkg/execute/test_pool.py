"""Members in other processes: the same answers, and crashes that harm nobody else."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import enkg
from enkg.execute import guard
from enkg.execute.pool import Pool
from enkg.failure import Cause, FailurePolicy
from enkg.load import load
from tests.enkg.execute import members as m
from tests.enkg.execute.helpers import NO_RETRY, ROOT, agrees, batch, spawned

RNG = np.random.default_rng(0)


def _line(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def none_left(nothing_left):
    """Nor does a process live on that detached itself."""
    yield
    host = guard.new_tag().rpartition(".")[0]
    assert guard.family(host, {}) == {}


# --- processes of our own --------------------------------------------------------------------


def test_that_a_pool_gives_what_the_function_gives():
    with Pool(m.double, processes=2).opened(FailurePolicy(), None) as pool:
        for shape in [(1, 3), (2, 3), (7, 2, 5), (10, 1), (5, 100_000)]:
            for dtype in (np.float32, np.float64):
                x = RNG.standard_normal(shape).astype(dtype)
                result = pool.evaluate(x)
                np.testing.assert_array_equal(result.y, 2 * x)
                assert result.y.dtype == dtype
                assert result.failures == (None,) * len(x)
                assert result.calls == len(x)
    x = batch(5)
    expected = enkg.Function(m.mean_and_size, batched=False)(x)
    np.testing.assert_array_equal(Pool(m.mean_and_size, processes=2)(x), expected)


@pytest.mark.parametrize("chunk", [1, 3, 4, 64])
def test_that_batches_go_in_chunks_of_one_size(chunk):
    x = RNG.standard_normal((10, 2))
    y = Pool(m.doubles, processes=2, chunk=chunk, batched=True)(x)
    np.testing.assert_array_equal(y[:, 0], 2 * x[:, 0])
    np.testing.assert_array_equal(y[:, 1], chunk)


def test_that_all_processes_work_and_none_is_left(none_left):
    result = Pool(m.own_pid, processes=2).evaluate(batch(20))
    pids = set(result.y.ravel())
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_that_an_empty_batch_is_refused_as_by_a_function():
    for simulator in (enkg.Function(m.double), Pool(m.double)):
        with pytest.raises(enkg.EnsembleFailure, match="the batch is empty"):
            simulator.evaluate(np.empty((0, 3)))


def test_that_crashes_nan_and_exceptions_stay_with_their_members(none_left):
    dead = {
        1: (m.KILL, Cause.SIGNAL, "SIGKILL"),
        3: (m.SEGFAULT, Cause.SIGNAL, "SIGSEGV"),
        4: (m.EXIT, Cause.EXIT, "3"),
        6: (m.NAN, Cause.NONFINITE, "all values are NaN or infinite"),
        8: (m.RAISE, Cause.EXCEPTION, "ValueError: too cold"),
        9: (m.ODD, Cause.EXCEPTION, "OddError: odd"),
        11: (m.LEAVE, Cause.EXCEPTION, "exit(4)"),
    }
    x = batch(14, *((j, what) for j, (what, _, _) in dead.items()), (12, m.PRINT))
    with Pool(m.act, processes=2).opened(NO_RETRY, None) as pool:
        result = pool.evaluate(x)
        y = batch(5)
        agrees(pool.evaluate(y), y, {})
    agrees(result, x, {j: cause for j, (_, cause, _) in dead.items()})
    for j, (_, _, text) in dead.items():
        failure = result.failures[j]
        assert failure is not None
        assert text in failure.detail
    assert result.calls == 14


def test_that_the_text_of_an_exception_is_that_of_a_function():
    x = batch(3, (1, m.RAISE))
    here = enkg.Function(m.act, batched=False).evaluate(x)
    there = Pool(m.act, processes=1).evaluate(x)
    assert here.failures == there.failures


def test_that_one_bad_row_does_not_spoil_its_chunk():
    x = batch(8, (2, m.RAISE), (5, m.KILL))
    with Pool(m.act_on_all, processes=2, chunk=4, batched=True).opened(NO_RETRY, None) as pool:
        agrees(pool.evaluate(x), x, {2: Cause.EXCEPTION, 5: Cause.SIGNAL})


def test_that_a_crash_is_tried_again_and_an_exception_is_not():
    x = batch(4, (1, m.KILL), (2, m.RAISE))
    with Pool(m.act, processes=2).opened(FailurePolicy(retries=2), None) as pool:
        result = pool.evaluate(x)
    agrees(result, x, {1: Cause.SIGNAL, 2: Cause.EXCEPTION})
    assert result.calls == 6


@pytest.mark.parametrize("what", [m.HANG, m.BROOD, m.STUBBORN])
def test_that_a_hanging_member_is_ended_with_all_that_it_started(what, none_left):
    x = batch(5, (2, what))
    begin = time.monotonic()
    policy = FailurePolicy(timeout=1.5, retries=0)
    with Pool(m.act, processes=2).opened(policy, None) as pool:
        result = pool.evaluate(x)
        agrees(result, x, {2: Cause.TIMEOUT})
        assert str(result.failures[2]) == "timeout: ran longer than 1.5 s"
        y = batch(4)
        agrees(pool.evaluate(y), y, {})
    assert time.monotonic() - begin < 60


def test_that_the_time_limit_does_not_count_the_start_of_the_process():
    x = batch(3)
    with Pool(m.act, processes=1).opened(FailurePolicy(timeout=0.05, retries=0), None) as pool:
        agrees(pool.evaluate(x), x, {})


def test_that_a_straggler_is_cut(none_left):
    x = batch(6, (0, m.HANG))
    policy = FailurePolicy(straggler=20.0, minimum_success=0.5)
    with Pool(m.act, processes=2).opened(policy, None) as pool:
        pool.evaluate(batch(4))
        agrees(pool.evaluate(x), x, {0: Cause.CUT})


def test_that_a_process_killed_from_outside_in_mid_call_costs_one_repetition():
    x = batch(6, (0, m.SLOW), (1, m.SLOW))
    with Pool(m.act, processes=2).opened(FailurePolicy(), None) as pool:
        pool.evaluate(batch(4))
        victims = [p for p in psutil.Process().children() if "pool_main" in str(_line(p))]
        assert len(victims) == 2
        threading.Timer(0.2, victims[0].kill).start()
        result = pool.evaluate(x)
    np.testing.assert_array_equal(result.y[2:], 2 * x[2:])
    assert result.failures == (None,) * 6
    assert result.calls == 7


def test_that_a_process_killed_between_two_calls_costs_nothing():
    with Pool(m.double, processes=1).opened(NO_RETRY, None) as pool:
        pool.evaluate(batch(2))
        for p in psutil.Process().children():
            if "pool_main" in str(_line(p)):
                p.kill()
                p.wait(10)
        x = batch(2)
        agrees(pool.evaluate(x), x, {})


def test_that_progress_is_told():
    told = []
    Pool(m.double, processes=2).evaluate(batch(5), lambda done, total: told.append((done, total)))
    assert told[-1] == (5, 5)
    assert told == sorted(told)


def test_that_libraries_have_one_thread_unless_more_are_wanted():
    np.testing.assert_array_equal(Pool(m.threads, processes=1)(batch(1)), [[1, 1]])
    np.testing.assert_array_equal(Pool(m.threads, processes=1, threads=3)(batch(1)), [[3, 3]])


def test_that_a_torch_function_gets_its_tensors():
    x = RNG.standard_normal((3, 2))
    y = Pool(torch.square, processes=1, batched=True, chunk=2, to=torch.from_numpy)(x)
    np.testing.assert_allclose(y, x**2)


# --- what cannot work ------------------------------------------------------------------------


def test_that_compiled_functions_are_sent_by_their_names():
    x = batch(3)
    np.testing.assert_array_equal(Pool(m.compiled, processes=1)(x), 3 * x)


def test_that_functions_without_a_name_are_refused_before_any_member_runs():
    def inner(x):
        return x

    unsendable: list[Any] = [lambda x: x, inner, partial(m.double, threading.Lock())]
    for f in unsendable:
        with (
            pytest.raises(enkg.InputError, match=r"cannot be sent to another process.*top level"),
            Pool(f).opened(FailurePolicy(), None),
        ):
            pass


@pytest.mark.parametrize(
    ("f", "batched", "message"),
    [
        (m.wrong_batch, True, "axis 0 counts the members"),
        (m.text, False, "expected real numbers"),
    ],
)
def test_that_answers_of_no_use_end_the_run_as_with_a_function(f, batched, message):
    with pytest.raises(enkg.InputError, match=message):
        Pool(f, processes=2, batched=batched)(batch(4))


def test_that_members_of_different_shapes_are_refused():
    with pytest.raises(enkg.InputError, match=r"different shapes.*\(3,\), \(7,\)"):
        Pool(m.act, processes=2)(batch(4, (3, m.SHAPE)))


def test_that_a_pool_where_all_fail_says_why():
    with pytest.raises(
        enkg.EnsembleFailure, match=r"failed for all .*; first: ValueError: too cold"
    ):
        Pool(m.act, processes=1)(batch(3, *((j, m.RAISE) for j in range(3))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 0}, "processes is 0"),
        ({"chunk": 4}, "batched=True"),
        ({"threads": 0}, "threads is 0"),
        ({"executor": 3}, "the executor is a int"),
        ({"f": 3}, "cannot be called"),
    ],
)
def test_that_fields_are_checked(fields, message):
    with pytest.raises(enkg.InputError, match=message):
        Pool(**{"f": m.double, **fields})


# --- scripts and experiment files ------------------------------------------------------------

FILE = """
import numpy as np
import enkg
from neighbour import FACTOR

class Wave:
    def __init__(self, power): self.power = power
    def __call__(self, x): return FACTOR * x ** self.power

def simulator(x):
    assert enkg.__version__ and enkg.execute.Function
    return FACTOR * x

def experiment() -> enkg.Experiment:
    raise NotImplementedError
"""


def test_that_functions_of_an_experiment_file_are_found(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("FACTOR = 3.0")
    file = tmp_path / "2-waves.py"
    file.write_text(FILE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load(file)
    module = sys.modules["enkg_experiment_2-waves"]
    x = batch(4)
    np.testing.assert_array_equal(Pool(module.simulator, processes=1)(x), 3 * x)
    np.testing.assert_array_equal(Pool(module.Wave(2), processes=1)(x), 3 * x**2)
    with spawned(1) as executor:
        np.testing.assert_array_equal(Pool(module.Wave(2), executor=executor)(x), 3 * x**2)


def script(tmp_path, text):
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(text))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, file], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


GUARDED = """
    import numpy as np
    from enkg.execute.pool import Pool
    from tests.enkg.execute import members
    def f(x): return 3 * x
    {}
        print("result", Pool(f, processes=2)(np.ones((3, 1))).sum())
"""


def test_that_functions_of_the_main_script_are_found(tmp_path):
    process = script(tmp_path, GUARDED.format("if __name__ == '__main__':"))
    out, err = process.communicate(timeout=60)
    assert out.split() == ["result", "9.0"], err


def test_that_a_script_without_a_guard_is_told_so(tmp_path):
    process = script(tmp_path, GUARDED.format("if True:"))
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert process.returncode == 1
    assert err.rstrip().endswith('Put what starts the work below: if __name__ == "__main__":')


HANGING = f"""
    import numpy as np
    from enkg.execute.pool import Pool
    from tests.enkg.execute import members
    if __name__ == "__main__":
        Pool(members.act, processes=2)(np.full((4, 1), {m.BROOD}.0))
"""


def family(process):
    """The processes of a hanging script, once its calls are under way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        below = psutil.Process(process.pid).children(recursive=True)
        if sum("sleep" in _line(p) for p in below) == 2:
            return below
        time.sleep(0.05)
    raise AssertionError("the calls have not begun")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_that_nothing_outlives_a_script_that_is_stopped(tmp_path, number):
    process = script(tmp_path, HANGING)
    below = family(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    gone, alive = psutil.wait_procs(below, timeout=15)
    assert not alive
    assert err.count("Traceback") <= 1  # that of the script itself
    assert len(gone) >= 4
