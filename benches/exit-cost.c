/*
 * A shim for benches/exit-cost: preloaded, it times what a program does between the return of
 * ioctl(KVM_RUN) and the next such call, by the exit that it returned with.
 *
 * EXIT_COST names the file for the result: a line `name count median` for each kind of exit below,
 * in ticks of the TSC, written when the program ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

enum { OUT, IN, CONFIG_READ, CONFIG_WRITE, COUNTER_READ, COMPARATOR_WRITE, KINDS, SAMPLES = 1 << 20 };
static const char *const names[KINDS] = {"out", "in", "config-read", "config-write", "counter-read",
                                         "comparator-write"};
static uint32_t samples[KINDS][SAMPLES];
static unsigned counts[KINDS];

/* Processors' pages, by descriptor. One processor is enough for the guest of the benchmark. */
static struct kvm_run *pages[1024];

static int (*real_ioctl)(int, unsigned long, ...);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

static void *map(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
  if (!real_mmap)
    real_mmap = dlsym(RTLD_NEXT, "mmap");
  void *page = real_mmap(addr, len, prot, flags, fd, offset);
  /* The page of a processor is a shared mapping of its descriptor's start; files are no harm. */
  if (page != MAP_FAILED && fd >= 0 && fd < 1024 && offset == 0 && (flags & MAP_SHARED))
    pages[fd] = page;
  return page;
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
  return map(addr, len, prot, flags, fd, offset);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
  return map(addr, len, prot, flags, fd, offset);
}

int ioctl(int fd, unsigned long request, ...) {
  uint64_t now = __rdtsc();
  static __thread __attribute__((tls_model("initial-exec"))) uint64_t back;
  static __thread __attribute__((tls_model("initial-exec"))) int kind = -1;
  va_list list;
  va_start(list, request);
  void *arg = va_arg(list, void *);
  va_end(list);
  if (!real_ioctl)
    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
  if (request != KVM_RUN)
    return real_ioctl(fd, request, arg);
  if (kind >= 0 && counts[kind] < SAMPLES)
    samples[kind][counts[kind]++] = now - back;
  int done = real_ioctl(fd, request, arg);
  struct kvm_run *run = fd < 1024 ? pages[fd] : NULL;
  kind = -1;
  if (run && done == 0) {
    if (run->exit_reason == KVM_EXIT_IO)
      kind = run->io.direction == KVM_EXIT_IO_OUT ? OUT : IN;
    else if (run->exit_reason == KVM_EXIT_MMIO)
      /* The HPET's configuration is below its counter and comparators. */
      kind = ((run->mmio.phys_addr & 0x3ff) < 0xf0 ? CONFIG_READ : COUNTER_READ) + (run->mmio.is_write != 0);
  }
  back = __rdtsc();
  return done;
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

__attribute__((destructor)) static void report(void) {
  const char *name = getenv("EXIT_COST");
  FILE *out = name ? fopen(name, "w") : NULL;
  if (!out)
    return;
  for (int kind = 0; kind < KINDS; kind++) {
    if (counts[kind] == 0)
      continue;
    qsort(samples[kind], counts[kind], sizeof samples[kind][0], by_size);
    fprintf(out, "%s %u %u\n", names[kind], counts[kind], samples[kind][counts[kind] / 2]);
  }
  fclose(out);
}
