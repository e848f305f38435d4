"""Random moments of a run, and kill -9 at one of them."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.enkg.killing import Life

STARTING = ("", ".lock", "experiment.json", "log.txt", "answers")
ENDING = ("posterior.zarr.partial", "posterior.zarr", "summary.json", "figures", "figures/data.png")


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    at: 0 to 1, over the length of the run: starting up to .2, then simulating and writing
    checkpoints, writing the results from .85 on. delay: seconds after what is waited for.
    checkpoint: in the midst of the next checkpoint.
    """

    at: float
    delay: float
    checkpoint: bool

    def come(self, life: Life, evaluations: int) -> bool:
        """Waits for it; False where the life ended before. evaluations: of the whole run."""
        out = life.project / "out"
        done = life.first // 2
        left = evaluations - done
        if self.at < 0.2:
            name = STARTING[int(self.at / 0.2 * len(STARTING))] if not done else ""
            came = life.until((out / name).exists if name else lambda: True)
            delay = self.delay * (1.0 if not name else 0.05)
        elif self.at < 0.85 and left > 4:
            came = life.until_noted(1 + int(2 * (left - 4) * (self.at - 0.2) / 0.65))
            if self.checkpoint:
                came = came and life.until(lambda: _is_saving(out))
            delay = self.delay * 0.02
        else:
            share = min(0.999, max(0.0, (self.at - 0.85) / 0.15))
            name = ENDING[int(share * len(ENDING))]
            came = life.until((out / name).exists)
            delay = self.delay * 0.02
        time.sleep(delay)
        return came and life.alive


def _is_saving(out: Path) -> bool:
    saving = any((out / "checkpoint").glob("*.partial"))
    return saving or (out / "posterior.zarr.partial").exists()


def moments(count: int, seed: int) -> list[Moment]:
    """Random moments, one in each of as many equal parts of the run, in any order."""
    draw = random.Random(seed)
    found = [
        Moment((k + draw.random()) / count, draw.random(), draw.random() < 0.4)
        for k in range(count)
    ]
    draw.shuffle(found)
    return found


def kill(life: Life, target: Callable[[], int | None], moment: Moment, evaluations: int) -> bool:
    """kill -9 of a process of this life at a moment; whether it came in time."""
    found: list[int] = []

    def there() -> bool:
        pid = target()
        found.extend([] if pid is None else [pid])
        return bool(found)

    if not (moment.come(life, evaluations) and life.until(there)):
        return False
    try:
        os.kill(found[0], signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
