"""Whether all ranks of a run were given the same experiment.

Each rank builds the experiment for itself. One that draws its truth without a seed, or reads a file
that another node has another version of, would have every rank simulate another problem. Arrays may
differ in their last digits, as they do between kinds of CPUs: what matters of them is rank 0's.
"""

from math import isclose, isnan
from typing import Any

import numpy as np

from enkg import store
from enkg.comm import Comm, once
from enkg.errors import InputError
from enkg.experiment import Experiment

TOLERANCE = 1e-6
"""Relative difference of arrays that still counts as rounding."""


def check(experiment: Experiment, comm: Comm) -> None:
    """Raises InputError on all ranks if one has another experiment than rank 0. Collective."""
    if comm.size == 1:
        return
    mine = store.describe(experiment, _sketched) | {"versions": store.versions()}
    everyones = comm.gather(mine)

    def compare() -> None:
        for rank, other in enumerate(everyones):
            found = differences(everyones[0], other)
            if found:
                raise InputError(
                    f"rank {rank} has another experiment than rank 0: {', '.join(found[:5])} "
                    "differ. Every rank builds the experiment for itself: give random numbers a "
                    "seed, and all nodes the same files and packages"
                )

    once(comm, compare)


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the fields in which two descriptions differ by more than rounding.

    >>> differences({"a": 1.0, "b": [1, 2]}, {"a": 1.0 + 1e-12, "b": [1, 3]})
    ['b']
    """
    if isinstance(one, dict) and isinstance(other, dict):
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
        same = isclose(one, other, rel_tol=TOLERANCE) or (isnan(one) and isnan(other))
    else:
        same = one == other
    return [] if same else [name]


def _sketched(array: np.ndarray) -> dict[str, Any]:
    """An array by its shape and a few numbers of its contents."""
    out: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    values = np.asarray(array, np.float64).ravel()
    values = values[np.isfinite(values)]
    weights = np.cos(np.arange(len(values)))  # so that an exchange of elements is seen
    size = float(np.linalg.norm(values))
    # Shifted by the size: a sum that cancels has no relative accuracy of its own.
    return out | {
        "size": size,
        "sum": 2 * size + float(values @ weights) / max(len(values), 1) ** 0.5,
    }
