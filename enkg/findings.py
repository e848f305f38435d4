"""What a check of a simulator found, and how it is shown."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Grade(StrEnum):
    GOOD = "good"
    DOUBT = "doubt"
    UNSOUND = "unsound"


@dataclass(frozen=True)
class Finding:
    """One thing that was tried. advice: what to change, where something is wrong."""

    grade: Grade
    subject: str
    text: str
    advice: str = ""


@dataclass
class Report:
    """What was found, in order, and the facts that were measured."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return all(finding.grade is not Grade.UNSOUND for finding in self.findings)

    def add(self, grade: Grade, subject: str, text: str, advice: str = "") -> None:
        self.findings.append(Finding(grade, subject, text, advice))


def show(report: Report, console: "Console") -> None:
    """Prints a report, the findings first."""
    from rich.markup import escape
    from rich.table import Table as Grid

    colours = {Grade.GOOD: "green", Grade.DOUBT: "yellow", Grade.UNSOUND: "bold red"}
    grid = Grid(show_header=False, show_edge=False, box=None, pad_edge=False)
    for finding in report.findings:
        text = escape(finding.text)
        if finding.advice:
            text += f"\n[dim]{escape(finding.advice)}[/]"
        colour = colours[finding.grade]
        grid.add_row(f"[{colour}]{finding.grade}[/]", f"[bold]{finding.subject}[/]", text)
    console.print(grid)
    if report.facts:
        console.print()
        grid = Grid(show_header=False, show_edge=False, box=None, pad_edge=False)
        for name, value in report.facts.items():
            grid.add_row(f"[bold]{name}[/]", escape(value))
        console.print(grid)
    doubts = sum(finding.grade is Grade.DOUBT for finding in report.findings)
    words = "the simulator is sound" if report.sound else "the simulator is not sound"
    if report.sound and doubts:
        words += f", with {doubts} doubt{'s' if doubts > 1 else ''}"
    console.print(f"\n[bold]{words}[/]")
