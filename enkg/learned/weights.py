"""Weights of networks from files: safetensors, and pickles only where they are asked for.

Loading a pickle (.bin, .pt, .pth, .ckpt) can run whatever code its author put in. With
`allow_pickle=True` torch's restricted unpickler (`weights_only`) reads it.
"""

from pathlib import Path

import torch
from torch import Tensor

from enkg.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def load_weights(path: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU: what `load_state_dict` of a network takes.

    Raises InputError where the file is missing, damaged, no file of weights, or a pickle without
    allow_pickle.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file of weights {path}")
    if path.suffix.lower() in PICKLES:
        return _unpickled(path, allow_pickle)
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"weights are read from .safetensors files; {path.name} is none. Save them with "
            "safetensors.torch.save_file(network.state_dict(), path)"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged, or no safetensors file: {error}") from error


def _unpickled(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise InputError(refused(path))
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"torch cannot read the weights in {path}: {first_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        keys = (
            f" with {', '.join(map(str, list(weights)[:8]))}" if isinstance(weights, dict) else ""
        )
        raise InputError(
            f"{path} holds a {type(weights).__name__}{keys}; expected tensors by name, as "
            "network.state_dict() has them"
        )
    return weights


def refused(path: Path) -> str:
    return (
        f"{path} is a pickle, and loading one can run code. Convert it with "
        "safetensors.torch.save_file, or say allow_pickle=True if you trust who made it"
    )


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
