"""The ablations under experiments/ablations: their grids, and what each cell is made of."""

from importlib import import_module
from math import prod
from pathlib import Path

import pytest
import torch

import enkg
from enkg import abilities
from enkg.ablation_cells import Plan
from enkg.guidance import METHODS
from experiments.ablations import (
    conjugate_pigdm,
    daps,
    digits,
    pictures,
    poisson,
    published,
)
from experiments.digits.setting import Setting
from experiments.references.digits import reference
from simulators import small_images

SHIPPED = sorted(file.stem for file in Path(digits.__file__).parent.glob("[a-z]*.py"))


def cells(plan: Plan) -> int:
    return len(plan.numbered)


def test_that_the_quick_table_of_counts_has_both_likelihoods():
    ablation = poisson.ablation(quick=True)
    assert cells(ablation.plan()) == 3 * 2 * 2
    labels = {"guidance": "DPS", "counts": "10", "seed": "0"}
    exact = ablation.build({**labels, "likelihood": "Poisson"})
    normal = ablation.build({**labels, "likelihood": "normal"})
    assert isinstance(exact.observation, enkg.Poisson)
    assert not isinstance(normal.observation, enkg.Poisson)
    assert torch.equal(exact.observation.y, normal.observation.y)
    rates = exact.observation.y[None] + 1
    whitened = [given.observation.residual(rates) for given in (exact, normal)]
    assert torch.equal(*whitened)


def test_that_the_reference_of_counts_knows_the_peak():
    usual, same = Setting("poisson", 3), poisson.Counted("poisson", 3)
    x = usual.image[None].numpy()
    assert (same.simulator(x) == small_images.COUNTS(x)).all()
    assert torch.equal(reference(usual).mean, reference(same).mean)
    bright = reference(poisson.Counted("poisson", 3, peak=200.0))
    # Ten times the counts are a tenth of the variance wherever the data decide.
    assert float(bright.std.mean()) < float(reference(usual).std.mean())


def test_that_the_quick_table_of_the_published_enkg_is_small():
    ablation = published.ablation(quick=True)
    assert cells(ablation.plan()) == 3 * 3
    labels = {"problem": published.LINEAR, "noise": "0.05", "members": "64", "seed": "0"}
    equal = ablation.build({**labels, "guidance": "published, equal calls"})
    assert equal.guidance.sweeps == 10
    assert equal.guidance.members == 64


def test_that_few_step_pigdm_makes_as_many_denoiser_calls_as_levels():
    pytest.importorskip("skimage")
    ablation = conjugate_pigdm.ablation(quick=True)
    assert cells(ablation.plan()) == 3 * 3 * 1 * 2
    for form in ("conjugate", "published", "denoiser"):
        found = conjugate_pigdm.method(form, 5, 4.0, "svd")
        assert found.sweeps == 5
        assert len(found.sigmas) == 6  # pyright: ignore[reportAttributeAccessIssue]
    labels = {"problem": "digits sr4", "weight": "4", "levels": "5", "seed": "0"}
    digit = ablation.build({"guidance": "published", **labels})
    assert digit.shape == (8, 8)


def test_that_pictures_leave_out_what_has_no_operator_to_work_with():
    pytest.importorskip("skimage")
    ablation = pictures.ablation(quick=True)
    skipped = [entry.labels for entry in ablation.plan().cells if entry.skipped]
    left_out = {(labels["guidance"], labels["task"]) for labels in skipped}
    tried = {(name, task) for name in pictures.METHODS for task in ("sr4", "jpeg")}
    kept = tried - left_out
    assert {name for name, task in kept if task == "jpeg"} == {"EnKG", "SLR", "PiGDM", "DDNM+"}
    assert {name for name, task in kept if task == "sr4"} == set(pictures.LINEAR)
    whole = pictures.ablation().plan().cells
    phase = {e.labels["guidance"] for e in whole if e.labels["task"] == "phase" and not e.skipped}
    assert phase == {"EnKG", "SLR", "DPS", "DAPS", "DiffPIR", "RED-diff", "HIO"}


def test_that_a_turned_picture_is_scored_as_the_picture():
    truth = torch.arange(6.0).reshape(2, 3)
    members = torch.stack([truth, truth.flip(0, 1)])
    assert torch.equal(pictures.turned(members, truth), torch.stack([truth, truth]))


@pytest.mark.parametrize("name", SHIPPED)
def test_that_the_quick_grid_of_a_shipped_ablation_is_whole_and_small(name):
    if name == "pictures":
        pytest.importorskip("skimage")
    ablation = import_module(f"experiments.ablations.{name}").ablation(quick=True)
    plan = ablation.plan()
    axes = [list(values) for values in ablation.grid.values()]
    assert len(plan.cells) == prod(map(len, axes))
    assert 0 < cells(plan) <= 60
    assert all(list(entry.labels) == list(ablation.grid) for entry in plan.cells)
    assert all(entry.skipped for entry in plan.cells if entry.number is None)
    assert len({tuple(entry.labels.values()) for entry in plan.cells}) == len(plan.cells)


def test_that_digits_run_whatever_the_simulator_can_serve():
    plan = digits.ablation(seeds=1).plan()
    for entry in plan.cells:
        name, task = entry.labels["guidance"], entry.labels["task"]
        form, simulator = digits.chosen(name, task), small_images.OPERATORS[task]
        if form is not None:
            abilities.require(simulator, METHODS[form].needs, name)
        else:
            assert entry.skipped
            for other in digits.FORMS[name]:
                with pytest.raises(enkg.MissingCapability):
                    abilities.require(simulator, METHODS[other].needs, name)
    served = {e.labels["guidance"] for e in plan.numbered if e.labels["task"] == "jpeg"}
    assert {"weighted", "enkg", "daenk", "es-mda", "daps-mh"} <= served
    assert not served & {"dps", "mmps", "daps", "ddrm", "diffpir", "hio"}


def test_that_a_cell_of_digits_has_all_that_the_table_shows(tmp_path):
    ablation = digits.ablation(quick=True)
    only = {"guidance": ["es-mda"], "task": ["sr4"]}
    found = ablation.run(tmp_path, only=only).squeeze()
    assert str(found["state"].values) == "finished"
    assert all(bool(found[name].notnull()) for name in ablation.measures)
    labels = {"guidance": "es-mda", "task": "sr4", "seed": "0"}
    method = ablation.build(labels).guidance
    assert float(found["calls"]) == method.members * (method.sweeps + 1)
    assert method.members == digits.FEW


def test_that_daps_is_tried_with_its_calls_bounded():
    ablation = daps.ablation(seeds=1)
    for entry in ablation.plan().numbered:
        method = ablation.build(entry.labels).guidance
        assert isinstance(method, enkg.DAPS)
        assert method.levels * method.steps <= daps.MOST
        assert method.move == entry.labels["move"]
