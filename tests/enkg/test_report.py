"""What people see in the terminal: the numbers of a run, and its progress."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

import enkg
from enkg import report
from enkg.progress import Watch
from tests.enkg.kelvin import MEMBERS, experiment

SUMMARY = {
    "method": "EnKG",
    "members": 40,
    "data": 4,
    "calls": 12345,
    "failed": 6,
    "denoiser_calls": 7,
    "seconds": 8.25,
    "simulator_seconds": 1.0,
    "prior_misfit_per_datum": 31.4159,
    "misfit_per_datum": None,
    "spread": 0.5,
    "metrics": {"relative_error": 0.123456, "both": {"a": 1, "b": 2.5}, "found": True},
    "tables": [{"title": "rings", "columns": ["name", "size"], "rows": [["a", 1.5]], "notes": []}],
    "trusted": False,
    "reason": "the misfit [of all] is 9.00",
}


def terminal(interactive: bool = False) -> Console:
    return Console(file=StringIO(), width=120, force_terminal=interactive, color_system=None)


def text(console: Console) -> str:
    """What was printed; each movement of the cursor begins a line."""
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", console.file.getvalue())


def shown(**changes) -> str:
    console = terminal()
    report.show({**SUMMARY, **changes}, console)
    return text(console)


def test_that_the_numbers_of_a_run_are_shown():
    out = shown()
    for part in ("EnKG, 40 members", "12,345", "31.4", "0.123", "relative error", "rings", "1.5"):
        assert part in out
    assert "a 1, b 2.5" in out
    (row,) = [line for line in out.splitlines() if "misfit per datum, posterior" in line]
    assert row.split()[-2] == "-"  # unknown, and not "nan"


DIAGNOSTICS = {
    "misfit_bounds": [0.03, 4.45],
    "effective_rank": 12.34,
    "prior_effective_rank": 5.0,
    "effective_rank_members": 40,
    "distance_from_prior": 0.91,
    "distance_bounds": [0.35, 2.1],
    "distance_denoiser_calls": 0,
    "spread_skill_at_least": 0.5,
}


def test_that_the_diagnostics_are_shown_with_their_bounds():
    history = {"beta": [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]}
    out = shown(diagnostics=DIAGNOSTICS, tempering=history, misfit_per_datum=1.5)
    for part in (
        "1.5 (0.03 to 4.45)",
        "12.3 / 5 (of 40 members)",
        "0.91 (0.35 to 2.10)",
        "0.1, 0.2, 0.3, 0.4, ..., 1 (7 updates)",
    ):
        assert part in out
    few = shown(diagnostics=DIAGNOSTICS, tempering={"beta": [0.25, 1.0]})
    assert "0.25, 1 " in few
    unknown = {**DIAGNOSTICS, "distance_from_prior": None, "distance_bounds": None}
    assert "distance" not in shown(diagnostics=unknown, tempering={"beta": []})


def test_that_low_fidelity_calls_are_shown_where_there_are_any():
    lines = " ".join(shown(low_calls=1280, call_equivalents=208.125).split())
    assert "low-fidelity calls │ 1,280" in lines
    assert "call equivalents │ 208.125" in lines
    assert "low-fidelity" not in shown()


def test_that_the_verdict_comes_last_and_in_full():
    assert shown().rstrip().splitlines()[-1] == "not trusted: the misfit [of all] is 9.00"
    trusted = shown(trusted=True).rstrip().splitlines()[-1]
    assert trusted.startswith("trusted: ")


def test_that_units_in_brackets_are_shown():
    table = {"title": "ring [low band]", "columns": ["name", "diameter [uas]"], "notes": []}
    table["rows"] = [["M87 [core]", 40.1]]
    out = shown(metrics={"error [K]": 0.5}, tables=[table])
    for part in ("error [K]", "ring [low band]", "diameter [uas]", "M87 [core]"):
        assert part in out


@pytest.mark.parametrize("interactive", [False, True])
def test_that_every_update_has_its_line(interactive):
    console = terminal(interactive)
    enkg.run(experiment(), observer=Watch(console))
    lines = [line.split() for line in text(console).splitlines()]
    calls = [words[5] for words in lines if len(words) == 8 and words[0] in ("1", "2", "3")]
    assert calls == [str(MEMBERS), str(2 * MEMBERS), str(3 * MEMBERS)]
    assert "4 data, at most 120 guided simulator calls" in text(console)
    assert ("inversion" in text(console)) == interactive  # a bar only where somebody watches


def test_that_a_low_fidelity_simulator_has_a_column():
    console = terminal()
    plain = experiment()
    cheap = enkg.Low(plain.simulator, cost=0.1)
    guidance = enkg.SLR(members=8, steps=4, pairs=4, paired_steps=2, draws=8)
    enkg.run(replace(plain, low=cheap, guidance=guidance), observer=Watch(console))
    out = text(console)
    assert "guided simulator calls, low-fidelity ones included" in out
    (head,) = [line for line in out.splitlines() if line.endswith("seconds     low")]
    assert len(head) < 80
    lines = [line.split() for line in out.splitlines()]
    seen = [(words[5], words[8]) for words in lines if len(words) == 9 and words[0].isdigit()]
    assert seen == [("0", "8"), ("0", "16"), ("4", "24"), ("8", "32")]


def test_that_the_bar_stops_when_a_run_fails():
    watch = Watch(terminal(interactive=True))
    with pytest.raises(enkg.EnsembleFailure):
        enkg.run(experiment(simulator=lambda x: 1 / 0), observer=watch)
    assert watch.bar is not None
    assert not watch.bar.live.is_started
