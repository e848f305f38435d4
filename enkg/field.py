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
