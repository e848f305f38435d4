"""enkg resume after an orderly end, after failures, and of whatever method."""

import signal
from pathlib import Path

import pytest

import enkg
from tests.enkg.killing import (
    Life,
    Project,
    assert_clean,
    assert_goes_on,
    assert_same,
    begun,
    code,
    cut_off,
    repeated,
    undisturbed,
)
from tests.enkg.mortal import MEMBERS

SLOWLY = ("--pause", "0.03")


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


@pytest.mark.parametrize(
    "how", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow), "Ctrl-C", "time limit"]
)
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


@pytest.mark.parametrize(
    "which",
    [
        "Ctrl-C twice",
        pytest.param("SIGTERM twice", marks=pytest.mark.slow),
        pytest.param("Ctrl-C and SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGUSR1 and Ctrl-C", marks=pytest.mark.slow),
    ],
)
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
    "SLR-refined": (
        "--guidance",
        "slr-refined",
        "--guidance.steps",
        "2",
        "--guidance.draws",
        "48",
        "--guidance.refine",
        "2",
    ),
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


SAME = ("seldom a checkpoint", "cached")
"""Cases with the same bits as the first reference."""
LONG = ("ESMDA", "EnKG, square root", "double", "failing members", "failing members, dropped")
"""Left to the slow tests."""


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES]
)
def test_that_a_killed_run_of_any_kind_goes_on(case, nursery, reference, tmp_path):
    if case not in SAME:
        reference = undisturbed(tmp_path / "b", nursery, *CASES[case])
    project = Project(tmp_path / "a", nursery, *CASES[case])
    assert_goes_on(project, reference, cut_off(project))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 3), (3, 2), (0, 2)])
@pytest.mark.parametrize("case", CASES)
def test_that_other_ranks_go_on_with_a_run_of_any_kind(case, ranks, nursery, tmp_path):
    reference = undisturbed(tmp_path / "b", nursery, *CASES[case])
    project = Project(tmp_path / "a", nursery, *CASES[case])
    life = cut_off(project, ranks[0])
    assert_goes_on(project, reference, life, ranks=ranks[1])


def test_that_members_that_ran_out_of_time_are_not_tried_again(nursery, tmp_path):
    arguments = ("--kind", "program", "--failure.timeout", "0.3", "--failure.retries", "1")
    reference = undisturbed(tmp_path / "b", nursery, *arguments, fails="slow")
    assert enkg.summary(reference.out)["causes"]["timeout"] > 1
    project = Project(tmp_path / "a", nursery, *arguments, fails="slow")
    assert_goes_on(project, reference, cut_off(project))


@pytest.mark.slow
def test_that_a_cache_that_has_all_gives_the_same(nursery, tmp_path):
    reference = undisturbed(tmp_path / "b", nursery, "--kind", "cached")
    project = Project(tmp_path / "a", nursery, "--kind", "cached")
    cut_off(project)
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
    project.change("truth=", "failure=enkg.FailurePolicy(minimum_success=0.1), truth=")
