"""From a table of closures to an `Experiment`, and from its posterior to an astronomer's report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import enkg
from enkg.metrics import coverage, relative_error
from experiments.m87.chi_squares import chi_squares_of
from experiments.m87.data import ClosureData
from experiments.m87.fits_images import write_fits
from experiments.m87.plots import (
    plot_closure_phase_residuals,
    plot_coverage,
    plot_images,
    plot_log_amplitude_residuals,
)
from experiments.m87.ring import RingFits, fit_rings
from experiments.training.rings import FLOOR, Rings
from priors import rings
from priors.image_samples import cached_basis
from priors.log_images import CLIP, LogImageBasis

PriorName = Literal["gaussian", "mixture", "control", "learned"]
FLUX = 0.6  # compact flux in Jy, to which images are normalised; closures do not see it
MEMBERS: dict[PriorName, int] = {"gaussian": 512, "mixture": 512, "control": 512, "learned": 192}
FITTED = 128  # members to which rings are fitted, 20 ms each
SAMPLES = 4  # members written as FITS images
RING_ROWS = {
    "diameter": "diameter [uas]",
    "width": "width [uas]",
    "asymmetry": "asymmetry",
    "position_angle": "position angle [deg]",
    "central_fraction": "centre / ring",
}


@dataclass(frozen=True, eq=False)
class Brightness:
    """Units of logarithms of brightness: images in Jy per pixel, of the same total `flux`.

    log: from the prior's numbers to brightness over its mean, plus `floor`. An image is what `log`
    makes, normalised; `to_prior` ignores the flux.
    """

    log: enkg.Log
    floor: float
    flux: float = FLUX

    def to_simulator(self, x: Tensor) -> Tensor:
        image = self.log.to_simulator(x)
        return self.flux * image / image.sum(dim=(1, 2), keepdim=True)

    def to_prior(self, x: Tensor) -> Tensor:
        return self.log.to_prior(x / x.mean(dim=(1, 2), keepdim=True) + self.floor)


@dataclass(frozen=True, eq=False)
class Sky:
    """Units of log-images: x = (ln(S / mean S + eps) - mu) / scale, with the `Brightness` of it."""

    basis: LogImageBasis
    flux: float = FLUX

    @property
    def brightness(self) -> Brightness:
        mean = torch.from_numpy(self.basis.mean).reshape(self.basis.shape)
        log = enkg.Log(self.basis.scale, mean, *CLIP)
        return Brightness(log, self.basis.epsilon, self.flux)

    def to_simulator(self, x: Tensor) -> Tensor:
        return self.brightness.to_simulator(x)

    def to_prior(self, x: Tensor) -> Tensor:
        return self.brightness.to_prior(x)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A prior, its units, and the method that suits both."""

    prior: Any
    units: Brightness | Sky
    guidance: enkg.Guidance


def chosen(
    name: PriorName, members: int, pixels: int, field_of_view: float, folder: Path | None = None
) -> Chosen:
    """The prior of that name. folder: of a learned one; priors/rings if None."""
    if name == "learned":
        return _learned(folder or rings.FOLDER, members, pixels, field_of_view)
    basis = cached_basis(
        "controls" if name == "control" else "rings",
        pixels=pixels,
        field_of_view_uas=field_of_view,
    )
    transform = enkg.Eigenbasis(torch.from_numpy(basis.basis), basis.shape)
    zero, variance = torch.zeros(basis.shape), torch.from_numpy(basis.variance)
    gaussian = enkg.Gaussian(zero, variance, transform)
    if name == "mixture":
        guidance = enkg.EnKG(
            members=members,
            deterministic=True,
            updates=8,
            sigma_start=2.0,
            sigma_end=0.02,
            polish=enkg.Polish(0),
        )
        mixture = enkg.Mixture.shrunken(gaussian, torch.from_numpy(basis.coefficients))
        return Chosen(mixture, Sky(basis), guidance)
    return Chosen(gaussian, Sky(basis), enkg.EnKG(members=members, deterministic=True, cap=0.15))


def _learned(folder: Path, members: int, pixels: int, field_of_view: float) -> Chosen:
    prior = enkg.Trained(folder, precision="bfloat16")
    if prior.shape != (pixels, pixels) or field_of_view != Rings.field_of_view:
        raise enkg.InputError(
            f"the learned prior of {folder} knows images of {' x '.join(map(str, prior.shape))} "
            f"pixels in a field of {Rings.field_of_view:g} microarcseconds; {pixels} pixels a side "
            f"and {field_of_view:g} microarcseconds were asked for"
        )
    if not isinstance(prior.units, enkg.Log):
        raise enkg.InputError(
            f"the learned prior of {folder} has units of kind {type(prior.units).__name__}; "
            "expected Log, of images as experiments/training/rings.py makes them"
        )
    guidance = enkg.EnKG(
        members=members,
        deterministic=True,
        updates=6,
        sigma_start=2.0,
        sigma_end=0.02,
        flow=enkg.Flow(levels=12, sigma_min=0.02),
        clean_steps=3,
        polish=enkg.Polish(8, sigma_end=0.05),
    )
    return Chosen(prior, Brightness(prior.units, FLOOR), guidance)


def imaging(
    data: ClosureData,
    prior: PriorName,
    members: int | None,
    field_of_view: float,
    pixels: int = 64,
    truth: np.ndarray | None = None,
    folder: Path | None = None,
) -> enkg.Experiment:
    """The inversion of one table.

    members: None takes `MEMBERS`. truth: image (n, n) of a synthetic observation, Jy per pixel.
    folder: of the learned prior; priors/rings if None.
    """
    selected = chosen(
        prior, MEMBERS[prior] if members is None else members, pixels, field_of_view, folder
    )
    place = (pixels - 1) / 2 - np.arange(pixels)
    place = place * field_of_view / pixels
    return enkg.Experiment(
        prior=selected.prior,
        simulator=data.simulator(pixels, field_of_view),
        observation=enkg.Observation(
            data.y, std=data.std, independent=len(data.triangles) + len(data.quadrangles)
        ),
        guidance=selected.guidance,
        units=selected.units,
        unknown=enkg.Field(
            "brightness",
            unit="Jy/pixel",
            long_name="total intensity",
            dims=("north", "east"),
            coords={"north": place, "east": place},
            colour_map="afmhot",
        ),
        data=enkg.Field(
            "closure",
            long_name="closure phasors and log closure amplitudes",
            dims=("datum",),
            coords={name: ("datum", values) for name, values in data.per_datum().items()},
        ),
        truth=truth,
        analyse=Reading(data, field_of_view, prior),
    )


def best_shift(image: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Whole-pixel shift of the image, on the torus, that brings it closest to the truth.

    Closures do not know where a source is, so an image is right up to a shift.
    """
    match = np.fft.ifft2(np.fft.fft2(truth) * np.conj(np.fft.fft2(image))).real
    place = np.unravel_index(int(match.argmax()), match.shape)
    return int(place[0]), int(place[1])


@dataclass(frozen=True, eq=False)
class Reading:
    """Chi-squares, ring parameters, FITS images and plots of a posterior; see `Experiment`."""

    data: ClosureData
    field_of_view: float
    prior: str

    def __call__(self, tree: xr.DataTree, folder: Path | None) -> enkg.Analysis:
        images = tree["posterior"].to_dataset()["brightness"].values
        before = tree["prior_samples"].to_dataset()["brightness"].values
        mean = images.mean(axis=0)
        rings, prior_rings = (fit_rings(v[:FITTED], self.field_of_view) for v in (images, before))
        simulator = self.data.simulator(images.shape[1], self.field_of_view, dtype="float64")
        seen = [simulator.visibilities(v) for v in (mean[None], images, before)]
        chi = chi_squares_of(seen[0], self.data)
        diameter = rings.diameter[rings.good]
        low, high = np.quantile(diameter, [0.16, 0.84]) if len(diameter) else (np.nan, np.nan)
        metrics = {
            "chi2_closure_phase": float(chi["closure_phase"][0]),
            "chi2_log_closure_amplitude": float(chi["log_closure_amplitude"][0]),
            "relative_spread": float(images.std(axis=0, ddof=1).sum() / mean.sum()),
            "ring_diameter_uas": {
                "mean": float(diameter.mean()) if len(diameter) else np.nan,
                "low": float(low),
                "high": float(high),
            },
        }
        if "truth" in tree:
            truth = tree["truth"].to_dataset()["brightness"].values
            shifted = torch.from_numpy(np.roll(images, best_shift(mean, truth), axis=(1, 2)))
            known = torch.from_numpy(truth)
            metrics["relative_error_aligned"] = relative_error(shifted.double().mean(0), known)
            metrics["coverage_90_aligned"] = coverage(shifted, known)
        if folder is not None:
            self._write(images, tree.attrs["seed"], folder)
        tables = [self._chi_table(seen), self._ring_table(rings, prior_rings)]
        return enkg.Analysis(metrics, tables)

    def _chi_table(self, seen: list[np.ndarray]) -> enkg.Table:
        rows = []
        for product in ("closure_phase", "log_closure_amplitude"):
            for fraction in (self.data.systematics, 0.0):
                for intra_site in (True, False):
                    budget = self.data.with_systematics(fraction)
                    found = [chi_squares_of(v, budget, intra_site=intra_site) for v in seen]
                    rows.append(
                        [
                            product.replace("_", " "),
                            f"{fraction:.0%}",
                            "with" if intra_site else "without",
                            found[0].counts[product],
                            *(float(np.nanmedian(f[product])) for f in (found[2], found[1])),
                            float(found[0][product][0]),
                        ]
                    )
        return enkg.Table(
            "Chi-squares (1 is expected of the truth)",
            ["product", "systematics", "intra-site", "N", "prior", "posterior", "mean image"],
            rows,
            ["prior, posterior: median over members. " + self.data.summary().splitlines()[1]],
        )

    def _ring_table(self, rings: RingFits, prior: RingFits) -> enkg.Table:
        after, before = rings.quantiles(), prior.quantiles()

        def interval(q: np.ndarray) -> str:
            return f"{q[1]:.3g} [{q[0]:.3g}, {q[2]:.3g}]"

        rows = [[label, interval(after[k]), interval(before[k])] for k, label in RING_ROWS.items()]
        rows.append(["members with a ring", f"{rings.good.mean():.0%}", f"{prior.good.mean():.0%}"])
        return enkg.Table(
            "Ring, median and 68 % interval",
            ["", "posterior", f"{self.prior} prior"],
            rows,
            [
                f"fitted to {len(rings.diameter)} members, unblurred, not debiased for blur",
                "The ring prior holds a ring in every image; only its size, width, brightness and "
                "orientation are open. Compare with --prior control, which holds none."
                if self.prior != "control"
                else "The control prior holds no ring, but the fit accepts many of its images: "
                "judge a ring found here by the spread of its diameter against the prior's.",
            ],
        )

    def _write(self, images: np.ndarray, seed: int, folder: Path) -> None:
        view, data = self.field_of_view, self.data
        named = {"mean": images.mean(axis=0), "standard_deviation": images.std(axis=0, ddof=1)}
        named |= {f"sample_{j}": images[j] for j in range(min(SAMPLES, len(images)))}
        (folder / "fits").mkdir(exist_ok=True)
        for name, image in named.items():
            write_fits(
                folder / "fits" / f"{name}.fits",
                image,
                view,
                right_ascension=data.right_ascension,
                declination=data.declination,
                frequency=data.frequency,
                mjd=data.mjd,
                source=data.source,
                provenance={**data.provenance, "image": name, "prior": self.prior, "seed": seed},
            )
        figures = folder / "figures"
        figures.mkdir(exist_ok=True)
        plot_images(images, view, figures / "images.png", frequency=data.frequency or None)
        plot_coverage(data, figures / "uv_coverage.png")
        plot_closure_phase_residuals(images[:64], data, view, figures / "closure_phases.png")
        plot_log_amplitude_residuals(images[:64], data, view, figures / "log_amplitudes.png")
