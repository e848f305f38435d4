"""Signals and time limits that end a run in order."""

import os
import signal
import subprocess
import sys
import time

import pytest

from enkg.errors import InputError
from enkg.stop import AGAIN, AT_ONCE, Stopped, limit, seconds, signals

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}


@pytest.mark.parametrize("name", SIGNALS)
def test_that_a_signal_stops_and_says_its_name(name):
    with pytest.raises(Stopped, match=name) as caught, signals():
        kill_and_wait(SIGNALS[name])
    assert caught.value.code == AGAIN == 75


def test_that_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in SIGNALS.values()}
    with signals():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in SIGNALS.values()} == before


def test_that_a_time_limit_stops():
    with pytest.raises(Stopped, match="time limit"), signals():
        limit_and_wait("00:01")


def kill_and_wait(number):
    os.kill(os.getpid(), number)
    time.sleep(5)


def limit_and_wait(text):
    limit(text)
    time.sleep(10)


def test_that_a_time_limit_ends_with_its_block():
    with signals():
        limit("1:00:00")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_that_the_second_signal_ends_at_once():
    code = """
import os, signal, time
from enkg.stop import signals
with signals():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == AT_ONCE == 143


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "0", "0:00:00", "-5", "1.5", "1:-2"])
def test_that_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match="length of time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 300),
        ("1:30", 90),
        ("4:00:00", 14400),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-0:0:30", 86430),
    ],
)
def test_that_times_are_read_as_slurm_reads_them(text, expected):
    assert seconds(text) == expected
