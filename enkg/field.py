"""Names, dimensions and units of the unknown and of the data, for people and for files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enkg.errors import InputError


@dataclass(frozen=True, eq=False)
class Field:
    """What a tensor of shape X or Y is called.

    name: name of the variable in files. unit: of the simulator's numbers, "1" for none. dims: names
    of the axes; None counts them (x_dim_0, ...). coords: values along an axis, by its name; or,
    under any other name, a pair (axis, values). colour_map: for figures, any of matplotlib's.
    """

    name: str
    unit: str = "1"
    long_name: str = ""
    dims: tuple[str, ...] | None = None
    coords: Mapping[str, Any] = field(default_factory=dict)
    colour_map: str = "viridis"

    def axes(self, shape: Sequence[int]) -> tuple[str, ...]:
        """The names of the axes of an array of that shape."""
        if self.dims is None:
            return tuple(f"{self.name}_dim_{k}" for k in range(len(shape)))
        if len(self.dims) != len(shape):
            raise InputError(
                f"{self.name} has shape {tuple(shape)} but the names of {len(self.dims)} axes: "
                f"{self.dims}"
            )
        lengths = dict(zip(self.dims, shape, strict=True))
        for name, given in self.coords.items():
            axis, values = (name, given) if name in lengths else given
            if len(np.asarray(values)) != lengths.get(axis):
                raise InputError(
                    f"coordinate {name} of {self.name} has {len(np.asarray(values))} values along "
                    f"{axis}; the axes are {lengths}"
                )
        return self.dims

    def attributes(self) -> dict[str, str]:
        """CF-like attributes."""
        return {"units": self.unit, "long_name": self.long_name or self.name}


RESERVED = ("member", "std", "covariance", "mask")


def check_names(unknown: Field, x: Sequence[int], data: Field, y: Sequence[int]) -> None:
    """Refuses names with which the results could not be written: unknown of shape x, data of y."""
    if unknown.name == data.name:
        raise InputError(f"the unknown and the data are both called {data.name!r}; rename one")
    lengths: dict[str, int] = {}
    for label, shape in ((unknown, x), (data, y)):
        axes = label.axes(shape)
        for word in (*axes, label.name):
            if word in RESERVED:
                raise InputError(f"{word!r} is a name that enkg itself gives; rename it")
        if len(set(axes)) < len(axes):
            raise InputError(f"two axes of {label.name} have one name: {axes}")
        for axis, length in zip(axes, shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise InputError(
                    f"axis {axis} has {lengths[axis]} elements in {unknown.name} and {length} in "
                    f"{data.name}; give them different names"
                )
        for name in (unknown.name, data.name):
            if name in axes:
                raise InputError(
                    f"{name} is the name of a field and of an axis of {label.name}; rename one"
                )
