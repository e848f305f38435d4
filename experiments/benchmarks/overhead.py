"""The share of a run that is spent outside the simulator.

    python experiments/benchmarks/overhead.py --seconds-per-call 0.01

The simulator is a linear map that sleeps for a given time for each member; everything else (prior,
analysis, random numbers, bookkeeping) is enkg. The share is a ratio within one run; the files and
figures of a run directory cost a fixed time, which is printed apart.
"""

import argparse
import dataclasses
import json
import tempfile
import time

import numpy as np
import torch

import enkg
from priors.gaussian_field import gaussian_field


def problem(
    size: int, members: int, seconds: float, updates: int | None = None, chunk: int = 16
) -> enkg.Experiment:
    """A field of size x size points, every second point observed after a dear identity.

    seconds: of a call of one member. chunk: members that the simulator gets at once.
    """
    prior = gaussian_field(size)

    def simulator(x: np.ndarray) -> np.ndarray:
        time.sleep(seconds * len(x))
        return x[:, ::2, ::2]

    truth = prior.draw(seed=1, members=[10**6], step=0)[0]
    exact = enkg.Observation(truth[::2, ::2], std=0.2)
    observation = enkg.Observation(exact.perturb(exact.y, seed=1), std=0.2)
    return enkg.Experiment(
        prior=prior,
        simulator=enkg.Function(simulator, chunk=chunk),
        observation=observation,
        guidance=enkg.EnKG(members=members, updates=updates),
        truth=truth,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--size", type=int, default=64, help="points per side of the field")
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--seconds-per-call", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    base = problem(given.size, given.members, given.seconds_per_call)
    shares, fixed = [], []
    for repeat in range(given.repeats):
        case = dataclasses.replace(base, seed=repeat)
        begin = time.perf_counter()
        summary = json.loads(enkg.run(case).attrs["summary"])
        outside = time.perf_counter() - begin - summary["simulator_seconds"]
        shares.append(outside / (outside + summary["simulator_seconds"]))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            again = json.loads(enkg.run(case, folder + "/run").attrs["summary"])
            fixed.append(time.perf_counter() - begin - again["simulator_seconds"] - outside)
        print(
            f"run {repeat}: {summary['calls']} calls; outside the simulator {outside:.2f} s = "
            f"{shares[-1]:.1%}; files and figures {fixed[-1]:.2f} s more, whatever calls cost"
        )
    print(
        f"median: {np.median(shares):.1%} outside the simulator, {np.median(fixed):.1f} s in files "
        f"and figures ({given.members} members of "
        f"{given.size}^2, {base.observation.size} data, {given.seconds_per_call * 1e3:.0f} ms a "
        f"call, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
