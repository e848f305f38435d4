"""How a run stands, seen from another terminal or another node: `enkg status`.

Everything is read from the run directory; the run itself is not disturbed.
"""

import fcntl
import json
import os
import shlex
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from enkg import ablation_cells, grid, report, store
from enkg.beat import PROGRESS, State, clock, load
from enkg.errors import StoreError

OLD = 60.0
"""Seconds without a sign of life after which a run is called silent."""
TAIL = 6
"""Lines of log.txt that are shown."""
OPEN = frozenset({State.RUNNING, State.SILENT, State.MISSING})
COLOURS = {State.FINISHED: "green", State.RUNNING: "cyan", State.STOPPED: "yellow"}


@dataclass(frozen=True)
class Status:
    """How a run stands.

    told: what it last said of itself (progress.json), empty where it said nothing. summary: the
    numbers of a finished run. record: its experiment.json. age: seconds since it last said
    anything, by the clocks of two machines; None where it said nothing. text: why a directory
    cannot be read.
    """

    directory: Path
    state: State
    told: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    age: float | None = None
    text: str = ""

    @property
    def sentence(self) -> str:
        """How the run stands and what can be done, in one sentence."""
        resume = f"`enkg resume {shlex.quote(str(self.directory))}` goes on"
        if self.record and self.record.get("source") is None:
            resume = "the script that began it goes on by enkg.run(..., resume=True)"
        after = f"after step {self.told['step']}" if self.told.get("step") else "before step 1"
        reason = self.told.get("reason", "").removeprefix("stopped ")
        match self.state:
            case State.FINISHED:
                return "finished: trusted" if self.summary["trusted"] else "finished: not trusted"
            case State.RUNNING:
                return self._running()
            case State.STOPPED:
                return f"stopped {after}{f' ({reason})' if reason else ''}; {resume}"
            case State.FAILED:
                return f"failed {after}: {reason or 'see log.txt'}; once that is mended, {resume}"
            case State.KILLED if not self.told:
                return f"it ended before it began, and log.txt may say why; {resume}"
            case State.KILLED:
                since = _time(self.told["updated"])
                return (
                    f"no sign of life since {since} and its lock is free: it was killed {after}; "
                    f"{resume}"
                )
            case State.SILENT:
                return self._silent(resume)
            case _:
                return self.text

    def _running(self) -> str:
        told = self.told
        if not told:
            return "running: it is starting"
        ranks = f", {told['ranks']:,} ranks" if told["ranks"] > 1 else ""
        parts = [f"running on host {told['host']}{ranks}, step {told['step']} done"]
        if told["doing"]:
            parts.append(told["doing"])
        elif told["sweep"]:
            parts.append(f"sweep {told['sweep']} of at most {told['sweeps']}")
        if told["members_total"] and told["doing"] != "writing the results":
            whose = "" if told["ranks"] == 1 or _is_whole(told) else " of the first rank"
            parts.append(f"{told['members_done']:,} of {told['members_total']:,} members{whose}")
        if told["seconds_left"] is not None and told["share"] < 1:
            parts.append(f"about {clock(told['seconds_left'])} left")
        if self.age is not None and self.age > OLD:
            parts.append(f"but it last wrote {PROGRESS} {clock(self.age)} ago")
        return ", ".join(parts)

    def _silent(self, resume: str) -> str:
        host = self.told.get("host") or self.record.get("host", "its host")
        since, age = "", ""
        if self.age is not None:
            since, age = f" since {_time(self.told['updated'])}", f" ({clock(self.age)} ago)"
        return (
            f"no sign of life{since}{age}; its lock cannot be judged from here: look on {host} or "
            f"in the queue, and if it is gone, {resume}"
        )

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of log.txt."""
        with suppress(OSError), (self.directory / store.LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            return tuple(file.read().decode(errors="replace").splitlines()[-TAIL:])
        return ()


@dataclass(frozen=True)
class GridStatus:
    """How the runs of a grid stand: one for each configuration."""

    directory: Path
    configurations: Sequence[Mapping[str, Any]]
    runs: Sequence[Status]

    @property
    def counts(self) -> dict[State, int]:
        """How many runs there are of each state."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in State if found[state]}


def read(directory: str | Path) -> Status | GridStatus:
    """How the run in a directory stands, or each run of a grid.

    A grid is a directory with grid.json, or an ablation with ablation.json; its runs lie in 0000,
    0001 and so on. Raises
    StoreError where there is neither, or where a file in it is none of enkg's.
    """
    directory = Path(directory)
    if grid.exists(directory):
        configurations = grid.load(directory).configurations
        runs = [_member(grid.folder(directory, k)) for k in range(len(configurations))]
        return GridStatus(directory, configurations, runs)
    if ablation_cells.exists(directory):
        entries = ablation_cells.load(directory).numbered
        runs = [_cell(directory, entry) for entry in entries]
        return GridStatus(directory, [dict(entry.labels) for entry in entries], runs)
    if not directory.is_dir():
        raise StoreError(f"there is no directory {directory}; give the directory of a run")
    job = directory / (store.JOB + ".id")
    if not (directory / store.RECORD).is_file() and job.is_file():
        number = job.read_text().strip()
        told = f"submitted as job {number}, and not begun; squeue -j {number} tells why"
        return Status(directory, State.MISSING, text=told)
    if not (directory / store.RECORD).is_file():
        raise StoreError(
            f"{directory} is not a run directory: it has no {store.RECORD}, and no {grid.FILE} "
            "either; give what `enkg run` or `enkg submit` was given as --out"
        )
    return _run(directory)


def _run(directory: Path) -> Status:
    record = _object(directory / store.RECORD)
    # The run may end or begin between two looks, so a free lock counts only between two equal ones.
    before = _told(directory)
    lock = _lock(directory / store.LOCK)
    if store.is_complete(directory):
        summary = _object(directory / store.SUMMARY)
        if "trusted" not in summary or "calls" not in summary:
            raise StoreError(f"{directory / store.SUMMARY} was not written by a run of enkg")
        return Status(directory, State.FINISHED, before, summary, record)
    told = _told(directory)
    state = State(told.get("state", State.RUNNING))
    if state is not State.RUNNING:
        return Status(directory, state, told, {}, record, _age(told))
    same = all(told.get(key) == before.get(key) for key in ("pid", "host", "state"))
    here = (told or record).get("host") == socket.gethostname()
    age = _age(told)
    if lock is None or not here:  # a free lock of another host may be held there, out of our sight
        held = lock or (age is not None and age <= OLD)
        state = State.RUNNING if held else State.SILENT
    elif not lock and same:
        state = State.KILLED
    return Status(directory, state, told, {}, record, age)


def _member(directory: Path) -> Status:
    """A run of a grid; what cannot be read must not hide the others."""
    if not (directory / store.RECORD).is_file():
        return Status(directory, State.MISSING, text="has not begun")
    try:
        return _run(directory)
    except StoreError as error:
        return Status(directory, State.BROKEN, text=str(error))


def _cell(directory: Path, entry: ablation_cells.Entry) -> Status:
    """A cell of an ablation, whose own record tells why it failed."""
    assert entry.number is not None
    folder = ablation_cells.folder(directory, entry.number)
    run = _member(folder)
    if run.state in OPEN - {State.MISSING}:  # it is tried again
        return run
    try:
        found = ablation_cells.standing(directory, entry)
    except StoreError as error:
        return Status(folder, State.BROKEN, text=str(error))
    if found.state in (ablation_cells.State.FAILED, ablation_cells.State.CHANGED):
        return replace(run, state=State.FAILED, text=found.reason)
    return run


def _lock(file: Path) -> bool | None:
    """Whether a run holds a lock; None where this file system cannot tell.

    The lock is never created, and is given back at once: a run that starts just now may take it.
    """
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:  # a run that ends in order removes it
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _told(directory: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        return load(directory / PROGRESS)
    return {}


def _age(told: Mapping[str, Any]) -> float | None:
    if not told:
        return None
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(told["updated"])).total_seconds())


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{file} holds a {type(value).__name__}; expected an object")
    return value


def show(status: Status | GridStatus, console: Console) -> None:
    """Prints how a run or a grid stands: a sentence, the numbers and the end of the log."""
    first, *rest = _drawn(status)
    console.print(first, soft_wrap=True)  # its command can be copied from any terminal
    for part in rest:
        console.print(part)
    if isinstance(status, Status) and status.state is State.FINISHED:
        report.show(status.summary, console)


def follow(directory: str | Path, console: Console, every: float = 2.0) -> Status | GridStatus:
    """Shows a run or a grid again and again, until it runs no more; returns how it ended.

    In a log, where nothing can be drawn over, only the end is shown.
    """
    status = read(directory)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while any(run.state in OPEN for run in _runs(status)):
            live.update(Group(*_drawn(status)), refresh=True)
            time.sleep(every)
            status = read(directory)
    show(status, console)
    return status


def _runs(status: Status | GridStatus) -> Sequence[Status]:
    return status.runs if isinstance(status, GridStatus) else [status]


def _drawn(status: Status | GridStatus) -> list[RenderableType]:
    if isinstance(status, GridStatus):
        return _drawn_grid(status)
    parts: list[RenderableType] = [Text(status.sentence, COLOURS.get(status.state, "red"))]
    numbers = _numbers(status)
    if numbers:
        table = Table(show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, value in numbers.items():
            table.add_row(name, escape(value))
        parts.append(table)
    if status.log and status.state is not State.FINISHED:
        parts += [Text(f"the end of {store.LOG}:", "bold"), Text("\n".join(status.log), "dim")]
    return parts


def _numbers(status: Status) -> dict[str, str]:
    told = status.told
    if status.state is State.FINISHED or not told:
        return {}
    causes = Counter({str(cause): int(times) for cause, times in told["causes"].items()})
    lines = {
        "method": f"{told['method']}, {told['members']:,} members" if told["method"] else "",
        "share done": f"{told['share']:.0%}",
        "steps done": f"{told['step']:,}",
        "simulator calls": f"{told['calls']:,}",
        "low-fidelity calls": f"{told['low_calls']:,}" if told["low_calls"] else "",
        "failed calls": f"{told['failed']:,}",
        **{f"  by {cause}": f"{times:,}" for cause, times in causes.most_common()},
        "misfit per datum": _number(told["misfit_per_datum"]),
        "spread": _number(told["spread"]),
        "beta": _number(told["beta"]),
        "noise level": _number(told["sigma"]),
        "time so far": clock(told["seconds"]),
        "ranks": f"{told['ranks']:,}",
        "side by side on each rank": _slots(status.record),
        "process": f"{told['pid']} on {told['host']}",
        "last sign of life": f"{_time(told['updated'])}",
    }
    return {name: value for name, value in lines.items() if value}


def _slots(record: Mapping[str, Any]) -> str:
    """How many members a rank simulates at once, where the experiment says so."""
    with suppress(KeyError, TypeError):
        simulator = record["experiment"]["simulator"]
        found = simulator.get("slots") or simulator.get("processes")
        return f"{found:,}" if isinstance(found, int) else ""
    return ""


def _drawn_grid(status: GridStatus) -> list[RenderableType]:
    counts = ", ".join(f"{count:,} {state}" for state, count in status.counts.items())
    names = list(dict.fromkeys(name for c in status.configurations for name in c))
    known = any("relative_error" in run.summary.get("metrics", {}) for run in status.runs)
    table = Table("run", *map(escape, names), "state", "calls", "misfit per datum")
    for column in table.columns[-2:]:
        column.justify = "right"
    if known:
        table.add_column("relative error", justify="right")
    for values, run in zip(status.configurations, status.runs, strict=True):
        said = run.summary or run.told
        cells = [
            run.directory.name,
            *(escape(str(values.get(name, ""))) for name in names),
            _state(run),
            f"{said['calls']:,}" if said else "",
            _number(said.get("misfit_per_datum")),
        ]
        if known:
            cells.append(_number(run.summary.get("metrics", {}).get("relative_error")))
        table.add_row(*cells)
    head = f"{len(status.runs):,} configurations: {counts}"
    told = (State.BROKEN, State.FAILED)
    notes = [
        f"{run.directory.name}: {run.text}" for run in status.runs if run.state in told and run.text
    ]
    return [Text(head, "bold"), table, *map(Text, notes)]


def _state(run: Status) -> str:
    text = str(run.state)
    if run.state is State.RUNNING and run.told:
        text += f", {run.told['share']:.0%}"
    if run.state is State.FINISHED and not run.summary["trusted"]:
        text += ", not trusted"
    colour = "dim" if run.state is State.MISSING else COLOURS.get(run.state, "red")
    return f"[{colour}]{text}[/]"


def _is_whole(told: Mapping[str, Any]) -> bool:
    return told["members_total"] >= told["members"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(stamp: str) -> str:
    """'12:03 UTC', with the day where it is not today's."""
    then = datetime.fromisoformat(stamp).astimezone(UTC)
    today = then.date() == datetime.now(UTC).date()
    return then.strftime("%H:%M UTC" if today else "%Y-%m-%d %H:%M UTC")
