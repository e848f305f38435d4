"""Images of digits from few, blurred, clipped or phaseless data; the exact posterior beside it.

enkg run experiments/digits/problem.py --problem box
enkg run experiments/digits/problem.py --problem sr4 --truth 3 --noise 0.1 --guidance es-mda
enkg run experiments/digits/problem.py --space autoencoder --guidance latent-daps

The unknown is an image of 8 x 8 points with values about -1 to 1, drawn from a kernel density of
1,600 handwritten digits: a prior that is far from Gaussian, and exact without training. The
problems are those of `simulators.small_images`. The posteriors are known in closed form; for
`phase` long tempered chains are stored (`experiments.references.digits`), and for `jpeg` there is
nothing. So the figures say how far from the posterior a method is, not how far from the truth:

    error_in_exact_std    of the posterior mean, root mean square over the points
    std_over_exact        standard deviation over the exact one, mean over the points
    energy_distance       to draws of the exact posterior; 0 if equal in law
    class_distance        total variation between the shares of the ten digits

Needs the extra `digits`. All methods side by side: experiments/digits/compare.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import xarray as xr
from numpy import ndarray

import enkg
from enkg.report import blank
from experiments.digits.setting import Problem, Setting
from experiments.images.views import GRAYS, as_image, data_field, show
from experiments.references.digits import Reference, is_known, judged, reference
from priors import digits
from priors.digits.latent import latent_digits, learned_latent

Space = Literal["pixels", "components", "curved", "autoencoder"]


def experiment(
    problem: Problem = "box",
    truth: int = 0,
    noise: float = 0.05,
    bandwidth: float = digits.BANDWIDTH,
    space: Space = "pixels",
) -> enkg.Experiment:
    """Recovers the image of a digit from data that do not determine it.

    Args:
        problem: denoise: the image itself. box: the central 4 x 4 points are missing. random: 19
            points are left. sr2, sr4: means of 2 x 2 or 4 x 4 points. blur, motion: Gaussian or
            motion blur. hdr: twice the image, clipped. quantise: 16 levels. poisson: counts, 20 on
            average at a white point. phase: magnitudes of the Fourier transform. jpeg: what JPEG
            leaves.
        truth: Which truth; each number is another draw from the prior.
        noise: Standard deviation of a datum; of no effect on poisson.
        bandwidth: Kernel width h of the prior; below 0.15 the prior is nearly discrete.
        space: What the prior is a prior of; psld, resample and latent-daps want other than pixels.
            components: 24 principal components. curved: the same behind a curved decoder.
            autoencoder: 32 latents of a learned one, of bandwidth 0.2. Truth and exact posterior
            are those of pixels whichever is chosen.
    """
    setting = Setting(problem, truth, noise, bandwidth)
    return enkg.Experiment(
        prior=prior_of(setting, space),
        simulator=setting.simulator,
        observation=setting.observation,
        guidance=enkg.WeightedEnKG(members=128),
        unknown=enkg.Field("image", dims=("row", "column"), colour_map="gray"),
        data=data_field(setting.simulator),
        truth=setting.image,
        analyse=AgainstExact(setting) if is_known(setting) else None,
    )


def prior_of(setting: Setting, space: Space) -> enkg.Prior:
    """The prior over points, or over latent variables that lose some of them."""
    if space == "pixels":
        return setting.prior
    if space == "autoencoder":
        if setting.bandwidth != digits.BANDWIDTH:
            raise enkg.InputError(
                f"the learned prior is of bandwidth {digits.BANDWIDTH}, not {setting.bandwidth}; "
                "leave bandwidth, or choose another space"
            )
        return learned_latent()
    return latent_digits(bandwidth=setting.bandwidth, curved=space == "curved")


@dataclass(frozen=True)
class AgainstExact:
    """The posterior against the exact one, and a figure of both."""

    setting: Setting

    def __call__(self, tree: xr.DataTree, folder: Path | None) -> enkg.Analysis:
        members = tree["posterior"].to_dataset()["image"].values
        exact = reference(self.setting)
        if folder is not None:
            (folder / "figures").mkdir(exist_ok=True)
            observed = tree["observation"].to_dataset()
            data = next(v for v in observed.data_vars.values() if v.name not in ("std", "mask"))
            plot(self.setting, members, data.values, exact, folder / "figures" / "exact.png")
        return enkg.Analysis(judged(torch.from_numpy(members), exact))


def plot(setting: Setting, members: ndarray, y: ndarray, exact: Reference, path: Path) -> None:
    """Truth and data, means and standard deviations, five members and five exact draws."""
    std = members.std(axis=0, ddof=1)
    largest = float(max(std.max(), exact.std.max()))
    figure = blank(12.5, 4.2)
    rows = figure.subplots(2, 8)
    known = [("truth", setting.image.numpy()), ("data", as_image(setting.simulator, y))]
    ways = [
        ("", members.mean(axis=0), std, members[:5]),
        ("exact ", exact.mean.numpy(), exact.std.numpy(), exact.draws[:5].numpy()),
    ]
    for row, (title, image), (way, mean, spread, some) in zip(rows, known, ways, strict=True):
        show(row[0], title, image, None if title == "data" else GRAYS)
        show(row[1], f"{way}mean", mean)
        show(row[2], f"{way}standard deviation", spread, (0.0, largest), "viridis")
        for k, axes in enumerate(row[3:]):
            if k < len(some):
                show(axes, "exact draw" if way else "member", some[k])
            else:
                axes.set_axis_off()
    figure.savefig(path, dpi=130)
