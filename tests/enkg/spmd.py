"""Runs every method on the ranks that it is started with; prints a digest of each posterior.

mpiexec -n 3 python spmd.py RESULTS.json [navier-stokes]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

import enkg
from enkg.comm import Comm, world
from tests.enkg.problems import small_problem, values

MEMBERS = 101  # on four ranks: 26, 25, 25, 25
PROBLEM = small_problem()
METHODS: dict[str, enkg.Guidance] = {
    "enkg": enkg.EnKG(members=MEMBERS),
    "enkg-square-root": enkg.EnKG(members=MEMBERS, deterministic=True),
    "enkg-folds": enkg.EnKG(members=MEMBERS, folds=8),
    "es-mda": enkg.ESMDA(members=MEMBERS),
    "slr": enkg.SLR(members=41, steps=6, draws=MEMBERS),
    "slr-refined": enkg.SLR(members=41, steps=4, draws=MEMBERS, refine=3),
    "enkg-published": enkg.EnKGPublished(members=MEMBERS, levels=12, first_guided=3, last_guided=9),
}


def linear_gaussian(name: str) -> enkg.Experiment:
    prior = PROBLEM.gaussian if name.startswith("slr") else PROBLEM.one_component
    simulator = enkg.Function(PROBLEM.simulate, chunk=8)
    return enkg.Experiment(prior, simulator, PROBLEM.observation, METHODS[name])


def navier_stokes() -> enkg.Experiment:
    from experiments.navier_stokes.quickstart import experiment

    small = experiment(size=32)
    return enkg.Experiment(
        small.prior,
        small.simulator,
        small.observation,
        enkg.EnKG(members=37, updates=2),
        units=small.units,
    )


def digest(experiment: enkg.Experiment, comm: Comm) -> str:
    x = values(enkg.run(experiment, comm=comm), "posterior", "x")
    return hashlib.sha256(x.tobytes()).hexdigest()


def found(what: list[str], comm: Comm) -> dict[str, str]:
    if "navier-stokes" in what:
        return {"navier-stokes": digest(navier_stokes(), comm)}
    return {name: digest(linear_gaussian(name), comm) for name in METHODS}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = world()
    digests = ranks.gather(found(sys.argv[2:], ranks))
    assert all(d == digests[0] for d in digests), "every rank gets the same results"
    if ranks.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps({"ranks": ranks.size, **digests[0]}))
