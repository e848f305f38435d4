"""Sample images of a recipe in log-image coordinates, drawn once and kept on disk.

The file name is made from every argument that changes the result and from the versions of the
recipe and of the coordinates, so an old file is never taken for a new one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from numpy.typing import NDArray

from priors import control_images, log_images, ring_images
from priors.image_canvas import Progress
from priors.log_images import LogImageBasis, principal_components

WITHOUT_EFFECT = ("workers", "progress")  # arguments of a recipe that leave its images alone


@dataclass(frozen=True)
class Recipe:
    """A way to draw images: `draw(count, seed, ..., progress)`, and the version of its output."""

    draw: Callable[..., NDArray[np.float32]]
    version: int


RECIPES = {
    "rings": Recipe(ring_images.ring_images, ring_images.VERSION),
    "controls": Recipe(control_images.control_images, control_images.VERSION),
}


def cached_basis(
    recipe: str,
    count: int = 4000,
    seed: int = 0,
    *,
    components: int = 150,
    epsilon: float = 0.01,
    progress: Progress | None = None,
    **arguments: float,
) -> LogImageBasis:
    """Log-image coordinates of a recipe's images, drawn once and then read from disk.

    recipe: a name in RECIPES, "rings" or "controls".
    count, seed: N images, drawn with this seed.
    components, epsilon: as in `principal_components`.
    progress: called with (images done, count) while images are drawn.
    arguments: the recipe's own, such as pixels=64, mass_scatter=0.15.

    The file lies in the folder named by ENKG_CACHE, or else in the user's cache folder, under a
    name made from all arguments. A file that cannot be read is made again, with a warning.
    Cost of the defaults: about 10 s of one core the first time, 10 ms after; a file of 5 MB.
    """
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
    draw = RECIPES[recipe].draw
    signature = inspect.signature(draw)
    unknown = sorted(set(arguments) - set(signature.parameters))
    if unknown:
        raise ValueError(
            f"the recipe {recipe!r} takes no {', '.join(unknown)}; its arguments are "
            f"{', '.join(signature.parameters)}."
        )
    bound = signature.bind(count, seed, **arguments)
    bound.apply_defaults()
    chosen = {name: value for name, value in bound.arguments.items() if name not in WITHOUT_EFFECT}
    key = json.dumps(
        {
            "recipe": recipe,
            "versions": [log_images.VERSION, RECIPES[recipe].version],
            "components": components,
            "epsilon": epsilon,
            "arguments": {name: _plain(value) for name, value in chosen.items()},
        },
        sort_keys=True,
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = cache_folder() / f"{recipe}-{digest}.npz"
    if path.exists():
        try:
            return _load(path, key)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} cannot be read ({error}); it is made again.", stacklevel=2)
    bound.arguments["progress"] = progress
    images = draw(*bound.args, **bound.kwargs)
    basis = principal_components(images, components, epsilon)
    try:
        _store(path, key, basis)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error}), so the images will be drawn again next time; "
            "name a writable folder in ENKG_CACHE.",
            stacklevel=2,
        )
    return basis


def _plain(number: float) -> float:
    """One spelling for equal numbers: 64, 64.0 and NumPy's 64 name the same file."""
    return int(number) if number == int(number) else float(number)


def cache_folder() -> Path:
    """Where bases are kept: ENKG_CACHE if set, else the user's cache folder for enkg."""
    return Path(os.environ.get("ENKG_CACHE") or pooch.os_cache("enkg")) / "image_samples"


def _store(path: Path, key: str, basis: LogImageBasis) -> None:
    """Write beside the final name and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, key=np.array(key), **asdict(basis))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _load(path: Path, key: str) -> LogImageBasis:
    with np.load(path, allow_pickle=False) as file:
        stored: dict[str, Any] = {name: file[name] for name in file.files}
    if str(stored.pop("key")) != key:
        raise ValueError("it was made from other arguments")
    for name in ("scale", "explained", "epsilon"):
        stored[name] = float(stored[name])
    stored["shape"] = tuple(int(n) for n in stored["shape"])
    try:
        return LogImageBasis(**stored)
    except TypeError as error:
        raise ValueError(f"it holds other fields: {error}") from error
