"""Figures of a learned prior: what is drawn, with the numbers that were given, and what is not."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import enkg
from enkg.errors import InputError
from enkg.learned import figures
from enkg.learned.compare import spectra
from enkg.learned.merits import Denoising
from tests.enkg.problems import normal

UNKNOWN = enkg.Field("w", "1/s", "vorticity", ("y", "x"), colour_map="RdBu")
DENOISING = Denoising(
    (0.1, 1.0, 10.0), (0.08, 0.5, 0.95), (0.09, 0.7, 1.0), (0.9, 0.7, 0.95), (0.01, 0.02, 0.01)
)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that were made."""
    made = []

    def blank(width, height):
        made.append(figures_blank(width, height))
        return made[-1]

    figures_blank = figures.blank
    monkeypatch.setattr(figures, "blank", blank)
    return made


def is_picture(path) -> bool:
    return float(np.std(imread(path)[..., :3])) > 0.01


def test_that_samples_stand_over_held_out_data_on_one_scale(drawn, tmp_path):
    samples, held_out = normal(9, 8, 10), 3 * normal(4, 8, 10, seed=1) - 2
    path = figures.samples_figure(samples, held_out, UNKNOWN, tmp_path / "a" / "samples.png")
    assert path == tmp_path / "a" / "samples.png"
    assert is_picture(path)
    (figure,) = drawn
    images = [axis.images[0] for axis in figure.axes if len(axis.images) == 1]
    maps = [i for i in images if i.get_array().shape == (8, 10)]
    assert len(maps) == 6 + 4
    for image, expected in zip(maps, [*samples[:6], *held_out], strict=True):
        np.testing.assert_array_equal(image.get_array(), expected)
    (limits,) = {image.get_clim() for image in maps}
    assert limits[1] == -limits[0] > 7  # both signs, and the wider of the two
    assert {image.get_cmap().name for image in maps} == {"RdBu"}
    assert figure.get_suptitle() == "vorticity [1/s]"


def test_that_profiles_are_lines_along_their_coordinate(drawn, tmp_path):
    depth = np.linspace(0, 2, 5)
    unknown = enkg.Field("t", "K", dims=("depth",), coords={"depth": depth})
    samples, held_out = 300 + normal(2, 5), 300 + normal(3, 5, seed=1)
    path = figures.samples_figure(samples, held_out, unknown, tmp_path / "samples.png")
    assert is_picture(path)
    lines = [line for axis in drawn[0].axes for line in axis.lines]
    assert len(lines) == 5
    np.testing.assert_array_equal(lines[0].get_xdata(), depth)
    np.testing.assert_array_equal(lines[0].get_ydata(), samples[0])
    np.testing.assert_array_equal(lines[4].get_ydata(), held_out[2])
    low, high = drawn[0].axes[0].get_ylim()
    assert 290 < low <= float(samples[0].min()) <= float(samples[0].max()) <= high < 310
    assert drawn[0].axes[-1].get_ylim() == (low, high)


@pytest.mark.parametrize("shape", [(), (2, 4, 4)])
def test_that_members_of_another_rank_are_not_drawn(shape, tmp_path):
    x = normal(3, *shape)
    path = tmp_path / "samples.png"
    assert figures.samples_figure(x, x, enkg.Field("x"), path) is None
    assert figures.spectrum_figure(spectra(x, x, x), path) is None
    assert not path.exists()


def test_that_members_of_two_shapes_are_refused(tmp_path):
    with pytest.raises(InputError, match="members of one shape"):
        figures.samples_figure(normal(3, 4), normal(3, 5), UNKNOWN, tmp_path / "x.png")


@pytest.mark.parametrize("x", [torch.zeros(2, 4, 4), torch.full((2, 4, 4), torch.nan)])
def test_that_samples_without_a_scale_are_drawn(x, tmp_path):
    path = figures.samples_figure(x, x, UNKNOWN, tmp_path / "samples.png")
    assert path is not None
    assert path.exists()


def test_that_a_spectrum_is_drawn_with_its_ratio_where_the_energy_is(drawn, tmp_path):
    found = spectra(2 * normal(20, 8, 8), normal(20, 8, 8, seed=1), normal(20, 8, 8, seed=2))
    assert found is not None
    path = figures.spectrum_figure(found, tmp_path / "spectrum.png")
    assert is_picture(path)
    left, right = drawn[0].axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), found.held_out[1:])
    np.testing.assert_array_equal(left.lines[1].get_ydata(), found.samples[1:])
    assert tuple(right.lines[0].get_xdata()) == found.compared
    assert float(np.mean(right.lines[0].get_ydata())) == pytest.approx(4, rel=0.3)
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("exact", [None, (0.07, 0.45, 0.9)])
def test_that_errors_are_drawn_against_the_noise(exact, drawn, tmp_path):
    found = Denoising(**{**vars(DENOISING), "exact": exact})
    path = figures.denoising_figure(found, tmp_path / "denoising.png")
    assert is_picture(path)
    left, right = drawn[0].axes
    lines = {line.get_label(): line.get_ydata() for line in left.lines}
    assert set(lines) == {"linear", "learned"} | ({"exact"} if exact else set())
    np.testing.assert_array_equal(lines["learned"], found.learned)
    shares = [tuple(line.get_ydata()) for line in right.lines]
    assert found.ratio in shares
    assert (1.0, 1.0, 1.0) in shares


def test_that_losses_are_drawn_where_they_were_taken(drawn, tmp_path):
    history = {
        "step": range(100),
        "loss": [1 / (1 + s) for s in range(100)],
        "held_out": [0.5 if s % 25 == 0 else float("nan") for s in range(100)],
        "never": [float("nan")] * 100,
    }
    path = figures.loss_figure(history, tmp_path / "loss.png")
    assert is_picture(path)
    (axis,) = drawn[0].axes
    assert [line.get_label() for line in axis.lines] == ["loss", "held out"]
    assert list(axis.lines[1].get_xdata()) == [0, 25, 50, 75]
    assert axis.get_yscale() == "log"


def test_that_an_empty_history_is_not_drawn_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "loss.png"
    assert figures.loss_figure({"step": [], "loss": []}, path) is None
    assert not path.exists()
    with pytest.raises(InputError, match="expected 'step'"):
        figures.loss_figure({"loss": [1.0]}, path)
    with pytest.raises(InputError, match="2 steps and 1 values of 'loss'"):
        figures.loss_figure({"step": [1, 2], "loss": [1.0]}, path)
