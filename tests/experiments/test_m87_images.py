"""Ring fits, FITS images and figures of M87."""

from typing import Any

import numpy as np
import pytest

from experiments.m87.fits_images import read_fits, write_fits
from experiments.m87.plots import (
    brightness_temperature,
    plot_closure_phase_residuals,
    plot_coverage,
    plot_images,
    plot_log_amplitude_residuals,
)
from experiments.m87.ring import PARAMETERS, fit_rings
from experiments.m87.synthetic import observe
from simulators.black_hole import pixel_centres
from tests.experiments.crescent import FIELD, crescent

PIXELS = 32


def blob(width: float = 15.0) -> np.ndarray:
    centre = pixel_centres(64, FIELD)
    return np.exp(-(centre[None, :] ** 2 + centre[:, None] ** 2) / (2 * width**2))


@pytest.fixture(scope="module")
def truth():
    return crescent(PIXELS)


@pytest.fixture(scope="module")
def synthetic(truth):
    return observe(truth, FIELD, seed=0)


# -- rings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known",
    [
        {"diameter": 42.0, "width": 12.0, "asymmetry": 0.3, "position_angle": 150.0},
        {"diameter": 36.0, "width": 8.0, "asymmetry": 0.1, "position_angle": 300.0},
        {
            "diameter": 50.0,
            "width": 20.0,
            "asymmetry": 0.45,
            "position_angle": 10.0,
            "east": -9.0,
            "north": 7.0,
        },
    ],
)
def test_that_a_crescent_is_found_with_the_parameters_it_was_made_with(known):
    fit = fit_rings(crescent(**known)[None], FIELD)
    assert fit.reason == ("",)
    assert fit.diameter[0] == pytest.approx(known["diameter"], abs=0.5)
    assert fit.width[0] == pytest.approx(known["width"], abs=0.4)
    assert fit.asymmetry[0] == pytest.approx(known["asymmetry"], abs=0.01)
    turn = (fit.position_angle[0] - known["position_angle"] + 180) % 360 - 180
    assert abs(turn) < 1.5
    assert fit.east[0] == pytest.approx(known.get("east", 3.0), abs=0.5)
    assert fit.north[0] == pytest.approx(known.get("north", -2.0), abs=0.5)
    assert fit.central_fraction[0] < 0.1
    assert fit.diameter_spread[0] < 1.5


def test_that_finer_pixels_and_another_field_give_the_same_ring():
    fit = fit_rings(crescent(pixels=128, field=160.0)[None], 160.0)
    assert fit.diameter[0] == pytest.approx(42.0, abs=0.3)
    assert fit.width[0] == pytest.approx(12.0, abs=0.2)


def test_that_what_is_no_ring_is_refused_with_a_reason():
    centre = pixel_centres(64, FIELD)
    ellipse = np.exp(-((centre[None, :] / 8) ** 2 + (centre[:, None] / 20) ** 2) / 2)
    images = np.stack([blob(), ellipse, np.ones((64, 64)), 0 * blob(), np.nan * blob(), crescent()])
    fit = fit_rings(images, FIELD)
    assert fit.good.tolist() == [False] * 5 + [True]
    assert all("no ring" in reason for reason in fit.reason[:3])
    assert "positive" in fit.reason[3]
    assert "finite" in fit.reason[4]
    for name in PARAMETERS:
        assert np.isnan(getattr(fit, name)[:5]).all()
    np.testing.assert_array_equal(fit.diameter[5:], fit_rings(crescent()[None], FIELD).diameter)


def test_that_quantiles_of_position_angles_go_through_north():
    images = np.stack([crescent(position_angle=pa) for pa in (350.0, 355.0, 0.0, 5.0, 10.0)])
    low, middle, high = fit_rings(images, FIELD).quantiles()["position_angle"]
    assert min(middle, 360 - middle) < 2
    assert 340 < low < 360
    assert 0 < high < 20


def test_that_one_image_without_a_member_axis_is_refused(truth):
    with pytest.raises(ValueError, match="members first"):
        fit_rings(truth, FIELD)


# -- files and figures ---------------------------------------------------------------------------


def test_that_a_fits_image_comes_back_with_its_field_and_its_history(tmp_path):
    pytest.importorskip("astropy", reason="needs the extra enkg[radio]")
    from astropy.io import fits
    from astropy.wcs import WCS

    image = crescent()
    path = tmp_path / "mean.fits"
    described = {"file": "a.uvfits", "note": "Größe", "sha256": 64 * "0"}
    for _ in range(2):  # the second one replaces the first
        write_fits(
            path,
            image,
            FIELD,
            right_ascension=12.5,
            declination=12.4,
            frequency=227e9,
            mjd=57854,
            provenance=described,
        )
    again, field = read_fits(path)
    np.testing.assert_array_equal(again, image)
    assert field == pytest.approx(FIELD)
    assert [p.name for p in tmp_path.iterdir()] == ["mean.fits"]
    with fits.open(path) as units:
        unit: Any = units[0]
        header = unit.header
        assert header["BUNIT"] == "JY/PIXEL"
        assert "a.uvfits" in str(header["HISTORY"])
        # The brightest pixel lies south-east of the middle, and the sky coordinates say so.
        row, column = np.unravel_index(unit.data.argmax(), (64, 64))
        right_ascension, declination = WCS(header).all_pix2world([[column, row]], 0)[0]
    assert right_ascension > 12.5 * 15
    assert declination < 12.4


def test_that_a_file_that_is_no_fits_image_is_refused(tmp_path):
    pytest.importorskip("astropy", reason="needs the extra enkg[radio]")
    path = tmp_path / "a.fits"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="not a readable FITS image"):
        read_fits(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_fits(tmp_path / "b.fits")
    with pytest.raises(ValueError, match="one square image"):
        write_fits(path, np.ones((2, 3)), FIELD)


def test_that_figures_are_written(tmp_path, synthetic, truth):
    images = np.stack([truth, 1.1 * truth, np.full_like(truth, np.nan)])
    plot_coverage(synthetic, tmp_path / "coverage.png")
    plot_closure_phase_residuals(images, synthetic, FIELD, tmp_path / "phases.png")
    plot_log_amplitude_residuals(images, synthetic, FIELD, tmp_path / "amplitudes.png")
    plot_images(images, FIELD, tmp_path / "images.png", frequency=227e9)
    assert len(list(tmp_path.iterdir())) == 4
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_images(images[2:], FIELD)


def test_that_brightness_temperature_is_that_of_rayleigh_and_jeans():
    # 1 Jy over 1 square microarcsecond at 230 GHz: T = 1.36 lambda[cm]^2 S[mJy] / theta["]^2,
    # whose 1.36 is for a Gaussian beam of pi/(4 ln 2) theta^2.
    image = np.ones((1, 1, 1))
    wavelength = 29.9792458 / 230
    beam = np.pi / (4 * np.log(2))
    expected = 1.36 * wavelength**2 * 1000 / 1e-12 * beam
    assert brightness_temperature(image, 1.0, 230e9)[0, 0, 0] == pytest.approx(expected, rel=2e-3)
