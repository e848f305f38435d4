"""kill -9 of anything at any moment, and the run goes on to the same bits without a call twice."""

from collections import Counter
from collections.abc import Callable

import pytest

import enkg
from tests.enkg.killing import (
    Life,
    Project,
    assert_clean,
    assert_same,
    notes,
    repeated,
    running,
)
from tests.enkg.moments import Moment, kill, moments
from tests.enkg.mortal import MEMBERS

EVALUATIONS = 4 * MEMBERS
"""Of the whole run: three updates and the posterior's data."""
Target = Callable[[Life, int], int | None]
"""The process of a life to kill, the n-th time."""


class Tally:
    """What may be begun again: what was in hand when processes were killed."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.kills = 0

    def add(self, life: Life) -> None:
        self.lost += running(life.notes)
        self.kills += 1


def killed(project: Project, life: Life, target: Target, moment: Moment, tally: Tally) -> None:
    """Kills a process of a life, and waits until nothing of the life is left."""
    hit = kill(life, lambda: target(life, tally.kills), moment, EVALUATIONS)
    code = life.wait()
    assert (code != 0) == hit, life.text
    if hit:
        tally.add(life)


def finished(project: Project, reference: Project, tally: Tally) -> None:
    """Resumed once more, it is the run that nobody disturbed."""
    last = project.go_on()
    assert last.wait() == 0, last.text
    assert_same(project.out, reference.out)
    assert_clean(project.out, figures="--figures" in project.arguments)
    again = repeated(project.folder, reference.folder)
    assert again <= tally.lost, (again, tally.lost)
    told = len(notes(project.folder))
    assert project.resume().wait() == 0  # of a finished run: nothing is done
    assert len(notes(project.folder)) == told


# --- processes that guide --------------------------------------------------------------------

ALONE = (0, (), lambda life, _: life.pid)
RANK = (2, (), lambda life, n: life.rank(n % 2))
MPIEXEC = (2, (), lambda life, _: life.pid)
GUIDE = (3, ("--controller",), lambda life, _: life.rank(0))
CREW = (3, ("--controller",), lambda life, n: life.rank(1 + n % 2))
KINDS = {
    "the only process": ALONE,
    "one rank of two": RANK,
    "mpiexec": MPIEXEC,
    "the controller": GUIDE,
    "one of its crew": CREW,
}


DEAR = ("mpiexec", "one of its crew")
"""Left to the slow tests."""


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in DEAR else k for k in KINDS]
)
def test_that_a_run_survives_two_kills_in_a_row(kind, nursery, reference, tmp_path):
    ranks, more, target = KINDS[kind]
    project = Project(tmp_path / "a", nursery)
    tally = Tally()
    first, second = sorted(moments(2, seed=list(KINDS).index(kind)), key=lambda m: m.at)
    killed(project, project.run(*more, ranks=ranks), target, first, tally)
    # With another number of ranks, where that says nothing about who is killed.
    ranks = 3 if kind == "one rank of two" else ranks
    killed(project, project.go_on(*more, ranks=ranks), target, second, tally)
    assert tally.kills
    finished(project, reference, tally)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_that_a_run_survives_a_kill_at_any_moment(kind, number, nursery, reference, tmp_path):
    ranks, more, _ = KINDS[kind]
    project = Project(tmp_path / "a", nursery, "--figures")
    tally = Tally()
    moment = moments(10, seed=100 + list(KINDS).index(kind))[number]
    life = project.run(*more, ranks=max(ranks, 1))  # with all of the start-up
    killed(project, life, lambda life, _: KINDS[kind][2](life, number), moment, tally)
    assert tally.kills
    finished(project, reference, tally)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 3, 1), (1, 2, 3), (3, 1, 2), (1, 3, 2, 3)])
def test_that_any_ranks_go_on_with_what_any_ranks_began(ranks, nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery)
    tally = Tally()
    lives = sorted(moments(len(ranks), seed=sum(ranks)), key=lambda m: m.at)
    for size, moment in zip(ranks, lives, strict=True):
        killed(project, project.go_on(ranks=size), lambda life, _: life.pid, moment, tally)
    assert tally.kills
    finished(project, reference, tally)


def test_that_two_ranks_go_on_with_what_one_process_began(nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery)
    tally = Tally()
    moment = Moment(0.5, 0.3, True)
    killed(project, project.run("--no-often"), lambda life, _: life.pid, moment, tally)
    assert tally.kills
    life = project.resume(ranks=2)
    assert life.wait() == 0, life.text
    finished(project, reference, tally)


# --- programs --------------------------------------------------------------------------------


def with_kills_of_the_worker(project: Project, when: list[Moment]) -> Life:
    """A whole life, in which the program that stays up is killed so often."""
    life = project.run("--kind", "program")
    for moment in when:
        assert kill(life, life.worker, moment, EVALUATIONS), life.text
    assert life.wait() == 0, life.text
    return life


def assert_only_repeated_calls(project: Project, reference: Project, kills: int) -> None:
    """A call is told anew for each kill at most, and counted. Otherwise all is as ever."""
    assert_same(project.out, reference.out, calls=False)
    again = repeated(project.folder, reference.folder)
    assert again <= running(notes(project.folder)), again
    assert again.total() <= kills
    calls = enkg.summary(project.out)["calls"] - enkg.summary(reference.out)["calls"]
    assert again.total() <= calls <= kills


def within(count: int, seed: int) -> list[Moment]:
    """Moments at which the simulator works, in order."""
    drawn = [Moment(0.2 + 0.6 * m.at, m.delay, False) for m in moments(count, seed)]
    return sorted(drawn, key=lambda m: m.at)


def test_that_a_run_goes_on_when_its_program_is_killed_twice(nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery)
    with_kills_of_the_worker(project, within(2, seed=7))
    assert_only_repeated_calls(project, reference, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_that_a_run_goes_on_when_its_program_is_killed(number, nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery)
    with_kills_of_the_worker(project, [within(10, seed=8)[number]])
    assert_only_repeated_calls(project, reference, 1)


def test_that_a_killed_run_takes_its_program_with_it(nursery, reference, tmp_path):
    project = Project(tmp_path / "a", nursery, "--kind", "program")
    tally = Tally()
    for moment in within(2, seed=9):
        life = project.go_on()
        assert life.until(lambda: life.worker() is not None)  # noqa: B023
        killed(project, life, lambda life, _: life.pid, moment, tally)  # nothing is left
    finished(project, reference, tally)
