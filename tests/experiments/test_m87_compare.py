"""M87 with a learned prior: its units, its inversion, and the table that compares priors."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import enkg
from experiments.m87.chi_squares import chi_squares
from experiments.m87.compare import as_table, compare, row, run
from experiments.m87.imaging import FLUX, Brightness, Sky, imaging
from experiments.m87.synthetic import observe
from experiments.training.rings import FLOOR
from priors.log_images import principal_components
from tests.experiments.crescent import FIELD, crescent

PIXELS = 16
LOG = enkg.Log(2.0, -1.5, -6.0, 5.0)


def crescents(count: int, pixels: int = PIXELS) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack(
        [
            crescent(pixels, diameter=d, east=e, north=n, position_angle=a)
            for d, e, n, a in zip(
                rng.normal(42, 4, count),
                *rng.normal(0, 3, (2, count)),
                rng.uniform(0, 360, count),
                strict=True,
            )
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("diffusers", reason="needs the extra enkg[train]")
    images = crescents(48)
    training = enkg.Training(
        images / images.mean(axis=(1, 2), keepdims=True) + FLOOR,
        units=LOG,
        network=enkg.UNet((8,), patch=2),
        components=16,
        steps=3,
        batch=8,
        warmup=1,
        held_out=8,
        drawn=4,
        looks=1,
        device="cpu",
    )
    path = tmp_path_factory.mktemp("rings") / "tiny"
    enkg.train(training, path)
    return path


@pytest.fixture(scope="module")
def data():
    return observe(crescent(PIXELS), FIELD, seed=0)


def finished(images: np.ndarray, before: np.ndarray) -> xr.DataTree:
    """A run that is said to have ended with these images, (B, n, n)."""
    dims = ("member", "north", "east")
    summary = {
        "method": "EnKG",
        "misfit_per_datum": 1.25,
        "diagnostics": {"distance_from_prior": 0.9, "distance_bounds": [0.8, 1.2]},
        "calls": 7,
        "denoiser_calls": 70,
        "seconds": 1.5,
    }
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"brightness": (dims, images)}),
            "prior_samples": xr.Dataset({"brightness": (dims, before)}),
        }
    )
    tree.attrs["summary"] = json.dumps(summary)
    return tree


# -- units ---------------------------------------------------------------------------------------


def test_that_images_go_into_the_priors_numbers_and_back_but_for_the_floor():
    images = torch.from_numpy(crescents(3))
    units = Brightness(LOG, FLOOR)
    again = units.to_simulator(units.to_prior(images))
    raised = images / images.mean(dim=(1, 2), keepdim=True) + FLOOR
    torch.testing.assert_close(again, FLUX * raised / raised.sum(dim=(1, 2), keepdim=True))


def test_that_an_image_has_the_flux_whatever_the_numbers():
    x = 10 * torch.randn(4, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    image = Brightness(LOG, FLOOR, flux=0.3).to_simulator(x)
    assert bool((image > 0).all())
    torch.testing.assert_close(image.sum(dim=(1, 2)), torch.full((4,), 0.3))
    brighter = Brightness(LOG, FLOOR, flux=0.3).to_prior(7 * image)
    torch.testing.assert_close(brighter, Brightness(LOG, FLOOR).to_prior(image))


def test_that_the_units_of_log_images_are_those_of_their_basis():
    images = crescents(40)
    basis = principal_components(images, components=39)
    sky = Sky(basis)
    x = torch.from_numpy(basis.coefficients @ basis.basis.T).reshape(-1, PIXELS, PIXELS)
    torch.testing.assert_close(
        sky.to_simulator(x), FLUX * torch.from_numpy(basis.decode(basis.coefficients))
    )
    torch.testing.assert_close(
        sky.to_prior(torch.from_numpy(images)).float(), x, atol=1e-4, rtol=1e-4
    )


# -- the inversion -------------------------------------------------------------------------------


def test_that_a_learned_prior_is_inverted_with_and_its_run_is_not_repeated(folder, data, tmp_path):
    guidance = enkg.EnKG(
        members=8, updates=2, sigma_start=2.0, flow=enkg.Flow(levels=4), polish=enkg.Polish(0)
    )

    def images(group: str) -> np.ndarray:
        given = imaging(data, "learned", 8, FIELD, pixels=PIXELS, folder=folder)
        given = replace(given, guidance=guidance, analyse=None)
        tree = run(given, tmp_path / "one", seed=1, overwrite=False)
        assert tree.attrs["seed"] == 1
        return tree[group].to_dataset()["brightness"].values

    found, before = images("posterior"), images("prior_samples")
    written = (tmp_path / "one" / "summary.json").stat().st_mtime_ns
    assert found.shape == (8, PIXELS, PIXELS)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), FLUX, rtol=1e-5)
    fit = [np.median(chi_squares(v, data, FIELD)["closure_phase"]) for v in (found, before)]
    assert fit[0] < fit[1]
    np.testing.assert_array_equal(images("posterior"), found)
    assert (tmp_path / "one" / "summary.json").stat().st_mtime_ns == written


def test_that_a_learned_prior_of_other_pixels_or_another_field_is_refused(folder, data):
    with pytest.raises(enkg.InputError, match="16 x 16 pixels in a field of 128"):
        imaging(data, "learned", 8, FIELD, pixels=32, folder=folder)
    with pytest.raises(enkg.InputError, match="160 microarcseconds were asked for"):
        imaging(data, "learned", 8, 160.0, pixels=PIXELS, folder=folder)


# -- the table -----------------------------------------------------------------------------------


def test_that_a_line_of_the_table_has_the_numbers_of_known_images():
    truth = crescent(diameter=42.0, width=12.0, asymmetry=0.3)
    blank = np.ones_like(truth)
    seen = observe(truth, FIELD, seed=0)
    images = np.stack([truth, truth, 3 * truth, 3 * truth])
    found = row("learned", finished(images, np.stack([blank, truth])), seen, FIELD)
    assert found["prior"] == "learned"
    assert found["members"] == 4
    assert [found[f"diameter_{q}"] for q in (16, 50, 84)] == pytest.approx([42.0] * 3, abs=0.5)
    assert found["width_50"] == pytest.approx(12.0, abs=0.4)
    assert found["asymmetry_50"] == pytest.approx(0.3, abs=0.01)
    assert found["with_ring"] == 1.0
    assert found["prior_with_ring"] == 0.5
    assert found["prior_diameter_50"] == found["diameter_50"]
    # The flux of an image is not seen, so mean and members fit alike; it is of 0.6, 0.6, 1.8, 1.8.
    for product in ("closure_phase", "log_closure_amplitude"):
        right = float(chi_squares(truth[None], seen, FIELD)[product][0])
        assert found[f"chi2_{product}"] == pytest.approx(right, rel=1e-6)
        assert found[f"chi2_{product}_member"] == pytest.approx(right, rel=1e-6)
    assert found["relative_spread"] == pytest.approx(np.std([1, 1, 3, 3], ddof=1) / 2)
    assert found["distance_from_prior"] == 0.9
    assert found["distance_bound"] == 1.2
    assert found["denoiser_calls"] == 70


def test_that_the_comparison_is_written_as_a_table_and_a_picture(data, tmp_path):
    images = crescents(3)
    trees = {name: finished(images[k:], images) for k, name in enumerate(("gaussian", "learned"))}
    rows = compare(trees, data, FIELD, tmp_path)
    with open(tmp_path / "priors.csv", newline="") as file:
        held = list(csv.DictReader(file))
    assert [line["prior"] for line in held] == ["gaussian", "learned"]
    assert [line["members"] for line in held] == ["3", "2"]
    assert float(held[1]["diameter_50"]) == rows[1]["diameter_50"]
    assert (tmp_path / "priors.png").stat().st_size > 5_000
    table = as_table(rows)
    assert list(table.columns) == ["", "gaussian", "learned"]
    assert ["calls", 7, 7] in [list(line) for line in table.rows]
