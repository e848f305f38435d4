/* Square arrays of float64 in files: NumPy's .npy, or .txt with numbers separated by white space. */
#ifndef ARRAYS_H
#define ARRAYS_H

#include <stddef.h>

/* Reads n x n numbers; returns them, for free(), and sets *n. On failure it says on stderr what was
   found and what is expected, and returns NULL. */
double *read_square(const char *path, size_t *n);

/* Writes rows x columns numbers; a .npy of one row has one axis. The file appears under its name
   only when it is complete. Returns 0, or -1 after saying on stderr what went wrong. */
int write_array(const char *path, const double *values, size_t rows, size_t columns);

/* Whether the name ends in .npy or .txt. */
int known_suffix(const char *path);

#endif
