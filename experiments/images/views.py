"""Names of the data of imaging operators, and the data as an image."""

from typing import Any

import numpy as np
from numpy import ndarray

import enkg
from simulators import images

GRAYS = (-1.2, 1.2)


def inside(operator: images.Operator) -> images.Operator:
    """The operator behind expected counts."""
    return operator.operator if isinstance(operator, images.Intensity) else operator


def data_field(operator: images.Operator, unit: str = "1") -> enkg.Field:
    """Name, axes and coordinates of an operator's data."""
    within = inside(operator)
    if isinstance(within, images.Inpainting):
        rows, columns = np.divmod(within.places, within.shape[1])
        where = {"datum_row": ("datum", rows), "datum_column": ("datum", columns)}
        return enkg.Field("value", unit, dims=("datum",), coords=where)
    if isinstance(within, images.Phase):
        return enkg.Field("magnitude", unit, dims=("row_frequency", "column_frequency"))
    same = tuple(within.data_shape) == tuple(within.shape)
    dims = ("row", "column") if same else ("block_row", "block_column")
    return enkg.Field("value", unit, dims=dims, colour_map="gray")


def as_image(operator: images.Operator, y: ndarray) -> ndarray:
    """Data Y as an image, NaN where there are none; magnitudes by their logarithm, the lowest
    frequency in the middle."""
    within = inside(operator)
    if isinstance(within, images.Inpainting):
        image = np.full(within.shape[0] * within.shape[1], np.nan)
        image[within.places] = y
        return image.reshape(within.shape)
    if isinstance(within, images.Phase):
        return np.fft.fftshift(np.log10(np.maximum(y, 1e-2)))
    return y


def show(
    axes: Any,
    title: str,
    image: ndarray,
    span: tuple[float, float] | None = GRAYS,
    colours: str = "gray",
) -> None:
    """Draws an image without ticks; span: values of the ends of the colours, None its own.

    What is missing (NaN) is pale blue.
    """
    low, high = span or (None, None)
    axes.set_facecolor("#bcd2ee")
    axes.imshow(image, cmap=colours, vmin=low, vmax=high)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
