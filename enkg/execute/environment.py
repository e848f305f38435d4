"""The environment that programs are given."""

import os
from collections.abc import Mapping

from enkg.execute import guard
from enkg.execute.manifest import Environment

THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("BLIS_NUM_THREADS", "JULIA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)
STEP_PREFIXES = (
    *("OMPI_", "PMIX_", "PMI_", "PMI2_", "PRTE_", "PRRTE_", "OPAL_", "MPI_LOCAL", "MPIR_"),
    *("HYDRA_", "HYDI_", "MPIEXEC_", "I_MPI_HYDRA_", "MV2_COMM_", "FLUX_"),
    *("SLURM_STEP", "SLURM_SRUN_COMM", "SLURM_PMI", "ENKG_"),
)
"""Variables that tie a process to one MPI or SLURM step: a second MPI program that inherits them
joins the first one's world, crashes, or hangs."""
STEP_NAMES = frozenset(
    (
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_TASK_PID", "SLURM_GTIDS"),
        *("SLURM_LAUNCH_NODE_IPADDR", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_TASKS_PER_NODE"),
        *("SLURM_DISTRIBUTION", "SLURM_CPU_BIND", "SLURM_MPI_TYPE"),
        *("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK"),
        "GFORTRAN_UNBUFFERED_PRECONNECTED",
    )
)
TORCHRUN = "TORCHELASTIC_"
TORCHRUN_NAMES = frozenset(
    (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
        *("ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    )
)
"""Variables that tie a process to a job of torchrun. Their names are common, so they are taken for
this only where torchrun's own are there."""
SETTINGS = (
    *("OMPI_MCA_", "OMPI_ALLOW_RUN_AS_ROOT", "MPIR_CVAR_", "FLUX_URI"),
    *(guard.TAG, "ENKG_DATA"),
)
"""Kept none the less: settings of the user's."""
OUTSIDE = ("OPAL_PREFIX", "PMIX_MCA_", "PRTE_MCA_", "HYDRA_")
"""Settings of the user's too, but inside an MPI rank its launcher may have made them."""
RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")
"""One of these is there inside an MPI rank; SLURM_PROCID is there in batch scripts too."""


def environment(
    settings: Environment, extra: Mapping[str, str], threads: int = 1
) -> dict[str, str]:
    """A program's environment: ours, less what ties us to an MPI or SLURM step.

    Then the thread variables, then what the manifest sets and unsets, then `extra`.
    """
    inside = any(name in os.environ for name in RANK)
    keep = SETTINGS if inside else SETTINGS + OUTSIDE
    env = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(keep) or not (name.startswith(STEP_PREFIXES) or name in STEP_NAMES)
    }
    if any(name.startswith(TORCHRUN) for name in env):
        tied = [name for name in env if name.startswith(TORCHRUN) or name in TORCHRUN_NAMES]
        for name in tied:
            del env[name]
    if inside and "LD_LIBRARY_PATH" in env:
        env["LD_LIBRARY_PATH"] = _library_path()
    env.update(dict.fromkeys(THREADS, str(threads)))
    env.update(settings.set)
    for name in settings.unset:
        env.pop(name, None)
    env.update(extra)
    return env


def _library_path() -> str:
    """LD_LIBRARY_PATH without the folder that Open MPI's mpiexec puts before the user's own."""
    first, _, rest = os.environ["LD_LIBRARY_PATH"].partition(":")
    for name in ("OPAL_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX"):
        prefix = os.environ.get(name)
        if prefix and first.startswith(prefix.rstrip("/") + "/"):
            return rest
    return os.environ["LD_LIBRARY_PATH"]
