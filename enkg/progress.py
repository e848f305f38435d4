"""Progress of a run in the terminal: a bar with a line for each update, or plain lines in a log."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isnan, sqrt
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from enkg.ablation_cells import Entry, Standing, named
from enkg.beat import clock
from enkg.calibration import Score
from enkg.experiment import Experiment
from enkg.guidance import Info
from enkg.learned.keep import Row
from enkg.learned.prepare import Prepared
from enkg.learned.training import Training

HEAD = "  step   sigma  misfit/datum  spread   beta      calls  failed  seconds"
LOW = "     low"
"""One more column where there is a low-fidelity simulator: its calls. 80 characters hold it."""

TRUTHS = "    truth  misfit/datum    spread     error  in the 90 %      calls"


class Watch:
    """Shows step, noise level, misfit, spread, calls and time left (an `enkg.run.Observer`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task = self.sweep = TaskID(0)
        self.begin = perf_counter()
        self.share = 0.0

    def started(self, experiment: Experiment, sweeps: int) -> None:
        guidance, low = experiment.guidance, experiment.low is not None
        self.begin = perf_counter()
        calls = guidance.calls_for(experiment.prior)
        self.console.print(
            f"{type(guidance).__name__}: {guidance.members} members of shape "
            f"{tuple(experiment.prior.shape)}, {experiment.observation.size} data, at most "
            f"{f'{calls:,} guided' if calls else 'no guided'} simulator calls"
            f"{', low-fidelity ones included' if low else ''}",
            highlight=False,
        )
        self.console.print(HEAD + LOW * low, style="bold", highlight=False)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task("inversion", total=1.0, left="")
            self.sweep = self.bar.add_task("members", total=guidance.members, left="")
            self.bar.start()

    def simulating(self, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.sweep, completed=done, total=total)

    def stepped(self, info: Info, row: Mapping[str, float]) -> None:
        self.share = max(self.share, info.progress)
        if self.bar is not None:
            elapsed = perf_counter() - self.begin
            left = elapsed * (1 - self.share) / max(self.share, 1e-3)
            self.bar.update(self.task, completed=self.share, left=f"about {clock(left)} left")
        if not info.evaluated:
            return
        cells = (
            f"{info.step + 1:6d}",
            f"{row['sigma']:7.3g}",
            f"{row['misfit_per_datum']:12.4g}" if not isnan(row["misfit_per_datum"]) else " " * 12,
            f"{row['spread']:7.3g}",
            f"{row['beta']:6.3f}" if row["beta"] else " " * 6,
            f"{int(row['calls']):10,d}",
            f"{int(row['failed']):7d}",
            f"{row['seconds']:8.1f}",
            *([f"{int(row['low_calls']):7,d}"] if "low_calls" in row else []),
        )
        self.console.print(" ".join(cells), highlight=False)

    def ended(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class Truths:
    """Shows how far a calibration is: a line for each truth, a bar where somebody watches (an
    `enkg.calibrate.Witness`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.2f} of {task.fields[of]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("truths", total=None, of="?")
        self.sweep = self.bar.add_task("members", total=None, of="?")
        self.number = 0

    def __enter__(self) -> "Truths":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None:
        self.bar.update(self.sweep, completed=done, total=total, of=total)

    def stepped(self, info: Info, row: Mapping[str, float]) -> None:
        self.bar.update(self.task, completed=self.number + info.progress)

    def ended(self) -> None: ...

    def scored(self, number: int, truths: int, found: Score) -> None:
        if number == 0:
            self.console.print(TRUTHS, style="bold", highlight=False)
        self.number = number + 1
        self.bar.update(self.task, completed=self.number, total=truths, of=truths)
        inside = found.coverage.get("0.9")
        cells = (
            f"{self.number:7d}/{truths}",
            f"{found.misfit:12.4g}",
            f"{sqrt(found.variance):9.3g}",
            f"{sqrt(found.square_error):9.3g}",
            f"{inside:11.1%}" if inside is not None else " " * 11,
            f"{found.calls:10,d}",
            "trusted" if found.trusted else "not trusted",
        )
        self.console.print(" ".join(cells), highlight=False)


class Cells:
    """Shows how far an ablation is: a line for each cell, and bars where somebody watches (an
    `enkg.ablation.Witness`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[of]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("cells", total=None, of="")
        self.cell: TaskID | None = None
        self.done = self.total = 0

    def __enter__(self) -> "Cells":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def planned(self, cells: int) -> None:
        self.total = cells
        self.bar.update(self.task, total=cells, of=f"0 of {cells}")

    def begun(self, entry: Entry) -> None:
        self.cell = self.bar.add_task(named(entry.labels), total=1.0, of="")

    def started(self, experiment: Experiment, sweeps: int) -> None: ...

    def simulating(self, done: int, total: int) -> None:
        if self.cell is not None:
            self.bar.update(self.cell, of=f"member {done} of {total}")

    def stepped(self, info: Info, row: Mapping[str, float]) -> None:
        if self.cell is not None:
            self.bar.update(self.cell, completed=info.progress)

    def ended(self) -> None: ...

    def scored(self, found: Standing) -> None:
        if self.cell is not None:
            self.bar.remove_task(self.cell)
            self.cell = None
        self.done += 1
        self.bar.update(self.task, completed=self.done, of=f"{self.done} of {self.total}")
        width = len(str(self.total))
        words = [f"{self.done:{width}}/{self.total}  {named(found.entry.labels)}: {found.state}"]
        if found.reason:
            words.append(found.reason)
        else:
            calls = found.measures.get("calls")
            words += [f"{calls:,.0f} calls"] if calls is not None else []
            words.append(f"{found.seconds:.1f} s")
        self.console.print(", ".join(words), highlight=False, markup=False, soft_wrap=True)


LEARNING = "     step      loss  held out      rate  samples/s  seconds"


class Learning:
    """Shows loss, speed and time left of a training: a line at each look, a bar where somebody
    watches (an `enkg.learned.loop.Watcher`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("samples", total=None, said="")
        self.speed, self.batch, self.steps, self.told = 0.0, 1, 1, 0
        self.bar.start()

    def preparing(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total, said=f"{done} of {total}")
        tenth = 10 * done // total
        if not self.console.is_terminal and tenth > self.told:
            self.told = tenth
            self.console.print(f"samples: {done:,} of {total:,}", highlight=False)

    def started(self, training: Training, prepared: Prepared, step: int) -> None:
        self.batch, self.steps = training.batch, training.steps
        weights = sum(p.numel() for p in prepared.module.parameters())
        self.console.print(
            f"{len(prepared.learnt):,} samples to learn from, {len(prepared.held_out):,} held out; "
            f"{training.cost(prepared.samples.shape)}; {weights:,} weights",
            highlight=False,
            soft_wrap=True,
        )
        if step:
            self.console.print(f"goes on from step {step:,}", highlight=False)
        self.console.print(LEARNING, style="bold", highlight=False)
        self.bar.reset(self.task, total=self.steps, completed=step, description="training")

    def stepped(self, step: int, loss: float, rate: float, speed: float) -> None:
        self.speed = speed
        left = clock((self.steps - step) * self.batch / max(speed, 1e-9))
        said = f"loss {loss:.3f}, {speed:.0f} samples/s, about {left} left"
        self.bar.update(self.task, completed=step, said=said)

    def looked(self, row: Row) -> None:
        cells = (
            f"{row.step:9,d}",
            f"{row.loss:9.4f}",
            f"{row.held_out:9.4f}",
            f"{row.rate:9.2g}",
            f"{self.speed:10.0f}",
            f"{row.seconds:8.0f}",
        )
        self.console.print(" ".join(cells), highlight=False)

    def measuring(self) -> None:
        self.bar.update(self.task, description="figures of merit", said="")
        if not self.console.is_terminal:
            self.console.print("measuring the figures of merit", highlight=False)

    def ended(self) -> None:
        self.bar.stop()


@contextmanager
def calls(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of simulator calls, for as long as the block runs; nothing in a log."""
    with Progress(
        TextColumn("simulator calls"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
