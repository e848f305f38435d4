"""Samples that a generator or a simulator makes, once, kept in a folder.

    def draw(seed, indices):                # a flow that has forgotten how it began
        return burned_in(start.draw(seed, indices, 0))

    kept = Generated(draw, 4000, seed=1).materialised("samples/flow")

The folder:

    recipe.json             seed, block, count, and what was drawn from
    00000256-00000512.npy   the good samples of a block, (n, *X), float32

A block appears under its name only when it is whole, so it can be cut at any moment and goes on;
a greater count goes on as well.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy import ndarray
from torch import Tensor

from enkg.errors import InputError, StoreError
from enkg.learned.files import files
from enkg.learned.recipe import described, name_of
from enkg.learned.sources import Samples, check_array, single
from enkg.sketch import differences

log = logging.getLogger("enkg")

RECORD, PARTIAL = "recipe.json", ".partial"
EARLY = 32
"""Samples before which too many failures are not yet believed."""


@dataclass(frozen=True)
class Generated:
    """`count` samples of `draw(seed, indices) -> (n, *X)`, in blocks of `block`.

    draw: sample number i depends on (seed, i) alone; a sample that failed holds NaN. recipe: a name
    for what draw does, to be changed with it; where none is given it is what `described` in
    `enkg.learned.recipe` says of draw.
    """

    draw: Callable[[int, list[int]], Tensor | ndarray]
    count: int
    seed: int = 0
    block: int = 256
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.count < 2 or self.block < 1 or self.seed < 0:
            raise InputError(
                f"{self.count} samples in blocks of {self.block} with seed {self.seed}; expected "
                "at least 2, at least 1, and a seed that is not negative"
            )

    def materialised(
        self, folder: str | Path, progress: Callable[[int, int], None] | None = None
    ) -> Samples:
        """The samples, drawn where the folder lacks them.

        progress: called with how many are there, and of how many. Failed ones are left out, with a
        warning in the log. Raises InputError for a folder with samples of another recipe, for
        answers of the wrong shape, and once more than half have failed; StoreError where the folder
        cannot be written. What draw raises goes through; the blocks so far stay.
        Cost: `count` samples the first time, then none.
        """
        folder = Path(folder)
        self._claim(folder)
        paths, done, failed = [], 0, 0
        shape: tuple[int, ...] | None = None
        for start in range(0, self.count, self.block):
            indices = list(range(start, min(start + self.block, self.count)))
            path = folder / f"{start:08d}-{start + len(indices):08d}.npy"
            kept = _kept(path)
            if kept is None:
                try:
                    good = self._drawn(indices, shape)
                except Exception as error:
                    error.add_note(f"{done} of {self.count} samples are kept in {folder}")
                    raise
                _written(path, partial(np.save, arr=good))
                kept = good.shape
            paths.append(path)
            shape, done, failed = kept[1:], done + len(indices), failed + len(indices) - kept[0]
            if progress is not None:
                progress(done, self.count)
            if 2 * failed > done and (done >= EARLY or done == self.count):
                raise InputError(
                    f"{failed} of the first {done} samples of {name_of(self.draw)} failed (they "
                    f"hold NaN or infinity); mend it, and delete {folder} before the next try"
                )
        if failed:
            log.warning("%d of %d generated samples failed and are left out", failed, self.count)
        return files(str(folder), paths)

    def _claim(self, folder: Path) -> None:
        """Writes down what the folder holds, or compares."""
        recipe = {"name": self.recipe} if self.recipe else {"draw": described(self.draw)}
        record = {"seed": self.seed, "block": self.block, "count": self.count, "recipe": recipe}
        record = json.loads(json.dumps(record))
        file = folder / RECORD
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = json.loads(file.read_text()) if file.exists() else record
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}); delete {folder}") from error
        except OSError as error:
            raise StoreError(f"cannot keep samples in {folder}: {error}; give another") from error
        changed = differences(before | {"count": self.count}, record)
        if changed:
            raise InputError(
                f"{folder} holds samples of another recipe: {', '.join(changed)} changed since. "
                "Give another folder, or delete this one to draw them anew; if the samples would "
                f"be the same all the same, delete {RECORD} alone"
            )
        _written(file, lambda out: out.write((json.dumps(record, indent=2) + "\n").encode()))

    def _drawn(self, indices: list[int], shape: tuple[int, ...] | None) -> ndarray:
        """The good ones of these samples, (n, *X), float32."""
        answer = self.draw(self.seed, indices)
        found = answer.detach().float().cpu().numpy() if isinstance(answer, Tensor) else answer
        found = np.asarray(found)
        expected = (len(indices), *(shape or found.shape[1:]))
        name = name_of(self.draw)
        if found.shape != expected:
            raise InputError(
                f"{name} gave shape {found.shape} for {len(indices)} indices; expected "
                f"{expected if shape else (len(indices), '*X')}, a sample for each"
            )
        check_array(f"the samples of {name}", (2, *found.shape[1:]), found.dtype)
        found = single(found)
        return found[np.isfinite(found.reshape(len(found), -1)).all(axis=1)]


def _kept(path: Path) -> tuple[int, ...] | None:
    """The shape of a block; None where there is none, or a damaged one."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).shape
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError) as error:
        log.warning("%s is damaged and drawn anew: %s", path, error)
        return None


def _written(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under another name, and renames it once it is on the disk."""
    half = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with half.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error}; what was drawn before stays, and the next try goes on"
        ) from error
    finally:
        half.unlink(missing_ok=True)
