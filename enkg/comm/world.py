"""Which ranks there are: the launcher is asked by its environment, and its word is checked."""

import os
from typing import Literal

from enkg.comm.base import ALONE, Comm
from enkg.errors import InputError

Kind = Literal["auto", "alone", "mpi", "torch"]
COUNTS = {
    "PMI_SIZE": "mpiexec",
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpiexec",
    "SLURM_STEP_NUM_TASKS": "srun",
    "PALS_NRANKS": "the mpiexec of PALS",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux",
}
"""Variables by which launchers tell a rank how many there are. Batch scripts have none of them."""


def world(kind: Kind = "auto") -> Comm:
    """The ranks that this process was started with.

    auto: MPI under mpiexec, srun or flux with more than one rank, torch.distributed under torchrun,
    else alone. mpi4py is imported for MPI only.

    Raises InputError where the launcher started more ranks than MPI counts: each would hold itself
    for the whole run.
    """
    if kind == "alone":
        return ALONE
    if kind == "torch" or (kind == "auto" and "TORCHELASTIC_RUN_ID" in os.environ):
        from enkg.comm.distributed import Distributed

        return Distributed()
    launcher, ranks = launched()
    if kind == "auto" and ranks == 1:
        return ALONE
    try:
        from enkg.comm.mpi import Mpi

        comm = Mpi()
    except (ImportError, RuntimeError) as error:  # without mpi4py; without a library of MPI
        raise InputError(
            f"{launcher} started {ranks} ranks, and mpi4py cannot be loaded "
            f"({str(error).splitlines()[0]}): pip install 'enkg[mpi]', or mpi4py built against the "
            "cluster's MPI"
        ) from error
    if ranks > 1 and (comm.size == 1 or comm.size not in counts().values()):
        raise InputError(mismatch(launcher, ranks, comm.size))
    return comm


def counts() -> dict[str, int]:
    """Launchers around this process, and the ranks that each says it started.

    There can be several: srun starts mpiexec's own helpers, or a script that calls mpiexec.
    """
    told = {launcher: os.environ.get(name, "") for name, launcher in COUNTS.items()}
    return {launcher: int(text) for launcher, text in told.items() if text.isdigit()}


def launched() -> tuple[str, int]:
    """The launcher that started the most ranks around this process, and how many."""
    found = counts()
    launcher = max(found, key=lambda name: found[name], default="no launcher")
    return launcher, found.get(launcher, 1)


def mismatch(launcher: str, ranks: int, size: int) -> str:
    """What is wrong when MPI counts other ranks than the launcher, and what to do."""
    from mpi4py import MPI

    library = " ".join(MPI.Get_library_version().splitlines()[0].strip("\0 ").split()).split(",")[0]
    advice = (
        "try srun --mpi=pmi2 (srun --mpi=list shows what there is), or mpiexec in place of srun"
        if launcher == "srun"
        else "use the mpiexec that belongs to this MPI, or an mpi4py built against the launcher's"
    )
    return (
        f"{launcher} started {ranks} ranks, but MPI counts {size}: mpi4py uses {library}, which "
        f"does not understand this launcher, so every rank would do the whole run; {advice}"
    )
