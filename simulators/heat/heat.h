/* Heat conduction in a square plate, read by 24 sensors at four times. See README.md. */
#ifndef HEAT_H
#define HEAT_H

#include <stddef.h>

enum {
    HEAT_COLUMNS = 6, /* sensors along x */
    HEAT_ROWS = 4,    /* sensors along y */
    HEAT_TIMES = 4,
    HEAT_READINGS = HEAT_COLUMNS * HEAT_ROWS * HEAT_TIMES,
    HEAT_SMALLEST = 8,   /* cells a side; the sensors lie between the centres of cells */
    HEAT_LARGEST = 4096, /* cells a side */
};

/* The exit codes of the program as well. */
enum { HEAT_GOOD = 0, HEAT_NO_MEMORY = 1, HEAT_BAD_INPUT = 2, HEAT_IMPOSSIBLE = 3 };

/* Cells a side for that many cells; 0 where they make no square, or one too small or too large. */
size_t heat_side(size_t cells);

/* One run.

   kappa: conductivity, n x n values, row by row; kappa[i * n + j] lies at x = (j + 1/2) / n and
   y = (i + 1/2) / n. readings: HEAT_READINGS temperatures, time by time, in each the sensors row by
   row. field: n x n temperatures at the last time, or NULL.

   Returns one of the codes above; unless it is HEAT_GOOD, heat_reason() says why. Safe in threads.
   Cost: 0.5 n^2 max(kappa) steps of n^2 cells. */
int heat_run(const double *kappa, size_t n, double *readings, double *field);

/* The same for callers that know sizes alone: n_in = n^2 conductivities, n_out readings. */
int heat2d(const double *kappa, size_t n_in, double *readings, size_t n_out);

/* Why the last run of this thread failed. */
const char *heat_reason(void);

#endif
