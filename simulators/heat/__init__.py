"""Heat conduction in a plate, a C program: 24 thermometers at four times, from the conductivity.

`make -C simulators/heat` builds the program `heat2d` and the library `libheat2d.so`. The program is
described by simulator.toml; `Heat` calls the library from Python. See README.md.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
LIBRARY = "libheat2d.so"
TIMES = np.array([0.02, 0.04, 0.06, 0.1])
X = (np.arange(6) + 0.5) / 6  # of the sensors, which stand on a grid
Y = (np.arange(4) + 0.5) / 4
READINGS = len(TIMES) * len(Y) * len(X)
GOOD = 0


@dataclass(frozen=True)
class Heat:
    """Calls the C library in this process; equal to the program bit for bit.

    Raises FileNotFoundError if the library is not built.
    """

    library: Path = FOLDER / LIBRARY

    def __post_init__(self) -> None:
        if not self.library.is_file():
            raise FileNotFoundError(f"{self.library} is not built: make -C {self.library.parent}")

    def __call__(self, conductivity: np.ndarray) -> np.ndarray:
        """One member: conductivity (n, n), positive, to the 96 readings (time, y, x).

        Raises ValueError where the program ends with 2 or 3. Cost: see heat.h.
        """
        kappa = np.ascontiguousarray(conductivity, dtype=np.float64)
        readings = np.empty(READINGS)
        library = _load(self.library)
        if library.heat2d(kappa.ravel(), kappa.size, readings, READINGS) != GOOD:
            raise ValueError(library.heat_reason().decode())
        return readings


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    numbers = np.ctypeslib.ndpointer(np.float64, ndim=1, flags="C_CONTIGUOUS")
    library.heat2d.argtypes = [numbers, ctypes.c_size_t, numbers, ctypes.c_size_t]
    library.heat2d.restype = ctypes.c_int
    library.heat_reason.argtypes = []
    library.heat_reason.restype = ctypes.c_char_p
    return library
