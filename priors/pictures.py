"""Grayscale pictures of scikit-image: patches of some for a prior, others held out as truths.

The pictures are sixteen of those inside the scikit-image wheel (extra `images`); nothing is
fetched. By a fixed seed, twelve are for training and four are held out: camera, chelsea, moon and
motorcycle. Values are in [-1, 1].

    picture(name, size)        the middle square of a picture at size x size points
    patches(count, size)       squares of the training pictures, of random place and scale
    patch_gaussian(...)        their mean and principal components
    patch_mixture(...)         their kernel density

These priors are weak. The Gaussian knows how smooth pictures are and no edge; the kernel density
knows a few thousand patches and nothing between them, and in a thousand dimensions no other patch
is near one of them. They are exact at every noise level and need no training, which makes them fit
to compare methods on larger images; good restorations need a learned prior, which comes from
elsewhere: any object with `shape` and `denoise(x, sigma)`.
"""

from functools import cache

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import enkg

NAMES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "motorcycle",
    "page",
    "retina",
    "rocket",
    "text",
)
SPLIT_SEED = 0
HELD_OUT = 4
COUNT = 3000
BANDWIDTH = 0.25
"""Of .05, .1, .15, .2, .25, .3 and .4 the one of the largest log density of patches of 32 x 32
points from the held-out pictures."""
SIZES = (4, 128)  # the smallest picture has 172 rows


def split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training pictures and of those held out, each in alphabetical order."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(NAMES))
    held_out, training = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
    return tuple(NAMES[k] for k in training), tuple(NAMES[k] for k in held_out)


def picture(name: str, size: int) -> Tensor:
    """The middle square of a picture, brought to size x size points: (size, size), float64."""
    if name not in NAMES:
        raise enkg.InputError(f"there is no picture {name!r}; give one of {', '.join(NAMES)}")
    _check(size)
    rows, columns = _whole(name).shape
    side = min(rows, columns)
    top, left = (rows - side) / 2, (columns - side) / 2
    return torch.from_numpy(_resized(name, top, left, side, size))


@cache
def patches(count: int = COUNT, size: int = 32, seed: int = 0) -> Tensor:
    """Squares of the training pictures, (count, size, size), float64.

    Patch i depends on (seed, i) alone. Each is from a picture by chance, at a place by chance, of a
    side between `size` points and the whole picture, even in its logarithm, mirrored or not.
    """
    _check(size)
    out = np.empty((count, size, size))
    names = split()[0]
    for i in range(count):
        random = np.random.default_rng([seed, i])
        name = names[random.integers(len(names))]
        rows, columns = _whole(name).shape
        side = np.exp(random.uniform(np.log(size), np.log(min(rows, columns))))
        top, left = random.uniform(0, rows - side), random.uniform(0, columns - side)
        square = _resized(name, top, left, side, size)
        out[i] = square[:, ::-1] if random.random() < 0.5 else square
    return torch.from_numpy(out)


@cache
def patch_gaussian(
    size: int = 32, components: int | None = None, count: int = COUNT, seed: int = 0
) -> enkg.Gaussian:
    """Mean and principal components of the patches; a weak prior, see the module.

    components: how many are kept, all by default; the variance outside them is dropped. The
    decomposition of 3,000 patches of 32 x 32 points takes some seconds.
    """
    return enkg.Gaussian.from_samples(patches(count, size, seed), components)


def patch_mixture(
    size: int = 32, bandwidth: float = BANDWIDTH, count: int = COUNT, seed: int = 0
) -> enkg.Mixture:
    """Kernel density of the patches; bandwidth: width of the kernel, in units of the image.

    A weak prior, see the module.
    """
    return enkg.Mixture.from_samples(patches(count, size, seed), bandwidth)


@cache
def _whole(name: str) -> ndarray:
    """A picture in [-1, 1], float32, read-only."""
    try:
        from skimage import color, data
    except ImportError as error:
        raise enkg.InputError(
            "the pictures come with scikit-image, which is not installed; give "
            'pip install -e ".[images]" -c constraints.txt'
        ) from error
    make = {"motorcycle": lambda: data.stereo_motorcycle()[0]}.get(name) or getattr(data, name)
    levels = make()
    gray = levels / 255 if levels.ndim == 2 else color.rgb2gray(levels)
    image = (2 * gray - 1).astype(np.float32)
    image.setflags(write=False)
    return image


def _resized(name: str, top: float, left: float, side: float, size: int) -> ndarray:
    """A square of a picture at size x size points, by Pillow's antialiased cubic filter."""
    from PIL import Image

    box = (left, top, left + side, top + side)
    image = Image.fromarray(_whole(name)).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.clip(np.asarray(image, dtype=np.float64), -1, 1)


def _check(size: int) -> None:
    if not SIZES[0] <= size <= SIZES[1]:
        raise enkg.InputError(f"size is {size}; expected {SIZES[0]} to {SIZES[1]} points a side")
