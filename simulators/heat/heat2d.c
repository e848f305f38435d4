/* The program: one run from a file to a file, or a worker that serves one run after another. */

#define _POSIX_C_SOURCE 200809L

#include "arrays.h"
#include "enkg_worker.h"
#include "heat.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char help[] =
    "usage: heat2d [--field] [--sleep S] IN OUT\n"
    "       heat2d --serve [--sleep S]\n"
    "\n"
    "Heat conduction in a plate: u_t = div(kappa grad u) on the unit square, u = 0 at t = 0. The wall\n"
    "at x = 0 is held at 1, the wall at x = 1 at 0; those at y = 0 and y = 1 are insulated.\n"
    "\n"
    "  IN       conductivity kappa > 0 of n x n cells, n = 8 to 4096; row i is y = (i + 1/2) / n,\n"
    "           column j is x = (j + 1/2) / n. A .npy file of float64, shape (n, n), C order; or a\n"
    "           .txt file of n * n numbers separated by white space, row by row.\n"
    "  OUT      96 temperatures, .npy or .txt: times 0.02, 0.04, 0.06, 0.1, at each 4 rows of 6\n"
    "           sensors, at y = (row + 1/2) / 4 and x = (column + 1/2) / 6. Written under another\n"
    "           name in the same folder and renamed when complete, so never half a file.\n"
    "  --field  write the n x n temperatures at 0.1 instead\n"
    "  --serve  stay up and answer the requests of enkg; 96 numbers for n * n\n"
    "  --sleep  wait S seconds before each run\n"
    "\n"
    "exit status: 0 good; 1 no memory; 2 bad input: an option, the file, its shape, a number that is\n"
    "NaN; 3 physically impossible: a conductivity that is not positive, or so large that the run\n"
    "takes more than 200,000 steps. Nothing is written unless it is 0.\n"
    "\n"
    "example: python -c \"import numpy as np; np.save('kappa.npy', np.ones((32, 32)))\"\n"
    "         heat2d kappa.npy readings.txt\n";

static double pause_seconds = 0;

static void pause_before(void) {
    struct timespec left = {.tv_sec = (time_t)pause_seconds};
    left.tv_nsec = (long)(1e9 * (pause_seconds - (double)left.tv_sec));
    while (pause_seconds > 0 && nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

static int one(const double *x, size_t n_in, double *y, size_t n_out) {
    pause_before();
    int code = heat2d(x, n_in, y, n_out);
    if (code) fprintf(stderr, "heat2d: %s\n", heat_reason());
    return code;
}

static int wrong_usage(const char *what, const char *argument) {
    fprintf(stderr, "heat2d: %s %s; heat2d --help says more\n", what, argument);
    return HEAT_BAD_INPUT;
}

static int run(const char *in, const char *out, int whole_field) {
    size_t n = 0;
    double readings[HEAT_READINGS];
    double *kappa = read_square(in, &n);
    if (!kappa) return HEAT_BAD_INPUT;
    double *field = whole_field ? malloc(n * n * sizeof *field) : NULL;
    if (whole_field && !field) {
        fprintf(stderr, "heat2d: %s: no memory for %zu x %zu temperatures\n", in, n, n);
        free(kappa);
        return HEAT_NO_MEMORY;
    }
    pause_before();
    int code = heat_run(kappa, n, readings, field);
    if (code)
        fprintf(stderr, "heat2d: %s: %s\n", in, heat_reason());
    else if (whole_field)
        code = write_array(out, field, n, n) ? HEAT_BAD_INPUT : HEAT_GOOD;
    else
        code = write_array(out, readings, 1, HEAT_READINGS) ? HEAT_BAD_INPUT : HEAT_GOOD;
    free(kappa);
    free(field);
    return code;
}

int main(int count, char **arguments) {
    const char *files[2] = {NULL, NULL};
    int given = 0, serve = 0, whole_field = 0;
    for (int k = 1; k < count; k++) {
        const char *word = arguments[k];
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            fputs(help, stdout);
            return HEAT_GOOD;
        } else if (strcmp(word, "--serve") == 0) {
            serve = 1;
        } else if (strcmp(word, "--field") == 0) {
            whole_field = 1;
        } else if (strcmp(word, "--sleep") == 0) {
            char *end = NULL;
            if (++k < count) pause_seconds = strtod(arguments[k], &end);
            if (!end || end == arguments[k] || *end ||
                !(pause_seconds >= 0 && pause_seconds < 1e9))
                return wrong_usage("--sleep needs seconds, not", k < count ? arguments[k] : "none");
        } else if (word[0] == '-') {
            return wrong_usage("unknown option", word);
        } else if (given == 2) {
            return wrong_usage("one file too many,", word);
        } else if (!known_suffix(word)) {
            return wrong_usage("files end in .npy or .txt, not", word);
        } else {
            files[given++] = word;
        }
    }
    if (serve) return given ? wrong_usage("--serve takes no file,", files[0]) : enkg_serve(one);
    if (given < 2) return wrong_usage("give two files,", "IN and OUT");
    return run(files[0], files[1], whole_field);
}
