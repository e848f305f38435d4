"""Reading uvfits files: bad ones first, then the real one against ehtim."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.m87 import uvfits
from experiments.m87.chi_squares import chi_squares
from experiments.m87.fits_images import read_fits, write_fits
from simulators.black_hole import MICROARCSECOND, coverage
from tests.experiments.crescent import FIELD, crescent

PIXELS = 32


# -- bad files -----------------------------------------------------------------------------------


def one_sentence(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_that_a_missing_file_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist") as caught:
        uvfits.read_uvfits(tmp_path / "absent.uvfits")
    one_sentence(caught)


@pytest.mark.parametrize("content", [b"", b"not a FITS file", b"SIMPLE  =", bytes(28800)])
def test_that_a_file_that_is_not_fits_is_refused_in_one_sentence(tmp_path, content, capfd):
    pytest.importorskip("astropy", reason="needs the extra enkg[radio]")
    path = tmp_path / "a.uvfits"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable FITS file") as caught:
        uvfits.read_uvfits(path)
    one_sentence(caught)
    assert capfd.readouterr() == ("", "")


def test_that_a_fits_image_is_not_taken_for_visibilities(tmp_path):
    pytest.importorskip("astropy", reason="needs the extra enkg[radio]")
    write_fits(tmp_path / "a.fits", crescent(), FIELD)
    with pytest.raises(ValueError, match="without visibilities"):
        uvfits.read_uvfits(tmp_path / "a.fits")


@pytest.mark.parametrize("settings", [{"intra_site": "none"}, {"compact_flux": 0.0}])
def test_that_wrong_settings_are_refused_before_the_file_is_opened(settings):
    with pytest.raises(ValueError, match="give"):
        uvfits.read_uvfits("absent.uvfits", **settings)


def test_that_a_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ENKG_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        uvfits.fetch()


def test_that_a_damaged_copy_is_never_used(monkeypatch, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / uvfits.FILE).write_bytes(b"damaged")
    monkeypatch.setenv("ENKG_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="sha256") as caught:
        uvfits.fetch()
    one_sentence(caught)


def test_that_a_closed_network_ends_in_one_sentence(monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch", reason="needs the extra enkg[radio]")

    def closed(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", closed)
    monkeypatch.setenv("ENKG_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set ENKG_DATA to its folder") as caught:
        uvfits.fetch()
    one_sentence(caught)


def test_that_a_missing_package_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(uvfits.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "enkg\[radio\]"'):
        uvfits.import_ehtim()


# -- the real file, against ehtim ----------------------------------------------------------------


@pytest.fixture(scope="session")
def real_file() -> Path:
    folder = os.environ.get("ENKG_DATA")
    if not folder or not list(Path(folder).rglob(uvfits.FILE)):
        pytest.skip(f"needs {uvfits.FILE} below the folder that ENKG_DATA names")
    return uvfits.fetch()


@pytest.fixture(scope="session")
def ehtim():
    try:
        return uvfits.import_ehtim()
    except ImportError:
        pytest.skip("needs the extra enkg[radio]")


@pytest.fixture(scope="session")
def real(real_file, ehtim):
    return uvfits.read_uvfits(real_file, sha256=uvfits.SHA256)


@pytest.fixture(scope="session")
def reference(real_file, ehtim):
    """The same reading done with ehtim alone."""
    with uvfits.quiet():
        observation = ehtim.obsdata.load_uvfits(str(real_file))
        observation.add_scans()
        observation = observation.avg_coherent(0.0, scan_avg=True)
        rows, codes = observation.data, ("AA", "AP")
        short = np.hypot(rows["u"], rows["v"]) < 0.1e9
        pair = np.isin(rows["t1"], codes) & np.isin(rows["t2"], codes)
        factor = 0.6 / np.median(np.abs(rows["vis"][pair]))
        for name in ("vis", "sigma"):
            rows[name][short] *= factor
        observation.reorder_tarr_snr()
        return observation.add_fractional_noise(0.02)


@pytest.fixture(scope="session")
def real_images():
    rng = np.random.default_rng(0)
    return np.stack(
        [crescent(PIXELS), crescent(PIXELS, diameter=36.0), rng.random((PIXELS, PIXELS)) / 1e3]
    )


def ehtim_image(ehtim, image, data):
    """The same pixels as an image of ehtim."""
    with uvfits.quiet():
        psize = FIELD / len(image) * MICROARCSECOND
        place = data.right_ascension, data.declination
        return ehtim.image.Image(image, psize, *place, rf=data.frequency, mjd=data.mjd)


def test_that_the_counts_of_the_real_file_are_the_known_ones(real):
    assert (len(real.u), len(np.unique(real.time)), real.intra_site.sum()) == (216, 22, 27)
    assert (len(real.triangles), len(real.quadrangles)) == (134, 113)
    assert (real.triangles_intra_site.sum(), real.quadrangles_intra_site.sum()) == (64, 59)
    assert sorted(real.stations) == ["AA", "AP", "AZ", "JC", "LM", "PV", "SM"]
    phase, amplitude = np.rad2deg(real.closure_phase_std), real.log_closure_amplitude_std
    assert (np.median(phase), phase.min(), phase.max()) == pytest.approx((4.5, 2.2, 60), rel=0.02)
    assert np.median(amplitude) == pytest.approx(0.11, rel=0.05)
    assert real.provenance["sha256"] == uvfits.SHA256
    assert "rescaled from 1.210 to 0.600 Jy, 27 of 216 rows" in real.summary()


def test_that_closure_sets_values_and_errors_are_those_of_ehtim(real, reference):
    with uvfits.quiet():
        phases = reference.c_phases(count="min", ang_unit="rad")
        amplitudes = reference.c_amplitudes(count="min", ctype="logcamp", debias=False)
    names = ["-".join(row) for row in zip(phases["t1"], phases["t2"], phases["t3"], strict=True)]
    assert real.triangle_names() == names
    np.testing.assert_array_equal(real.time[real.triangles[:, 0]], phases["time"])
    np.testing.assert_allclose(real.closure_phase, phases["cphase"], atol=1e-12)
    np.testing.assert_allclose(real.closure_phase_std, phases["sigmacp"], rtol=1e-12)
    np.testing.assert_array_equal(real.time[real.quadrangles[:, 0]], amplitudes["time"])
    np.testing.assert_allclose(real.log_closure_amplitude, amplitudes["camp"], atol=1e-12)
    np.testing.assert_allclose(real.log_closure_amplitude_std, amplitudes["sigmaca"], rtol=1e-12)


def test_that_visibilities_of_an_image_are_those_of_ehtim(real, ehtim, real_images):
    simulator = real.simulator(PIXELS, FIELD, dtype="float64")
    ours = simulator.visibilities(real_images)
    single = real.simulator(PIXELS, FIELD).visibilities(real_images)
    uv = np.stack([real.u, real.v], axis=1)
    for k, image in enumerate(real_images):
        with uvfits.quiet():
            theirs = ehtim_image(ehtim, image, real).sample_uv(uv, ttype="direct")[0]
        np.testing.assert_allclose(ours[k], theirs, rtol=0, atol=1e-13)
        np.testing.assert_allclose(single[k], theirs, rtol=0, atol=1e-6 * image.sum())


def test_that_chi_squares_are_those_of_ehtim(real, reference, ehtim, real_images):
    chi = chi_squares(real_images, real, FIELD)
    kinds = {
        "visibility": ("vis", {}),
        "amplitude": ("amp", {"debias": False}),
        "closure_phase": ("cphase", {}),
        "log_closure_amplitude": ("logcamp", {"debias": False}),
    }
    for k, image in enumerate(real_images):
        other = ehtim_image(ehtim, image, real)
        for product, (kind, settings) in kinds.items():
            with uvfits.quiet():
                theirs = reference.chisq(other, dtype=kind, ttype="direct", **settings)
            assert chi[product][k] == pytest.approx(theirs, rel=1e-9), product


def test_that_dropping_intra_site_rows_keeps_all_closures_of_the_others(real_file, ehtim):
    data = uvfits.read_uvfits(real_file, intra_site="drop")
    assert (len(data.u), data.intra_site.sum()) == (189, 0)
    assert (len(data.triangles), len(data.quadrangles)) == (107, 91)
    assert "dropped, 27 of 216 rows" in data.summary()


def test_that_leaving_intra_site_closures_out_leaves_the_others_as_they_are(real, real_images):
    inner = real.without_intra_site()
    assert (len(inner.triangles), len(inner.quadrangles)) == (70, 54)
    chi = chi_squares(real_images, real, FIELD, intra_site=False)
    assert chi.counts == {
        "visibility": 189,
        "amplitude": 189,
        "closure_phase": 70,
        "log_closure_amplitude": 54,
    }
    assert not inner.per_datum()["intra_site"].any()


def test_that_unscaled_intra_site_rows_change_amplitudes_only(real, real_file, ehtim):
    kept = uvfits.read_uvfits(real_file, intra_site="keep")
    np.testing.assert_allclose(kept.closure_phase, real.closure_phase, atol=1e-12)
    np.testing.assert_allclose(kept.std, real.std, rtol=1e-9)
    change = np.abs(kept.log_closure_amplitude - real.log_closure_amplitude)
    assert (change[~real.quadrangles_intra_site] < 1e-12).all()
    # One intra-site baseline moves a closure by ln(1.21/0.6); two on one side by twice that, one
    # above and one below the line by nothing.
    step = np.log(1.21 / 0.6)
    assert np.isin(np.rint(change / step), [0, 1, 2]).all()
    assert change.max() == pytest.approx(step, rel=1e-2)


def test_that_the_embedded_stations_give_the_measured_baselines(real):
    track = coverage(real.stations, np.unique(real.time), mjd=real.mjd, lowest_elevation=5.0)
    row_of = {
        (t, a, b): k
        for k, (t, a, b) in enumerate(zip(track.time, track.station1, track.station2, strict=True))
    }
    rows = [row_of[key] for key in zip(real.time, real.station1, real.station2, strict=True)]
    far = np.hypot(track.u[rows] - real.u, track.v[rows] - real.v)
    # Precession since 2000 and the averaging within scans are not in the formula.
    assert far.max() < 0.01 * np.hypot(real.u, real.v).max()


@pytest.mark.parametrize("bytes_kept", [300, 5_000, 100_000, 640_000])
def test_that_a_truncated_file_is_refused_in_one_sentence(real_file, tmp_path, bytes_kept, capfd):
    pytest.importorskip("astropy", reason="needs the extra enkg[radio]")
    path = tmp_path / "cut.uvfits"
    path.write_bytes(real_file.read_bytes()[:bytes_kept])
    with pytest.raises(
        ValueError, match=r"truncated|not a readable|without visibilities"
    ) as caught:
        uvfits.read_uvfits(path)
    one_sentence(caught)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", [0, 300, 800, 6_000])
def test_that_a_file_with_a_damaged_header_is_refused_in_one_sentence(
    real_file, ehtim, tmp_path, where, capfd
):
    content = bytearray(real_file.read_bytes())
    content[where : where + 400] = b"#" * 400
    path = tmp_path / "bad.uvfits"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.uvfits") as caught:
        uvfits.read_uvfits(path, sha256=None)
    one_sentence(caught)
    assert capfd.readouterr() == ("", "")


def test_that_a_changed_byte_is_found_by_the_checksum(real_file, tmp_path):
    content = bytearray(real_file.read_bytes())
    content[300_000] ^= 1
    for name, given in (("changed.uvfits", uvfits.SHA256), (uvfits.FILE, None)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="sha256"):
            uvfits.read_uvfits(tmp_path / name, sha256=given)


def test_that_reading_prints_nothing(real_file, ehtim, capfd):
    uvfits.read_uvfits(real_file)
    assert capfd.readouterr() == ("", "")


def test_that_ehtim_reads_our_fits_images(real, ehtim, tmp_path):
    image, path = crescent(), tmp_path / "mean.fits"
    write_fits(
        path,
        image,
        FIELD,
        right_ascension=real.right_ascension,
        declination=real.declination,
        frequency=real.frequency,
        mjd=real.mjd,
        provenance=real.provenance,
    )
    with uvfits.quiet():
        theirs = ehtim.image.load_fits(str(path))
    np.testing.assert_allclose(theirs.imarr(), image, atol=1e-15)
    assert theirs.psize / ehtim.RADPERUAS == pytest.approx(FIELD / 64)
    assert (theirs.ra, theirs.dec) == pytest.approx((real.right_ascension, real.declination))
    assert (theirs.rf, theirs.mjd, theirs.source) == (real.frequency, real.mjd, "M87")
    with uvfits.quiet():
        theirs.save_fits(str(tmp_path / "theirs.fits"))
    again, field = read_fits(tmp_path / "theirs.fits")
    np.testing.assert_allclose(again, image, atol=1e-15)
    assert field == pytest.approx(FIELD)
