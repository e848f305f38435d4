/* Each rank doubles its share of the numbers. mpicc -O2 -o example_mpi example_mpi.c */
#define ENKG_MPI
#include "enkg_worker.h"

static int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out) {
  int rank, ranks;
  size_t i;
  if (n_in != n_out) return 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (i = 0; i < n_out; i++) y[i] = i % (size_t)ranks == (size_t)rank ? 2 * x[i] : 0;
  if (rank == 0)
    return MPI_Reduce(MPI_IN_PLACE, y, (int)n_out, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  return MPI_Reduce(y, NULL, (int)n_out, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
  int status;
  MPI_Init(&argc, &argv);
  status = enkg_serve_mpi(simulate, MPI_COMM_WORLD);
  MPI_Finalize();
  return status;
}
