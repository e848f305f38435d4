"""Every derivative-free method on every problem, at the same number of simulator calls.

    python experiments/derivative_free/table.py --out runs/table
    python experiments/derivative_free/table.py --problems box phase --methods weighted enkg
    python experiments/derivative_free/table.py --budget published --problems linear-gaussian

Each cell, one method on one problem with one seed, is a small JSON file under --out; cells that are
there are not run again, so the table can be stopped at any moment and go on, and several commands
can fill it together. Prints the table, means over the seeds with the standard deviation of the
error, and writes all that is there to table-BUDGET.md and table-BUDGET.json in --out.

Rules: options are the defaults of each method but for sizes, which follow from the budget
(`contenders.py`); the methods were tuned on other truths than those of this table (but M87 is one
measurement, and `enkg-inflated` got its inflation there); nothing is chosen by its result; a run
that fails stays in the table as a failure. `prior` stands for 128 prior samples, without a call.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import enkg
from experiments.derivative_free.contenders import BUDGETS, Contender, contenders
from experiments.derivative_free.problems import PROBLEMS, Problem, judged

COLUMNS = {
    "error": "error",
    "misfit": "misfit per datum",
    "coverage": "90 % covers",
    "spread": "spread / reference",
    "distance": "mean off by",
    "energy": "energy distance",
    "calls": "calls",
    "denoiser_calls": "denoiser calls",
    "denoiser_vjps": "Jacobian products",
    "seconds": "seconds",
}
NOTES = (
    "error: of the posterior mean against the truth, relative (M87: against the reference's mean). "
    "mean off by: root mean square in reference standard deviations. energy distance: to reference "
    "draws, 0 if equal in law."
)


def cell(problem: Problem, contender: Contender, seed: int) -> dict[str, Any]:
    """Runs one method once. Cost: the contender's calls, and at most 128 for the misfit."""
    experiment = problem.experiment(seed)
    if contender.guidance is None:
        return prior_samples(problem, seed, experiment)
    experiment = dataclasses.replace(experiment, guidance=contender.guidance)
    members = contender.guidance.posterior_members
    experiment = dataclasses.replace(experiment, predict=min(members, 128))
    begin = time.perf_counter()
    try:
        tree = enkg.run(experiment)
    except enkg.EnkgError as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - begin
    summary = json.loads(tree.attrs["summary"])
    x = tree["posterior"].to_dataset()[experiment.unknown.name].values
    return {
        **judged(problem, seed, experiment, x),
        "misfit": summary["misfit_per_datum"],
        "calls": summary["calls"] - min(members, 128),
        "denoiser_calls": summary["denoiser_calls"],
        "denoiser_vjps": summary["denoiser_vjps"],
        "seconds": seconds,
        "trusted": summary["trusted"],
        "remarks": summary["remarks"],
    }


def prior_samples(problem: Problem, seed: int, experiment: enkg.Experiment) -> dict[str, Any]:
    """The cell of no method at all."""
    assert isinstance(experiment.prior, enkg.Gaussian | enkg.Mixture)
    x = experiment.units.to_simulator(experiment.prior.draw(seed, range(128), 1))
    found = judged(problem, seed, experiment, x.numpy())
    return {**found, "calls": 0, "trusted": False, "remarks": []}


def fill(
    out: Path, problem: Problem, chosen: Sequence[Contender], seeds: Sequence[int], console: Console
) -> None:
    """Runs the cells that are missing."""
    work = [(contender, seed) for seed in seeds for contender in chosen]
    work = [(c, s) for c, s in work if not _file(out, problem, c, s).exists()]
    for k, (contender, seed) in enumerate(work):
        where = f"{problem.name} {k + 1}/{len(work)}"
        console.print(f"{where}: {contender.name}, seed {seed}", highlight=False)
        found = cell(problem, contender, seed)
        file = _file(out, problem, contender, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.rename(file)


def _file(out: Path, problem: Problem, contender: Contender, seed: int) -> Path:
    return out / problem.name / contender.budget / contender.name / f"{seed}.json"


def gather(
    out: Path, problem: Problem, chosen: Sequence[Contender], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One row a method: means over the seeds that are there."""
    rows = []
    for contender in chosen:
        files = [_file(out, problem, contender, seed) for seed in seeds]
        cells = [json.loads(file.read_text()) for file in files if file.exists()]
        good = [c for c in cells if "failed" not in c]
        row: dict[str, Any] = {"method": contender.name, "budget": contender.budget}
        row |= {"seeds": len(good), "failed": len(cells) - len(good)}
        for name in COLUMNS:
            values = [c[name] for c in good if c.get(name) is not None]
            row[name] = float(np.mean(values)) if values else None
        errors = [c["error"] for c in good]
        row["error_sd"] = float(np.std(errors, ddof=1)) if len(errors) > 1 else None
        row["trusted"] = sum(c["trusted"] for c in good)
        if cells:
            rows.append(row)
    return rows


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if "calls" in name or name == "denoiser_vjps":
        return f"{value:,.0f}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.3g}"


def words(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as they are printed; the first is the heading."""
    shown = [n for n in COLUMNS if any(row[n] is not None for row in rows)]
    table = [["method", *(COLUMNS[n] for n in shown), "trusted"]]
    for row in rows:
        numbers = [_number(n, row[n]) for n in shown]
        if row["error_sd"] is not None and "error" in shown:
            numbers[shown.index("error")] += f" ± {row['error_sd']:.2g}"
        trusted = f"{row['trusted']} of {row['seeds']}"
        if row["failed"]:
            trusted += f", {row['failed']} failed"
        table.append([row["method"], *numbers, trusted])
    return table


def markdown(title: str, rows: Sequence[dict[str, Any]]) -> str:
    heading, *body = words(rows)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *body]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", help="some of the methods; all by default")
    parser.add_argument("--budget", choices=BUDGETS, default="equal")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--only-print", action="store_true", help="run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if os.isatty(1) else 160)
    seeds = range(given.seeds)
    for name in given.problems:
        problem = PROBLEMS[name]
        chosen = contenders(problem, given.budget)
        if given.methods:
            unknown = set(given.methods) - {c.name for c in chosen}
            if unknown:
                known = ", ".join(c.name for c in chosen)
                parser.error(f"{name} has no method {', '.join(sorted(unknown))}; it has {known}")
            chosen = [c for c in chosen if c.name in given.methods]
        if not given.only_print:
            try:
                fill(given.out, problem, chosen, seeds, console)
            except FileNotFoundError as error:  # no measurement here, and no network
                console.print(f"{name} is left out: {error}", highlight=False)
        rows = gather(given.out, problem, chosen, seeds)
        if rows:
            heading, *body = words(rows)
            grid = Table(*heading, title=f"{name}, {given.budget} budget")
            for line in body:
                grid.add_row(*line)
            console.print(grid)
    console.print(NOTES, highlight=False)
    write(given.out, given.budget, seeds)


def write(out: Path, budget: str, seeds: Sequence[int]) -> None:
    """table-BUDGET.md and table-BUDGET.json, of all cells that are there."""
    whole = {}
    for name, problem in PROBLEMS.items():
        rows = gather(out, problem, contenders(problem, budget), seeds)
        if rows:
            whole[name] = rows
    parts = [markdown(f"{name}, {budget} budget", rows) for name, rows in whole.items()]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"table-{budget}.md").write_text("\n".join([*parts, NOTES, ""]))
    (out / f"table-{budget}.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
