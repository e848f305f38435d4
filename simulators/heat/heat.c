/* u_t = div(kappa grad u) on the unit square, u = 0 at t = 0, by explicit Euler steps.

   Walls: u = 1 at x = 0, u = 0 at x = 1, insulated at y = 0 and y = 1. The conductance between two
   cells is the harmonic mean of their conductivities; a wall lies half a cell away, so its
   conductance is twice that of the cell.

   A step is at most 0.2 h^2 / max(kappa). A cell at a wall then passes on at most five fifths of
   what it holds, so every new temperature is a weighted mean of old ones: 0 <= u <= 1. */

#include "heat.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static const double courant = 0.2;
static const double most_steps = 2e5;

enum { INTERVALS = 5 };
static const double interval = 0.02; /* all reading times are multiples of this */
static const int reading_at[HEAT_TIMES] = {1, 2, 3, 5};

static _Thread_local char reason[160];

const char *heat_reason(void) { return reason; }

__attribute__((format(printf, 2, 3))) static int refuse(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return code;
}

size_t heat_side(size_t cells) {
    for (size_t n = HEAT_SMALLEST; n <= HEAT_LARGEST; n++)
        if (n * n == cells) return n;
    return 0;
}

static double harmonic(double a, double b) { return 2 / (1 / a + 1 / b); }

/* Fluxes through the faces for one step, in units of a cell's heat content for a difference of one.
   across: n x (n + 1) faces between columns, the walls included. along: (n + 1) x n faces between
   rows; the outermost are insulated. */
static void conductances(const double *kappa, size_t n, double r, double *across, double *along) {
    for (size_t i = 0; i < n; i++) {
        const double *row = kappa + i * n;
        double *face = across + i * (n + 1);
        face[0] = r * 2 * row[0];
        for (size_t j = 1; j < n; j++) face[j] = r * harmonic(row[j - 1], row[j]);
        face[n] = r * 2 * row[n - 1];
    }
    for (size_t j = 0; j < n; j++) along[j] = along[n * n + j] = 0;
    for (size_t i = 1; i < n; i++)
        for (size_t j = 0; j < n; j++)
            along[i * n + j] = r * harmonic(kappa[(i - 1) * n + j], kappa[i * n + j]);
}

/* One step from u to next, both (n + 2) x (n + 2) with the walls around the cells. */
static void advance(const double *restrict u, double *restrict next, size_t n,
                    const double *restrict across, const double *restrict along) {
    const size_t width = n + 2;
    for (size_t i = 0; i < n; i++) {
        const double *here = u + (i + 1) * width + 1;
        const double *above = here - width, *below = here + width;
        const double *left = across + i * (n + 1), *up = along + i * n, *down = up + n;
        double *to = next + (i + 1) * width + 1;
        for (size_t j = 0; j < n; j++) {
            double old = here[j];
            to[j] = old + left[j] * (here[j - 1] - old) + left[j + 1] * (here[j + 1] - old) +
                    up[j] * (above[j] - old) + down[j] * (below[j] - old);
        }
    }
}

/* The temperature between the centres of four cells, linear in x and in y. */
static double between(const double *u, size_t n, double x, double y) {
    double right = x * (double)n - 0.5, low = y * (double)n - 0.5;
    size_t j = (size_t)right, i = (size_t)low, width = n + 2;
    double a = right - (double)j, b = low - (double)i;
    const double *corner = u + (i + 1) * width + j + 1;
    return (1 - b) * ((1 - a) * corner[0] + a * corner[1]) +
           b * ((1 - a) * corner[width] + a * corner[width + 1]);
}

static double *read_sensors(const double *u, size_t n, double *to) {
    for (int row = 0; row < HEAT_ROWS; row++)
        for (int column = 0; column < HEAT_COLUMNS; column++)
            *to++ = between(u, n, (column + 0.5) / HEAT_COLUMNS, (row + 0.5) / HEAT_ROWS);
    return to;
}

int heat_run(const double *kappa, size_t n, double *readings, double *field) {
    if (n < HEAT_SMALLEST || n > HEAT_LARGEST)
        return refuse(HEAT_BAD_INPUT, "%zu cells a side; expected %d to %d", n, HEAT_SMALLEST,
                      HEAT_LARGEST);
    double largest = 0;
    for (size_t c = 0; c < n * n; c++) {
        if (!isfinite(kappa[c]))
            return refuse(HEAT_BAD_INPUT, "the conductivity at row %zu, column %zu is %g", c / n,
                          c % n, kappa[c]);
        if (kappa[c] <= 0)
            return refuse(HEAT_IMPOSSIBLE,
                          "the conductivity at row %zu, column %zu is %g; it must be positive",
                          c / n, c % n, kappa[c]);
        largest = fmax(largest, kappa[c]);
    }
    double h = 1.0 / (double)n;
    double part = ceil(interval * largest / (courant * h * h)); /* steps between two readings */
    if (INTERVALS * part > most_steps)
        return refuse(HEAT_IMPOSSIBLE,
                      "a largest conductivity of %g takes %.3g steps; the limit is %g", largest,
                      INTERVALS * part, most_steps);

    size_t cells = (n + 2) * (n + 2), faces = n * (n + 1);
    double *memory = calloc(2 * cells + 2 * faces, sizeof *memory);
    if (!memory) return refuse(HEAT_NO_MEMORY, "no memory for %zu x %zu cells", n, n);
    double *u = memory, *next = u + cells, *across = next + cells, *along = across + faces;
    for (size_t i = 0; i < n + 2; i++) u[i * (n + 2)] = next[i * (n + 2)] = 1;
    conductances(kappa, n, interval / part / (h * h), across, along);

    double *to = readings;
    for (int now = 1, due = 0; now <= INTERVALS; now++) {
        for (long step = 0; step < (long)part; step++) {
            advance(u, next, n, across, along);
            double *swap = u;
            u = next, next = swap;
        }
        if (now == reading_at[due]) {
            to = read_sensors(u, n, to);
            due++;
        }
    }
    if (field)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) field[i * n + j] = u[(i + 1) * (n + 2) + j + 1];
    free(memory);
    return HEAT_GOOD;
}

int heat2d(const double *kappa, size_t n_in, double *readings, size_t n_out) {
    size_t n = heat_side(n_in);
    if (!n)
        return refuse(HEAT_BAD_INPUT, "%zu conductivities; expected a square of %d to %d a side",
                      n_in, HEAT_SMALLEST, HEAT_LARGEST);
    if (n_out != HEAT_READINGS)
        return refuse(HEAT_BAD_INPUT, "%zu readings asked for; there are %d", n_out, HEAT_READINGS);
    return heat_run(kappa, n, readings, NULL);
}
