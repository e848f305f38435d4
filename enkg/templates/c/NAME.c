/* A body cools in a room of 20 degrees: 2 numbers in, 12 temperatures out.

       ./NAME              stays up and takes members from enkg, one after another
       ./NAME IN OUT       computes one member: numbers in text files

   Put your own computation into simulate(), and the shapes into simulator.toml. */
#include <math.h>
#include <stdio.h>

#include "enkg_worker.h"

enum { N_IN = 2, N_OUT = 12 };

/* Returns 0, or anything else for a member that cannot be computed. */
static int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out) {
  if (n_in != N_IN || n_out != N_OUT) return 1;
  if (!(x[1] > 0)) return 1; /* a body that warms up by itself */
  for (size_t i = 0; i < n_out; i++) y[i] = 20 + x[0] * exp(-x[1] * 5 * (double)i);
  return 0;
}

static int one_member(const char *in, const char *out) {
  double x[N_IN], y[N_OUT];
  FILE *file = fopen(in, "r");
  if (!file) return fprintf(stderr, "cannot read %s\n", in), 2;
  for (int i = 0; i < N_IN; i++)
    if (fscanf(file, "%lf", &x[i]) != 1) return fprintf(stderr, "%s is too short\n", in), 2;
  fclose(file);
  if (simulate(x, N_IN, y, N_OUT)) return fprintf(stderr, "the rate must be positive\n"), 3;
  file = fopen(out, "w");
  if (!file) return fprintf(stderr, "cannot write %s\n", out), 2;
  for (int i = 0; i < N_OUT; i++) fprintf(file, "%.17g\n", y[i]);
  return fclose(file) ? 2 : 0;
}

int main(int argc, char **argv) {
  if (argc == 3) return one_member(argv[1], argv[2]);
  return enkg_serve(simulate);
}
