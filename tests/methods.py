"""The methods under the laws of `tests/laws.py`, in small settings. A new method joins METHODS."""

from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

import enkg
from enkg import ESMDA, SLR, EnKG, EnKGPublished
from enkg.guidance import (
    DPG,
    EKI,
    GSG,
    SCG,
    DAEnK,
    EKIPublished,
    Guidance,
    Polish,
    SplitGibbs,
    WeightedEnKG,
)
from tests.enkg.problems import (
    LinearGaussian,
    follow,
    small_problem,
    values,
)

BARE = Polish(0)
METHODS: dict[str, Guidance] = {
    "enkg": EnKG(polish=BARE),
    "enkg-fixed": EnKG(updates=8, polish=BARE),
    "enkg-growing": EnKG(updates=5, ratio=3.0, polish=BARE),
    "enkg-once-low": EnKG(updates=1, sigma_start=0.5, polish=BARE),
    "enkg-square-root": EnKG(deterministic=True, polish=BARE),
    "enkg-folds": EnKG(folds=8, polish=BARE),
    "enkg-folds-square-root": EnKG(folds=8, deterministic=True, polish=BARE),
    "enkg-taper": EnKG(taper=True, polish=BARE),
    "enkg-capped": EnKG(cap=0.1, sigma_end=0.02, polish=BARE),
    "enkg-polished": EnKG(updates=4, polish=Polish(3)),
    "weighted": WeightedEnKG(levels=5, polish=Polish(4), agreement=1.0),
    "daenk": DAEnK(levels=8),
    "split-gibbs": SplitGibbs(turns=6, reverse_steps=2),
    "es-mda": ESMDA(),
    "es-mda-folds": ESMDA(updates=6, ratio=2.0, folds=8),
    "slr": SLR(members=48, steps=8),
    "slr-refined": SLR(members=48, steps=8, refine=3),
    "enkg-published": EnKGPublished(levels=20, first_guided=3, last_guided=17),
    "eki": EKI(),
    "eki-own-residual": EKI(residual="own"),
    "eki-published": EKIPublished(updates=20),
    "scg": SCG(levels=12, candidates=4),
    "gsg": GSG(levels=6, queries=8, rows_at_once=240),
    "gsg-forward": GSG(kind="forward", levels=6, queries=7),
    "gsg-prior": GSG(directions="prior", levels=4, queries=8),
    "dpg": DPG(levels=6, candidates=8, rows_at_once=240),
}
SLRS = ("slr", "slr-refined")
REDRAWN = (*SLRS, "enkg-polished", "weighted", "daenk", "split-gibbs")
"""Methods that draw their members anew in each step; without information, from the prior."""
CALIBRATED = [name for name, method in METHODS.items() if method.posterior_law is not None]
PRIORS = {
    "closed flow": lambda problem: problem.gaussian,
    "integrated flow": lambda problem: problem.one_component,
}
PAIRS = [(n, p) for n in METHODS for p in PRIORS if p == "closed flow" or n not in SLRS]
# ES-MDA and EKI have no flow, so the second prior would tell nothing new about its law.
NO_FLOW = ("es-mda", "eki")
EXACT = [
    (n, p)
    for n, p in PAIRS
    if n in CALIBRATED and (p == "closed flow" or not n.startswith(NO_FLOW))
]
every_method = pytest.mark.parametrize("name", METHODS)
every_calibrated_method = pytest.mark.parametrize("name", CALIBRATED)
every_exact_pair = pytest.mark.parametrize(("name", "prior"), EXACT)
every_pair = pytest.mark.parametrize(("name", "prior"), PAIRS)
both_priors = pytest.mark.parametrize("prior", PRIORS.values(), ids=list(PRIORS))

PROBLEM = small_problem()
MEMBERS = 48


def sized(name: str, members: int = MEMBERS) -> Guidance:
    """A method that ends with so many members; the batches of SLR stay as they are."""
    method = METHODS[name]
    return replace(method, **{"draws" if isinstance(method, SLR) else "members": members})


def prior_for(name: str, problem: LinearGaussian = PROBLEM) -> enkg.Prior:
    """Without closed flow where the method takes that: the harder case."""
    return problem.gaussian if name in SLRS else problem.one_component


def posterior(name: str, problem: LinearGaussian = PROBLEM, seed: int = 0, **others) -> Tensor:
    """The last ensemble of a short run."""
    prior, observation = prior_for(name, problem), problem.observation
    states, _ = follow(sized(name), prior, problem.forward, observation, seed, **others)
    return states[-1].x


def experiment(name: str, **changes) -> enkg.Experiment:
    fields = {
        "prior": prior_for(name),
        "simulator": PROBLEM.simulate,
        "observation": PROBLEM.observation,
        "guidance": sized(name),
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


def ensemble(name: str, **changes) -> np.ndarray:
    return values(enkg.run(experiment(name, **changes)), "posterior", "x")
