"""Figures of merit of a posterior ensemble.

Never the best of many members: everything is of the posterior mean or over all members. So one
member of J that happened to be the truth moves no figure by more than the order of 1 / J.
"""

from collections.abc import Callable
from math import inf, log10, sqrt
from typing import Any

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.errors import InputError, MissingCapability

WINDOW = 11
"""Points a side of the window of `ssim`: 3.5 standard deviations of 1.5 points on either side."""


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """|estimate - truth| / |truth|, Euclidean, over all elements."""
    return float((estimate.double() - truth.double()).norm() / truth.double().norm())


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """Share of the elements whose truth lies in the central interval of that level.

    ensemble: (J, *X); truth: X. A calibrated ensemble gives `level`.
    """
    ordered = _sorted(ensemble)
    low = _at(ordered, (1 - level) / 2)
    high = _at(ordered, (1 + level) / 2)
    inside = (low <= truth.double()) & (truth.double() <= high)
    return float(inside.double().mean())


def _sorted(ensemble: Tensor) -> Tensor:
    """Each element's members in ascending order, float64, members on axis 0."""
    by_element = ensemble.movedim(0, -1).contiguous()  # sorted in memory order: 5 times faster
    return by_element.sort(dim=-1).values.double().movedim(-1, 0)


def _at(ordered: Tensor, share: float) -> Tensor:
    """Quantile by Weibull's plotting position, which makes the coverage unbiased at any J.

    A quantile beyond the ensemble is its end, so level must not exceed (J - 1) / (J + 1).
    """
    position = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    k = min(int(position), len(ordered) - 2) if len(ordered) > 1 else 0
    upper = ordered[min(k + 1, len(ordered) - 1)]
    return ordered[k] + (position - k) * (upper - ordered[k])


def crps(ensemble: Tensor, truth: Tensor) -> float:
    """Continuous ranked probability score, fair form, averaged over the elements.

    1/J sum_j |x_j - t| - 1/(2 J (J-1)) sum_jk |x_j - x_k| (Gneiting and Raftery 2007; Ferro 2014).
    """
    ordered = _sorted(ensemble)
    j = len(ordered)
    rank = torch.arange(1, j + 1, dtype=torch.float64, device=ordered.device)
    weight = (2 * rank - j - 1).reshape(-1, *[1] * (ordered.dim() - 1))
    pairs = (weight * ordered).sum(dim=0) / (j * (j - 1))
    return float(((ordered - truth.double()).abs().mean(dim=0) - pairs).mean())


def spread_skill(ensemble: Tensor, truth: Tensor) -> float:
    """Root-mean-square spread over the root-mean-square error of the mean; 1 when calibrated.

    The spread carries the finite-ensemble factor sqrt((J + 1) / J) of Fortin et al. 2014.
    """
    x = ensemble.double()
    error = (x.mean(dim=0) - truth.double()).square().mean().sqrt()
    return float(sqrt((len(x) + 1) / len(x)) * x.var(dim=0).mean().sqrt() / error)


def standard_errors(ensemble: Tensor, mean: Tensor, std: Tensor) -> float:
    """Error of the ensemble's mean in exact posterior standard deviations, rms over the elements.

    mean, std: of the exact posterior, shape X, std positive. J exact draws give 1 / sqrt(J).
    """
    error = (ensemble.double().mean(dim=0) - mean.double()) / std.double()
    return float(error.square().mean().sqrt())


def std_ratio(ensemble: Tensor, std: Tensor) -> float:
    """Standard deviation of the ensemble over the exact one, (X), averaged over the elements."""
    return float((ensemble.double().std(dim=0) / std.double()).mean())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance between two samples, (J, *X) and (K, *X), unbiased; O((J + K)^2 d).

    E|A - B| - 1/2 E|A - A'| - 1/2 E|B - B'| with Euclidean norms over all elements, in the units of
    the elements; pairs of a member with itself are left out. It is half of the statistic of Székely
    and Rizzo 2013 ("Energy statistics"), and the excess of the expected energy score (Gneiting and
    Raftery 2007). It is 0 in expectation where both samples have one law, and only there; a single
    value may then be negative.
    """
    a, b = rows(a.double()), rows(b.double())
    if len(a) < 2 or len(b) < 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"samples of shape {tuple(a.shape)} and {tuple(b.shape)} as rows; expected at least "
            "two members each, and as many elements"
        )
    return float(torch.cdist(a, b).mean()) - _mean_gap(a) / 2 - _mean_gap(b) / 2


def _mean_gap(x: Tensor) -> float:
    """E|X - X'| over all pairs of different members."""
    return float(torch.nn.functional.pdist(x).mean())


def rank_histogram(ensembles: Tensor, truths: Tensor) -> Tensor:
    """How often the truth has each rank 0 to J among its ensemble, (J + 1,), whole numbers.

    ensembles: (T, J, *X); truths: (T, *X). Every element of every truth counts once; the histogram
    is flat where truth and members have one law (Talagrand, Vautard and Strauss 1997). Elements of
    one truth are not independent, so its scatter exceeds that of independent counts.
    """
    below = (ensembles < truths[:, None]).sum(dim=1)
    return torch.bincount(below.flatten(), minlength=ensembles.shape[1] + 1)


def psnr(x: Tensor, truth: Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(R^2 / MSE); infinite where both are equal.

    data_range: R, the width of the range of the values, 2 for [-1, 1]. x: one image, or members
    (J, *X) against a truth X: then the squared error is that over all members.
    """
    _check_range(data_range)
    error = float((x.double() - truth.double()).square().mean())
    return 10 * log10(data_range**2 / error) if error else inf


def ssim(x: Tensor, truth: Tensor, data_range: float = 2.0) -> float:
    """Structural similarity of two grayscale images (H, W), at most 1.

    With the Gaussian window of 11 points and standard deviation 1.5 of Wang, Bovik, Sheikh and
    Simoncelli 2004 ("Image quality assessment"), by scikit-image (extra `images`). Raises
    InputError for images that the window does not fit, and where scikit-image is not installed.
    """
    _check_range(data_range)
    if x.dim() != 2 or x.shape != truth.shape or min(x.shape) < WINDOW:
        raise InputError(
            f"images of shape {tuple(x.shape)} and {tuple(truth.shape)}; SSIM compares two images "
            f"(H, W) of one size, at least {WINDOW} points a side, for its window is as large"
        )
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise InputError(
            "SSIM needs scikit-image, which is not installed; give "
            'pip install -e ".[images]" -c constraints.txt'
        ) from error
    found: Any = structural_similarity(
        x.double().numpy(force=True),
        truth.double().numpy(force=True),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=data_range,
    )
    return float(found)


def image_scores(members: Tensor, truth: Tensor, data_range: float = 2.0) -> dict[str, float]:
    """Scores of an ensemble of images (J, H, W): of its mean, and over all members.

    psnr_of_mean, psnr_over_members (of the squared error averaged over the members), ssim_of_mean,
    ssim_over_members (averaged). SSIM is left out for images of less than 11 points a side, which
    its window does not fit.
    """
    mean = members.double().mean(dim=0)
    scores = {
        "psnr_of_mean": psnr(mean, truth, data_range),
        "psnr_over_members": psnr(members, truth, data_range),
    }
    if min(truth.shape) >= WINDOW:
        each = [ssim(member, truth, data_range) for member in members]
        scores["ssim_of_mean"] = ssim(mean, truth, data_range)
        scores["ssim_over_members"] = sum(each) / len(each)
    return scores


def lpips(x: Tensor, truth: Tensor, net: str = "alex") -> float:
    """Learned perceptual distance of images with values in [-1, 1], averaged; 0 if equal.

    x: one image (H, W) or members (J, H, W); truth: (H, W). Zhang et al. 2018, arXiv 1801.03924, by
    the package `lpips`, which fetches the weights of a network at its first use. Raises
    MissingCapability where the package or the weights are not there.
    """
    compared = _learned("LPIPS", "lpips", lambda package: package.LPIPS(net=net, verbose=False))
    with torch.no_grad():
        return float(compared(_colours(x), _colours(truth)).mean())


def fid(x: Tensor, references: Tensor, features: int = 2048) -> float:
    """Frechet distance of two sets of images with values in [-1, 1], (J, H, W) and (K, H, W).

    Between the Gaussians of the features of a network. Heusel et al. 2017, arXiv 1706.08500, by the
    package `torchmetrics`. With fewer images than features it is far from its limit. Raises
    MissingCapability where the package or the weights of the network are not there.
    """
    distance = _learned(
        "FID",
        "torchmetrics.image.fid",
        lambda package: package.FrechetInceptionDistance(feature=features, normalize=True),
    )
    distance.update((_colours(references) + 1) / 2, real=True)
    distance.update((_colours(x) + 1) / 2, real=False)
    return float(distance.compute())


def _learned(name: str, package: str, make: Callable[[Any], Any]) -> Any:
    """The metric of a package, with its network."""
    from importlib import import_module

    root = package.split(".", maxsplit=1)[0]
    try:
        return make(import_module(package))
    except Exception as error:  # no package, no weights, no network to fetch them by
        raise MissingCapability(
            name,
            f"the package {root} and the weights of its network",
            f"pip install {root}, and run it once where it can fetch them "
            f"({type(error).__name__}: {error})",
        ) from error


def _colours(x: Tensor) -> Tensor:
    """Grayscale images (*, H, W) as (N, 3, H, W), float32, clipped to [-1, 1]."""
    x = x.float().clamp(-1, 1).reshape(-1, 1, *x.shape[-2:])
    return x.expand(-1, 3, -1, -1)


def _check_range(data_range: float) -> None:
    if not data_range > 0:
        raise InputError(
            f"data_range is {data_range}; expected the width of the range of the values, such as 2 "
            "for [-1, 1]"
        )
