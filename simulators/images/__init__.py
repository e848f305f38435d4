"""Imaging operators for grayscale images (B, H, W) of any size, with values in about [-1, 1].

    denoise        the image itself                               linear, svd
    box            all points outside a box                       linear, svd
    random         points chosen once, 70 % missing               linear, svd
    sr2, sr4       means of blocks of 2 x 2 or 4 x 4 points       linear, svd
    bicubic4       every fourth point of an antialiased cubic     linear, svd (by axes)
    blur           Gaussian, the edges mirrored                   linear, svd (by axes)
    circular       Gaussian on a torus                            linear, svd (by FFT)
    motion         path of a shaken camera, the edges mirrored    linear, adjoint alone
    circular-motion                         the same on a torus   linear, svd (by FFT)
    hdr            clip(2 x, -1, 1)                               vjp, a guess at the inverse
    nonlinear      log(blur(exp(3 x))) / 3                        vjp, a guess at the inverse
    phase          |F u|, u = (x + 1) / 2 among zeros             vjp, a guess at the inverse
    quantise       16 levels                                      a guess at the inverse
    jpeg           Pillow's JPEG at quality 10                    a guess at the inverse

`operator(task, shape)` makes them with the settings that are usual for images of 256 x 256 points
(Chung et al. 2023, arXiv 2209.14687; Zhang et al. 2024, arXiv 2407.01521), lengths in proportion to
the image; the classes take any others. NumPy alone; JPEG needs Pillow. Units: those of the image.
"""

from collections.abc import Callable, Mapping

from simulators.images.base import SVD, Decomposed, Linear, Operator
from simulators.images.convolution import (
    Circular,
    Convolution,
    Dense,
    circular_gaussian,
    motion_blur,
    motion_kernel,
)
from simulators.images.masks import Identity, Inpainting, box_inpainting, random_inpainting
from simulators.images.nonlinear import JPEG, NonlinearBlur, Phase
from simulators.images.pointwise import HighDynamicRange, Intensity, Quantise
from simulators.images.separable import BlockMean, Separable, bicubic, gaussian_blur

__all__ = [
    "JPEG",
    "SVD",
    "TASKS",
    "BlockMean",
    "Circular",
    "Convolution",
    "Decomposed",
    "Dense",
    "HighDynamicRange",
    "Identity",
    "Inpainting",
    "Intensity",
    "Linear",
    "NonlinearBlur",
    "Operator",
    "Phase",
    "Quantise",
    "Separable",
    "bicubic",
    "box_inpainting",
    "circular_gaussian",
    "gaussian_blur",
    "motion_blur",
    "motion_kernel",
    "operator",
    "random_inpainting",
]

CUT = 0.05
"""Singular values of the blurs below this share of the largest count as zero in their `pinv`."""
Size = tuple[int, int]


def _std(shape: Size) -> float:
    """3 points of 256, and not below 1."""
    return max(3 * min(shape) / 256, 1.0)


def _path(shape: Size) -> int:
    """61 points of 256, odd."""
    return 2 * round(30 * min(shape) / 256) + 1


TASKS: Mapping[str, Callable[[Size], Operator]] = {
    "denoise": Identity,
    "box": box_inpainting,
    "random": random_inpainting,
    "sr2": lambda shape: BlockMean(shape, side=2),
    "sr4": lambda shape: BlockMean(shape, side=4),
    "bicubic4": lambda shape: bicubic(shape, 4, CUT),
    "blur": lambda shape: gaussian_blur(shape, _std(shape), cut=CUT),
    "circular": lambda shape: circular_gaussian(shape, _std(shape), cut=CUT),
    "motion": lambda shape: motion_blur(shape, _path(shape)),
    "circular-motion": lambda shape: Circular(shape, CUT, kernel=motion_kernel(_path(shape))),
    "hdr": HighDynamicRange,
    "nonlinear": lambda shape: NonlinearBlur(shape, blur=motion_blur(shape, _path(shape))),
    "phase": Phase,
    "quantise": Quantise,
    "jpeg": JPEG,
}
"""The operators by name, as functions of the size of the image."""


def operator(task: str, shape: Size) -> Operator:
    """The operator of that name; ValueError for another name, or a shape it cannot take."""
    if task not in TASKS:
        raise ValueError(f"there is no imaging operator {task!r}; give one of {', '.join(TASKS)}")
    return TASKS[task](shape)
