"""Train the latent prior of digits that priors/digits/autoencoder holds.

    python -m experiments.training.digits_latent --out runs/priors/autoencoder

First an autoencoder, 64 points to 32 latent numbers on a grid of 4 x 4, then a diffusion prior over
the latents. The samples are draws of the kernel density of scikit-learn's digits. Used by
`priors.digits.latent.learned_latent`.
"""

from pathlib import Path

import torch
import tyro
from rich.console import Console

import enkg
from enkg.learned import Autoencoder, UNet, latent_training, train, train_autoencoder
from enkg.learned.latent_prior import LATENT
from enkg.progress import Learning
from priors import digits

ABOUT = (
    "Handwritten digits of 8 x 8 points in [-1, 1]: a kernel density of 1,600 images, kernel width "
    "{}, learnt from its draws"
)
LICENCE = "MIT; the images are from the UCI Machine Learning Repository, CC BY 4.0"
RECIPE = "experiments/training/digits_latent.py: priors.digits on scikit-learn's digits"


def main(
    out: Path = Path("runs/digits/autoencoder"),
    bandwidth: float = digits.BANDWIDTH,
    samples: int = 20480,
    latent: int = 2,
    channels: tuple[int, ...] = (16, 32),
    kl: float = 1e-3,
    steps: int = 1800,
    rate: float = 2e-3,
    prior_channels: tuple[int, ...] = (24, 48),
    prior_steps: int = 1700,
    prior_rate: float = 2e-3,
    batch: int = 64,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Trains both. Cost: four and a half minutes of one core.

    Args:
        out: Folder of the result.
        bandwidth: Width of the kernels.
        samples: Draws to learn from, a tenth of which are held out.
        latent: Channels of the latents, of 4 x 4 points.
        channels: Of the autoencoder, at 8 x 8 and at 4 x 4 points.
        kl: Weight of the divergence in the autoencoder's loss.
        steps: Of the autoencoder's optimiser.
        rate: Its learning rate.
        prior_channels: Of the denoiser of latents, at 4 x 4 and at 2 x 2 points.
        prior_steps: Of its optimiser.
        prior_rate: Its learning rate.
        batch: Draws a step, in both.
        resume: Go on with an unfinished training.
        overwrite: Replace what is there.
    """
    torch.set_num_threads(1)
    console = Console()
    draws = digits.digits(bandwidth).draw(301, range(samples), 0).float()
    coder = train_autoencoder(
        Autoencoder(
            channels=channels,
            latent=latent,
            kl=kl,
            steps=steps,
            batch=batch,
            rate=rate,
            half=True,
        ),
        draws,
        out,
        enkg.Affine(),
        unknown=enkg.Field("digit", dims=("row", "column"), colour_map="gray"),
        others={
            "real digits, held out": digits.held_out().images,
            "real digits, centres": digits.centres().images,
        },
        told={
            "name": "digits, autoencoder",
            "about": f"{ABOUT.format(bandwidth)}: an autoencoder.",
            "limits": ("[errors] says what it loses; the exact prior loses nothing.",),
            "recipe": RECIPE,
            "licence": LICENCE,
        },
        resume=resume,
        overwrite=overwrite,
        watcher=Learning(console),
    )
    for name, found in coder.card["errors"].items():
        console.print(
            f"{name}: error {found['error']:.4f}, principal components {found['linear']:.4f}",
            highlight=False,
        )
    train(
        latent_training(
            out,
            draws,
            network=UNet(prior_channels),
            steps=prior_steps,
            batch=batch,
            rate=prior_rate,
            noise=enkg.LogNormal(-0.7, 1.1),
            sigma_max=40.0,
            half=True,
            looks=4,
            name="digits, latents",
            about=f"{ABOUT.format(bandwidth)}: a prior over the latents of the autoencoder.",
            limits=("It is worth what its autoencoder is worth.",),
            recipe=RECIPE,
            licence=LICENCE,
        ),
        out / LATENT,
        resume=resume,
        overwrite=overwrite,
        watcher=Learning(console),
    )
    console.print(f'the prior is in {out}/: enkg.trained_latent("{out}")', highlight=False)


if __name__ == "__main__":
    tyro.cli(main)
