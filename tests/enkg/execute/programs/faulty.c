/* Four numbers in, three out, and for some members a fault: FAULT in the environment says which.

       ./faulty            stays up
       ./faulty IN OUT     raw files of doubles */
#include <signal.h>
#include <sys/wait.h>

#include "enkg_worker.h"

enum { N_IN = 4, N_OUT = 3 };

static const char *fault(void) {
  const char *name = getenv("FAULT");
  return name ? name : "";
}

static int is(const char *name) { return !strcmp(fault(), name); }

/* One member in five or so, and always the same. */
static int unlucky(const enkg_real *x) {
  double tail = fabs(x[0]) * 1000;
  return is("all") || (fault()[0] && tail - floor(tail) < 0.2);
}

static int simulate(const enkg_real *x, size_t n_in, enkg_real *y, size_t n_out) {
  if (n_in != N_IN || n_out != N_OUT) return 1;
  for (int i = 0; i < N_OUT; i++) y[i] = x[i] + 0.5 * x[i + 1];
  if (!unlucky(x)) return 0;
  if (is("exit") || is("all")) {
    fprintf(stderr, "first line\nthe depth is negative\n");
    exit(1);
  }
  if (is("kill")) raise(SIGKILL);
  if (is("crash")) raise(SIGSEGV);
  if (is("hang")) pause();
  if (is("stubborn")) {
    signal(SIGTERM, SIG_IGN);
    if (!fork()) setsid();
    for (;;) pause();
  }
  if (is("nan")) for (int i = 0; i < N_OUT; i++) y[i] = NAN;
  if (is("infinity")) y[1] = INFINITY;
  if (is("blow-up")) for (int i = 0; i < N_OUT; i++) y[i] = 1e12;
  if (is("talk")) for (int i = 0; i < 200000; i++) puts("0123456789012345678901234567890123456789");
  if (is("daemon") && !fork()) {
    setsid();
    if (fork()) _exit(0);
    sleep(600);
  }
  return 0;
}

int main(int argc, char **argv) {
  double x[N_IN], y[N_OUT];
  FILE *file;
  size_t count = N_OUT;
  if (argc != 3) return enkg_serve(simulate);
  file = fopen(argv[1], "rb");
  if (!file || fread(x, sizeof *x, N_IN, file) != N_IN) return 2;
  fclose(file);
  if (simulate(x, N_IN, y, N_OUT)) return 3;
  if (is("missing") && unlucky(x)) return 0;
  if (is("half") && unlucky(x)) count = 1;
  if (is("long") && unlucky(x)) count = 0;
  file = fopen(argv[2], "wb");
  if (!file) return 2;
  if (is("long") && unlucky(x)) fwrite(y, sizeof *y, N_OUT, file), count = 1;
  fwrite(y, sizeof *y, count, file);
  if (is("full") && unlucky(x)) {
    static char block[1 << 20];
    for (int i = 0; i < 64; i++) fwrite(block, 1, sizeof block, file);
    fflush(file);
    if (ferror(file)) return perror("output"), 4;
  }
  return fclose(file) ? perror("output"), 4 : 0;
}
