"""Whether all ranks of a run were given the same experiment.

Each rank builds the experiment for itself. One that draws its truth without a seed, or reads a file
that another node has another version of, would have every rank simulate another problem. Arrays may
differ in their last digits, as they do between kinds of CPUs: what matters of them is rank 0's.
"""

from enkg import store
from enkg.comm import Comm, once
from enkg.errors import InputError
from enkg.experiment import Experiment
from enkg.sketch import differences


def check(experiment: Experiment, comm: Comm) -> None:
    """Raises InputError on all ranks if one has another experiment than rank 0. Collective."""
    if comm.size == 1:
        return
    mine = store.describe(experiment) | {"versions": store.versions()}
    everyones = comm.gather(mine)

    def compare() -> None:
        for rank, other in enumerate(everyones):
            found = differences(everyones[0], other)
            if found:
                raise InputError(
                    f"rank {rank} has another experiment than rank 0: {', '.join(found[:5])} "
                    "differ. Every rank builds the experiment for itself: give random numbers a "
                    "seed, and all nodes the same files and packages"
                )

    once(comm, compare)
