"""Members in executors of the user's: those of Python, loky, dask and mpi4py."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import enkg
from enkg.execute import pool_executor
from enkg.execute.pool import Pool
from enkg.failure import Cause, Failure, FailurePolicy
from tests.enkg.execute import members as m
from tests.enkg.execute.helpers import NO_RETRY, ROOT, agrees, batch, spawned


def loky_pool(count=2):
    loky = pytest.importorskip("loky")
    return loky.ProcessPoolExecutor(count, initializer=m.light)


@contextmanager
def dask_executor(count=2):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


SLOW = {"marks": pytest.mark.slow}
LOKY = pytest.param(loky_pool, id="loky")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(spawned, id="processes"),
        pytest.param(lambda: ThreadPoolExecutor(2), id="threads"),
        pytest.param(dask_executor, id="dask", **SLOW),
        LOKY,
    ],
)
def test_that_any_executor_runs_the_members(make):
    x = batch(7, (2, m.RAISE), (3, m.NAN), (5, m.ODD))
    with make() as executor:
        with Pool(m.act, executor=executor).opened(FailurePolicy(), None) as pool:
            for _ in range(2):
                result = pool.evaluate(x)
                agrees(result, x, {2: Cause.EXCEPTION, 3: Cause.NONFINITE, 5: Cause.EXCEPTION})
                assert result.failures[2] == Failure(Cause.EXCEPTION, "ValueError: too cold")
                assert result.calls == 7
        assert executor.submit(m.double, 2).result() == 4  # it is the user's, and still open


@pytest.mark.parametrize("make", [spawned, LOKY])
def test_that_a_crash_in_an_executor_that_can_be_made_anew_costs_one_member(make):
    x = batch(8, (3, m.KILL), (6, m.RAISE))
    with Pool(m.act, executor=make).opened(FailurePolicy(), None) as pool:
        result = pool.evaluate(x)
        agrees(result, x, {3: Cause.LOST, 6: Cause.EXCEPTION})
        assert 9 < result.calls <= 12
        y = batch(4)
        agrees(pool.evaluate(y), y, {})


class Deaf(Executor):
    """Like Python's own when a process of it dies as it starts: it waits for the dead."""

    def __init__(self):
        process = get_context("spawn").Process(target=os._exit, args=(9,))
        process.start()
        process.join()
        self._max_workers, self._processes = 2, {process.pid: process}
        self.first = True

    def submit(self, f, /, *given, **_):
        future: Future = Future()
        if self.first:  # the trial
            future.set_result(f(*given))
        self.first = False
        return future


def test_that_an_executor_that_waits_for_the_dead_counts_as_broken(monkeypatch):
    monkeypatch.setattr(pool_executor, "WATCH", 0.1)
    made = iter([Deaf(), ThreadPoolExecutor(2)])
    x = batch(4)
    with Pool(m.double, executor=lambda: next(made)).opened(NO_RETRY, None) as pool:
        agrees(pool.evaluate(x), x, {})


def test_that_a_users_executor_that_broke_says_how_to_go_on():
    x = batch(8, (7, m.KILL))
    policy = FailurePolicy(minimum_success=0.1)
    with spawned() as executor, Pool(m.act, executor=executor).opened(policy, None) as pool:
        result = pool.evaluate(x)
        assert result.failures[7] is not None
        assert result.failures[7].cause is Cause.LOST
        assert "Pass a function that makes an executor" in result.failures[7].detail
        with pytest.raises(enkg.EnsembleFailure):
            pool.evaluate(x[:2])


@pytest.mark.parametrize("make", [spawned, LOKY])
def test_that_a_hang_in_an_executor_that_can_be_made_anew_is_ended(make):
    x = batch(6, (1, m.HANG))
    policy = FailurePolicy(timeout=3.0, retries=0)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with Pool(m.act, executor=make).opened(policy, None) as pool:
        agrees(pool.evaluate(x), x, {1: Cause.TIMEOUT})
        y = batch(4)
        agrees(pool.evaluate(y), y, {})
    new = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    _, alive = psutil.wait_procs(new, timeout=15)
    assert [p for p in alive if p.is_running() and "tracker" not in str(p.cmdline())] == []


def test_that_a_call_given_up_keeps_its_place_in_a_users_executor():
    release, running, most = threading.Event(), set(), [0]

    def f(x):
        running.add(x[0])
        most[0] = max(most[0], len(running))
        if x[0] == 0:
            release.wait(30)
        time.sleep(0.05)
        running.discard(x[0])
        return 2 * x

    x = np.arange(8.0)[:, None]
    policy = FailurePolicy(timeout=1.0, retries=0)
    with (
        ThreadPoolExecutor(2) as executor,
        Pool(f, executor=executor).opened(policy, None) as pool,
    ):
        agrees(pool.evaluate(x), x, {0: Cause.TIMEOUT})
        assert most[0] == 2
        release.set()
        agrees(pool.evaluate(x), x, {})


def test_that_an_executor_full_of_hanging_calls_is_given_up():
    release = threading.Event()

    def f(x):
        if x[0] < 2:
            release.wait(30)
        return 2 * x

    x = np.arange(5.0)[:, None]
    policy = FailurePolicy(timeout=0.5, retries=0, minimum_success=0.1)
    with ThreadPoolExecutor(2) as executor:
        with (
            Pool(f, executor=executor).opened(policy, None) as pool,
            pytest.raises(enkg.EnsembleFailure, match="timeout: ran longer"),
        ):
            pool.evaluate(x)
        release.set()


def test_that_a_straggler_in_an_executor_is_cut():
    release = threading.Event()

    def f(x):
        if x[0] == 0:
            release.wait(30)
        return 2 * x

    x = np.arange(6.0)[:, None]
    with ThreadPoolExecutor(2) as executor:
        policy = FailurePolicy(straggler=20.0)
        with Pool(f, executor=executor).opened(policy, None) as pool:
            agrees(pool.evaluate(x), x, {0: Cause.CUT})
        release.set()


def test_that_loky_runs_functions_without_a_name():
    x = batch(3)
    factor = 5.0
    with loky_pool() as executor:
        y = Pool(lambda member: factor * member, executor=executor)(x)
    np.testing.assert_array_equal(y, 5 * x)


def test_that_an_executor_that_cannot_run_the_function_is_refused():
    unsendable: Any = partial(m.double, threading.Lock())
    with (
        spawned(1) as executor,
        pytest.raises(enkg.InputError, match=r"cannot run .*pickle"),
        Pool(unsendable, executor=executor).opened(NO_RETRY, None),
    ):
        pass


class Elsewhere(Executor):
    """An executor on another machine: what a task leaves on the disk is not seen here."""

    def __init__(self, inner):
        self.inner = inner

    def submit(self, f, /, *given, **_):
        return self.inner.submit(f, *given[:-1], "/nowhere/mark")


def test_that_a_time_limit_asks_how_many_calls_an_executor_elsewhere_runs_at_once():
    x = batch(4)
    policy = FailurePolicy(timeout=5.0)
    with ThreadPoolExecutor(2) as inner:
        executor = Elsewhere(inner)
        with (
            pytest.raises(enkg.InputError, match="processes="),
            Pool(m.double, executor=executor).opened(policy, None),
        ):
            pass
        agrees(Pool(m.double, executor=executor).evaluate(x), x, {})


def test_that_elsewhere_the_time_counts_since_the_executor_says_that_it_runs():
    release = threading.Event()

    def f(x):
        time.sleep(0.2)
        if x[0] == 3:
            release.wait(30)
        return 2 * x

    x = np.arange(8.0)[:, None]
    policy = FailurePolicy(timeout=0.6, retries=0)
    with ThreadPoolExecutor(2) as inner:
        pool = Pool(f, executor=Elsewhere(inner), processes=2)
        with pool.opened(policy, None) as evaluator:
            agrees(evaluator.evaluate(x), x, {3: Cause.TIMEOUT})
        release.set()


@pytest.mark.slow
def test_that_a_hang_on_dask_costs_its_member_alone():
    x = batch(6, (1, m.HANG))
    with dask_executor() as executor:
        pool = Pool(m.act, executor=executor, processes=2)
        with pool.opened(FailurePolicy(timeout=2.0, retries=0), None) as evaluator:
            agrees(evaluator.evaluate(x), x, {1: Cause.TIMEOUT})


MPI = f"""
    import numpy as np
    from mpi4py.futures import MPIPoolExecutor
    from enkg.execute.pool import Pool
    from tests.enkg.execute import members
    if __name__ == "__main__":
        x = np.arange(6.0).reshape(6, 1)
        x[2] = {m.RAISE}
        with MPIPoolExecutor() as executor:
            result = Pool(members.act, executor=executor).evaluate(x)
        print(result.y.ravel().tolist(), result.failures[2])
"""


@pytest.mark.slow
def test_that_mpi_runs_the_members(tmp_path):
    pytest.importorskip("mpi4py")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("there is no mpiexec beside this Python")
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(MPI))
    done = subprocess.run(
        [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", file],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[0.0, 2.0, nan, 6.0, 8.0, 10.0] ValueError: too cold"
