"""An analytic crescent for the tests of M87."""

import numpy as np

from simulators.black_hole import pixel_centres

FIELD = 128.0
"""Field of view in microarcseconds."""


def crescent(
    pixels: int = 64,
    field: float = FIELD,
    diameter: float = 42.0,
    width: float = 12.0,
    asymmetry: float = 0.3,
    position_angle: float = 150.0,
    east: float = 3.0,
    north: float = -2.0,
) -> np.ndarray:
    """A crescent of 0.6 Jy, Gaussian in radius, brightness 1 + 2 A cos(theta - PA) around it."""
    centre = pixel_centres(pixels, field)
    x, y = centre[None, :] - east, centre[:, None] - north
    radius, theta = np.hypot(x, y), np.arctan2(x, y)
    image = np.exp(-4 * np.log(2) * ((radius - diameter / 2) / width) ** 2)
    image = image * (1 + 2 * asymmetry * np.cos(theta - np.deg2rad(position_angle)))
    return 0.6 * image / image.sum()
