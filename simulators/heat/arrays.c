#define _POSIX_C_SOURCE 200809L

#include "arrays.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LARGEST_SIDE = 1 << 15, LARGEST_HEADER = 1 << 16 };

static const unsigned char magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

static int ends_in(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a > b && strcmp(text + a - b, end) == 0;
}

int known_suffix(const char *path) { return ends_in(path, ".npy") || ends_in(path, ".txt"); }

__attribute__((format(printf, 2, 3))) static void complain(const char *path, const char *format,
                                                           ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "heat2d: %s: ", path);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

/* The value of a key in the header of a .npy file, a Python dictionary; NULL if it is not there. */
static const char *value_of(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    while (isspace((unsigned char)*at)) at++;
    if (*at++ != ':') return NULL;
    while (isspace((unsigned char)*at)) at++;
    return at;
}

/* The header of a .npy file, version 1 or 2, as text for free(); NULL after a complaint. */
static char *read_header(FILE *file, const char *path) {
    unsigned char start[8], length[4] = {0};
    if (fread(start, 1, 8, file) != 8 || memcmp(start, magic, 6) != 0) {
        complain(path, "not a .npy file");
        return NULL;
    }
    if (start[6] != 1 && start[6] != 2) {
        complain(path, ".npy version %d.%d; expected 1.0 or 2.0", start[6], start[7]);
        return NULL;
    }
    size_t digits = start[6] == 1 ? 2 : 4;
    if (fread(length, 1, digits, file) != digits) {
        complain(path, "ends within its header");
        return NULL;
    }
    size_t size = length[0] | (size_t)length[1] << 8 | (size_t)length[2] << 16 |
                  (size_t)length[3] << 24;
    if (size > LARGEST_HEADER) {
        complain(path, "a header of %zu bytes; expected at most %d", size, LARGEST_HEADER);
        return NULL;
    }
    char *header = calloc(size + 1, 1);
    if (!header || fread(header, 1, size, file) != size) {
        complain(path, "ends within its header");
        free(header);
        return NULL;
    }
    return header;
}

/* Side of the square that the header describes; 0 after a complaint. */
static size_t side_from(const char *header, const char *path) {
    const char *kind = value_of(header, "'descr'");
    const char *order = value_of(header, "'fortran_order'");
    const char *shape = value_of(header, "'shape'");
    if (!kind || !order || !shape) {
        complain(path, "its header lacks 'descr', 'fortran_order' or 'shape'");
        return 0;
    }
    if (strncmp(kind, "'<f8'", 5) != 0) {
        complain(path, "numbers of type %.5s; expected '<f8', float64", kind);
        return 0;
    }
    if (strncmp(order, "False", 5) != 0) {
        complain(path, "the array is in Fortran order; expected C order");
        return 0;
    }
    long rows = 0, columns = 0;
    char end = 0;
    if (sscanf(shape, "( %ld , %ld %c", &rows, &columns, &end) != 3 || end != ')') {
        complain(path, "shape %.*s; expected (n, n)", (int)strcspn(shape, ")\n") + 1, shape);
        return 0;
    }
    if (rows != columns || rows < 1 || rows > LARGEST_SIDE) {
        complain(path, "shape (%ld, %ld); expected (n, n)", rows, columns);
        return 0;
    }
    return (size_t)rows;
}

static double *read_npy(FILE *file, const char *path, size_t *n) {
    char *header = read_header(file, path);
    if (!header) return NULL;
    *n = side_from(header, path);
    free(header);
    if (!*n) return NULL;
    size_t count = *n * *n;
    double *values = malloc(count * sizeof *values);
    if (!values) {
        complain(path, "no memory for %zu x %zu numbers", *n, *n);
        return NULL;
    }
    size_t found = fread(values, sizeof *values, count, file);
    if (found != count)
        complain(path, "holds %zu of %zu numbers", found, count);
    else if (fgetc(file) != EOF)
        complain(path, "goes on behind its %zu numbers", count);
    else
        return values;
    free(values);
    return NULL;
}

static double *read_text(FILE *file, const char *path, size_t *n) {
    size_t count = 0, room = 1024;
    double *values = malloc(room * sizeof *values);
    char word[64];
    while (values && fscanf(file, "%63s", word) == 1) {
        char *end;
        double value = strtod(word, &end);
        if (*end) {
            complain(path, "number %zu is \"%s\"", count + 1, word);
            free(values);
            return NULL;
        }
        if (count == room) {
            double *more = realloc(values, 2 * room * sizeof *values);
            if (!more) free(values);
            values = more;
            room *= 2;
        }
        if (values) values[count++] = value;
    }
    if (!values) {
        complain(path, "no memory for more than %zu numbers", count);
        return NULL;
    }
    for (*n = 1; *n * *n < count; ++*n) {}
    if (count && *n * *n == count) return values;
    complain(path, "holds %zu numbers; expected n rows of n numbers", count);
    free(values);
    return NULL;
}

double *read_square(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        complain(path, "%s", strerror(errno));
        return NULL;
    }
    double *values = ends_in(path, ".npy") ? read_npy(file, path, n) : read_text(file, path, n);
    fclose(file);
    return values;
}

static void write_npy(FILE *file, const double *values, size_t rows, size_t columns) {
    char shape[64], header[118];
    if (rows == 1)
        snprintf(shape, sizeof shape, "(%zu,)", columns);
    else
        snprintf(shape, sizeof shape, "(%zu, %zu)", rows, columns);
    /* Magic, version and length are 10 bytes; with the header they make 128, a multiple of 64. */
    int used = snprintf(header, sizeof header,
                        "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }", shape);
    memset(header + used, ' ', sizeof header - (size_t)used - 1);
    header[sizeof header - 1] = '\n';
    const unsigned char start[4] = {1, 0, sizeof header, 0};
    fwrite(magic, 1, sizeof magic, file);
    fwrite(start, 1, sizeof start, file);
    fwrite(header, 1, sizeof header, file);
    fwrite(values, sizeof *values, rows * columns, file);
}

static void write_text(FILE *file, const double *values, size_t rows, size_t columns) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            fprintf(file, "%.17g%c", values[i * columns + j], j + 1 < columns ? ' ' : '\n');
}

int write_array(const char *path, const double *values, size_t rows, size_t columns) {
    size_t room = strlen(path) + 32;
    char *part = malloc(room);
    if (!part) return -1;
    snprintf(part, room, "%s.%ld.part", path, (long)getpid());
    FILE *file = fopen(part, "wb");
    int bad = !file;
    if (file) {
        if (ends_in(path, ".npy"))
            write_npy(file, values, rows, columns);
        else
            write_text(file, values, rows, columns);
        bad = fflush(file) != 0 || ferror(file);
        bad = fclose(file) != 0 || bad;
    }
    if (!bad) bad = rename(part, path) != 0;
    if (bad) {
        complain(path, "cannot be written: %s", strerror(errno));
        remove(part);
    }
    free(part);
    return bad ? -1 : 0;
}
