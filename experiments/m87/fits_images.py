"""Images as FITS files with sky coordinates, in Jy per pixel.

The arrays of this project have row 0 north and column 0 east. FITS counts rows from the south, so
the rows are turned over when writing and when reading. The reference pixel is the middle of the
image, the projection SIN, the axes right ascension (falling with the column) and declination.

References:
    Calabretta & Greisen (2002), A&A 395, 1077: celestial coordinates in FITS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.m87.uvfits import import_fits, quiet
from simulators.black_hole.files import complete_or_absent

MICROARCSECONDS_PER_DEGREE = 3600e6


def write_fits(
    path: str | os.PathLike[str],
    image: ArrayLike,
    field_of_view: float,
    *,
    right_ascension: float = 0.0,
    declination: float = 0.0,
    frequency: float = 0.0,
    mjd: float = 0.0,
    source: str = "M87",
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write one image (n, n) in Jy per pixel; an existing file is replaced as a whole.

    field_of_view in microarcseconds, right_ascension in hours, declination in degrees, frequency
    in Hz. Say in provenance what made the image (data file and its checksum, averaging, seed, which
    image of the ensemble this is); it goes into the HISTORY of the header.
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise ValueError(f"the image has shape {image.shape}; expected one square image (n, n)")
    if not 0 < field_of_view < np.inf:
        raise ValueError(
            f"field_of_view is {field_of_view}; give microarcseconds, for instance 128"
        )
    fits = import_fits()
    pixels = len(image)
    pixel = field_of_view / pixels / MICROARCSECONDS_PER_DEGREE
    header = fits.Header()
    header["OBJECT"] = source
    header["TELESCOP"] = "EHT"
    for axis, (kind, step, value) in enumerate(
        (
            ("RA---SIN", -pixel, right_ascension * 15),
            ("DEC--SIN", pixel, declination),
        ),
        start=1,
    ):
        header[f"CTYPE{axis}"] = kind
        header[f"CRVAL{axis}"] = (value, "degrees")
        header[f"CDELT{axis}"] = (step, "degrees")
        header[f"CRPIX{axis}"] = (pixels + 1) / 2
        header[f"CUNIT{axis}"] = "deg"
    header["OBSRA"] = right_ascension * 15
    header["OBSDEC"] = declination
    header["FREQ"] = (frequency, "Hz")
    header["MJD"] = mjd
    header["BUNIT"] = "JY/PIXEL"
    header["STOKES"] = "I"
    for key, value in (provenance or {}).items():
        header.add_history(_ascii(f"{key}: {value}"))
    with complete_or_absent(path) as part, quiet():
        fits.PrimaryHDU(image[::-1], header=header).writeto(part, output_verify="exception")


def read_fits(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """The image (n, n), row 0 north, and its field of view in microarcseconds."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give the path of a FITS image")
    fits = import_fits()
    try:
        with quiet(), fits.open(path, memmap=False) as units:
            header, stored = units[0].header, np.array(units[0].data, dtype=np.float64)
            image = np.squeeze(stored)
            step = abs(float(header["CDELT1"]))
    except Exception as error:  # astropy raises a different type for every kind of damage
        raise ValueError(
            f"{path} is not a readable FITS image ({error}); write it again"
        ) from error
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise ValueError(f"{path} holds an array of shape {image.shape}; expected one square image")
    return image[::-1], step * MICROARCSECONDS_PER_DEGREE * image.shape[1]


def _ascii(text: str) -> str:
    """FITS headers hold printable ASCII only."""
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in " ".join(text.split()))
