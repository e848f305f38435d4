"""Runs that go wrong, and unusual simulators that must not."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import enkg
from tests.enkg.kelvin import MEMBERS, OBSERVATION, PRIOR, SIDE, experiment, simulator
from tests.enkg.problems import values


def nothing_but_nan(x):
    return np.full((len(x), SIDE), np.nan)


def half_dead(x):
    y = simulator(x)
    y[: len(x) // 2 + 1] = np.nan
    return y


class Prior:
    shape = (SIDE, SIDE)

    def __init__(self, denoise):
        self.denoise = denoise


FAILURES = {
    "no member survives": ({"simulator": nothing_but_nan}, enkg.EnsembleFailure, "40 of 40"),
    "all raise": ({"simulator": lambda x: 1 / 0}, enkg.EnsembleFailure, "ZeroDivisionError"),
    "too few survive": ({"simulator": half_dead}, enkg.EnsembleFailure, "minimum_success = 0.5"),
    "wrong size": (
        {"simulator": lambda x: simulator(x)[:, :2]},
        enkg.InputError,
        r"shape \(2,\).*shape \(4,\)",
    ),
    "observation of the wrong size": (
        {"observation": enkg.Observation(torch.ones(7), std=1.0), "data": enkg.Field("flux")},
        enkg.InputError,
        r"shape \(4,\).*shape \(7,\)",
    ),
    "negative seed": ({"seed": -1}, enkg.InputError, "seed is -1"),
    "unknown device": ({"device": "abacus"}, enkg.InputError, "abacus"),
    "denoiser of the wrong shape": (
        {"prior": Prior(lambda x, sigma: x[:, :2])},
        enkg.InputError,
        "denoiser was given",
    ),
    "denoiser of NaN": (
        {"prior": Prior(lambda x, sigma: x * torch.nan)},
        enkg.EnsembleFailure,
        "denoiser or the units",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_that_a_failed_run_says_why_and_does_not_look_finished(failure, tmp_path):
    changes, kind, words = FAILURES[failure]
    with pytest.raises(kind, match=words):
        enkg.run(experiment(**changes), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "posterior.zarr").exists()
    assert (tmp_path / "experiment.json").exists()
    log = (tmp_path / "log.txt").read_text()
    assert "ERROR" in log
    assert kind.__name__ in log


def test_that_a_run_that_fails_late_leaves_no_result(tmp_path):
    calls = []

    def breaks_later(x):
        calls.append(1)
        return simulator(x) if len(calls) < 3 else nothing_but_nan(x)

    with pytest.raises(enkg.EnsembleFailure):
        enkg.run(experiment(simulator=breaks_later), tmp_path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"experiment.json", "log.txt", "progress.json", "checkpoint", "first", "answers"}
    assert "beta=0.666" in (tmp_path / "log.txt").read_text()  # how far it came


def test_that_repeated_calls_are_counted_too():
    rows = []

    def fragile(x):
        rows.append(len(x))
        if (x[:, 0, 0] == x[:, 0, 0].max()).any() and len(x) > 1:
            raise ArithmeticError("one of you is too hot")
        return simulator(x)

    tree = enkg.run(experiment(simulator=fragile))
    assert json.loads(tree.attrs["summary"])["calls"] == sum(rows) > 3 * MEMBERS + 24


def seen_in_part(simulate) -> xr.DataTree:
    """A run in which the second of four data is missing."""
    mask = torch.tensor([True, False, True, True])
    y = torch.where(mask, OBSERVATION.y, torch.nan)
    observation = enkg.Observation(y, std=5.0, mask=mask)
    return enkg.run(experiment(simulator=simulate, observation=observation))


def test_that_a_simulator_may_say_nan_where_nothing_was_measured():
    def on_land(x):
        y = simulator(x)
        y[:, 1] = np.nan
        return y

    with_nan, without = seen_in_part(on_land), seen_in_part(simulator)
    assert json.loads(with_nan.attrs["summary"])["failed"] == 0
    expected = values(without, "posterior", "temperature")
    np.testing.assert_array_equal(values(with_nan, "posterior", "temperature"), expected)


def test_that_predictions_where_nothing_was_measured_are_kept():
    tree = seen_in_part(simulator)
    expected = simulator(values(tree, "posterior", "temperature")[:24])
    np.testing.assert_array_equal(values(tree, "predicted", "flux"), expected)


def test_that_one_bad_datum_among_those_measured_fails_the_member():
    def fragile(x):
        y = simulator(x)
        y[2, 3] = np.inf
        return y

    tree = seen_in_part(fragile)
    assert json.loads(tree.attrs["summary"])["failed"] == 4
    assert np.isnan(values(tree, "predicted", "flux")[2]).all()
    assert np.isfinite(values(tree, "posterior", "temperature")).all()


def test_that_minimum_success_decides_how_many_may_die():
    tree = enkg.run(
        experiment(simulator=half_dead, failure=enkg.FailurePolicy(minimum_success=0.3))
    )
    summary = json.loads(tree.attrs["summary"])
    assert not summary["trusted"]
    assert "of the simulator calls failed" in summary["reason"]


@pytest.mark.parametrize("value", [1e20, 1e200])
def test_that_a_finite_blow_up_ends_in_a_result_or_in_words(value):
    def unstable(x):
        y = simulator(x)
        y[3] = value
        return y

    try:
        tree = enkg.run(experiment(simulator=unstable, guidance=enkg.EnKG(members=MEMBERS)))
    except enkg.EnkgError:
        return
    assert np.isfinite(tree["posterior"]["temperature"]).all()


def test_that_a_prior_with_nothing_but_a_flow_keeps_it():
    class FlowOnly:
        shape = PRIOR.shape
        flow = staticmethod(PRIOR.flow)
        denoise = staticmethod(PRIOR.denoise)

    drawn = experiment(
        prior=FlowOnly(), guidance=enkg.EnKG(members=MEMBERS, updates=1, polish=enkg.Polish(0))
    )
    calls = json.loads(enkg.run(drawn).attrs["summary"])["denoiser_calls"]
    # One D(0, 80), and three flows in closed form: to the start, to zero before and after.
    assert calls <= 4 * MEMBERS


def test_that_scalars_can_be_inverted():
    """One unknown number, one datum: m = 0, C = 1, noise 1, y = 2 give N(1, 1/2)."""
    tree = enkg.run(
        enkg.Experiment(
            prior=enkg.Gaussian(torch.tensor(0.0), torch.ones(1), enkg.Identity(())),
            simulator=lambda x: x,
            observation=enkg.Observation(2.0, std=1.0),
            guidance=enkg.EnKG(members=1000),
        )
    )
    x = values(tree, "posterior", "x")
    assert x.shape == (1000,)
    # Standard errors .022 of the mean and .022 of the variance; five of them.
    assert x.mean() == pytest.approx(1, abs=0.12)
    assert x.var() == pytest.approx(0.5, abs=0.12)


def test_that_longer_floats_are_understood():
    tree = enkg.run(experiment(simulator=lambda x: simulator(x).astype(np.longdouble)))
    assert np.isfinite(tree["posterior"]["temperature"]).all()


def test_that_two_runs_do_not_share_a_directory(tmp_path):
    inner = []

    def simulate(x):
        if not inner:
            inner.append(True)
            with pytest.raises(enkg.StoreError, match="another run is writing into"):
                enkg.run(experiment(), tmp_path / "run", overwrite=True)
        return simulator(x)

    enkg.run(experiment(simulator=simulate), tmp_path / "run")
    assert inner
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not (tmp_path / "run" / ".lock").exists()
    enkg.run(experiment(), tmp_path / "run", overwrite=True)
