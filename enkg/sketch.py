"""Arrays by a few numbers, to tell whether two are the same, or the same but for rounding."""

import hashlib
from math import isclose, isnan
from typing import Any

import numpy as np

BLOCKS = 64
"""Sums of an array, each over a stretch of it; a small array has one for each number."""
ROUNDING = {4: (1e-4, 1e-6), 8: (1e-9, 1e-12)}
"""By bytes of a number, what counts as rounding: relative to a sum, and to the whole array."""


def sketched(array: np.ndarray) -> dict[str, Any]:
    """Shape, type and checksum of an array; of a small one the values as well.

    Of real numbers with a fraction also weighted sums over stretches, which stay about the same
    when the array is computed anew with other rounding.
    """
    array = np.ascontiguousarray(array)
    out: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    out["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    if array.dtype.kind == "f":
        values = np.asarray(array, np.float64).ravel()
        finite = np.isfinite(values)
        out["finite"] = hashlib.sha256(finite.tobytes()).hexdigest()
        values = np.where(finite, values, 0.0)
        weighted = values * (1.5 + np.cos(np.arange(len(values))))  # so that an exchange is seen
        out["size"] = float(np.linalg.norm(values))
        out["sums"] = [float(part.sum()) for part in np.array_split(weighted, BLOCKS) if len(part)]
    return out | ({"values": array.tolist()} if array.size <= 16 else {})


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the fields in which two descriptions differ by more than rounding.

    Descriptions are nested mappings of what JSON can hold, with arrays as `sketched` has them.

    >>> differences({"a": 1.5, "b": [1, 2]}, {"a": 1.5, "b": [1, 3]})
    ['b']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        if "sums" in one and "sums" in other:
            return [] if _alike(one, other) else [name]
        keys = [*one, *(key for key in other if key not in one)]
        absent = object()
        return [
            found
            for key in keys
            for found in differences(
                one.get(key, absent), other.get(key, absent), f"{name}.{key}".lstrip(".")
            )
        ]
    if isinstance(one, float) and isinstance(other, float):
        same = isclose(one, other, rel_tol=ROUNDING[8][0]) or (isnan(one) and isnan(other))
        return [] if same else [name]
    return [] if one == other else [name]


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sketches may be of the same array, computed twice."""
    if any(one[key] != other[key] for key in ("shape", "dtype", "finite")):
        return False
    relative, absolute = ROUNDING[4 if np.dtype(one["dtype"]).itemsize <= 4 else 8]
    floor = absolute * max(one["size"], other["size"])
    return len(one["sums"]) == len(other["sums"]) and all(
        isclose(a, b, rel_tol=relative, abs_tol=floor)
        for a, b in zip(one["sums"], other["sums"], strict=True)
    )
