"""Shallow water in a basin, a Fortran program with MPI: tide gauges, from a displaced sea surface.

`make -C simulators/shallow_water` builds the programs `swe2d` and `swe2d_serial`. simulator.toml
describes them; see README.md.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SIDE = 400e3
"""Side of the basin in metres."""


def gauges() -> np.ndarray:
    """Places of the gauges, x eastwards and y northwards in metres, shape (12, 2)."""
    return np.loadtxt(FOLDER / "gauges.txt")
