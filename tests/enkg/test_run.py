"""The run loop: its numbers against its own arrays, its observers and its files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import enkg
from enkg import metrics
from enkg.bounds import chi_square
from enkg.distance import distance
from enkg.ensemble import effective_rank
from tests.enkg.kelvin import (
    MEMBERS,
    OBSERVATION,
    PREDICT,
    PRIOR,
    SIDE,
    STD,
    TRUTH,
    UNITS,
    experiment,
    simulator,
)
from tests.enkg.problems import SINGLE, follow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    enkg.run(experiment(), out)
    return out


@pytest.fixture(scope="module")
def tree(folder) -> xr.DataTree:
    return enkg.open(folder).load()


@pytest.fixture(scope="module")
def summary(folder) -> dict:
    return enkg.summary(folder)


# --- the arrays -----------------------------------------------------------------------------


def test_that_the_returned_tree_is_the_one_on_disk(tree):
    returned = enkg.run(experiment())
    for group in ("posterior", "prior_samples", "observation", "predicted", "truth"):
        xr.testing.assert_identical(returned[group].to_dataset(), tree[group].to_dataset())


def test_that_fields_name_dimensions_units_and_coordinates(tree):
    x, y = tree["posterior"]["temperature"], tree["predicted"]["flux"]
    assert x.dims == ("member", "lat", "lon")
    assert x.attrs == {"units": "K", "long_name": "temperature"}
    np.testing.assert_array_equal(x["lat"], [10, 20, 30, 40])
    assert "lon" not in x.coords
    assert y.dims == ("member", "row")
    assert y.attrs == {"units": "W", "long_name": "total flux"}
    assert tree["observation"]["flux"].dims == ("row",)
    assert tree["observation"]["std"].attrs["units"] == "W"
    assert tree["prior_samples"]["temperature"].dims == ("member", "lat", "lon")
    assert tree["prior_samples"]["flux"].dims == ("member", "row")
    assert tree["truth"]["temperature"].dims == ("lat", "lon")
    assert tree["trace"]["beta"].dims == ("step",)


def test_that_the_posterior_is_that_of_the_method_in_the_simulators_units(tree):
    def forward(x0):
        return torch.from_numpy(simulator(UNITS.to_simulator(x0).numpy()))

    states, infos = follow(experiment().guidance, PRIOR, forward, OBSERVATION, like=SINGLE)
    expected = UNITS.to_simulator(states[-1].x)
    np.testing.assert_array_equal(tree["posterior"]["temperature"], expected)
    x0, y0 = infos[0].evaluated[0]
    np.testing.assert_array_equal(tree["prior_samples"]["temperature"], UNITS.to_simulator(x0))
    np.testing.assert_array_equal(tree["prior_samples"]["flux"], y0)
    assert len(infos) == tree["trace"].sizes["step"]


def test_that_the_predicted_data_are_those_of_the_posterior(tree):
    x = tree["posterior"]["temperature"].values[:PREDICT]
    np.testing.assert_array_equal(tree["predicted"]["flux"], simulator(x))


def test_that_the_observation_and_the_truth_are_kept_as_given(tree):
    np.testing.assert_array_equal(tree["observation"]["flux"], OBSERVATION.y)
    np.testing.assert_array_equal(tree["observation"]["std"], np.full(SIDE, 10 * STD))
    assert tree["observation"]["mask"].values.all()
    np.testing.assert_array_equal(tree["truth"]["temperature"], TRUTH)


def test_that_the_trace_grows_as_the_run_does(tree):
    trace = tree["trace"]
    np.testing.assert_array_equal(trace["calls"], MEMBERS * np.arange(1, 4))
    np.testing.assert_allclose(trace["power"], np.full(3, 1 / 3))
    np.testing.assert_allclose(trace["beta"], [1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(trace["failed"], 0)
    assert (np.diff(trace["sigma"]) < 0).all()
    assert (np.diff(trace["seconds"]) >= 0).all()
    assert (np.diff(trace["denoiser_calls"]) > 0).all()
    assert np.isfinite(trace["misfit_per_datum"]).all()


def test_that_without_truth_there_is_none():
    tree = enkg.run(experiment(truth=None))
    assert "truth" not in tree
    assert json.loads(tree.attrs["summary"])["metrics"] == {}


# --- the numbers ----------------------------------------------------------------------------


def test_that_the_numbers_of_the_summary_follow_from_the_arrays(tree, summary):
    x = torch.from_numpy(tree["posterior"]["temperature"].values)
    prior = torch.from_numpy(tree["prior_samples"]["temperature"].values)
    predicted = tree["predicted"]["flux"].values
    residual = (predicted - OBSERVATION.y.numpy()) / (10 * STD)
    assert summary["misfit_per_datum"] == pytest.approx((residual**2).mean())
    before = (tree["prior_samples"]["flux"].values - OBSERVATION.y.numpy()) / (10 * STD)
    assert summary["prior_misfit_per_datum"] == pytest.approx((before**2).mean())
    spread = (x.double().var(0).mean() / prior.double().var(0).mean()).sqrt()
    assert summary["spread"] == pytest.approx(float(spread), rel=1e-5)
    found = summary["metrics"]
    assert found["relative_error"] == pytest.approx(metrics.relative_error(x.mean(0), TRUTH))
    assert found["coverage_90"] == pytest.approx(metrics.coverage(x, TRUTH, 0.9))
    assert found["crps"] == pytest.approx(metrics.crps(x, TRUTH))
    assert found["spread_skill"] == pytest.approx(metrics.spread_skill(x, TRUTH))


def test_that_the_diagnostics_of_the_summary_follow_from_the_arrays(tree, summary):
    found = summary["diagnostics"]
    x = UNITS.to_prior(torch.from_numpy(tree["posterior"]["temperature"].values))
    prior = UNITS.to_prior(torch.from_numpy(tree["prior_samples"]["temperature"].values))
    assert found["effective_rank"] == pytest.approx(effective_rank(x), rel=1e-4)
    assert found["prior_effective_rank"] == pytest.approx(effective_rank(prior), rel=1e-4)
    assert found["effective_rank_members"] == MEMBERS
    gap = distance(PRIOR, x, prior, 0)
    assert gap is not None
    assert found["distance_from_prior"] == pytest.approx(gap.value, rel=1e-4)
    assert found["distance_bounds"] == pytest.approx(gap.bounds)
    assert found["misfit_bounds"] == pytest.approx(chi_square(SIDE))
    assert summary["tempering"]["step"] == [1, 2, 3]
    assert summary["tempering"]["beta"] == tree["trace"]["beta"].values.tolist()
    assert summary["tempering"]["power"] == tree["trace"]["power"].values.tolist()


def test_that_a_method_that_gave_up_is_not_trusted():
    class GivesUp(enkg.EnKG):
        def step(self, state, prior, forward, observation):
            state, info = super().step(state, prior, forward, observation)
            remark = "not converged: it gave up"
            return replace(state, remarks=(remark,) if state.finished else ()), info

    method = GivesUp(members=MEMBERS, updates=3)
    summary = json.loads(enkg.run(experiment(guidance=method)).attrs["summary"])
    assert not summary["trusted"]
    assert summary["reason"] == "not converged: it gave up"


def test_that_the_summary_counts_calls_and_says_who_ran(summary, tree):
    assert summary["calls"] == 3 * MEMBERS + PREDICT
    assert summary["failed"] == 0
    assert summary["method"] == "EnKG"
    assert summary["members"] == MEMBERS
    assert summary["data"] == SIDE
    assert summary["denoiser_calls"] == tree["trace"]["denoiser_calls"].values[-1] > 0
    assert 0 < summary["simulator_seconds"] <= summary["seconds"]
    assert isinstance(summary["trusted"], bool)
    assert summary["reason"]
    attribute = json.loads(tree.attrs["summary"])
    assert {**attribute, "seconds": 0} == {**summary, "seconds": 0}


def test_that_a_posterior_inside_the_noise_is_trusted(summary):
    assert summary["trusted"], summary["reason"]


def test_that_failed_calls_are_counted_and_survived():
    def fragile(x):
        y = simulator(x)
        y[np.argsort(x[:, 0, 0])[-3:]] = np.nan
        return y

    tree = enkg.run(experiment(simulator=fragile))
    summary = json.loads(tree.attrs["summary"])
    assert summary["failed"] == 3 * 4
    assert summary["calls"] == 3 * MEMBERS + PREDICT
    assert np.isfinite(tree["posterior"]["temperature"]).all()
    assert np.isnan(tree["predicted"]["flux"]).any(axis=1).sum() == 3
    assert np.isfinite(summary["misfit_per_datum"])


def test_that_the_default_is_single_precision_and_double_is_an_option():
    assert enkg.run(experiment())["posterior"]["temperature"].dtype == np.float32
    assert enkg.run(experiment(double=True))["posterior"]["temperature"].dtype == np.float64


# --- analysis, observers, files -------------------------------------------------------------


def test_that_an_experiment_adds_its_own_numbers(tmp_path):
    seen = {}

    def analyse(tree, folder):
        seen.update(groups=set(tree.children), folder=folder)
        table = enkg.Table("rows", ["name", "value"], [["a", np.float64(1.5)]])
        return enkg.Analysis({"mine": 3.0, "hole": float("nan")}, [table])

    tree = enkg.run(experiment(analyse=analyse), tmp_path / "out")
    summary = enkg.summary(tmp_path / "out")
    assert summary["metrics"]["mine"] == 3.0
    assert summary["metrics"]["hole"] is None
    assert summary["metrics"]["relative_error"] > 0
    assert summary["tables"][0]["rows"] == [["a", 1.5]]
    assert seen["folder"] == tmp_path / "out"
    assert seen["groups"] == set(tree.children)


def test_that_a_fault_in_the_analysis_does_not_lose_the_posterior(tmp_path):
    def analyse(tree, folder):
        raise KeyError("chi2")

    with pytest.raises(Exception, match="chi2"):
        enkg.run(experiment(analyse=analyse), tmp_path / "out")
    tree = enkg.open(tmp_path / "out")
    assert tree["posterior"]["temperature"].shape == (MEMBERS, SIDE, SIDE)
    assert "ERROR" in (tmp_path / "out" / "log.txt").read_text()


class Witness:
    def __init__(self):
        self.events = []

    def started(self, experiment, sweeps):
        self.events.append(("started", sweeps))

    def simulating(self, done, total):
        self.events.append(("simulating", done))

    def stepped(self, info, row):
        self.events.append(("stepped", info.step))

    def ended(self):
        self.events.append(("ended", None))


def test_that_an_observer_sees_the_run_in_order():
    witness = Witness()
    enkg.run(experiment(), observer=witness)
    kinds = [kind for kind, _ in witness.events if kind != "simulating"]
    assert kinds == ["started", "stepped", "stepped", "stepped", "ended"]
    assert witness.events[0] == ("started", 3)
    assert ("simulating", MEMBERS) in witness.events


def test_that_an_observer_learns_of_the_end_of_a_failed_run():
    witness = Witness()
    with pytest.raises(enkg.EnsembleFailure):
        enkg.run(experiment(simulator=lambda x: 1 / 0), observer=witness)
    assert witness.events[-1][0] == "ended"


def test_that_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    enkg.run(experiment())
    assert not list(tmp_path.iterdir())


FIGURE_CASES = {
    "line": ((6,), {"std": 0.5}, None),
    "map": ((3, 4), {"covariance": torch.eye(3)}, None),
    "volume": ((2, 3, 2), {"std": 0.5}, None),
    "hole": ((6,), {"std": 0.5}, torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("case", FIGURE_CASES)
def test_that_figures_are_drawn_for_any_shape(case, tmp_path):
    shape, noise, mask = FIGURE_CASES[case]
    size = int(np.prod(shape))
    y = torch.zeros(3) if mask is None else torch.where(mask, 0.0, torch.nan)
    small = enkg.Experiment(
        prior=enkg.Gaussian(torch.zeros(shape), torch.ones(size), enkg.Identity(shape)),
        simulator=lambda x: x.reshape(len(x), -1)[:, :3],
        observation=enkg.Observation(y, mask=mask, **noise),
        guidance=enkg.ESMDA(members=8, updates=1),
        truth=torch.zeros(shape),
    )
    enkg.run(small, tmp_path)
    for name in ("posterior.png", "data.png", "trace.png"):
        assert (tmp_path / "figures" / name).read_bytes()[:4] == b"\x89PNG"
