/* The least worker: each number is doubled. cc -O2 -o example example.c */
#include "enkg_worker.h"

static int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out) {
  size_t i;
  if (n_in != n_out) return 1;
  for (i = 0; i < n_in; i++) y[i] = 2 * x[i];
  return 0;
}

int main(void) { return enkg_serve(simulate); }
