"""Is the low-fidelity simulator of an experiment a partner?

Its data must have the shape of the observation and be finite, and lie nearer to the simulator's
than another draw's do. Cost: one low-fidelity call for each draw.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.errors import EnkgError
from enkg.execute import opened
from enkg.experiment import Experiment
from enkg.findings import Grade, Report
from enkg.forward import Forward


def low_fidelity(report: Report, experiment: Experiment, x: Tensor, y: ndarray) -> None:
    """Findings about `experiment.low`. x: living draws, prior units; y: the simulator's data."""
    low = experiment.low
    assert low is not None
    alone = replace(
        experiment, simulator=low.simulator, observe=low.observe or experiment.observe, low=None
    )
    try:
        with opened(low.simulator, experiment.failure) as evaluator:
            theirs, failures, _ = Forward(alone, evaluator, lambda done, total: None).simulate(x)
    except EnkgError as error:
        report.add(Grade.UNSOUND, "low fidelity", str(error))
        return
    mask = experiment.observation.mask.numpy()
    finite = np.isfinite(theirs[:, mask]).all(axis=1)
    living = finite & np.array([failure is None for failure in failures])
    if not living.all():
        report.add(
            Grade.UNSOUND if not living.any() else Grade.DOUBT,
            "low fidelity",
            f"{int((~living).sum())} of {len(x)} draws failed that the simulator answers",
            "a pair of answers needs both: let the cheap simulator be the more robust one",
        )
    if living.sum() < 2:
        return
    ours = torch.from_numpy(y[living])
    apart = experiment.observation.whiten(torch.from_numpy(theirs[living]) - ours)
    among = experiment.observation.whiten(ours - ours.double().mean(dim=0))
    share = float(apart.square().mean().sqrt() / among.square().mean().sqrt())
    text = f"its data lie {share:.0%} of the spread of the draws from the simulator's"
    if share < 1:
        report.add(Grade.GOOD, "low fidelity", text)
    else:
        advice = "another draw would do as well: check its units and the order of its data"
        report.add(Grade.DOUBT, "low fidelity", text, advice)
