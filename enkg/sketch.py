"""Arrays by a few numbers, to tell whether two are the same, or the same but for rounding."""

import hashlib
from math import isclose, isnan
from typing import Any

import numpy as np

TOLERANCE = 1e-6
"""Relative difference of arrays that still counts as rounding."""
BITS = ("sha256", "values")
"""What of a sketch changes with the last digit."""


def sketched(array: np.ndarray) -> dict[str, Any]:
    """Shape, checksum, size (Euclidean) and a weighted sum; of a small array the values as well."""
    array = np.ascontiguousarray(array)
    out: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    out["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    if array.dtype.kind in "fiub":
        values = np.asarray(array, np.float64).ravel()
        values = values[np.isfinite(values)]
        weights = np.cos(np.arange(len(values)))  # so that an exchange of elements is seen
        size = float(np.linalg.norm(values))
        out["size"] = size
        # Shifted by the size: a sum that cancels has no relative accuracy of its own.
        out["sum"] = 2 * size + float(values @ weights) / max(len(values), 1) ** 0.5
    return out | ({"values": array.tolist()} if array.size <= 16 else {})


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the fields in which two descriptions differ by more than rounding.

    Descriptions are nested mappings of what JSON can hold, with arrays as `sketched` has them.

    >>> differences({"a": 1.0, "b": [1, 2]}, {"a": 1.0 + 1e-12, "b": [1, 3]})
    ['b']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        absent = object()
        return [
            found
            for key in keys
            if key not in BITS
            for found in differences(
                one.get(key, absent), other.get(key, absent), f"{name}.{key}".lstrip(".")
            )
        ]
    if isinstance(one, float) and isinstance(other, float):
        same = isclose(one, other, rel_tol=TOLERANCE) or (isnan(one) and isnan(other))
    else:
        same = one == other
    return [] if same else [name]
