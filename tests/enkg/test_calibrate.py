"""enkg calibrate: an exact method is calibrated, a collapsed one is caught, and a calibration that
was stopped ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import enkg
from enkg import calibration_report, store
from enkg.__main__ import main
from enkg.calibrate import NUMBERS, calibrate
from tests.enkg.kelvin import experiment as kelvin
from tests.enkg.problems import small_problem, values

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = small_problem()
EXACT = enkg.SLR(members=48, steps=6, draws=64)
PUBLISHED = enkg.EnKGPublished(members=32, levels=12, first_guided=2, last_guided=11)


def small(**changes) -> enkg.Experiment:
    fields = {
        "prior": PROBLEM.gaussian,
        "simulator": PROBLEM.simulate,
        "observation": PROBLEM.observation,
        "guidance": EXACT,
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take longer than the small runs here."""
    monkeypatch.setattr(calibration_report, "figures", lambda found, folder: [])


quick = pytest.mark.usefixtures("undrawn")


class Count:
    """A simulator that counts its members; those with a positive first element may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += len(x)
        y = PROBLEM.simulate(x)
        if self.fails:
            y[x[:, 0] > float(PROBLEM.mean[0])] = np.nan
        return y

    def identity(self) -> str:
        return "counted"


def test_that_an_exact_method_is_calibrated(tmp_path):
    found = calibrate(small(), 20, tmp_path)
    assert found.calibrated, found.reason
    numbers = found.numbers
    for level, share in numbers["coverage"].items():
        # At most as wide as if the six elements of a truth were one.
        assert abs(share["mean"] - float(level)) < 4 * share["standard_error"]
        assert share["standard_error"] < np.sqrt(float(level) * (1 - float(level)) / 20)
    assert numbers["p"] > 0.003
    assert numbers["spread_skill"]["mean"] == pytest.approx(1, abs=0.3)
    assert numbers["misfit_per_datum"]["mean"] == pytest.approx(1, abs=0.5)
    assert numbers["crps"]["relative"] < 1
    assert numbers == json.loads((tmp_path / NUMBERS).read_text())
    for name in ("ranks.png", "coverage.png", "spread_skill.png"):
        assert (tmp_path / "figures" / name).read_bytes()[:4] == b"\x89PNG"


@quick
def test_that_a_collapsed_ensemble_is_caught(tmp_path):
    found = calibrate(small(guidance=PUBLISHED), 6, tmp_path)
    assert not found.calibrated
    assert "too narrow" in found.reason
    assert found.numbers["coverage"]["0.9"]["mean"] < 0.5
    assert found.numbers["spread_skill"]["mean"] < 0.5
    assert found.numbers["trusted"] == 0


@quick
def test_that_truths_are_prior_samples_with_data_of_their_own(tmp_path):
    calibrate(small(), 3, tmp_path)
    trees = [enkg.open(tmp_path / f"truth-00{n}") for n in range(3)]
    truths = np.stack([t["truth"].to_dataset()["x"].values for t in trees])
    data = np.stack([t["observation"].to_dataset()["y"].values for t in trees])
    assert len(np.unique(truths[:, 0])) == 3
    residual = (data - PROBLEM.simulate(truths)) / PROBLEM.noise.diagonal().sqrt().numpy()
    assert 0 < np.abs(residual).max() < 5
    assert len({t.attrs["seed"] for t in trees}) == 3
    z = torch.from_numpy(truths) - PROBLEM.mean
    square = (z @ torch.linalg.inv(PROBLEM.covariance) * z).sum(1)
    assert square.min() > 0.1
    assert square.max() < 30
    other = calibrate(small(seed=1), 2, tmp_path / "other").numbers
    assert other["relative_error"] != calibrate(small(), 2, tmp_path).numbers["relative_error"]


@quick
def test_that_units_masks_and_the_instrument_are_those_of_the_experiment(tmp_path):
    mask = torch.tensor([True, True, False, True])
    seen = enkg.Observation(torch.ones(4), std=5.0, mask=mask)

    def analyse(tree, folder):
        raise AssertionError("made for the data of the file")

    found = calibrate(kelvin(observation=seen, analyse=analyse, truth=None), 2, tmp_path)
    tree = enkg.open(tmp_path / "truth-000")
    assert np.isnan(values(tree, "observation", "flux")).tolist() == (~mask).tolist()
    truth = values(tree, "truth", "temperature")
    assert truth.dtype == np.float32
    assert 250 < truth.mean() < 310  # kelvin
    residual = values(tree, "observation", "flux") - truth.sum(axis=1)
    assert np.nanmax(np.abs(residual)) < 25
    assert found.numbers["elements"] == 16


@quick
def test_that_finished_truths_are_not_done_again_and_more_can_be_asked(tmp_path):
    once, whole = Count(), Count()
    calibrate(small(simulator=once), 2, tmp_path / "grown")
    spent = once.calls
    again = calibrate(small(simulator=once), 2, tmp_path / "grown")
    assert once.calls == spent == again.numbers["calls"] + 2
    grown = calibrate(small(simulator=once), 4, tmp_path / "grown")
    assert grown == calibrate(small(simulator=whole), 4, tmp_path / "whole")
    assert once.calls == whole.calls
    names = (tmp_path / "grown" / NUMBERS, tmp_path / "whole" / NUMBERS)
    assert names[0].read_bytes() == names[1].read_bytes()


@quick
def test_that_an_interrupted_calibration_ends_as_one_that_was_not(tmp_path):
    method = enkg.ESMDA(members=32)
    whole = calibrate(small(guidance=method, simulator=Count()), 2, tmp_path / "whole")
    counted = Count()

    class Interrupted(Count):
        def __call__(self, x):
            if counted.calls > 7 * 32:  # in the second truth
                raise KeyboardInterrupt
            return counted(x)

    with pytest.raises(KeyboardInterrupt):
        calibrate(small(guidance=method, simulator=Interrupted()), 2, tmp_path / "cut")
    assert not (tmp_path / "cut" / NUMBERS).exists()
    assert calibrate(small(guidance=method, simulator=counted), 2, tmp_path / "cut") == whole
    assert counted.calls == whole.numbers["calls"] + 2


@quick
def test_that_a_truth_without_data_is_replaced(tmp_path):
    failing = Count(fails=True)
    policy = enkg.FailurePolicy(minimum_success=0.1)
    calibrate(small(simulator=failing, failure=policy), 4, tmp_path)
    for number in range(4):
        truth = enkg.open(tmp_path / f"truth-00{number}")["truth"].to_dataset()["x"].values
        assert truth[0] <= float(PROBLEM.mean[0])


@quick
def test_that_a_prior_without_draws_is_flowed(tmp_path):
    plain = PROBLEM.one_component

    class Denoiser:
        shape = plain.shape

        def denoise(self, x, sigma):
            return plain.denoise(x, sigma)

    method = enkg.EnKG(members=32, updates=2)
    found = calibrate(small(prior=Denoiser(), guidance=method), 2, tmp_path)
    assert np.isfinite(found.numbers["crps"]["mean"])


@quick
def test_that_nothing_else_is_touched(tmp_path):
    with pytest.raises(enkg.InputError, match="at least 2"):
        calibrate(small(), 1, tmp_path / "one")
    enkg.run(small(), tmp_path / "run")
    with pytest.raises(enkg.StoreError, match="no calibration wrote"):
        calibrate(small(), 2, tmp_path / "run")
    calibrate(small(), 2, tmp_path / "cal")
    with pytest.raises(enkg.StoreError, match=r"cal was begun with another experiment.*seed"):
        calibrate(small(seed=5), 2, tmp_path / "cal")
    with pytest.raises(enkg.StoreError, match="guidance"):
        calibrate(small(guidance=replace(EXACT, members=50)), 2, tmp_path / "cal")
    with (
        store.claimed(tmp_path / "cal"),
        pytest.raises(enkg.StoreError, match="another run is writing"),
    ):
        calibrate(small(), 2, tmp_path / "cal")


def test_that_a_run_that_fails_says_which_truth_it_was(tmp_path):
    broken = lambda x: np.where(len(x) == 1, PROBLEM.simulate(x), np.nan)  # noqa: E731
    with pytest.raises(enkg.EnsembleFailure) as caught:
        calibrate(small(simulator=broken), 2, tmp_path)
    assert any("truth 0" in note for note in caught.value.__notes__)
    with pytest.raises(enkg.EnsembleFailure) as caught:
        calibrate(small(simulator=lambda x: np.full((len(x), 3), np.nan)), 2, tmp_path / "none")
    assert any("20 prior samples in a row" in note for note in caught.value.__notes__)


# --- the command line -----------------------------------------------------------------------

FILE = """\"\"\"Two of four numbers.\"\"\"
import os, signal
from pathlib import Path
import torch
import enkg

HERE = Path(__file__).parent


def simulator(x):
    with open(HERE / "calls", "a") as stream:
        stream.write(f"{len(x)}\\n")
    stop = HERE / "stop"
    if stop.exists() and len((HERE / "calls").read_text().split()) == int(stop.read_text()):
        stop.unlink()
        os.kill(os.getpid(), int((HERE / "signal").read_text()))
    return x[:, :2].copy()


def experiment(std: float = 0.5) -> enkg.Experiment:
    return enkg.Experiment(
        prior=enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,))),
        simulator=simulator,
        observation=enkg.Observation(torch.ones(2), std=std),
        guidance=enkg.ESMDA(members=64),
    )
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.py").write_text(FILE)
    return tmp_path


@quick
def test_that_the_command_prints_tables_and_one_sentence(here, capsys):
    words = ["calibrate", "e.py", "--truths", "3", "--std", "0.4", "--guidance.members", "48"]
    assert main([*words, "--seed", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("ESMDA, 48 members, 3 truths", "coverage", "3/3", "component 3", "calibrated: "):
        assert part in out
    assert "numbers in runs/e-calibration/calibration.json" in out
    record = store.recorded(here / "runs/e-calibration/synthetic")
    assert record["arguments"] == ["--std", "0.4", "--guidance.members", "48", "--seed", "2"]
    assert record["source"] == "e.py"
    assert main(["show", "runs/e-calibration"]) == 0
    again = capsys.readouterr().out
    assert again.strip()
    assert again in out
    Path("runs/e-calibration", NUMBERS).unlink()
    assert main(["show", "runs/e-calibration"]) == 1
    assert "runs/e-calibration is not finished" in capsys.readouterr().err
    assert main(["calibrate", "e.py", "--truths", "1"]) == 1
    assert "at least 2" in capsys.readouterr().err
    assert main([*words, "--out", "b", "--guidance", "enkg"]) == 0
    assert "EnKG, 48 members" in capsys.readouterr().out


def lives(here: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "enkg", "calibrate", "e.py", "--truths", "3", *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_that_a_stopped_calibration_ends_as_one_that_was_not(here, number, capsys):
    assert main(["calibrate", "e.py", "--truths", "3", "--out", "whole"]) == 0
    calls = (here / "calls").read_text()
    (here / "calls").unlink()
    (here / "signal").write_text(str(int(number)))
    (here / "stop").write_text("9")  # truth, 4 sweeps, prediction; then truth and 2 sweeps
    first = lives(here, "--out", "cut")
    if number == signal.SIGTERM:
        assert first.returncode == 75
        assert "the calibration is not finished: the same command goes on" in first.stderr
    else:
        assert first.returncode == -signal.SIGKILL
    assert not (here / "cut" / NUMBERS).exists()
    assert lives(here, "--out", "cut").returncode == 0
    assert (here / "cut" / NUMBERS).read_bytes() == (here / "whole" / NUMBERS).read_bytes()
    repeated = len((here / "calls").read_text().split()) - len(calls.split())
    assert repeated <= 1  # the sweep that was cut
