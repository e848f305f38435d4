"""The methods under the laws of `tests/test_gradient_laws.py`. A new method joins METHODS."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import enkg
from enkg.counted import counted
from enkg.guidance import Guidance
from enkg.guidance.conjugate_pigdm import ConjugatePiGDM
from enkg.guidance.daps import DAPS
from enkg.guidance.ddnm import DDNM
from enkg.guidance.ddrm import DDRM
from enkg.guidance.diffpir import DiffPIR
from enkg.guidance.dps import DPS
from enkg.guidance.ilvr import ILVR
from enkg.guidance.mcg import MCG
from enkg.guidance.mmps import MMPS
from enkg.guidance.pigdm import PiGDM
from enkg.guidance.pnp_admm import PnPADMM
from enkg.guidance.reddiff import REDdiff
from enkg.guidance.scoreald import ScoreALD
from enkg.guidance.sdedit import SDEdit
from tests.enkg.problems import (
    DOUBLE,
    LinearOperator,
    follow,
    small_problem,
    values,
)

CHAINS = 6
PROBLEM = replace(small_problem(), noise=0.3**2 * small_problem().noise.new_ones(3).diag())
OBSERVATION = enkg.Observation(PROBLEM.y, std=0.3)
PRIOR = counted(PROBLEM.one_component, 1, torch.device("cpu"), 1)
"""Each row by itself, to the bit: a product of matrices rounds by the number of its rows."""
METHODS: dict[str, Guidance] = {
    "pnp-admm": PnPADMM(iterations=8),
    "pnp-admm-svd": PnPADMM(iterations=8, solver="svd"),
    "ddrm": DDRM(levels=6),
    "ddnm": DDNM(levels=6),
    "ddnm-plus": DDNM(levels=6, plus=True),
    "diffpir": DiffPIR(levels=6),
    "diffpir-svd": DiffPIR(levels=6, prox="svd"),
    "diffpir-cg": DiffPIR(levels=6, prox="cg"),
    "red-diff": REDdiff(levels=10, antithetic=False),
    "ilvr": ILVR(levels=6),
    "dps": DPS(levels=8),
    "dps-norm": DPS(levels=8, form="norm"),
    "sdedit": SDEdit(levels=6),
    "scoreald": ScoreALD(levels=4, inner=3),
    "mcg": MCG(levels=8),
    "mmps": MMPS(levels=6),
    "pigdm": PiGDM(levels=6),
    "pigdm-cg": PiGDM(levels=6, inverse="cg"),
    "pigdm-pinv": PiGDM(levels=6, inverse="pinv"),
    "c-pigdm": ConjugatePiGDM(levels=5),
    "daps": DAPS(levels=4, steps=3),
    "daps-hmc": DAPS(levels=4, steps=2, leapfrog=2, move="hmc"),
    "daps-mh": DAPS(levels=4, steps=10, move="metropolis"),
}


def sized(name: str, members: int = CHAINS) -> Guidance:
    return replace(METHODS[name], members=members)


def run(name: str, operator: LinearOperator | None = None, like: Tensor = DOUBLE, **changes):
    """All states of a short run."""
    operator = operator or PROBLEM.operator
    return follow(sized(name), PRIOR, operator, OBSERVATION, like=like, **changes)[0]


def experiment(name: str, **changes) -> enkg.Experiment:
    fields = {
        "prior": PROBLEM.one_component,
        "simulator": PROBLEM.simulator,
        "observation": OBSERVATION,
        "guidance": sized(name),
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


def posterior(name: str, comm: enkg.comm.Comm = enkg.comm.ALONE, **changes) -> np.ndarray:
    return values(enkg.run(experiment(name, **changes), comm=comm), "posterior", "x")
