"""How contagious an epidemic was over 140 days, from 20 weekly counts: a Python script as program.

    enkg run experiments/epidemic.py
    enkg run experiments/epidemic.py --adapter oneshot

Counts have Poisson noise, and enkg's is Gaussian. A square root makes one of the other: for a count
K of expectation L, sqrt(K) + sqrt(K + 1) has nearly mean sqrt(4 L + 1) and variance one (Freeman
and Tukey). The bias of that mean is 0.09 at L = 1, 0.02 at L = 3 and at most 0.1 anywhere; the
variance is within 6 % of one down to L = 1 and then falls, so that tiny counts weigh a little too
little. The measured counts enter the observation by the first formula, and the simulator's expected
counts pass the second (`observe`). On the five epidemics of the reference this moves the exact
posterior means by at most 0.1 posterior standard deviations, and these by at most 3 %.

The reference is a Markov chain with the exact Poisson likelihood,
experiments/references/epidemic_mcmc.py; its numbers are in epidemic.json beside it. The tests hold
the ensemble to it: an error of the mean below 0.5 posterior standard deviations (root mean square
over the knots; 0.2 is usual) and standard deviations between 0.7 and 1.3 times the exact ones.

Reference: Freeman and Tukey 1950, "Transformations related to the angular and the square root",
Annals of Mathematical Statistics 21.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy import ndarray

import enkg
from enkg import random
from enkg.random import Stream
from simulators.epidemic.seir import INFECTIOUS, KNOTS, WEEKS, weekly_counts

PROGRAM = Path(__file__).parents[1] / "simulators" / "epidemic"
REFERENCE = Path(__file__).parent / "references" / "epidemic.json"
LEVEL, STEP = np.log(0.35), 0.3  # of the prior's random walk
SHOWN = (0, 28, 56, 84, 112, 140)  # days in the table


def experiment(
    adapter: Literal["worker", "oneshot"] = "worker", truth: int = 0, slots: int | None = None
) -> enkg.Experiment:
    """The contact rate of a synthetic epidemic, with the exact posterior beside it.

    Args:
        adapter: worker: the script stays up and answers member after member. oneshot: it starts
            anew for each, which takes its half second of Python and SciPy each time.
        truth: Which epidemic; each number is another draw from the prior. The exact posterior is
            stored for 0 to 4.
        slots: How many members run side by side; if not given, as many as there are cores.
    """
    log_beta, counts = synthetic(truth)
    steps = np.minimum.outer(np.arange(len(KNOTS)), np.arange(len(KNOTS)))
    return enkg.Experiment(
        prior=enkg.Gaussian.from_covariance(np.full(len(KNOTS), LEVEL), STEP**2 * (1.0 + steps)),
        simulator=enkg.Program(PROGRAM, slots=slots, mode=adapter),
        observe=expected_root,
        observation=enkg.Observation(count_root(counts), std=1.0),
        guidance=enkg.SLR(members=40, steps=16),
        unknown=enkg.Field(
            "log_beta",
            long_name="ln of the contact rate per day",
            dims=("day",),
            coords={"day": KNOTS},
        ),
        data=enkg.Field(
            "root_count",
            long_name="sqrt(K) + sqrt(K + 1) of the weekly counts K",
            dims=("end_of_week",),
            coords={"end_of_week": WEEKS[1:]},
        ),
        truth=log_beta,
        analyse=Reading(counts, stored(truth, counts)),
    )


def synthetic(truth: int) -> tuple[ndarray, ndarray]:
    """A draw from the prior, (11,), and counts of its epidemic, (20,).

    The walk is summed up from its steps. (A draw by the covariance's eigenvectors would depend on
    their signs, and so on the machine.)
    """
    seed = 1000 + truth
    steps = random.normal((len(KNOTS),), seed, Stream.SYNTHETIC, [0], 1)[0].numpy()
    log_beta = LEVEL + STEP * np.cumsum(steps)
    draw = random.generators(seed, Stream.SYNTHETIC, [0], 0)[0]
    return log_beta, draw.poisson(weekly_counts(log_beta))


def count_root(counts: ndarray) -> ndarray:
    """Counts to numbers whose noise has variance one."""
    return np.sqrt(counts) + np.sqrt(counts + 1)


def expected_root(expected: ndarray) -> ndarray:
    """Expected counts to the expected `count_root`."""
    return np.sqrt(4 * expected + 1)


def stored(truth: int, counts: ndarray) -> dict[str, Any] | None:
    """Mean, std and quantiles of the exact posterior of ln beta; None where none is stored."""
    found = json.loads(REFERENCE.read_text())["truths"].get(str(truth))
    return found if found and found["counts"] == counts.tolist() else None


@dataclass(frozen=True, eq=False)
class Reading:
    """The reproduction number R0 = 5 beta against truth and reference; see `Experiment`."""

    counts: ndarray
    reference: dict[str, Any] | None

    def __call__(self, tree: xr.DataTree, folder: Path | None) -> enkg.Analysis:
        log_beta = _values(tree, "posterior", "log_beta")
        truth = _values(tree, "truth", "log_beta")
        if folder is not None:
            self._draw(tree, log_beta, truth, folder)
        bands = np.quantile(log_beta, [0.05, 0.5, 0.95], axis=0)
        rows = []
        for k in np.flatnonzero(np.isin(KNOTS, SHOWN)):
            row = [f"{KNOTS[k]:.0f}", _number(truth[k]), _interval(bands[:, k])]
            if self.reference is not None:
                row.append(_interval(np.array(self.reference["quantiles"])[:, k]))
            rows.append(row)
        columns = ["day", "truth", "median [90 %]"]
        if self.reference is None:
            return enkg.Analysis({}, [enkg.Table("Reproduction number", columns, rows)])
        error, ratio = against(log_beta, self.reference)
        metrics = {
            "mean_against_exact": float(np.sqrt((error**2).mean())),
            "largest_mean_error": float(np.abs(error).max()),
            "std_over_exact": {"lowest": float(ratio.min()), "highest": float(ratio.max())},
        }
        note = "mean against exact: root mean square over the knots, in posterior std"
        table = enkg.Table("Reproduction number", [*columns, "exact posterior"], rows, [note])
        return enkg.Analysis(metrics, [table])

    def _draw(self, tree: xr.DataTree, log_beta: ndarray, truth: ndarray, folder: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        days = np.arange(KNOTS[0], KNOTS[-1] + 1)
        curves = np.stack([np.interp(days, KNOTS, member) for member in log_beta])
        low, middle, high = INFECTIOUS * np.exp(np.quantile(curves, [0.05, 0.5, 0.95], axis=0))
        left.fill_between(days, low, high, color="tab:blue", alpha=0.4, label="90 %", lw=0)
        left.plot(days, middle, color="tab:blue", label="median")
        left.plot(days, INFECTIOUS * np.exp(np.interp(days, KNOTS, truth)), "k", label="truth")
        if self.reference is not None:
            for k, quantile in enumerate(self.reference["quantiles"]):
                left.plot(
                    KNOTS,
                    INFECTIOUS * np.exp(quantile),
                    linestyle="none",
                    marker="_",
                    color="tab:red",
                    label="exact 5, 50, 95 %" if k == 0 else None,
                )
        left.axhline(1, color="0.5", lw=0.7)
        left.set(xlabel="day", ylabel="reproduction number 5 beta")
        left.legend(fontsize=8)

        expected = _values(tree, "predicted", "root_count")
        expected = np.maximum((expected**2 - 1) / 4, 0)
        drawn = np.random.default_rng(0).poisson(np.repeat(expected, 20, axis=0))
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        weeks = np.arange(1, len(WEEKS))
        right.fill_between(weeks, low, high, color="tab:blue", alpha=0.4, lw=0, label="90 %")
        right.plot(weeks, self.counts, "k.", label="counts")
        right.set(xlabel="week", ylabel="newly infectious people")
        right.set_yscale("symlog", linthresh=1)
        right.legend(fontsize=8)
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / "epidemic.png", dpi=130)


def against(log_beta: ndarray, reference: dict[str, Any]) -> tuple[ndarray, ndarray]:
    """Error of the mean in posterior std, and ratio of std, at each knot; log_beta: (J, 11)."""
    mean, std = np.array(reference["mean"]), np.array(reference["std"])
    return (log_beta.mean(axis=0) - mean) / std, log_beta.std(axis=0, ddof=1) / std


def _values(tree: xr.DataTree, group: str, name: str) -> ndarray:
    return tree[group].to_dataset()[name].values.astype(np.float64)


def _number(log_beta: float) -> str:
    return f"{INFECTIOUS * np.exp(log_beta):.2f}"


def _interval(quantiles: ndarray) -> str:
    low, middle, high = (_number(q) for q in quantiles)
    return f"{middle} [{low}, {high}]"
