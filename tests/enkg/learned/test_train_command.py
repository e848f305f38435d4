"""enkg train: from files of samples and from Python files, with everything that can go wrong."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from enkg import progress
from enkg.__main__ import main
from enkg.learned import Trained, card
from tests.enkg.learned.fields import drawn

QUICK = (
    *("--steps", "4", "--batch", "8", "--looks", "1", "--held-out", "0", "--device", "cpu"),
    *("--network.channels", "4", "8", "--network.groups", "4"),
)
PLAIN = '''"""Fields of eight points a side."""
import enkg
from enkg.learned import Training, UNet
from tests.enkg.learned.fields import training as small

training = small(network=UNet((4, 8), groups=4), steps=4)
'''
TYPED = '''
from enkg.learned import Training, UNet
from tests.enkg.learned.fields import drawn, training as small


def training(count: int = 30, loud: bool = False) -> Training:
    """Learns from a few fields.

    Args:
        count: How many fields.
    """
    return small(samples=drawn(count), network=UNet((4, 8), groups=4), steps=4)
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty project with samples; the import path is restored."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    np.save("fields.npy", drawn(40).numpy())
    for name, text in {"plain": PLAIN, "typed": TYPED}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def call(*words: str) -> int:
    """The exit code."""
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


def said(capsys) -> str:
    """All that was printed, on one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_that_a_file_of_samples_becomes_a_prior(capsys):
    assert call("train", "fields.npy", *QUICK, "--about", "A test.", "--unknown.name", "w") == 0
    prior = Trained("priors/fields")
    assert prior.shape == (8, 8)
    assert prior.unknown.name == "w"
    assert prior.card["about"] == "A test."
    assert prior.card["training"]["recipe"] == "fields.npy"
    assert prior.card["training"]["steps"] == 4
    text = said(capsys)
    assert "40 samples to learn from, 0 held out; 4 steps of 8 samples of shape (8, 8)" in text
    assert 'the prior is in priors/fields/, with figures: enkg.Trained("priors/fields")' in text


def test_that_a_variable_of_a_netcdf_file_can_be_named(capsys):
    x = drawn(40).numpy()
    data = xr.Dataset({"w": (("time", "y", "x"), x), "h": (("y", "x", "time"), x.T)})
    data.to_netcdf("flow.nc", engine="h5netcdf")
    assert call("train", "flow.nc", *QUICK) == 1
    assert "w" in said(capsys)
    words = ("--variable", "h", "--sample-dim", "time", "--out", "mine")
    assert call("train", "flow.nc", *words, *QUICK) == 0
    assert Trained("mine").shape == (8, 8)


def test_that_a_python_file_can_define_the_training(capsys):
    assert call("train", "plain.py", "--out", "a") == 0
    assert call("train", "typed.py", "--out", "b", "--count", "20", "--seed", "3") == 0
    assert Trained("a").card["training"]["samples"] == 40
    told = Trained("b").card["training"]
    assert (told["samples"], told["seed"]) == (20, 3)


def test_that_every_field_is_listed(capsys):
    assert call("train", "fields.npy", "--help") == 0
    text = said(capsys)
    for word in ("--resume", "--time-limit", "--steps", "--network.channels", "--noise.mean"):
        assert word in text
    assert "Learning rate. It rises over" in text
    assert call("train", "typed.py", "--help") == 0
    text = said(capsys)
    for word in ("--count", "How many fields.", "--batch", "--network.patch"):
        assert word in text
    assert call("train", "--help") == 0
    assert "Turn samples of the unknown into a diffusion prior" in said(capsys)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "stopped by the keyboard; the training is not finished: the same"),
        (signal.SIGALRM, 75, "stopped by the time limit; the training is not finished: the same"),
        (signal.SIGTERM, 75, "command with --resume goes on"),
    ],
)
def test_that_a_training_that_was_stopped_goes_on(monkeypatch, capsys, number, code, words):
    if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("Ctrl-C is ignored here")
    assert call("train", "plain.py", "--out", "whole") == 0
    stepped = progress.Learning.stepped

    def cut(self, step, *rest) -> None:
        stepped(self, step, *rest)
        if step == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Learning, "stepped", cut)
        assert call("train", "plain.py", "--out", "cut") == code
    assert words in said(capsys)
    assert call("train", "plain.py", "--out", "cut") == 1
    assert "cut holds an unfinished training; --resume goes on with it" in said(capsys)
    assert call("train", "plain.py", "--out", "cut", "--resume", "--rate", "0.1") == 1
    assert "holds a training with other rate; --force goes on" in said(capsys)
    assert call("train", "plain.py", "--out", "cut", "--resume") == 0
    assert "goes on from step 2" in said(capsys)
    digests = [card.read(Path(n))["files"]["weights"] for n in ("whole", "cut")]
    assert digests[0] == digests[1]
    assert call("train", "plain.py", "--out", "cut", "--resume") == 0  # it is done already
    assert call("train", "plain.py", "--out", "cut") == 1
    assert "cut holds a prior; give another --out, or --overwrite" in said(capsys)


def test_that_the_time_limit_ends_a_training(capsys):
    words = ("--steps", "1000000", "--time-limit", "0:03", "--out", "long")
    assert call("train", "plain.py", *words) == 75
    assert "stopped by the time limit" in said(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.npy",), "nowhere.npy"),
        (("nowhere.py",), "there is no file nowhere.py"),
        (("run.py",), "It defines `experiment`, which is for: enkg run run.py"),
        (("fields.npy", "--variable", "w"), "fields.npy"),
        (("plain.py", "--variable", "w"), "are for files of data; plain.py says itself"),
        (("broken.py",), "broken.py:2: ZeroDivisionError"),
        (("wrong.py",), "`training` in wrong.py is a int; expected an enkg.Training"),
        (("returns.py",), "`training` in returns.py returned a int; expected an enkg.Training"),
        (("plain.py", "--time-limit", "soon"), "'soon' is no length of time"),
        (("plain.py", "--device", "tpu"), "device 'tpu' cannot be used here"),
    ],
)
def test_that_a_mistake_is_one_sentence(here, capsys, words, message):
    (here / "run.py").write_text("experiment = 1\n")
    (here / "broken.py").write_text("\n1 / 0\n")
    (here / "wrong.py").write_text("training = 1\n")
    (here / "returns.py").write_text("def training() -> int:\n    return 1\n")
    assert call("train", *words) == 1
    text = said(capsys)
    assert "error: " in text
    assert message in text
    assert "Traceback" not in text


def test_that_an_unknown_option_is_a_mistake_of_usage(capsys):
    assert call("train", "plain.py", "--stepps", "3") == 2
    assert "--stepps" in said(capsys)
    assert call("train", "plain.py", "--batch", "0") == 2
    assert "batch is 0; expected at least 1" in said(capsys)
    assert call("train") == 2


def test_that_the_card_can_be_shown(folder, capsys):
    assert call("show", str(folder)) == 0
    text, merits = said(capsys), card.read(folder)["merits"]
    assert "tiny A field on a torus." in text
    assert "limit: Knows eight points a side." in text
    assert "members (8, 8)" in text
    assert "48 samples seen in 6 steps" in text
    assert "not finished" not in text
    assert f"{merits['denoising']['ratio'][3]:.3f}" in text
    assert f"energy distance of samples {merits['energy']['value']:.4f}" in text


def test_that_trainings_are_listed(here, capsys):
    (here / "experiments").mkdir()
    (here / "experiments" / "fields.py").write_text(PLAIN)
    assert call("list", str(here)) == 0
    text = said(capsys)
    assert "trainings" in text
    assert "experiments/fields.py" in text
    assert "Fields of eight points a side." in text


def test_that_the_folder_of_an_autoencoder_is_told_from_a_prior(capsys):
    autoencoder = Path(__file__).parents[3] / "priors" / "digits" / "autoencoder"
    assert main(["show", str(autoencoder)]) != 0
    assert "its prior over latents is in" in capsys.readouterr().err
