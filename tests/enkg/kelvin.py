"""An experiment with everything that a user may set: a temperature in kelvin seen as row sums."""

import torch

import enkg
from tests.enkg.problems import normal

SIDE, MEMBERS, PREDICT, STD = 4, 40, 24, 0.5
UNITS = enkg.Affine(scale=10.0, offset=280.0)
MEAN = normal(SIDE, SIDE, seed=1)
VARIANCE = torch.linspace(0.5, 1.5, SIDE**2, dtype=torch.float64)
PRIOR = enkg.Gaussian(MEAN, VARIANCE, enkg.RealFourier((SIDE, SIDE)))
TRUTH = UNITS.to_simulator(PRIOR.draw(5, [0], 9))[0]


def simulator(x):
    """Row sums of the field in kelvin, (B, 4, 4) to (B, 4)."""
    return x.astype(float).sum(axis=2)


CLEAN = torch.from_numpy(simulator(TRUTH[None].numpy()))[0]
OBSERVATION = enkg.Observation(CLEAN + 10 * STD * normal(SIDE, seed=2), std=10 * STD)


def experiment(**changes) -> enkg.Experiment:
    fields = {
        "prior": PRIOR,
        "simulator": simulator,
        "observation": OBSERVATION,
        "guidance": enkg.EnKG(members=MEMBERS, updates=3),
        "units": UNITS,
        "unknown": enkg.Field(
            "temperature",
            unit="K",
            dims=("lat", "lon"),
            coords={"lat": [10.0, 20, 30, 40]},
        ),
        "data": enkg.Field("flux", unit="W", long_name="total flux", dims=("row",)),
        "truth": TRUTH,
        "predict": PREDICT,
    }
    return enkg.Experiment(**{**fields, **changes})
