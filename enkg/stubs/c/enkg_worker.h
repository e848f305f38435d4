/* Makes a C or C++ function a simulator that stays up: one call, enkg_serve(f).

   Copy this file beside your program. POSIX only, no libraries.

       #include "enkg_worker.h"
       int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out)
       { ...; return 0; }            // not 0: this member failed, its answer becomes NaN
       int main(void) { return enkg_serve(simulate); }

   x holds the numbers of one member and y takes its answer, both in the order of simulator.toml's
   shapes, the last axis fastest. enkg_real is double; write `#define ENKG_REAL float` before the
   #include if simulator.toml says dtype = "float32" for input and output. Printing is allowed.

   MPI: write `#define ENKG_MPI` before the #include and call, on every rank,
       enkg_serve_mpi(simulate, MPI_COMM_WORLD);
   between MPI_Init and MPI_Finalize. Every rank then gets the same x and must call its simulate;
   the y of rank 0 is the answer. The member failed if simulate returned non-zero on any rank. A
   rank that gives up while others wait for it must call MPI_Abort: enkg starts a new program.
   Ranks that wait for the next member wait in MPI_Bcast, as busily as your MPI does. */

#ifndef ENKG_WORKER_H
#define ENKG_WORKER_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef ENKG_REAL
#define ENKG_REAL double
#endif
typedef ENKG_REAL enkg_real;
typedef int (*enkg_simulate)(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out);

enum { ENKG_HELLO = 1, ENKG_READY, ENKG_EVAL, ENKG_RESULT, ENKG_ERROR, ENKG_BYE };

typedef struct { /* little-endian, 64 bytes */
  char magic[4];
  uint32_t kind;
  uint64_t seq;
  uint32_t dtype;
  int32_t status;
  uint64_t batch, n, nbytes, member0, reserved;
} enkg_frame;

typedef struct {
  int rx, tx;
  char *shared; /* memory shared with enkg, or NULL */
  size_t shared_size;
  char *in, *out; /* without shared memory: payload; header and payload */
  size_t in_size, out_size;
  uint64_t n_in, n_out;
} enkg_channel;

static int enkg_complain(const char *what) {
  fprintf(stderr, "enkg_worker: %s\n", what);
  return -1;
}

/* 1 if everything was read, 0 at the end of the stream, -1 for an error. */
static int enkg_read(int fd, void *buffer, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t got = read(fd, (char *)buffer + done, size - done);
    if (got > 0) done += (size_t)got;
    else if (got == 0) return done ? enkg_complain("the input ends too early") : 0;
    else if (errno != EINTR) return enkg_complain(strerror(errno));
  }
  return 1;
}

static int enkg_write(int fd, const void *buffer, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t put = write(fd, (const char *)buffer + done, size - done);
    if (put >= 0) done += (size_t)put;
    else if (errno != EINTR) return enkg_complain(strerror(errno));
  }
  return 1;
}

/* A buffer of at least `size` bytes; what it held is lost. */
static int enkg_reserve(char **buffer, size_t *held, size_t size) {
  if (*buffer && *held >= size) return 1;
  free(*buffer);
  *buffer = (char *)malloc(size ? size : 1);
  *held = *buffer ? size : 0;
  return *buffer ? 1 : enkg_complain("out of memory");
}

static int enkg_open(enkg_channel *c) {
  const char *in = getenv("ENKG_IN"), *out = getenv("ENKG_OUT");
  memset(c, 0, sizeof *c);
  c->rx = c->tx = -1;
  if (!in || !out)
    return enkg_complain("ENKG_IN and ENKG_OUT are not set: this program is started by enkg");
  if (sizeof(enkg_frame) != 64) return enkg_complain("this compiler pads the header");
  c->rx = open(in, O_RDONLY); /* in this order: named pipes wait for each other */
  if (c->rx >= 0) c->tx = open(out, O_WRONLY);
  return c->rx < 0 || c->tx < 0 ? enkg_complain(strerror(errno)) : 1;
}

static void enkg_close(enkg_channel *c) {
  if (c->shared) munmap(c->shared, c->shared_size);
  free(c->in);
  free(c->out);
  if (c->rx >= 0) close(c->rx);
  if (c->tx >= 0) close(c->tx);
}

static int enkg_send_error(enkg_channel *c, enkg_frame *h, const char *text) {
  h->kind = ENKG_ERROR;
  h->status = 0;
  h->nbytes = strlen(text);
  return enkg_write(c->tx, h, sizeof *h) < 0 ? -1 : enkg_write(c->tx, text, h->nbytes);
}

/* HELLO: notes the sizes, maps the shared memory, answers READY. */
static int enkg_greet(enkg_channel *c, enkg_frame *h, int ranks) {
  const char *path = getenv("ENKG_SHM");
  if (h->dtype != (sizeof(enkg_real) == 4 ? 1u : 2u))
    return enkg_send_error(c, h, sizeof(enkg_real) == 4
        ? "this program computes in float32: say so for input and output in simulator.toml"
        : "this program computes in float64: say so for input and output in simulator.toml");
  c->n_in = h->batch;
  c->n_out = h->n;
  if (h->reserved && path && !c->shared) {
    int fd = open(path, O_RDWR);
    void *at = MAP_FAILED;
    c->shared_size = (size_t)h->reserved;
    if (fd >= 0) {
      at = mmap(NULL, c->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      close(fd);
    }
    if (at != MAP_FAILED) c->shared = (char *)at; /* else the numbers go through the pipe */
  }
  h->kind = ENKG_READY;
  h->status = ranks;
  h->nbytes = 0;
  h->reserved = c->shared != NULL;
  return enkg_write(c->tx, h, sizeof *h);
}

/* EVAL: finds the input and the place for the output. */
static int enkg_take(enkg_channel *c, const enkg_frame *h, enkg_real **x, enkg_real **y) {
  const uint64_t most = ((uint64_t)1 << 46) / sizeof(enkg_real);
  uint64_t size_in, size_out, offset;
  if (h->n != c->n_in || (c->n_in && h->batch > most / c->n_in) ||
      (c->n_out && h->batch > most / c->n_out))
    return enkg_complain("a call of another shape than agreed");
  size_in = h->batch * c->n_in * sizeof(enkg_real);
  size_out = h->batch * c->n_out * sizeof(enkg_real);
  offset = (size_in + 4095) / 4096 * 4096;
  if (h->nbytes != (c->shared ? 0 : size_in) || (c->shared && offset + size_out > c->shared_size))
    return enkg_complain("a call of another size than agreed");
  if (c->shared) {
    *x = (enkg_real *)c->shared;
    *y = (enkg_real *)(c->shared + offset);
    return 1;
  }
  if (enkg_reserve(&c->in, &c->in_size, size_in) < 0 ||
      enkg_reserve(&c->out, &c->out_size, sizeof *h + size_out) < 0)
    return -1;
  *x = (enkg_real *)c->in;
  *y = (enkg_real *)(c->out + sizeof *h);
  return size_in && enkg_read(c->rx, c->in, size_in) != 1 ? -1 : 1;
}

static int enkg_answer(enkg_channel *c, enkg_frame *h) {
  h->kind = ENKG_RESULT;
  h->status = 0;
  h->n = c->n_out;
  h->nbytes = c->shared ? 0 : h->batch * c->n_out * sizeof(enkg_real);
  h->reserved = 0;
  if (c->shared) return enkg_write(c->tx, h, sizeof *h);
  memcpy(c->out, h, sizeof *h); /* header and payload leave in one piece */
  return enkg_write(c->tx, c->out, sizeof *h + h->nbytes);
}

/* The next frame other than HELLO: 1 for EVAL, 0 at the end, -1 for an error. */
static int enkg_next(enkg_channel *c, enkg_frame *h, int ranks) {
  for (;;) {
    int got = enkg_read(c->rx, h, sizeof *h);
    if (got <= 0) return got;
    if (memcmp(h->magic, "EKG1", 4)) return enkg_complain("not a frame");
    if (h->kind == ENKG_BYE) return 0;
    if (h->kind == ENKG_EVAL) return 1;
    if (h->kind != ENKG_HELLO || h->nbytes) return enkg_complain("unexpected frame");
    if (enkg_greet(c, h, ranks) < 0) return -1;
  }
}

static void enkg_blank(enkg_real *y, size_t n) {
  size_t i;
  for (i = 0; i < n; i++) y[i] = (enkg_real)NAN;
}

/* Answers enkg's calls until there are no more. Returns the exit status of the program. */
static inline int enkg_serve(enkg_simulate f) {
  enkg_channel c;
  enkg_frame h;
  enkg_real *x = NULL, *y = NULL;
  uint64_t b;
  int going = enkg_open(&c);
  while (going > 0 && (going = enkg_next(&c, &h, 0)) > 0) {
    if ((going = enkg_take(&c, &h, &x, &y)) < 0) break;
    enkg_blank(y, h.batch * c.n_out); /* what f leaves out must not be the last member's */
    for (b = 0; b < h.batch; b++)
      if (f(x + b * c.n_in, c.n_in, y + b * c.n_out, c.n_out)) enkg_blank(y + b * c.n_out, c.n_out);
    going = enkg_answer(&c, &h);
  }
  enkg_close(&c);
  return going < 0;
}

#ifdef ENKG_MPI
#include <mpi.h>

static void enkg_share(void *buffer, uint64_t size, MPI_Comm comm) {
  const uint64_t piece = (uint64_t)1 << 30; /* MPI counts in int */
  uint64_t at;
  for (at = 0; at < size; at += piece)
    MPI_Bcast((char *)buffer + at, (int)(size - at < piece ? size - at : piece), MPI_BYTE, 0, comm);
}

/* The same on all ranks of an MPI program; call it on every one of them. */
static inline int enkg_serve_mpi(enkg_simulate f, MPI_Comm comm) {
  enkg_channel c;
  enkg_frame h;
  enkg_real *x = NULL, *y = NULL;
  uint64_t b, task[4]; /* going, members, n_in, n_out */
  int rank, ranks, failed, going = 1;
  memset(&c, 0, sizeof c);
  c.rx = c.tx = -1;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  if (rank == 0) going = enkg_open(&c);
  for (;;) {
    if (rank == 0) {
      if (going > 0 && (going = enkg_next(&c, &h, ranks)) > 0) going = enkg_take(&c, &h, &x, &y);
      task[0] = going > 0, task[1] = h.batch, task[2] = c.n_in, task[3] = c.n_out;
    }
    enkg_share(task, sizeof task, comm);
    if (!task[0]) break;
    if (rank) {
      if (enkg_reserve(&c.in, &c.in_size, task[1] * task[2] * sizeof *x) < 0 ||
          enkg_reserve(&c.out, &c.out_size, task[1] * task[3] * sizeof *y) < 0)
        MPI_Abort(comm, 1);
      x = (enkg_real *)c.in;
      y = (enkg_real *)c.out;
    }
    enkg_share(x, task[1] * task[2] * sizeof *x, comm);
    enkg_blank(y, task[1] * task[3]);
    for (b = 0; b < task[1]; b++) {
      failed = f(x + b * task[2], task[2], y + b * task[3], task[3]) != 0;
      MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, comm);
      if (failed) enkg_blank(y + b * task[3], task[3]);
    }
    if (rank == 0) going = enkg_answer(&c, &h);
  }
  enkg_close(&c);
  return rank == 0 && going < 0;
}
#endif

#endif
