"""enkg resume after an orderly end, after failures, and of whatever method; and what it refuses."""

import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import enkg
from tests.enkg.killing import (
    Life,
    Nursery,
    Project,
    assert_clean,
    assert_same,
    begun,
    repeated,
    running,
)
from tests.enkg.mortal import MEMBERS

SLOWLY = ("--pause", "0.03")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module")
def reference(nursery, tmp_path_factory) -> Project:
    """The run that nobody disturbs."""
    project = Project(tmp_path_factory.mktemp("reference"), nursery)
    assert project.run().wait() == 0
    return project


@pytest.fixture
def project(nursery, tmp_path) -> Project:
    return Project(tmp_path / "a", nursery)


def code(life: Life) -> int:
    """Of its end, with what it printed for a message."""
    found = life.wait()
    print(life.text)
    return found


def assert_goes_on(project: Project, reference: Project, *lives: Life, **how) -> None:
    """Resumed, it ends as the reference did, and repeats only what was in hand."""
    assert code(project.resume(**how)) == 0
    assert_same(project.out, reference.out)
    assert_clean(project.out, figures=False)
    lost = sum((running(life.notes) for life in lives), start=Counter())
    again = repeated(project.folder, reference.folder)
    assert again <= lost, (again, lost)


# --- orderly ends ----------------------------------------------------------------------------

ORDERS = {
    "SIGTERM": (signal.SIGTERM, 75, "stopped by SIGTERM"),
    "SIGUSR1": (signal.SIGUSR1, 75, "stopped by SIGUSR1"),
    "Ctrl-C": (signal.SIGINT, 130, "stopped by the keyboard"),
    "time limit": (None, 75, "stopped by the time limit"),
}


def stopped(project: Project, how: str, *more: str, ranks: int = 0, noted: int = 50) -> Life:
    """A life that was asked to end, and did."""
    number, expected, words = ORDERS[how]
    limit = () if number else ("--time-limit", "0:00:01")
    life = project.run(*SLOWLY, *more, *limit, ranks=ranks)
    if number:
        assert life.until_noted(noted)
        life.signal(number)
    assert code(life) == expected
    assert words in life.text
    assert "Traceback" not in life.text
    return life


@pytest.mark.parametrize("how", ORDERS)
def test_that_a_run_that_was_asked_to_end_goes_on(how, project, reference):
    life = stopped(project, how)
    assert "enkg resume goes on with it" in life.text
    assert_goes_on(project, reference, life)


def test_that_a_run_that_ends_in_order_ends_its_program(project, reference):
    assert_goes_on(project, reference, stopped(project, "SIGTERM", "--kind", "program"))


@pytest.mark.parametrize(
    ("how", "ranks", "more"),
    [
        ("SIGTERM", 2, ()),
        pytest.param("SIGUSR1", 2, (), marks=pytest.mark.slow),
        pytest.param("Ctrl-C", 2, (), marks=pytest.mark.slow),
        pytest.param("time limit", 2, (), marks=pytest.mark.slow),
        pytest.param("SIGTERM", 2, ("--kind", "program"), marks=pytest.mark.slow),
        pytest.param("SIGTERM", 3, ("--controller",), marks=pytest.mark.slow),
        pytest.param("SIGUSR1", 3, ("--controller",), marks=pytest.mark.slow),
        pytest.param("Ctrl-C", 3, ("--controller",), marks=pytest.mark.slow),
        pytest.param("time limit", 3, ("--controller",), marks=pytest.mark.slow),
    ],
)
def test_that_ranks_that_were_asked_to_end_go_on(how, ranks, more, project, reference):
    assert_goes_on(project, reference, stopped(project, how, *more, ranks=ranks))


SECOND = {
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
    "Ctrl-C and SIGTERM": (signal.SIGINT, signal.SIGTERM),
    "SIGUSR1 and Ctrl-C": (signal.SIGUSR1, signal.SIGINT),
    "Ctrl-C twice": (signal.SIGINT, signal.SIGINT),
}


@pytest.mark.parametrize("which", SECOND)
def test_that_a_second_signal_ends_it_at_once(which, nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery, "--kind", "program", fails="hang")
    one, two = SECOND[which]
    life = project.run()
    assert life.until_noted(1)
    life.signal(one)  # from now on the program, which is deaf, is given 10 s to end
    assert life.until(lambda: not _awaits(life.pid, one))
    life.signal(two)
    assert code(life) == 143
    (project.folder / "mended").touch()
    assert_goes_on(project, reference, life)


def _awaits(pid: int, number: int) -> bool:
    """Whether a process has not yet taken a signal that was sent to it."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


# --- methods, failures, the cache ------------------------------------------------------------

METHODS = {
    "ESMDA": ("--guidance", "es-mda", "--guidance.updates", "3"),
    "EnKG, square root": ("--guidance", "enkg-square-root", "--guidance.updates", "3"),
    "EnKGPublished": (
        *("--guidance", "enkg-published", "--guidance.levels", "8"),
        *("--guidance.first-guided", "3", "--guidance.last-guided", "4"),
    ),
    "SLR": ("--guidance", "slr", "--guidance.steps", "3", "--guidance.draws", "48"),
}
CASES = {
    **{name: (*words, "--guidance.members", str(MEMBERS)) for name, words in METHODS.items()},
    "seldom a checkpoint": ("--no-often",),
    "failing members": ("--fails", "some"),
    "failing members, dropped": ("--fails", "some", "--failure.drop"),
    "failing members, dropped, seldom": ("--fails", "some", "--failure.drop", "--no-often"),
    "cached": ("--kind", "cached"),
    "double": ("--double",),
}
LATE = 150
"""Notes at which a run is killed: in the third sweep."""


def killed(project: Project, ranks: int = 0, noted: int = LATE) -> Life:
    life = project.run(ranks=ranks)
    assert life.until_noted(noted), life.text
    life.signal(signal.SIGKILL)
    life.wait()
    return life


def undisturbed(folder: Path, nursery: Nursery, *arguments: str, fails: str = "never") -> Project:
    project = Project(folder, nursery, *arguments, fails=fails)
    life = project.run()
    assert code(life) == 0
    assert len(life.notes) > LATE
    return project


SAME = ("seldom a checkpoint", "cached")
"""Cases with the same bits as the first reference."""
LONG = ("EnKG, square root", "double", "failing members, dropped, seldom")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES]
)
def test_that_a_killed_run_of_any_kind_goes_on(case, nursery, reference, tmp_path):
    if case not in SAME:
        reference = undisturbed(tmp_path / "b", nursery, *CASES[case])
    project = Project(tmp_path / "a", nursery, *CASES[case])
    assert_goes_on(project, reference, killed(project))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 3), (3, 2), (0, 2)])
@pytest.mark.parametrize("case", CASES)
def test_that_other_ranks_go_on_with_a_run_of_any_kind(case, ranks, nursery, tmp_path):
    reference = undisturbed(tmp_path / "b", nursery, *CASES[case])
    project = Project(tmp_path / "a", nursery, *CASES[case])
    life = killed(project, ranks[0])
    assert_goes_on(project, reference, life, ranks=ranks[1])


def test_that_members_that_ran_out_of_time_are_not_tried_again(nursery, tmp_path):
    arguments = ("--kind", "program", "--failure.timeout", "0.3", "--failure.retries", "1")
    reference = undisturbed(tmp_path / "b", nursery, *arguments, fails="slow")
    assert enkg.summary(reference.out)["causes"]["timeout"] > 1
    project = Project(tmp_path / "a", nursery, *arguments, fails="slow")
    assert_goes_on(project, reference, killed(project))


def test_that_a_cache_that_has_all_gives_the_same(nursery, tmp_path):
    reference = undisturbed(tmp_path / "b", nursery, "--kind", "cached")
    project = Project(tmp_path / "a", nursery, "--kind", "cached")
    killed(project)
    # Begun anew elsewhere: one member is compared with what the cache has of it.
    assert code(project.start("run", "experiment.py", "--out", "c", "--kind", "cached")) == 0
    assert_same(project.folder / "c", reference.out, calls=False)
    again = repeated(project.folder, reference.folder)
    assert again.total() <= 2


# --- too many failures -----------------------------------------------------------------------


def test_that_a_run_goes_on_once_the_simulator_is_mended(nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery, "--fails", "most")
    life = project.run()
    assert code(life) == 1
    assert "must survive" in life.text
    good = {note.member for note in life.notes} - _failed(life)
    assert good
    again = project.resume()  # nothing has changed
    assert code(again) == 1
    assert {note.member for note in again.notes} == _failed(life)
    (project.folder / "mended").touch()
    assert code(project.resume()) == 0
    assert_same(project.out, reference.out)
    assert all(begun(project.folder)[member] == 1 for member in good)
    assert_clean(project.out, figures=False)


def _failed(life: Life) -> set[str]:
    return {note.member for note in life.notes if note.what == "wrong"}


def test_that_a_run_goes_on_under_another_failure_policy(nursery, tmp_path):
    reference = Project(tmp_path / "b", nursery, "--fails", "most")
    lenient(reference)
    assert code(reference.run()) == 0
    project = Project(tmp_path / "a", nursery, "--fails", "most")
    life = project.run()
    assert code(life) == 1
    lenient(project)
    assert code(project.resume()) == 0
    assert_same(project.out, reference.out)
    again = repeated(project.folder, reference.folder)
    assert set(again) == _failed(life)  # they were tried again
    assert set(again.values()) == {1}


def lenient(project: Project) -> None:
    """A tenth is enough."""
    change(project, "truth=", "failure=enkg.FailurePolicy(minimum_success=0.1), truth=")


def change(project: Project, before: str, after: str, file: str = "experiment.py") -> None:
    text = (project.folder / file).read_text()
    assert before in text
    (project.folder / file).write_text(text.replace(before, after))


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
    for life in (project.resume(), project.run("--resume")):
        assert code(life) == 0
        assert life.notes == []
        assert "simulator calls" in life.text
        assert before == {f: f.read_bytes() for f in project.out.rglob("*") if f.is_file()}


def test_that_a_run_of_a_script_goes_on_in_the_script(project):
    def simulator(x):
        return x[:, :3] if (project.folder / "mended").exists() else 1 / 0

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
    (project.folder / "mended").touch()
    tree = run(resume=True)
    assert tree["posterior"]["x"].shape == (MEMBERS, 6)


CHANGES = {
    "experiment": ("experiment.py", "updates=3", "updates=4", "experiment.guidance changed"),
    "seed": ("experiment.py", "truth=", "seed=7, truth=", "experiment.seed changed"),
    "simulator": ("model.py", "np.tanh(x[:3])", "np.sinh(x[:3])", "the simulator's code"),
}


@pytest.mark.parametrize("which", CHANGES)
def test_that_a_changed_experiment_is_refused_unless_forced(which, project):
    killed(project)
    file, before, after, words = CHANGES[which]
    change(project, before, after, file)
    refused(project.resume(), words, "--force goes on")
    life = project.resume("--force")
    assert code(life) == 0
    assert "the experiment changed" in (project.out / "log.txt").read_text()


def test_that_an_unfinished_run_is_not_begun_anew_unless_told(project, reference):
    life = killed(project)
    refused(project.run(), "holds an unfinished run", "enkg resume", "--overwrite")
    again = project.run("--overwrite")
    assert code(again) == 0
    assert {note.member for note in life.notes} <= {note.member for note in again.notes}
    assert_same(project.out, reference.out)


def test_that_run_with_resume_goes_on(project, reference):
    life = killed(project)
    assert code(project.run("--resume")) == 0
    assert_same(project.out, reference.out)
    assert repeated(project.folder, reference.folder) <= running(life.notes)


def test_that_only_one_goes_on(project, reference):
    life = killed(project, noted=10)
    first = project.resume()
    assert first.until_noted(1)
    second = project.resume()
    assert second.wait() == 1
    assert "another run is writing" in second.text
    assert code(first) == 0
    assert_same(project.out, reference.out)
    assert repeated(project.folder, reference.folder) <= running(life.notes)


# --- what the disk does ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["meta.json", "rank-0000.zarr/x/c/0/0", "ours.zarr"])
def test_that_a_damaged_checkpoint_costs_nothing(what, project, reference):
    life = killed(project, noted=4 * 33 + 40)  # in the third sweep, after two checkpoints
    newest = max((project.out / "checkpoint").glob("??????"))
    file = newest / what
    if file.is_dir():
        shutil.rmtree(file)
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert_goes_on(project, reference, life)
    assert f"checkpoint {int(newest.name)} is damaged" in (project.out / "log.txt").read_text()


def test_that_a_run_that_died_while_it_wrote_its_first_file_begins(project, reference):
    project.out.mkdir()
    (project.out / "experiment.json.partial").write_text("{")
    assert code(project.run()) == 0
    assert_same(project.out, reference.out)


def test_that_a_run_goes_on_when_the_disk_is_full(project, reference):
    life = project.run("--kind", "program")  # whose notes are not ours to write
    assert life.until_noted(2)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (700, most))
    assert life.until_noted(3 * 66)
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (most, most))
    assert code(life) == 0
    assert_same(project.out, reference.out)
    log = (project.out / "log.txt").read_text() + life.text
    assert "cannot be written" in log
    assert "checkpoint 1 cannot be written" in log
