"""Black-hole imaging: a simulator from images to the closure quantities of a radio interferometer.

    from simulators.black_hole import BlackHole, coverage, minimal_closures

    track = coverage(("AA", "LM", "AZ", "PV", "SM"), hours=[3.0, 4.0, 5.0])
    sets = minimal_closures(track.time, track.station1, track.station2)
    simulator = BlackHole(track.u, track.v, *sets, pixels=64, field_of_view=128)
    y = simulator(images)  # (B, 64, 64) -> (B, m)

Needs numpy only. It also runs as a program: `python -m simulators.black_hole --help`.
"""

from .array import STATIONS, Coverage, coverage, greenwich_hour_angle
from .closures import closure_phases, closure_phasors, log_closure_amplitudes, minimal_closures
from .operator import MICROARCSECOND, PRODUCTS, BlackHole, pixel_centres

__all__ = [
    "MICROARCSECOND",
    "PRODUCTS",
    "STATIONS",
    "BlackHole",
    "Coverage",
    "closure_phases",
    "closure_phasors",
    "coverage",
    "greenwich_hour_angle",
    "log_closure_amplitudes",
    "minimal_closures",
    "pixel_centres",
]
