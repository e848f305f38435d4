"""Which method comes closest to the exact posterior on digits, and at what cost?

    python experiments/digits/compare.py --method exact enkg es-mda
    python experiments/digits/compare.py --method enkg:cap=0.1 enkg --problem sr2 hdr --truths 4

A method is a name of `enkg list`, with options after a colon: NAME:field=value,field=value. `exact`
stands for independent draws of the exact posterior, the floor of every column:

    calls, dme, vjp   simulator calls, denoiser calls and denoiser Jacobians, each a member
    en                error of the posterior mean in exact standard deviations, rms over the points
    sr, srp           standard deviation over the exact one: mean; rms logarithm over the points
    cov               share of the points whose truth lies in the 90 % interval
    crps, mis         continuous ranked probability score and misfit, over those of the posterior
    ED, worst         energy distance to 2,048 exact draws: mean and largest over the truths
    TV                total variation between the shares of the ten classes
    s                 seconds of a run

For `phase` the exact draws are the 512 that are kept, and those of `exact` are among them.

Rows are means over the truths; `all` is the mean over the problems of the method. Runs are kept in
--out as files of draws, and not repeated: a rerun goes on, and computes the columns anew. A run is
made again if an option, a setting or the code of the method in enkg/guidance has changed; --again
repeats those asked for. What fails is told, left out and not kept.
"""

import argparse
import ast
import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import enkg
from enkg import metrics
from enkg.guidance import METHODS, Guidance
from experiments.digits import problem as problems
from experiments.digits.setting import PROBLEMS, Setting
from experiments.references.digits import Reference, judged, reference

EXACT = "exact"
TABLE = ("box", "random", "sr2", "sr4", "blur", "hdr", "phase")
EXACT_SEED = 1  # the draws that are compared, not those compared with
COLUMNS = ("calls", "dme", "vjp", "en", "sr", "srp", "cov", "crps", "mis", "ED", "worst", "TV", "s")
SHORT = {
    "error_in_exact_std": "en",
    "std_over_exact": "sr",
    "point_std_scatter": "srp",
    "energy_distance": "ED",
    "class_distance": "TV",
}
Row = dict[str, float]


def method(text: str, members: int) -> Guidance:
    """NAME:field=value,... as a method; raises InputError with what there is to give."""
    name, _, options = text.partition(":")
    if name not in METHODS:
        raise enkg.InputError(f"there is no method {name!r}; give one of {', '.join(METHODS)}")
    values: dict[str, Any] = {"members": members}
    known = [f.name for f in dataclasses.fields(METHODS[name])]
    for part in _split(options):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in known:
            raise enkg.InputError(
                f"{part!r} is no option of {name}; give field=value with {', '.join(known)}"
            )
        values[key.strip()] = _value(value.strip())
    return dataclasses.replace(METHODS[name], **values)


def _split(options: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in options:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    """A Python literal; true and false too; else the text itself."""
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What a run left. costs: calls, dme, vjp, each a member; misfit per datum; seconds."""

    draws: torch.Tensor
    costs: Row


def made(guidance: Guidance, setting: Setting, seed: int) -> Made:
    """Runs the method on the setting; nothing is written."""
    begin = perf_counter()
    given = problems.experiment(setting.problem, setting.truth, setting.noise, setting.bandwidth)  # type: ignore[arg-type]
    asked = dataclasses.replace(given, guidance=guidance, seed=seed, analyse=None, chunk=128)
    tree = enkg.run(asked)
    summary = json.loads(tree.attrs["summary"])
    trace = tree["trace"].to_dataset().isel(step=-1)
    members = guidance.members
    costs = {
        "calls": float(trace["calls"]) / members,
        "dme": float(trace["denoiser_calls"]) / members,
        "vjp": float(trace["denoiser_vjps"]) / members,
        "misfit": float(summary["misfit_per_datum"]),
        "s": perf_counter() - begin,
    }
    return Made(torch.from_numpy(tree["posterior"].to_dataset()["image"].values), costs)


def drawn(setting: Setting, members: int, seed: int) -> Made:
    """Independent draws of the exact posterior, as if a method had made them."""
    draws = reference(setting, members, EXACT_SEED + seed).draws
    costs = {"calls": 0.0, "dme": 0.0, "vjp": 0.0, "misfit": misfit(setting, draws), "s": 0.0}
    return Made(draws, costs)


def misfit(setting: Setting, x: torch.Tensor) -> float:
    answers = torch.from_numpy(setting.simulator(x.double().numpy()))
    return setting.observation.misfit_per_datum(answers)


@cache
def source_of(kind: type[Guidance]) -> str:
    """Digest of the file of a method, and of the files in enkg.guidance that it draws on.

    Taken once, since files may be edited while this program runs.
    """
    names, waiting = set[str](), [kind.__module__]
    while waiting:
        name = waiting.pop()
        if name in names or not name.startswith("enkg.guidance."):
            continue
        names.add(name)
        waiting += [getattr(v, "__module__", None) or "" for v in vars(sys.modules[name]).values()]
    texts = [inspect.getsource(sys.modules[name]) for name in sorted(names)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def kept(guidance: Guidance, setting: Setting, seed: int, folder: Path, again: bool) -> Made:
    """The run from its file, or made and filed."""
    record = f"{guidance!r} {setting!r} seed={seed}"
    digest = hashlib.sha256((record + source_of(type(guidance))).encode()).hexdigest()[:20]
    file = folder / f"{type(guidance).__name__}-{setting.problem}-{setting.truth}-{digest}.npz"
    if file.is_file() and not again:
        with np.load(file) as held:
            return Made(torch.from_numpy(held["draws"]), json.loads(str(held["costs"])))
    found = made(guidance, setting, seed)
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".part-{seed}.npz")
    np.savez(part, draws=found.draws.numpy(), costs=json.dumps(found.costs), record=record)
    part.rename(file)
    return found


def row(found: Made, setting: Setting, exact: Reference) -> Row:
    """All columns of one run, with the scores of the exact posterior beside them."""
    x, truth = found.draws.double(), setting.image
    figures = {SHORT[k]: v for k, v in judged(x, exact, setting.bandwidth).items()}
    figures["worst"] = figures["ED"]
    return {
        **found.costs,
        **figures,
        "cov": metrics.coverage(x, truth),
        "crps": metrics.crps(x, truth),
        "crps_exact": metrics.crps(exact.draws, truth),
        "misfit_exact": misfit(setting, exact.draws),
    }


def summed(rows: Sequence[Row]) -> Row:
    """Means over the truths; scores as ratios of means."""
    out = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
    out["worst"] = max(r["worst"] for r in rows)
    out["crps"] /= out.pop("crps_exact")
    out["mis"] = out.pop("misfit") / out.pop("misfit_exact")
    return out


def line(name: str, problem: str, count: int, values: Row) -> str:
    cells = []
    for column in COLUMNS:
        digits = 0 if column in ("calls", "dme", "vjp") else 1 if column == "s" else 3
        digits = 2 if column in ("en", "sr", "srp", "crps", "mis", "TV") else digits
        cells.append(f"{values[column]:6.{digits}f}")
    return f"{name:<34} {problem:<7} {count:3d} " + " ".join(cells)


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints the rows as they come, and returns them."""
    methods = {t: None if t == EXACT else method(t, options.members) for t in options.method}
    for guidance in methods.values():
        if guidance is not None:
            source_of(type(guidance))
    print(f"{'method':<34} {'problem':<7}   n " + " ".join(f"{c:>6}" for c in COLUMNS))
    results: list[dict[str, Any]] = []
    settings = {
        name: [
            Setting(name, options.first + k, options.noise, options.bandwidth)
            for k in range(options.truths)
        ]
        for name in options.problem
    }
    references: dict[Setting, Reference] = {}
    for text, guidance in methods.items():
        means: list[Row] = []
        for name in options.problem:
            rows: list[Row] = []
            for setting in settings[name]:
                try:
                    if setting not in references:
                        references[setting] = reference(setting)
                    if guidance is None:
                        found = drawn(setting, options.members, options.seed)
                    else:
                        found = kept(guidance, setting, options.seed, options.out, options.again)
                    rows.append(row(found, setting, references[setting]))
                except Exception as error:  # one failed run must not end the others
                    where = f"{text} on {name}, truth {setting.truth}"
                    print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    if options.stop:
                        raise
            if rows:
                means.append(summed(rows))
                results.append({"method": text, "problem": name, "truths": len(rows), **means[-1]})
                print(line(text, name, len(rows), means[-1]), flush=True)
        if len(means) > 1:
            whole = {k: float(np.mean([m[k] for m in means])) for k in means[0]}
            whole["worst"] = max(m["worst"] for m in means)
            results.append({"method": text, "problem": "all", "truths": len(means), **whole})
            print(line(text, "all", len(means), whole), flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(
        prog="experiments/digits/compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--method", nargs="+", required=True, help="methods, each NAME or NAME:field=value,...")
    add("--problem", nargs="+", choices=PROBLEMS, default=list(TABLE), help=f"({' '.join(TABLE)})")
    add("--truths", type=int, default=10, help="how many truths (10)")
    add("--first", type=int, default=0, help="number of the first truth (0); tune on others")
    add("--noise", type=float, default=0.05, help="standard deviation of a datum (0.05)")
    add("--bandwidth", type=float, default=Setting("box").bandwidth, help="of the prior (0.2)")
    add("--members", type=int, default=128, help="where the method's options say nothing (128)")
    add("--seed", type=int, default=0, help="of the methods (0)")
    add("--out", type=Path, default=Path("runs/digits"), help="folder of the runs (runs/digits)")
    add("--json", type=Path, help="also write the rows to this file")
    add("--again", action="store_true", help="repeat runs that are there")
    add("--stop", action="store_true", help="end at the first failed run, with a traceback")
    options = parser.parse_args(arguments)
    try:
        results = table(options)
    except enkg.InputError as error:
        parser.error(str(error))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
