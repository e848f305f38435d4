import os

import pytest

from enkg.execute.environment import RANK, environment
from enkg.execute.manifest import Environment


def given(monkeypatch, variables, settings=None, extra=None, threads=1):
    for name in set(os.environ) & {*RANK, "LD_LIBRARY_PATH", "OPAL_PREFIX"}:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return environment(settings or Environment(), extra or {}, threads)


@pytest.mark.parametrize(
    "name",
    [
        *("PMI_RANK", "PMI_FD", "PMIX_RANK", "HYDI_CONTROL_FD", "MPI_LOCALRANKID"),
        *("OMPI_COMM_WORLD_SIZE", "PRTE_LAUNCHED", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK"),
        *("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_MPI_TYPE"),
        *("SLURM_SRUN_COMM_HOST", "SLURM_PMI2_STEP_NODES", "GFORTRAN_UNBUFFERED_PRECONNECTED"),
        *("ENKG_IN", "ENKG_MEMBER"),
    ],
)
def test_that_what_ties_to_a_step_is_left_out(monkeypatch, name):
    assert name not in given(monkeypatch, {name: "1"})


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_CONF"),
        *("OMPI_MCA_btl", "OMPI_ALLOW_RUN_AS_ROOT", "UCX_TLS", "FI_PROVIDER", "FLUX_URI"),
        *("MPIR_CVAR_ENABLE_GPU", "ENKG_TAG", "ENKG_DATA", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_that_settings_are_kept_even_inside_a_rank(monkeypatch, name):
    assert given(monkeypatch, {"PMI_RANK": "0", name: "x"})[name] == "x"


def test_that_settings_a_launcher_may_have_made_are_kept_outside_ranks_alone(monkeypatch):
    settings = {"OPAL_PREFIX": "/opt/mpi", "HYDRA_IFACE": "ib0"}
    assert given(monkeypatch, settings).items() >= settings.items()
    assert not set(given(monkeypatch, settings | {"PMIX_RANK": "0"})) & set(settings)


def test_that_the_library_folder_of_open_mpis_launcher_goes_and_the_users_stay(monkeypatch):
    path = "/opt/mpi/lib:/home/me/lib:/opt/mpi/lib"
    variables = {"LD_LIBRARY_PATH": path, "OPAL_PREFIX": "/opt/mpi"}
    assert given(monkeypatch, variables)["LD_LIBRARY_PATH"] == path
    inside = given(monkeypatch, variables | {"PMIX_RANK": "0"})
    assert inside["LD_LIBRARY_PATH"] == "/home/me/lib:/opt/mpi/lib"


def test_that_every_library_is_given_its_number_of_threads(monkeypatch):
    env = given(monkeypatch, {"OMP_NUM_THREADS": "64"}, threads=3)
    for library in "OMP", "MKL", "OPENBLAS", "NUMEXPR", "BLIS", "JULIA":
        assert env[f"{library}_NUM_THREADS"] == "3"


def test_that_the_manifest_has_the_last_word_but_for_what_a_call_needs(monkeypatch):
    settings = Environment({"A": "set", "PMI_RANK": "5", "OMP_NUM_THREADS": "9"}, ("B", "C"))
    env = given(
        monkeypatch, {"A": "ours", "B": "ours", "C": "ours"}, settings, {"C": "call", "D": "call"}
    )
    assert (env["A"], env["PMI_RANK"], env["OMP_NUM_THREADS"]) == ("set", "5", "9")
    assert "B" not in env
    assert (env["C"], env["D"]) == ("call", "call")


def test_that_a_variable_set_later_by_the_user_is_passed_on(monkeypatch):
    assert given(monkeypatch, {"SIMULATOR_DATA": "/data"})["SIMULATOR_DATA"] == "/data"


def test_that_a_program_does_not_join_the_job_of_torchrun(monkeypatch):
    job = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}
    assert not set(given(monkeypatch, job)) & set(job)


def test_that_a_rank_that_is_no_torchruns_is_kept(monkeypatch):
    assert given(monkeypatch, {"RANK": "general"})["RANK"] == "general"
