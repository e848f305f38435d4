"""Imaging operators on images of 8 x 8 points with values in about [-1, 1].

    denoise    the image itself                                            (B, 8, 8)
    box        all points outside the central 4 x 4 box                    (B, 48)
    random     19 points, chosen once                                      (B, 19)
    sr2, sr4   means of blocks of 2 x 2 or 4 x 4 points                    (B, 4, 4), (B, 2, 2)
    blur       Gaussian of standard deviation 1 point along both axes      (B, 8, 8)
    motion     a path of 5 x 5 points, zeros beyond the edge               (B, 8, 8)
    hdr        clip(2 x, -1, 1): high dynamic range, both ends are lost    (B, 8, 8)
    quantise   the nearest of 16 levels                                    (B, 8, 8)
    poisson    expected counts 20 max((x + 1) / 2, .001)                   (B, 8, 8)
    phase      |F u| with u = (x + 1) / 2 in the middle of 16 x 16 zeros   (B, 16, 16)
    jpeg       one JPEG block at quality 10                                (B, 8, 8)

They are those of `simulators.images` at this size. The blur renormalises its kernel where the edge
cuts it, so a constant image stays. The first seven are linear and have a singular value
decomposition; a shift of u or a turn by 180 degrees leaves `phase` unchanged. `jpeg` needs Pillow.

The tasks are those usual for diffusion priors (Chung et al. 2023, arXiv 2209.14687; Zhang et al.
2024, arXiv 2407.01521), in small. Each row of an answer depends on its own row alone, bit for bit.
Microseconds a member.
"""

from collections.abc import Mapping

from numpy import ndarray

from simulators import images

SIZE = 8
SHAPE = (SIZE, SIZE)
BOX = images.box_inpainting(SHAPE)
RANDOM = images.random_inpainting(SHAPE, kept=19)
MOTION = images.motion_blur(SHAPE, size=5, edges="zero")
PHASE = images.Phase(SHAPE)
QUANTISE = images.Quantise(SHAPE)
COUNTS = images.Intensity(SHAPE, operator=images.Identity(SHAPE), peak=20.0)
PADDED = PHASE.data_shape[0]

LINEAR: Mapping[str, images.Decomposed] = {
    "denoise": images.Identity(SHAPE),
    "box": BOX,
    "random": RANDOM,
    "sr2": images.BlockMean(SHAPE, side=2),
    "sr4": images.BlockMean(SHAPE, side=4),
    "blur": images.gaussian_blur(SHAPE, 1.0, "renormalised"),
    "motion": images.Dense(SHAPE, operator=MOTION),
}
OPERATORS: Mapping[str, images.Operator] = {
    **LINEAR,
    "hdr": images.HighDynamicRange(SHAPE),
    "quantise": QUANTISE,
    "poisson": COUNTS,
    "phase": PHASE,
    "jpeg": images.JPEG(SHAPE),
}
PLACES: Mapping[str, ndarray] = {"box": BOX.places, "random": RANDOM.places}
"""Places of the data of `box` and `random`, in the flattened image."""
