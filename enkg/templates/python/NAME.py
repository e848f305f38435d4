"""A body cools in a room of 20 degrees: 2 numbers in, 12 temperatures out.

    python NAME.py              stays up and takes members from enkg, one after another
    python NAME.py IN OUT       computes one member: numbers in text files

Put your own computation into simulate(), and the shapes into simulator.toml.
"""

import sys

import numpy as np
from enkg_worker import serve

TIMES = np.arange(0, 60, 5)


def simulate(x):
    """x: (2,) to (12,). An exception fails this member and no other."""
    excess, rate = x
    if not rate > 0:
        raise ValueError("the rate must be positive: a body that warms up by itself")
    return 20 + excess * np.exp(-rate * TIMES)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        np.savetxt(sys.argv[2], simulate(np.loadtxt(sys.argv[1])))
    else:
        serve(simulate)
