"""Ablations: each cell is the run that it stands for, and no cell harms another."""

import json
import re
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

import enkg
from enkg import ablation_cells as cells
from enkg import ablation_figures, ablation_table, journal, store
from enkg.ablation import Nobody
from enkg.errors import InputError, InUse, StoreError
from tests.enkg.ablating import TIMES, assert_same, opened

METHODS = {"ES-MDA": enkg.ESMDA(16, updates=2), "EnKG": enkg.EnKG(16, updates=2)}
GRID = {"guidance": METHODS, "noise": (0.2, 0.4), "seed": (1,)}


class Count:
    """A simulator that counts its members, known by its name."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x):
        self.calls += len(x)
        return x[:, :2]

    def identity(self):
        return "counted"


count = Count()


def build(guidance, noise, seed, **more) -> enkg.Experiment:
    fields = {
        "prior": enkg.Gaussian(torch.zeros(4), torch.ones(4), enkg.Identity((4,))),
        "simulator": count,
        "observation": enkg.Observation(torch.ones(2), std=noise),
        "guidance": guidance,
        "truth": torch.ones(4),
        "seed": seed,
    }
    return enkg.Experiment(**{**fields, **more})


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than the small runs here; and every test counts from 0."""
    monkeypatch.setattr(ablation_figures, "draw", lambda data, folder: [])
    monkeypatch.setattr(journal, "SHARE", 0.0)  # one checkpoint
    count.calls = 0
    asked.clear()


def ablation(**more) -> enkg.Ablation:
    return enkg.Ablation(**{"experiment": build, "grid": GRID, **more})


def dead(x):
    return x[:, :2] * np.nan


class Seen(Nobody):
    """Notes the labels of the cells that were done."""

    def __init__(self) -> None:
        self.scores = []

    def scored(self, found) -> None:
        self.scores.append((tuple(found.entry.labels.values()), str(found.state)))


def test_that_each_cell_is_the_run_of_its_values(tmp_path):
    data = ablation().run(tmp_path)
    assert dict(data.sizes) == {"guidance": 2, "noise": 2, "seed": 1}
    assert (data["state"] == "finished").all()
    for name, method in METHODS.items():
        for noise in (0.2, 0.4):
            alone = json.loads(enkg.run(build(method, noise, 1)).attrs["summary"])
            cell = data.sel(guidance=name, noise=noise, seed=1)
            assert cell["misfit_per_datum"].item() == alone["misfit_per_datum"]
            assert cell["relative_error"].item() == alone["metrics"]["relative_error"]
            assert cell["calls"].item() == alone["calls"]
            assert cell["trusted"].item() == alone["trusted"]
            folder = cells.folder(tmp_path, cell["cell"].item())
            assert enkg.summary(folder)["calls"] == alone["calls"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The ablation that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_figures, "draw", lambda data, folder: [])
        return ablation().run(tmp_path_factory.mktemp("whole"))


def test_that_finished_cells_are_not_run_again(tmp_path):
    first = ablation().run(tmp_path)
    count.calls = 0
    again = ablation().run(tmp_path)
    assert count.calls == 0
    for name in first.variables:
        assert np.array_equal(first[name], again[name]), name


def test_that_values_can_be_added_and_taken_away(tmp_path):
    first = ablation().run(tmp_path)
    spent = count.calls
    grid = {**GRID, "guidance": {"SLR": enkg.SLR(16, steps=2), **METHODS}, "seed": (1, 2)}
    more = ablation(grid=grid).run(tmp_path)
    assert count.calls - spent == int(more["calls"].sum()) - int(first["calls"].sum())
    kept = more.sel(guidance=list(METHODS), seed=[1])
    for name in ("relative_error", "cell", "state"):
        assert np.array_equal(kept[name], first[name])
    count.calls = 0
    assert_same(ablation().run(tmp_path), first)
    assert count.calls == 0


def test_that_a_cell_that_raises_leaves_the_others(tmp_path, whole):
    def sometimes(guidance, noise, seed):
        if noise == 0.4:
            raise ArithmeticError("too\nwarm")
        return build(guidance, noise, seed)

    data = ablation(experiment=sometimes).run(tmp_path)
    failed = data.sel(noise=0.4, seed=1)
    assert failed["state"].values.tolist() == ["failed", "failed"]
    assert failed["reason"].item(0).startswith("ArithmeticError: too warm (test_ablation.py:")
    assert np.isnan(failed["relative_error"]).all()
    assert not failed["trusted"].any()
    number = failed["cell"].item(0)
    assert "ArithmeticError" in (cells.record(tmp_path, number) or {})["traceback"]
    others = {"noise": 0.2}
    assert_same(data.sel(others), whole.sel(others))
    count.calls = 0
    assert_same(ablation().run(tmp_path), whole)  # failed cells are tried again, and only these
    assert count.calls == 2 * int(whole["calls"].sel(noise=0.4).mean())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda guidance, noise, seed: 3, "InputError: .* returned a int; expected an enkg.Exp"),
        (
            lambda guidance, noise, seed: build(guidance, noise, seed, simulator=dead),
            "EnsembleFailure: ",
        ),
    ],
)
def test_that_every_kind_of_failure_is_told(tmp_path, broken, reason):
    data = ablation(experiment=broken).run(tmp_path, only={"guidance": ["EnKG"]})
    assert (data["state"] == "failed").all()
    assert all(re.match(reason, r) for r in data["reason"].values.ravel())


def test_that_a_changed_cell_is_told_and_kept(tmp_path):
    first = ablation().run(tmp_path)
    changed = {**GRID, "guidance": {**METHODS, "EnKG": enkg.EnKG(24, updates=2)}}
    data = ablation(grid=changed).run(tmp_path)
    assert data["state"].sel(guidance="ES-MDA").values.ravel().tolist() == ["finished"] * 2
    assert data["state"].sel(guidance="EnKG").values.ravel().tolist() == ["changed"] * 2
    reasons = set(data["reason"].sel(guidance="EnKG").values.ravel())
    assert len(reasons) == 1  # so that the table tells it once
    reason = reasons.pop()
    assert reason.startswith("experiment.guidance changed since this cell was run")
    assert "Restore the definition; or give --force" in reason
    told = {"state", "reason", *TIMES}
    for name in set(first.data_vars) - told:
        assert np.array_equal(data[name], first[name], equal_nan=name != "trusted"), name
    assert_same(ablation_table.gather(tmp_path), data)
    spent = count.calls
    assert_same(ablation(grid=changed).run(tmp_path, force=True), first)
    assert_same(ablation().run(tmp_path), first)  # the definition is restored
    assert count.calls == spent


def test_that_a_changed_cell_keeps_what_was_measured(tmp_path):
    how = {"measure": widest, "measures": ("widest",)}
    first = ablation(**how).run(tmp_path)
    grid = {**GRID, "guidance": {name: enkg.EnKG(24, updates=2) for name in METHODS}}
    for _ in range(2):
        data = ablation(grid=grid, **how).run(tmp_path)
        assert (data["state"] == "changed").all()
        assert np.array_equal(data["widest"], first["widest"])
    assert_same(ablation(**how).run(tmp_path), first)
    assert len(asked) == 4


def test_that_numbers_that_a_failed_record_lacks_come_back(tmp_path):
    first = ablation().run(tmp_path)
    for number in range(4):
        before = cells.record(tmp_path, number) or {}
        gone = {"state": "failed", "reason": "it was", "measures": {}, "trusted": False}
        cells.write_record(tmp_path, number, before | gone)
    changed = {**GRID, "guidance": {name: enkg.EnKG(24, updates=2) for name in METHODS}}
    data = ablation(grid=changed).run(tmp_path)
    assert (data["state"] == "changed").all()
    for name in ("relative_error", "calls", "trusted"):
        assert np.array_equal(data[name], first[name])


def test_that_a_changed_cell_without_an_end_has_failed(tmp_path):
    class Stops(Nobody):
        def stepped(self, info, row) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation().run(tmp_path, only={"guidance": ["EnKG"]}, witness=Stops())
    changed = {**GRID, "guidance": {**METHODS, "EnKG": enkg.EnKG(24, updates=2)}}
    data = ablation(grid=changed).run(tmp_path, only={"guidance": ["EnKG"], "noise": [0.2]})
    assert data["state"].item() == "failed"
    assert "experiment.guidance changed since" in data["reason"].item()
    assert f"or remove {tmp_path}/0002 to run this cell anew" in data["reason"].item()
    assert np.isnan(data["relative_error"].item())


def test_that_the_results_are_written_by_who_has_the_directory(tmp_path, monkeypatch):
    def write(directory):
        with pytest.raises(InUse), store.claimed(directory):
            pass
        return ablation_table.gather(directory)

    monkeypatch.setattr(ablation_table, "write", write)
    ablation().run(tmp_path, only={"guidance": ["EnKG"]})


def test_that_another_simulator_is_told_with_advice(tmp_path):
    def other(guidance, noise, seed):
        return build(guidance, noise, seed, simulator=lambda x: x[:, 2:])

    ablation().run(tmp_path, only={"noise": [0.2]})
    data = ablation(experiment=other).run(tmp_path, only={"noise": [0.2]})
    assert (data["state"].sel(noise=0.2) == "changed").all()
    assert all("keep it in another one than" in r for r in data["reason"].values.ravel())


def test_that_some_labels_can_be_run_alone(tmp_path):
    seen = Seen()
    data = ablation().run(tmp_path, only={"guidance": ["EnKG"], "noise": [0.4]}, witness=seen)
    assert seen.scores == [(("EnKG", "0.4", "1"), "finished")]
    assert dict(data.sizes) == {"guidance": 1, "noise": 1, "seed": 1}
    written = opened(tmp_path)
    assert dict(written.sizes) == {"guidance": 2, "noise": 2, "seed": 1}
    assert (written["state"] == "missing").sum() == 3
    with pytest.raises(InputError, match="no value 'DPS'"):
        ablation().run(tmp_path, only={"guidance": ["DPS"]})


def test_that_skipped_combinations_are_not_built(tmp_path):
    def skip(guidance, noise, seed):
        return "no such noise" if noise == 0.4 else None

    def strict(guidance, noise, seed):
        assert noise == 0.2
        return build(guidance, noise, seed)

    data = ablation(experiment=strict, skip=skip).run(tmp_path)
    assert (data["state"].sel(noise=0.4) == "skipped").all()
    assert (data["reason"].sel(noise=0.4) == "no such noise").all()
    assert (data["cell"].sel(noise=0.4) == -1).all()
    assert (data["state"].sel(noise=0.2) == "finished").all()


asked = []


def widest(experiment, tree):
    asked.append(experiment.seed)
    return {"widest": float(tree["posterior"]["x"].std("member").max())}


def test_that_further_numbers_are_measured_once_for_each_definition(tmp_path):
    def other(experiment, tree):
        return {"widest": 2.0}

    data = ablation(measure=widest, measures=("widest",)).run(tmp_path)
    assert data["widest"].notnull().all()
    assert len(asked) == 4
    assert_same(ablation(measure=widest, measures=("widest",)).run(tmp_path), data)
    assert len(asked) == 4
    assert (ablation(measure=other, measures=("widest",)).run(tmp_path)["widest"] == 2).all()
    bad = ablation(measure=lambda experiment, tree: {"noise": 1.0}).run(tmp_path)
    assert (bad["state"] == "failed").all()
    assert "the name 'noise'" in bad["reason"].item(0)


def test_that_an_axis_may_have_the_name_of_a_number_of_the_runs(tmp_path):
    def sized(members, seed):
        return build(enkg.EnKG(members, updates=2), 0.3, seed)

    data = enkg.Ablation(sized, {"members": (8, 16), "seed": (0,)}).run(tmp_path)
    assert data["members"].values.tolist() == [8, 16]
    assert data["calls"].values.ravel().tolist() == [24, 48]


# --- executors --------------------------------------------------------------------------------


def test_that_any_executor_gives_the_same(tmp_path, whole):
    class Late(Executor):
        """Runs all at the end, the last one first."""

        def __init__(self) -> None:
            self.work = []

        def submit(self, fn, /, *args, **kwargs):
            future: Future = Future()
            self.work.insert(0, (future, fn, args))
            if len(self.work) == 4:
                for each, f, given in self.work:
                    each.set_result(f(*given))
            return future

    assert_same(ablation().run(tmp_path, executor=Late()), whole)


def test_that_what_an_executor_loses_has_failed(tmp_path):
    class Lost(ThreadPoolExecutor):
        def submit(self, fn, /, maker, directory, entry, force):
            if entry.number == 1:
                return super().submit(lambda: 1 / 0)
            return super().submit(fn, maker, directory, entry, force)

    with Lost(1) as executor:
        data = ablation().run(tmp_path, executor=executor)
    assert (data["state"] == "failed").sum() == 1
    assert data["reason"].item(1).startswith("ZeroDivisionError: division by zero")


def test_that_a_function_without_a_name_is_not_sent_to_processes(tmp_path):
    with ProcessPoolExecutor(1) as executor, pytest.raises(InputError, match="--workers N"):
        ablation(skip=lambda **values: None).run(tmp_path, executor=executor)


def test_that_a_directory_and_a_cell_belong_to_one_process(tmp_path):
    ablation().run(tmp_path)
    with store.claimed(tmp_path), pytest.raises(StoreError, match="another run is writing"):
        ablation().run(tmp_path)
    before = cells.record(tmp_path, 2)
    with store.claimed(tmp_path / "0002"):
        seen = Seen()
        ablation().run(tmp_path, witness=seen)
    assert [state for _, state in seen.scores].count("running") == 1
    assert cells.record(tmp_path, 2) == before


def test_that_a_stop_ends_all_and_the_same_call_goes_on(tmp_path, whole):
    class Stops(Seen):
        def scored(self, found) -> None:
            super().scored(found)
            if len(self.scores) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation().run(tmp_path / "cut", witness=Stops())
    assert_same(ablation().run(tmp_path / "cut"), whole)
    assert count.calls == int(whole["calls"].sum())


def test_that_times_are_those_of_the_runs(tmp_path):
    data = ablation().run(tmp_path, only={"noise": [0.2]})
    for name in TIMES:
        number = data["cell"].item(0)
        assert data[name].item(0) == enkg.summary(cells.folder(tmp_path, number))[name]
