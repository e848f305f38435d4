/* The few MPI calls of swe2d, for Fortran. A shim in C works with any MPI library: a Fortran module
   mpi.mod fits one compiler only. With -DSERIAL it needs no MPI and is a world of one. */

#include <stdlib.h>
#include <time.h>

#ifdef SERIAL

void world_start(int *rank, int *ranks) { *rank = 0, *ranks = 1; }
void world_swap(const double *send, int to, double *receive, int from, int count) {
  (void)send, (void)to, (void)receive, (void)from, (void)count;
}
void world_share(void *values, int bytes) { (void)values, (void)bytes; }
void world_sum(double *values, int count) { (void)values, (void)count; }
int world_largest(int value) { return value; }
void world_end(int code) { exit(code); }

#else

#include <mpi.h>

void world_start(int *rank, int *ranks) {
  MPI_Init(NULL, NULL);
  MPI_Comm_rank(MPI_COMM_WORLD, rank);
  MPI_Comm_size(MPI_COMM_WORLD, ranks);
}

/* Sends to one neighbour and receives from the other; a rank outside the world is a wall. */
void world_swap(const double *send, int to, double *receive, int from, int count) {
  int ranks;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (to < 0 || to >= ranks) to = MPI_PROC_NULL;
  if (from < 0 || from >= ranks) from = MPI_PROC_NULL;
  MPI_Sendrecv(send, count, MPI_DOUBLE, to, 0, receive, count, MPI_DOUBLE, from, 0, MPI_COMM_WORLD,
               MPI_STATUS_IGNORE);
}

/* From rank 0 to all. */
void world_share(void *values, int bytes) {
  MPI_Bcast(values, bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
}

/* Sum over the ranks, on all of them. Exact where only one rank has a number other than 0. */
void world_sum(double *values, int count) {
  MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

int world_largest(int value) {
  MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return value;
}

/* Every rank ends with the same code, so that every launcher reports it. */
void world_end(int code) {
  MPI_Finalize();
  exit(code);
}

#endif

void world_sleep(double seconds) {
  struct timespec left = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
  while (nanosleep(&left, &left) != 0) {
  }
}
