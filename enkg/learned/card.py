"""The card of a learned prior: card.toml beside its weights.

name, about, limits, licence           for people; the limits first
[member]    shape, name, unit, long_name, dims
[units]     from the prior's numbers to physical ones
[network], [base]                      what the weights belong to
[training]  samples, recipe, symmetries, steps, noise levels, versions, seconds
[merits]    figures of merit on held-out samples (`enkg.learned.merits`)
[files]     SHA-256 of the weights
"""

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from enkg.errors import InputError, StoreError
from enkg.learned.network import NEEDED as EXTRA

CARD, WEIGHTS = "card.toml", "weights.safetensors"
FORMAT = 1
SECTIONS = ("member", "units", "network", "base", "training", "files")
NEEDED = (("member", "shape"), ("member", "name"), ("files", "weights"))


def write(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes the card, whole or not at all. None is left out, for TOML has no such thing.

    Figures have six digits; the units, on which the prior depends, have all.
    """
    import tomli_w

    told = _plain({"format": FORMAT, **card}, rounded=True)
    told["units"] = _plain(card["units"])
    _atomically(folder / CARD, tomli_w.dumps(told).encode())


def read(folder: Path, sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """The card of a folder. Raises InputError where there is none, StoreError where it is broken.

    Every one of these sections is there, and in them what is needed.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        there = "there is no such folder" if not Path(folder).is_dir() else f"it has no {CARD}"
        raise InputError(
            f"{folder} is no learned prior: {there}; expected a folder that `enkg train` made"
        )
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if found.get("format") != FORMAT:
        raise StoreError(
            f"{path} is of format {found.get('format')}; this version of enkg reads {FORMAT}"
        )
    missing = [name for name in sections if not isinstance(found.get(name), dict)]
    if missing:
        raise StoreError(f"{path} has no [{'], ['.join(missing)}]; it is not a whole card")
    needed = [(name, key) for name, key in NEEDED if name in sections]
    absent = [f"{name}.{key}" for name, key in needed if key not in found[name]]
    if absent:
        raise StoreError(f"{path} has no {', '.join(absent)}; it is not a whole card")
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes weights.safetensors, whole or not at all; returns its SHA-256."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    _atomically(folder / WEIGHTS, data)
    return hashlib.sha256(data).hexdigest()


def load_weights(folder: Path, expected: str) -> dict[str, Tensor]:
    """The weights that the card speaks of; raises StoreError where they are missing or others."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(EXTRA) from error

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise StoreError(f"{folder} has a card but no {WEIGHTS}; get the folder whole")
    found = digest(path)
    if found != expected:
        raise StoreError(
            f"{path} is not the file that the card speaks of: its SHA-256 begins with "
            f"{found[:12]}, the card says {expected[:12]}; get the folder anew, or train again"
        )
    return load_file(path)


def _atomically(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(value: Any, rounded: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v, rounded) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v, rounded) for v in value]
    if isinstance(value, np.generic | Tensor | np.ndarray):
        return _plain(value.tolist(), rounded)
    if isinstance(value, float) and rounded:
        return float(f"{value:.6g}")
    return value
