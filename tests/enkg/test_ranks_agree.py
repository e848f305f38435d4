"""The law of ranks, for every method: spread over ranks, the ensemble is the same to the last bit.

The ranks are threads here; `test_spmd` runs the same under MPI and torchrun.
"""

import numpy as np

import enkg
from tests.enkg.problems import values
from tests.enkg.threads_comm import spread
from tests.methods import PROBLEM, ensemble, every_method, experiment


def posterior_on(comm: enkg.comm.Comm, name: str, **changes) -> np.ndarray:
    return values(enkg.run(experiment(name, **changes), comm=comm), "posterior", "x")


def fails_here_and_there(x: np.ndarray) -> np.ndarray:
    """About one member in six has no answer, wherever it is simulated."""
    if 1000 * x[0] % 6 < 1:
        raise ArithmeticError("out of my range")
    return PROBLEM.simulate(x[None])[0]


PARTLY = enkg.Function(fails_here_and_there, batched=False)


@every_method
def test_that_ranks_agree_to_the_last_bit(name):
    # 48 members on 5 ranks: blocks of 10, 10, 10, 9, 9.
    whole = ensemble(name)
    for size in (2, 5):
        for found in spread(size, lambda comm: posterior_on(comm, name)):
            np.testing.assert_array_equal(found, whole)


@every_method
def test_that_ranks_agree_on_members_that_fail_and_are_dropped(name):
    # SLR draws its members anew; published methods have so many sweeps that none would be left.
    drop = not name.startswith("slr") and "published" not in name
    changes = {"simulator": PARTLY, "failure": enkg.FailurePolicy(drop=drop)}
    whole = ensemble(name, **changes)
    for found in spread(3, lambda comm: posterior_on(comm, name, **changes)):
        np.testing.assert_array_equal(found, whole)
