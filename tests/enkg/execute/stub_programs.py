"""Programs made with the stubs, for their tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import enkg
from enkg.execute.manifest import Manifest, Mpi, Port, Worker

STUBS = Path(enkg.__file__).parent / "stubs"
LANGUAGES = ("python", "c", "fortran")
FLAGS = {
    "c": ("gcc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror"),
    "fortran": ("gfortran", "-std=f2008", "-O2", "-Wall", "-Wextra", "-Werror"),
}
# Fails where the first number is negative, leaves the last number alone, and prints.
TRICKY = {
    "python": """
from enkg_worker import serve
import numpy as np
def simulate(x):
    print("working", flush=True)
    if x[0] < 0:
        raise ValueError("negative depth")
    y = np.full(len(x), np.nan, x.dtype)
    y[:-1] = 2 * x[:-1]
    return y
serve(simulate)
""",
    "c": """
#include "enkg_worker.h"
static int simulate(const enkg_real *x, size_t n, enkg_real *y, size_t m) {
  size_t i;
  puts("working");
  for (i = 0; i + 1 < n && i < m; i++) y[i] = 2 * x[i];
  return x[0] < 0;
}
int main(void) { return enkg_serve(simulate); }
""",
    "fortran": """
program tricky
  use enkg_worker
  implicit none
  call enkg_serve(simulate)
contains
  subroutine simulate(x, y, status)
    real(enkg_real), intent(in) :: x(:)
    real(enkg_real), intent(out) :: y(:)
    integer, intent(out) :: status
    print *, "working"
    y(:size(x) - 1) = 2 * x(:size(x) - 1)
    status = merge(1, 0, x(1) < 0)
  end subroutine
end program
""",
}
MPI_FORTRAN = """
module mpi_by_c
  use iso_c_binding
  implicit none
  interface
    integer(c_int) function world(which) bind(C)
      import :: c_int
      integer(c_int), value :: which
    end function
    subroutine from_first(bytes, n) bind(C)
      import :: c_int8_t, c_int
      integer(c_int8_t) :: bytes(*)
      integer(c_int), value :: n
    end subroutine
  end interface
end module
program main
  use enkg_worker
  use mpi_by_c
  implicit none
  integer :: rank, ranks
  rank = world(0)
  ranks = world(1)
  call enkg_serve_mpi(simulate, rank, ranks, share)
  rank = world(2)
contains
  subroutine share(bytes, n)
    integer(c_int8_t), intent(inout) :: bytes(*)
    integer, intent(in) :: n
    call from_first(bytes, n)
  end subroutine
  subroutine simulate(x, y, status)
    real(enkg_real), intent(in) :: x(:)
    real(enkg_real), intent(out) :: y(:)
    integer, intent(out) :: status
    real(enkg_real) :: last(1)
    y = 2 * x
    last = merge(x(1), 0.0_enkg_real, rank == ranks - 1)
    y(1) = world(3) + 2 * last(1) + merge(2 * x(1), 0.0_enkg_real, rank == 0 .and. ranks > 1)
    status = 0
  end subroutine
end program
"""
MPI_C_SIDE = """
#include <mpi.h>
int world(int which) {
  int n = 0, one = 1;
  if (which == 0) MPI_Init(0, 0), MPI_Comm_rank(MPI_COMM_WORLD, &n);
  if (which == 1) MPI_Comm_size(MPI_COMM_WORLD, &n);
  if (which == 2) MPI_Finalize();
  if (which == 3) MPI_Allreduce(&one, &n, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  return n;
}
void from_first(void *bytes, int n) { MPI_Bcast(bytes, n, MPI_BYTE, 0, MPI_COMM_WORLD); }
"""
MPI_PYTHON = """
import os
import numpy as np
from mpi4py import MPI
from enkg_worker import serve
comm = MPI.COMM_WORLD
def simulate(x):
    if x[0] in (0, 1) and comm.rank == 1:
        raise ValueError("no convergence on this rank")
    if x[0] == 0:
        return x
    if x[0] == 2 and comm.rank == 1:
        os.kill(os.getpid(), 9)
    half = np.zeros(len(x))
    half[comm.rank::2] = 2 * x[comm.rank::2]
    return comm.allreduce(half)
serve(simulate, comm=comm)
"""


def compiled(language: str, folder: Path, source: str | None, options) -> tuple[str, ...]:
    suffix = {"python": "py", "c": "c", "fortran": "f90"}[language]
    main = folder / f"example.{suffix}"
    if source is not None:
        main = folder / f"main.{suffix}"
        main.write_text(source)
    if language == "python":
        return (sys.executable, str(main))
    compiler, *flags = FLAGS[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    files = [str(main)] if language == "c" else ["enkg_worker.f90", str(main)]
    subprocess.run([compiler, *flags, *options, "-o", "program", *files], cwd=folder, check=True)
    return (str(folder / "program"),)


def driver_of(
    drive,
    command,
    *,
    memory="pipe",
    named=None,
    shape=(64,),
    dtype="float64",
    order="C",
    batch=1,
    ranks=1,
):
    port = (
        Port(shape, order="F" if order == "F" else "C")
        if dtype == "float64"
        else Port(shape, "float32")
    )
    worker = Worker(command, memory="shared" if memory == "shared" else "pipe", batch=batch)
    folder = Path(command[-1]).parent
    return drive(Manifest("x", port, port, worker=worker, mpi=Mpi(ranks), folder=folder), named)


def field(*shape: int, dtype="float64") -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 1, size=shape).astype(dtype)
