"""The digits problems: truths, data, the experiment and the table of methods."""

import json

import numpy as np
import pytest
import torch

import enkg
from enkg import abilities

pytest.importorskip("sklearn")
from experiments.digits import compare, problem
from experiments.digits.setting import PROBLEMS, Setting
from experiments.images.views import as_image
from priors import digits


def test_that_a_truth_is_a_draw_of_the_prior():
    images = torch.stack([Setting("box", truth).image for truth in range(200)])
    off = torch.stack(
        [
            image - digits.centres().images[Setting("box", k).component]
            for k, image in enumerate(images)
        ]
    )
    assert float(off.std()) == pytest.approx(0.2, rel=0.03)  # 12,800 draws
    assert len({Setting("box", truth).component for truth in range(200)}) > 180
    assert float((images[0] - images[1]).norm()) > 1


def test_that_problems_share_truths_and_noise_levels_share_their_noise():
    assert torch.equal(Setting("sr2", 3, 0.1).image, Setting("hdr", 3).image)
    clean = torch.from_numpy(Setting("sr2").simulator(Setting("sr2").image[None].numpy()))[0]
    low, high = (Setting("sr2", noise=s).observation.y - clean for s in (0.05, 0.1))
    assert torch.allclose(2 * low, high)
    many = torch.stack(
        [
            Setting("hdr", t).observation.residual(
                torch.from_numpy(Setting("hdr", t).simulator(Setting("hdr", t).image[None].numpy()))
            )[0]
            for t in range(60)
        ]
    )
    assert float(many.std()) == pytest.approx(1, abs=0.04)  # 3,840 whitened residuals


def test_that_unknown_problems_and_truths_are_refused():
    with pytest.raises(enkg.InputError, match="sr2"):
        Setting("sr3")
    with pytest.raises(enkg.InputError, match="-1"):
        Setting("box", -1)
    with pytest.raises(enkg.InputError, match="not linear"):
        _ = Setting("hdr").matrix


@pytest.mark.parametrize("name", PROBLEMS)
def test_that_every_problem_is_an_experiment(name):
    given = problem.experiment(name, truth=1)
    prior, observation = given.prior, given.observation
    y = given.simulator(np.asarray(prior.draw(0, range(3), 0)))  # type: ignore[attr-defined]
    assert y.shape == (3, *observation.y.shape)
    assert torch.equal(given.truth, Setting(name, 1).image)
    assert as_image(Setting(name).simulator, observation.y.numpy()).ndim == 2


def test_that_the_simulator_of_a_problem_is_the_operator_with_what_it_offers():
    for name in ("box", "motion", "blur"):
        assert abilities.of(problem.experiment(name).simulator).svd is not None
    assert abilities.of(problem.experiment("hdr").simulator).names() == ("vjp", "pinv")
    assert abilities.of(problem.experiment("jpeg").simulator).names() == ("pinv",)


def test_that_phase_is_judged_where_its_posterior_is_kept():
    assert problem.experiment("phase", truth=0).analyse is not None
    assert problem.experiment("phase", truth=77).analyse is None
    assert problem.experiment("hdr", truth=77).analyse is not None
    assert problem.experiment("jpeg").analyse is None


def test_that_a_run_is_judged_by_the_exact_posterior(tmp_path):
    import dataclasses

    given = dataclasses.replace(problem.experiment("sr2"), guidance=enkg.ESMDA(members=64))
    tree = enkg.run(given, tmp_path / "run")
    found = json.loads(tree.attrs["summary"])["metrics"]
    assert found["energy_distance"] > 0.03  # ES-MDA is Gaussian, the posterior is not
    assert 0.3 < found["error_in_exact_std"] < 10
    assert (tmp_path / "run" / "figures" / "exact.png").is_file()


# --- the table ------------------------------------------------------------------------------


def test_that_methods_take_options():
    found = compare.method("enkg:cap=0.2,members=64,deterministic=true", 128)
    assert found == enkg.EnKG(members=64, cap=0.2, deterministic=True)
    assert compare.method("es-mda", 32).members == 32
    assert compare._split("a=(1, 2),b=[3,4],c=d") == ["a=(1, 2)", "b=[3,4]", "c=d"]
    for wrong in ("nothing", "enkg:caps=1", "enkg:cap"):
        with pytest.raises(enkg.InputError, match="give"):
            compare.method(wrong, 128)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    words = ["--method", "exact", "es-mda", "--problem", "sr2", "box"]
    words += ["--truths", "3", "--members", "64", "--stop"]
    file = folder / "rows.json"
    assert compare.main([*words, "--out", str(folder), "--json", str(file)]) == 0
    return folder, words, json.loads(file.read_text())


def test_that_exact_draws_are_the_floor_of_every_column(rows):
    for row in (r for r in rows[2] if r["method"] == "exact"):
        assert row["en"] == pytest.approx(64**-0.5, rel=0.3)
        assert row["sr"] == pytest.approx(1, abs=0.05)
        assert row["cov"] == pytest.approx(0.9, abs=0.06)  # 3 truths
        assert row["crps"] == pytest.approx(1, abs=0.05)
        assert row["mis"] == pytest.approx(1, abs=0.1)
        assert abs(row["ED"]) < 0.03
        assert row["TV"] < 0.05
    mda = next(r for r in rows[2] if r["method"] == "es-mda" and r["problem"] == "all")
    assert mda["ED"] > 0.05
    assert mda["calls"] == 4
    assert mda["dme"] == 0


def test_that_a_rerun_runs_nothing_and_tells_the_same(rows, monkeypatch, capsys):
    folder, words, before = rows
    monkeypatch.setattr(compare, "made", lambda *_: pytest.fail("was run again"))
    file = folder / "again.json"
    assert compare.main([*words, "--out", str(folder), "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == before
    assert "es-mda" in capsys.readouterr().out


def test_that_another_option_is_another_run(rows, monkeypatch):
    folder, words, _ = rows
    asked = []
    monkeypatch.setattr(compare, "made", lambda *a: asked.append(a) or pytest.skip("asked"))
    with pytest.raises(pytest.skip.Exception):
        compare.main([*words, "--seed", "1", "--out", str(folder)])
    assert asked[0][2] == 1


def test_that_the_code_of_a_method_is_that_of_its_helpers_too():
    # The tempered EnKG and ES-MDA share the Kalman update, the published EnKG has its own.
    from enkg.guidance import kalman

    before = {kind: compare.source_of.__wrapped__(kind) for kind in (enkg.EnKG, enkg.ESMDA)}
    assert len(set(before.values())) == 2
    read = compare.inspect.getsource
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.inspect, "getsource", lambda m: read(m) + "#" * (m is kalman))
        for kind, digest in before.items():
            assert compare.source_of.__wrapped__(kind) != digest


def test_that_a_failed_run_is_told_and_ends_nothing(rows, monkeypatch, capsys):
    folder, words, _ = rows

    def fail(guidance, setting, seed):
        raise enkg.InputError("not today")

    monkeypatch.setattr(compare, "made", fail)
    assert compare.main([*words[:-1], "--seed", "2", "--out", str(folder)]) == 0
    said = capsys.readouterr()
    assert "es-mda on box, truth 2: InputError: not today" in said.err
    assert "exact" in said.out
