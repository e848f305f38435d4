"""Waiting for other ranks.

Every wait polls: a blocking call of MPI would burn a core that a simulator needs, and any blocking
call keeps Python from handling signals.
"""

import os
import time
from collections.abc import Callable

EAGER = 1e-3
"""Seconds of polling without rest, where a rank may still be busy elsewhere."""
PRESENT = 600.0
"""The same where all ranks are there and data move: MPI moves large messages only while somebody
looks after them, so that between ranks that rest they take many times as long."""
SHORTEST, LONGEST = 50e-6, 2e-3
"""Rests between two looks, seconds; between them, a twentieth of the time waited so far."""


def polled(done: Callable[[], bool], eager: float = EAGER) -> None:
    """Returns when it is done."""
    begin = time.perf_counter()
    while not done():
        waited = time.perf_counter() - begin
        if waited < eager:
            os.sched_yield()  # to a rank on the same core
        else:
            time.sleep(min(max(waited / 20, SHORTEST), LONGEST))
