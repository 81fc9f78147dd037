/*
 * threads SCALE PART: a program that leans on what a kernel gets from the processor when
 * many threads run: FPU state over context switches and signals, precise traps, timer
 * signals, locked instructions, TLB shootdown, self-modifying code and clocks.
 *
 * SCALE is the percentage of the usual number of rounds, PART one of the names below or
 * "all". Each part writes a line `RESULT threads.PART pass|fail|skip details` on stderr, in
 * one piece; the sum goes to stdout.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cpuid.h>

#include "part.h"

static const struct {
	const char *name;
	void (*run)(void);
	bool needs_sse2;
} parts[] = {
	{ "fpstate", part_fpstate, true },
	{ "traps", part_traps, true },
	{ "simd", part_simd, true },
	{ "alarms", part_alarms, true },
	{ "futex", part_futex, false },
	{ "ordering", part_ordering, true },
	{ "mprotect", part_mprotect, true },
	{ "smc", part_smc, false },
	{ "crossmod", part_crossmod, false },
	{ "clock", part_clock, true },
};

int cpus;
bool has_sse2, has_cx16, has_nx;

static int scale = 100;
static atomic_int failures;
static char details[256];

int rounds(int usual)
{
	int n = usual * scale / 100;
	return n > 0 ? n : 1;
}

void fail(const char *format, ...)
{
	char text[200];
	va_list args;

	if (atomic_fetch_add(&failures, 1) >= 5)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	dprintf(STDERR_FILENO, "threads: %s\n", text);
}

void detail(const char *name, uint64_t value)
{
	size_t used = strlen(details);
	snprintf(details + used, sizeof details - used, " %s=%llu", name, (unsigned long long)value);
}

struct member {
	pthread_t thread;
	int index;
	void (*body)(int index);
};

static void *start_member(void *arg)
{
	struct member *member = arg;
	member->body(member->index);
	return NULL;
}

void together(int count, void (*body)(int index))
{
	struct member *members = calloc(count, sizeof *members);
	for (int i = 0; i < count; i++) {
		members[i].index = i;
		members[i].body = body;
		if (pthread_create(&members[i].thread, NULL, start_member, &members[i])) {
			fail("no thread %d", i);
			count = i;
		}
	}
	for (int i = 0; i < count; i++)
		pthread_join(members[i].thread, NULL);
	free(members);
}

void pin(int index)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(index % cpus, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		fail("cannot be tied to processor %d", index % cpus);
}

void relax(unsigned spins)
{
	__asm__ volatile("pause");
	if (spins % 64 == 0)
		sched_yield();
}

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static void look_at_processor(void)
{
	unsigned a, b, c, d;
	struct utsname name;

	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (__get_cpuid(1, &a, &b, &c, &d)) {
		has_sse2 = (d & bit_FXSAVE) && (d & bit_SSE2);
		has_cx16 = c & (1u << 13);
	}
	/* Of the kernels only the 64-bit ones: Linux 6.1 with PAE sets NX for itself, but leaves it
	 * out of the page tables of programs. */
	if (__get_cpuid(0x80000001, &a, &b, &c, &d) && !uname(&name))
		has_nx = (d & (1u << 20)) && !strcmp(name.machine, "x86_64");
}

int main(int argc, char **argv)
{
	const char *self = program_invocation_short_name;
	int ran = 0, failed = 0;

	if (argc > 1)
		scale = atoi(argv[1]);
	look_at_processor();
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		struct timespec from, to;
		const char *status;

		if (argc > 2 && strcmp(argv[2], "all") && strcmp(argv[2], parts[i].name))
			continue;
		if (parts[i].needs_sse2 && !has_sse2) {
			dprintf(STDERR_FILENO, "RESULT %s.%s skip no SSE2\n", self, parts[i].name);
			continue;
		}
		details[0] = 0;
		failures = 0;
		clock_gettime(CLOCK_MONOTONIC, &from);
		parts[i].run();
		clock_gettime(CLOCK_MONOTONIC, &to);
		ran++;
		failed += failures > 0;
		status = failures ? "fail" : "pass";
		dprintf(STDERR_FILENO, "RESULT %s.%s %s cs=%ld wrong=%d%s\n", self, parts[i].name, status,
			(long)(to.tv_sec - from.tv_sec) * 100 + (to.tv_nsec - from.tv_nsec) / 10000000,
			(int)failures, details);
	}
	printf("parts=%d failed=%d cpus=%d bits=%d\n", ran, failed, cpus, (int)sizeof(void *) * 8);
	return ran == 0 || failed != 0;
}
