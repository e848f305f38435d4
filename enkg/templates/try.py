"""NAME: how warm was the body at the start, and how fast does it cool?"""

from pathlib import Path

import numpy as np

import enkg

Y = [84.7, 65.7, 53.1, 43.1, 35.2, 31.3, 27.6, 25.7, 23.1, 22.9, 22.1, 22.2]

experiment = enkg.Experiment(
    prior=enkg.Gaussian(np.zeros(2), np.ones(2), enkg.Identity((2,))),
    units=enkg.Log(offset=np.log([50.0, 0.05]), scale=0.4),  # both are positive
    simulator=enkg.Program(Path(__file__).parent),
    observation=enkg.Observation(Y, std=0.5),
    guidance=enkg.EnKG(members=128),
)
