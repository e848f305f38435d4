"""What enkg resume finds in a directory: what it refuses, and what it makes of damage."""

import resource

import pytest
import torch

import enkg
from tests.enkg import kelvin
from tests.enkg.killing import (
    Life,
    Project,
    assert_clean,
    assert_goes_on,
    assert_same,
    code,
    cut_off,
    repeated,
    running,
    undisturbed,
)
from tests.enkg.mortal import MEMBERS

# --- what it refuses -------------------------------------------------------------------------


def refused(life: Life, *words: str) -> None:
    """One sentence, and nothing done."""
    assert code(life) == 1
    assert life.text.startswith("error: ")
    assert "Traceback" not in life.text
    for word in words:
        assert word in life.text
    assert life.notes == []


def test_that_a_directory_that_is_none_is_refused(project):
    refused(project.resume(), "out is not a run directory: it has no experiment.json")
    (project.out / "sub").mkdir(parents=True)
    refused(project.resume(), "out is not a run directory: it has no experiment.json")


def test_that_a_finished_run_is_printed(project):
    assert code(project.run()) == 0
    before = {file: file.read_bytes() for file in project.out.rglob("*") if file.is_file()}
    for again in (project.resume, lambda: project.run("--resume")):
        life = again()
        assert code(life) == 0
        assert life.notes == []
        assert "simulator calls" in life.text
        assert before == {f: f.read_bytes() for f in project.out.rglob("*") if f.is_file()}


def test_that_a_run_of_a_script_goes_on_in_the_script(project):
    mended = project.folder / "mended"

    def simulator(x):
        return x[:, :3] if mended.exists() else 1 / 0

    def run(**more):
        return enkg.run(
            enkg.Experiment(
                prior=enkg.Gaussian(torch.zeros(6), torch.ones(6), enkg.Identity((6,))),
                simulator=simulator,
                observation=enkg.Observation([0.4, -0.3, 0.2], std=0.2),
                guidance=enkg.EnKG(members=MEMBERS, updates=1),
            ),
            project.out,
            **more,
        )

    with pytest.raises(enkg.EnsembleFailure):
        run()
    refused(project.resume(), "begun by a Python script", "enkg.run(experiment, directory, resume")
    mended.touch()
    tree = run(resume=True)
    assert tree["posterior"]["x"].shape == (MEMBERS, 6)


CHANGES = {
    "experiment": ("experiment.py", "updates=3", "updates=4", "experiment.guidance changed"),
    "seed": ("experiment.py", "truth=", "seed=7, truth=", "experiment.seed changed"),
    "simulator": ("model.py", "np.tanh(x[:3])", "np.sinh(x[:3])", "the simulator's code"),
}


@pytest.mark.parametrize("which", CHANGES)
def test_that_a_changed_experiment_is_refused_unless_forced(which, project):
    cut_off(project)
    file, before, after, words = CHANGES[which]
    project.change(before, after, file)
    refused(project.resume(), words, "--force goes on")
    life = project.resume("--force")
    assert code(life) == 0
    assert "the experiment changed" in (project.out / "log.txt").read_text()


def test_that_an_unfinished_run_is_not_begun_anew_unless_told(project, reference):
    life = cut_off(project)
    refused(project.run(), "holds an unfinished run", "enkg resume", "--overwrite")
    again = project.run("--overwrite")
    assert code(again) == 0
    assert {note.member for note in life.notes} <= {note.member for note in again.notes}
    assert_same(project.out, reference.out)


@pytest.mark.slow
def test_that_run_with_resume_goes_on(project, reference):
    life = cut_off(project)
    assert code(project.run("--resume")) == 0
    assert_same(project.out, reference.out)
    assert repeated(project.folder, reference.folder) <= running(life.notes)


def test_that_only_one_goes_on(project, reference):
    life = cut_off(project, noted=10)
    first = project.resume()
    assert first.until_noted(1)
    second = project.resume()
    assert second.wait() == 1
    assert "another run is writing" in second.text
    assert code(first) == 0
    assert_same(project.out, reference.out)
    assert repeated(project.folder, reference.folder) <= running(life.notes)


# --- what the disk does ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["meta.json", pytest.param("rank-0000.zarr/x/c/0/0", marks=pytest.mark.slow)]
)
def test_that_a_damaged_checkpoint_costs_nothing(what, project, reference):
    life = cut_off(project, noted=4 * 33 + 40)  # in the third sweep, after two checkpoints
    newest = max((project.out / "checkpoint").glob("??????"))
    data = bytearray((newest / what).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / what).write_bytes(data)
    assert_goes_on(project, reference, life)
    assert f"checkpoint {int(newest.name)} is damaged" in (project.out / "log.txt").read_text()


def test_that_a_run_that_died_while_it_wrote_its_first_file_begins(project, reference):
    project.out.mkdir()
    (project.out / "experiment.json.partial").write_text("{")
    assert code(project.run()) == 0
    assert_same(project.out, reference.out)


def test_that_a_run_goes_on_when_the_disk_is_full(nursery, tmp_path):
    arguments = ("--kind", "program", "--guidance.members", "66", "--double")
    reference = undisturbed(tmp_path / "b", nursery, *arguments)
    project = Project(tmp_path / "a", nursery, *arguments)
    life = project.run()
    assert life.until_noted(2)  # the program, whose notes go on, is another process
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (2000, most))
    assert life.until_noted(2 * 2 * 66 + 2)
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (most, most))
    assert code(life) == 0
    assert_same(project.out, reference.out)
    log = (project.out / "log.txt").read_text()
    assert "answers cannot be written" in log
    assert "checkpoint 0 cannot be written" in log  # of the first ensemble
    assert_clean(project.out, figures=False)


def test_that_an_analysis_that_failed_is_made_up_for(tmp_path):
    calls, broken = [], [True]

    def simulator(x):
        calls.append(len(x))
        return kelvin.simulator(x)

    def analyse(tree, folder):
        if broken:
            raise KeyError("chi2")
        return enkg.Analysis({"mine": 3.0})

    changes = {"simulator": enkg.Function(simulator), "analyse": analyse}
    with pytest.raises(
        enkg.InputError, match="`analyse` failed: KeyError: 'chi2'; the posterior is"
    ):
        enkg.run(kelvin.experiment(**changes), tmp_path)
    paid = sum(calls)
    assert enkg.summary(tmp_path)["calls"] == paid
    broken.clear()
    enkg.run(kelvin.experiment(**changes), tmp_path, resume=True, force=True)
    assert enkg.summary(tmp_path)["metrics"]["mine"] == 3.0
    assert sum(calls) == paid
    assert_clean(tmp_path, figures=True)
