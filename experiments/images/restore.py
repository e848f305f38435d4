"""Pictures restored from few, blurred, clipped, compressed, counted or phaseless data.

    enkg run experiments/images/restore.py --task sr4 --picture camera --guidance enkg
    enkg run experiments/images/restore.py --task phase --size 32 --guidance weighted
    enkg run experiments/images/restore.py --task blur --counts 100

The truth is a picture of scikit-image that the prior has not seen, or a draw of the prior; the
operators are those of `simulators.images`, the noise is Gaussian or that of counts. The priors of
`priors.pictures` are weak, and so are the restorations: the experiment compares methods under one
prior, and shows what a derivative-free one makes of operators without a gradient, such as JPEG.
A draw of the prior (--picture draw) is the truth that the prior is right about, so coverage can
be judged there and only there.

    psnr_of_mean, ssim_of_mean             of the posterior mean
    psnr_over_members, ssim_over_members   over all members, never the best of them
    psnr_of_exact_mean                     of the exact posterior mean, the best that a method can
                                           do on average over draws of the prior
    error_in_exact_std, std_over_exact     against the exact posterior, see enkg.metrics

The last three are there for linear tasks with Gaussian noise under the Gaussian prior, where the
posterior has a closed form. SSIM needs 11 points a side. Needs the extra `images`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy import ndarray
from torch import Tensor

import enkg
from enkg import metrics
from enkg.poisson import Poisson
from enkg.report import blank
from experiments.images.views import as_image, data_field, show
from priors import pictures
from simulators import images

Task = Literal[
    "denoise",
    "box",
    "random",
    "sr2",
    "sr4",
    "bicubic4",
    "blur",
    "circular",
    "motion",
    "circular-motion",
    "hdr",
    "nonlinear",
    "phase",
    "quantise",
    "jpeg",
]
Picture = Literal["camera", "chelsea", "moon", "motorcycle", "draw"]
TASKS: tuple[str, ...] = get_args(Task)
NOISE_SEED = 1000
HELD_OUT = 10**6  # no ensemble has a member of this number
SHOWN = 4


def experiment(
    task: Task = "sr4",
    picture: Picture = "camera",
    size: int = 32,
    noise: float = 0.05,
    counts: float | None = None,
    prior: Literal["gaussian", "mixture"] = "gaussian",
    truth: int = 0,
) -> enkg.Experiment:
    """Recovers a picture from data that do not determine it.

    Args:
        task: The imaging operator; see simulators/images.
        picture: One that the prior has not seen, or a draw of the prior.
        size: Points a side of the picture.
        noise: Standard deviation of a datum.
        counts: Expected counts of a white point; then the noise is that of counts. Linear tasks.
        prior: Principal components of patches, or their kernel density.
        truth: Number of the noise, and of the draw of the prior.
    """
    shape = (size, size)
    given = pictures.patch_gaussian(size) if prior == "gaussian" else pictures.patch_mixture(size)
    operator = images.operator(task, shape)
    if picture == "draw":
        image = given.draw(truth, [HELD_OUT], 0)[0]
    else:
        image = pictures.picture(picture, size)
    if counts is not None:
        if not isinstance(operator, images.Linear):
            raise enkg.InputError(f"counts are for linear tasks; {task} is not linear")
        operator = images.Intensity(shape, operator=operator, peak=counts)
    clean = operator(image[None].numpy())[0]
    observation = observed(clean, noise, truth) if counts is None else counted(clean, truth)
    return enkg.Experiment(
        prior=given,
        simulator=operator,
        observation=observation,
        unknown=enkg.Field("image", dims=("row", "column"), colour_map="gray"),
        data=data_field(operator, "1" if counts is None else "count"),
        truth=image,
        analyse=Scores(operator, image, given, observation),
    )


def observed(clean: ndarray, noise: float, seed: int) -> enkg.Observation:
    """The data with Gaussian noise."""
    exact = enkg.Observation(clean, std=noise)
    return enkg.Observation(exact.perturb(exact.y, seed=NOISE_SEED + seed), std=noise)


def counted(mean: ndarray, seed: int) -> Poisson:
    """Counts of that mean."""
    return Poisson(np.random.default_rng(NOISE_SEED + seed).poisson(mean))


def exact_posterior(
    prior: enkg.Gaussian, operator: images.Linear, observation: enkg.Observation
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (H, W) each; the noise has one standard deviation.

    In the prior's coordinates z of K elements, x = m + T^-1 z with z ~ N(0, L) and y = A m + B z +
    noise: the precision 1 / L + B^T B / s^2 is a matrix of K x K. Costs K calls.
    """
    basis = prior.transform.inverse(torch.eye(prior.transform.size).double())
    b = torch.from_numpy(operator(basis.numpy())).flatten(1)
    rest = observation.y - torch.from_numpy(operator(prior.mean[None].numpy())[0])
    variance = observation.scale**2
    # Of white coordinates, so that directions without variance do no harm.
    white = b * prior.scales[:, None]
    factor = torch.linalg.cholesky(torch.eye(len(b)).double() + white @ white.T / variance)
    z = torch.cholesky_solve((white @ rest.flatten() / variance)[:, None], factor)[:, 0]
    columns = basis.flatten(1) * prior.scales[:, None]
    spread = torch.linalg.solve_triangular(factor, columns, upper=False)
    shape = prior.mean.shape
    return prior.from_white(z[None])[0], spread.square().sum(dim=0).sqrt().reshape(shape)


@dataclass(frozen=True)
class Scores:
    """Image scores of the posterior, and a figure of it."""

    operator: images.Operator
    image: Tensor
    prior: enkg.Prior
    observation: enkg.Observation

    def __call__(self, tree: xr.DataTree, folder: Path | None) -> enkg.Analysis:
        members = torch.from_numpy(tree["posterior"].to_dataset()["image"].values)
        scores = metrics.image_scores(members, self.image)
        if isinstance(self.operator, images.Linear) and isinstance(self.prior, enkg.Gaussian):
            mean, std = exact_posterior(self.prior, self.operator, self.observation)
            scores["psnr_of_exact_mean"] = metrics.psnr(mean, self.image)
            scores["error_in_exact_std"] = metrics.standard_errors(members, mean, std)
            scores["std_over_exact"] = metrics.std_ratio(members, std)
        if folder is not None:
            (folder / "figures").mkdir(exist_ok=True)
            y = tree["observation"].to_dataset()[tree.attrs["data"]].values
            self.plot(members.numpy(), y, scores, folder / "figures" / "restored.png")
        return enkg.Analysis(scores)

    def plot(self, members: ndarray, y: ndarray, scores: dict[str, float], path: Path) -> None:
        """Truth, data, mean and standard deviation over a few members."""
        figure = blank(2.6 * SHOWN, 5.6)
        axes = figure.subplots(2, SHOWN)
        show(axes[0, 0], "truth", self.image.numpy())
        show(axes[0, 1], "data", as_image(self.operator, y), None)
        mean = f"mean, PSNR {scores['psnr_of_mean']:.1f} dB"
        show(axes[0, 2], mean, members.mean(axis=0))
        std = members.std(axis=0, ddof=1)
        show(axes[0, 3], "standard deviation", std, (0.0, float(std.max())), "viridis")
        figure.colorbar(axes[0, 3].images[0], ax=axes[0, 3], fraction=0.046, pad=0.03)
        for k, axis in enumerate(axes[1]):
            if k < len(members):
                show(axis, f"member {k}", members[k])
            else:
                axis.set_axis_off()
        figure.savefig(path, dpi=130)
