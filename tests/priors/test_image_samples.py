"""Log-image coordinates and their cache."""

from typing import Any

import numpy as np
import pytest

from priors.image_samples import cache_folder, cached_basis
from priors.log_images import log_images, principal_components
from priors.ring_images import ring_images

SMALL: dict[str, Any] = {"count": 40, "components": 10, "pixels": 16}


@pytest.fixture(scope="module")
def images():
    return ring_images(300, 0, pixels=32)


@pytest.fixture(scope="module")
def basis(images):
    return principal_components(images, components=40)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENKG_CACHE", str(tmp_path))


# --- coordinates ----------------------------------------------------------------------------


def test_that_the_basis_is_orthonormal_and_the_variances_descend(basis):
    np.testing.assert_allclose(basis.basis.T @ basis.basis, np.eye(40), atol=1e-5)
    assert (np.diff(basis.variance) <= 0).all()
    assert basis.variance.min() > 0


def test_that_the_variances_are_the_leading_eigenvalues_of_the_covariance(images, basis):
    logs = log_images(images, 0.01).astype(float)
    logs -= logs.mean(0)
    eigenvalues = np.linalg.eigvalsh(logs @ logs.T / len(logs))[::-1]
    assert basis.scale == pytest.approx(np.sqrt(eigenvalues.sum() / 32**2) / 0.5)
    np.testing.assert_allclose(basis.variance * basis.scale**2, eigenvalues[:40], rtol=1e-4)
    assert basis.explained == pytest.approx(eigenvalues[:40].sum() / eigenvalues.sum())


def test_that_the_coefficients_have_mean_zero_and_the_stated_covariance(basis):
    z = basis.coefficients.astype(float)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.T @ z / len(z), np.diag(basis.variance), atol=1e-4)


def test_that_a_pixel_of_the_scaled_coordinates_has_standard_deviation_one_half(images, basis):
    scaled = (log_images(images, 0.01) - basis.mean) / basis.scale
    assert np.mean(scaled.astype(float) ** 2) == pytest.approx(0.25, rel=1e-5)


def test_that_what_the_basis_leaves_out_is_the_unexplained_variance(images, basis):
    anomalies = log_images(images, 0.01) - basis.mean
    kept = basis.scale * basis.coefficients @ basis.basis.T
    missed = np.sum((anomalies - kept).astype(float) ** 2) / np.sum(anomalies.astype(float) ** 2)
    assert 1 - missed == pytest.approx(basis.explained, abs=1e-5)
    assert basis.explained > 0.9


def test_that_encoding_finds_the_coefficients_and_decoding_the_images(images, basis):
    np.testing.assert_allclose(basis.encode(7 * images), basis.coefficients, atol=1e-3)
    complete = principal_components(images[:60], components=59)
    again = complete.decode(complete.coefficients)
    assert again.shape == (60, 32, 32)
    assert again.min() > 0
    expected = images[:60] + 0.01 / 32**2  # eps lifts the darkness by 1 % of the mean
    np.testing.assert_allclose(again, expected / expected.sum((1, 2), keepdims=True), rtol=1e-2)


def test_that_many_images_give_the_exact_directions_by_the_fast_path(monkeypatch):
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((400, 400)) * np.arange(1, 401)[:, None] ** -0.8
    images = np.exp(generator.standard_normal((500, 400)) @ mixing).reshape(500, 20, 20)
    exact = principal_components(images, components=30)
    monkeypatch.setattr("priors.log_images.EXACT_SIZE", 100)
    fast = principal_components(images, components=30)
    np.testing.assert_allclose(fast.variance, exact.variance, rtol=1e-5)
    np.testing.assert_allclose(fast.basis.T @ fast.basis, np.eye(30), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(fast.basis * exact.basis, axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("exact_size", [100, 1500])
def test_that_repeated_images_do_no_harm(images, exact_size, monkeypatch):
    monkeypatch.setattr("priors.log_images.EXACT_SIZE", exact_size)
    basis = principal_components(np.repeat(images[:20], 10, axis=0), components=30)
    assert np.isfinite(basis.basis).all()
    assert basis.explained == pytest.approx(1)
    np.testing.assert_allclose(basis.basis.T @ basis.basis, np.eye(30), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": 300}, "components is 300"),
        ({"components": 0}, "components is 0"),
        ({"epsilon": 0.0}, "positive floor"),
    ],
)
def test_that_impossible_coordinates_are_refused_in_words(images, change, message):
    with pytest.raises(ValueError, match=message):
        principal_components(images, **change)


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_that_an_image_without_sense_is_named(images, value):
    broken = images.copy()
    broken[17, 3, 3] = value
    with pytest.raises(ValueError, match="image 17"):
        principal_components(broken, components=5)


def test_that_equal_images_are_refused():
    with pytest.raises(ValueError, match="samples that differ"):
        principal_components(np.ones((5, 8, 8)), components=2)


# --- the cache ------------------------------------------------------------------------------


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def only_file():
    (path,) = cache_folder().iterdir()
    return path


@pytest.mark.parametrize("recipe", ["rings", "controls"])
def test_that_a_basis_is_drawn_once_and_then_read(recipe):
    seen = []
    first = cached_basis(recipe, **SMALL, progress=lambda *done: seen.append(done))
    assert seen[-1] == (40, 40)
    seen.clear()
    again = cached_basis(recipe, **SMALL, progress=lambda *done: seen.append(done))
    assert not seen
    assert same(first, again)
    assert again.shape == (16, 16)


def test_that_every_argument_has_its_own_file_and_a_spelled_out_default_has_not():
    cached_basis("rings", **SMALL)
    cached_basis("rings", **SMALL, seed=0, mass_scatter=0.35, workers=1)
    only_file()
    for change in ({"seed": 1}, {"components": 9}, {"epsilon": 0.02}, {"mass_scatter": 0.15}):
        cached_basis("rings", **{**SMALL, **change})
    assert len(list(cache_folder().iterdir())) == 5


@pytest.mark.parametrize("harm", ["empty", "cut", "flipped", "noise"])
def test_that_a_spoilt_file_is_made_again_with_a_warning(harm):
    first = cached_basis("rings", **SMALL)
    path = only_file()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 255
    spoilt = {"empty": b"", "cut": content[:middle], "flipped": content, "noise": b"x" * 500}
    path.write_bytes(spoilt[harm])
    with pytest.warns(UserWarning, match="made again"):
        again = cached_basis("rings", **SMALL)
    assert same(first, again)
    assert same(first, cached_basis("rings", **SMALL))
    assert only_file() == path


def test_that_a_file_of_other_arguments_is_not_taken():
    first = cached_basis("rings", **SMALL)
    path = only_file()
    cached_basis("rings", **SMALL, seed=1)
    (other,) = set(cache_folder().iterdir()) - {path}
    other.replace(path)
    with pytest.warns(UserWarning, match="other arguments"):
        assert same(first, cached_basis("rings", **SMALL))


def test_that_a_folder_that_cannot_be_written_costs_only_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENKG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="ENKG_CACHE"):
        basis = cached_basis("rings", **SMALL)
    assert basis.coefficients.shape == (40, 10)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [("spirals", {}, "rings, controls"), ("controls", {"mass_scatter": 0.3}, "takes no mass")],
)
def test_that_an_unknown_recipe_or_argument_is_refused_in_words(recipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        cached_basis(recipe, **SMALL, **arguments)
