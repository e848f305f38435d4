"""Signals that end a run in order: everything paid for is kept, and the run can go on later.

SIGTERM and SIGUSR1 come from batch systems before their time limit, SIGALRM from our own. They
interrupt the main thread wherever it is, as Ctrl-C does; adapters then end their programs.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from enkg.errors import InputError

AGAIN = 75
"""Exit code of a run that was stopped and can go on: EX_TEMPFAIL of sysexits.h."""
AT_ONCE = 143


class Stopped(KeyboardInterrupt):
    """The run was asked to end. code: what the process should exit with."""

    code = AGAIN


@contextmanager
def signals() -> Iterator[None]:
    """Turns the signals into `Stopped`, for as long as the block runs; the second one of any kind,
    Ctrl-C among them, ends the process at once."""
    names = {
        signal.SIGTERM: "stopped by SIGTERM",
        signal.SIGUSR1: "stopped by SIGUSR1",
        signal.SIGALRM: "stopped by the time limit",
    }
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            os._exit(AT_ONCE)
        asked = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(names[signal.Signals(number)])

    numbers = [*names]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def left_to_the_first_rank() -> Iterator[None]:
    """Signals do nothing to this process, which ends when the one that guides it ends. Programs
    that it starts are not made deaf by this."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def limit(text: str) -> None:
    """Sets a time limit of our own, as SLURM writes them: MM, MM:SS, H:MM:SS or D-HH:MM:SS."""
    signal.setitimer(signal.ITIMER_REAL, seconds(text))


def seconds(text: str) -> float:
    """
    >>> seconds("90"), seconds("1:30"), seconds("1:00:05"), seconds("2-00:00:00")
    (5400.0, 90.0, 3605.0, 172800.0)
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    numbers = [*([days] if dash else []), *parts]
    if not all(n.isdecimal() for n in numbers) or len(parts) > 3 or not any(map(int, numbers)):
        raise InputError(
            f"{text!r} is no length of time; expected minutes, MM:SS, H:MM:SS or D-HH:MM:SS"
        )
    if len(parts) == 1 and not days:
        return 60.0 * int(parts[0])
    unit = 3600 if days or len(parts) == 3 else 60
    return 86400.0 * int(days or 0) + sum(int(p) * unit / 60**k for k, p in enumerate(parts))
