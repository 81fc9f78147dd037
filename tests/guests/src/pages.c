/* Page protection and code that changes: TLB shootdown, NX, self-modifying code under one
 * address and under two, and code that another processor modifies. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "part.h"

#define PAGE 4096
#define RW (PROT_READ | PROT_WRITE)
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

static unsigned char *map(size_t size, int protection)
{
	return mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void protect_alone(void)
{
	struct trap *trap = trap_begin();
	/* A stretch of addresses that nobody else has mapped. */
	unsigned char *page = map(16 * PAGE, PROT_NONE);

	munmap(page, 16 * PAGE);
	for (int i = rounds(200); i > 0; i--) {
		unsigned char *moved = page + 8 * PAGE;

		mmap(page, 2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		memset(page, i, 2 * PAGE);
		memcpy(page + PAGE + 64, JUMP_BACK, 2);
		if (mprotect(page, PAGE, PROT_READ) || !trap_write(trap, page + 4 * (i % 1024), SEGV_ACCERR))
			fail("mprotect: a read-only page was written to");
		if (trap_write(trap, page + PAGE, SEGV_ACCERR) || trap->signal)
			fail("mprotect: the page after it too became read-only");
		if (has_nx && !trap_execute(trap, page + PAGE + 64, SEGV_ACCERR))
			fail("mprotect: a page without PROT_EXEC was executed");
		if (page[4 * (i % 1024)] != (unsigned char)i)
			fail("mprotect: a refused write changed the page");
		if (mprotect(page, PAGE, PROT_NONE) || !trap_read(trap, page, SEGV_ACCERR))
			fail("mprotect: a page without access was read");
		mprotect(page, PAGE, RW);
		page[0] = ~i;
		if (mremap(page, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) != moved)
			fail("mprotect: a page cannot be moved");
		if (moved[0] != (unsigned char)~i || moved[PAGE - 1] != (unsigned char)i)
			fail("mprotect: a page lost its contents as it moved");
		if (!trap_read(trap, page, SEGV_MAPERR))
			fail("mprotect: a page was readable where it had been");
		munmap(moved, 2 * PAGE);
		if (!trap_write(trap, moved, SEGV_MAPERR))
			fail("mprotect: a page was writable after its end");
	}
	trap_end(trap);
}

static volatile uint32_t *counters;
static atomic_bool stopping;
static atomic_uint refused;

/* The writer waits here until it may write again. */
static void on_refusal(int signal)
{
	(void)signal;
	refused++;
	sched_yield();
}

static void pause_ms(int ms)
{
	nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000l }, NULL);
}

static void write_or_protect(int index)
{
	if (index > 0) {
		pin(index);
		while (!stopping)
			counters[index * 16]++;
		return;
	}
	pin(0);
	for (int round = rounds(40); round > 0; round--) {
		uint32_t before[PAGE / 4], after[PAGE / 4];

		mprotect((void *)counters, PAGE, PROT_READ);
		memcpy(before, (void *)counters, PAGE);
		pause_ms(1);
		memcpy(after, (void *)counters, PAGE);
		if (memcmp(before, after, PAGE))
			fail("mprotect: another processor kept on writing");
		mprotect((void *)counters, PAGE, RW);
		for (int tries = 0; counters[16] == after[16]; tries++) {
			if (tries == 5000) {
				fail("mprotect: the writer did not go on");
				break;
			}
			pause_ms(1);
		}
	}
	stopping = true;
}

void part_mprotect(void)
{
	struct sigaction action = { .sa_handler = on_refusal };

	protect_alone();
	sigaction(SIGSEGV, &action, NULL);
	counters = (void *)map(PAGE, RW);
	stopping = false;
	together(cpus > 1 ? cpus : 2, write_or_protect);
	signal(SIGSEGV, SIG_DFL);
	munmap((void *)counters, PAGE);
	if (!refused)
		fail("mprotect: no writer was stopped");
	detail("refused", refused);
	detail("nx", has_nx);
}

typedef uint32_t (*code)(uint32_t);

static uint32_t call(const unsigned char *at, uint32_t argument)
{
	return ((code)(uintptr_t)at)(argument);
}

static void put32(unsigned char *at, uint32_t value)
{
	*(volatile uint32_t *)at = value;
}

/* mov eax, VALUE; ret */
static void put_constant(unsigned char *at, uint32_t value)
{
	at[0] = 0xb8;
	put32(at + 1, value);
	at[5] = 0xc3;
}

/* Store the argument into the very next instruction: mov [1f + 1], argument; 1: mov eax, 0; ret */
static void put_self_modifier(unsigned char *at)
{
#ifdef __x86_64__
	static const unsigned char store[] = { 0x89, 0x3d, 1, 0, 0, 0 }; /* mov [rip + 1], edi */
	memcpy(at, store, sizeof store);
	put_constant(at + sizeof store, 0);
#else
	static const unsigned char store[] = { 0x8b, 0x44, 0x24, 0x04, 0xa3 }; /* mov eax, [esp + 4]; mov [...], eax */
	memcpy(at, store, sizeof store);
	put32(at + 5, (uintptr_t)at + 10);
	put_constant(at + 9, 0);
#endif
}

static void modify_alone(void)
{
	/* The second page of the buffer begins in the middle of an instruction's constant. */
	unsigned char *page = map(2 * PAGE, RWX), *straddling = page + PAGE - 3;
	unsigned char *self = page + 256, copies[2][64];
	int file = memfd_create("code", 0);
	unsigned char *writable, *executable;

	if (file < 0 || ftruncate(file, PAGE))
		fail("smc: no file in memory");
	writable = mmap(NULL, PAGE, RW, MAP_SHARED, file, 0);
	executable = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	close(file);
	put_constant(page, 0);
	put_constant(straddling, 0);
	put_constant(writable + 64, 0);
	put_self_modifier(self);
	for (int i = 0; i < 2; i++) {
		/* A run of `inc eax` or `dec eax`, for REP MOVS to lay one over the other. */
		memset(copies[i], 0x90, sizeof copies[i]);
		put_constant(copies[i], 1000);
		for (int at = 5; at < 61; at += 2)
			memcpy(copies[i] + at, i ? "\xff\xc8" : "\xff\xc0", 2);
		copies[i][61] = 0xc3;
	}
	for (uint32_t i = 1, last = rounds(5000); i <= last; i++) {
		uint32_t value = i * 0x9e3779b1u;

		put32(page + 1, value);
		if (call(page, 0) != value)
			fail("smc: the old constant came back");
		if (call(self, value) != value)
			fail("smc: the next instruction was the old one");
		put32(straddling + 1, value);
		if (call(straddling, 0) != value)
			fail("smc: an instruction across pages was the old one");
		/* Now in the second page alone. */
		straddling[3] = i;
		value = (value & 0xff00ffff) | (i & 0xff) << 16;
		if (call(straddling, 0) != value)
			fail("smc: the second half of an instruction was the old one");
		put32(writable + 65, value);
		if (call(executable + 64, 0) != value)
			fail("smc: a change under another address went unseen");
		void *to = page + 1024;
		const void *from = copies[i & 1];
		size_t size = sizeof copies[0];
		__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
		if (call(page + 1024, 0) != (i & 1 ? 1000 - 28 : 1000 + 28))
			fail("smc: copied code was the old one");
	}
	/* Other code by way of mprotect and of a new mapping at the same address. */
	for (uint32_t i = 1, last = rounds(100); i <= last; i++) {
		mprotect(page, PAGE, RW);
		put_constant(page, i);
		mprotect(page, PAGE, PROT_READ | PROT_EXEC);
		if (call(page, 0) != i)
			fail("smc: the old constant came back after mprotect");
		if (mmap(page, PAGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
			fail("smc: no new page");
		put_constant(page, ~i);
		if (call(page, 0) != ~i)
			fail("smc: the old page's code was executed");
	}
	munmap(page, 2 * PAGE);
	munmap(writable, PAGE);
	munmap(executable, PAGE);
}

static unsigned char *crossing;
static atomic_uint published, calls, seen_changes;
static atomic_bool broken;

static void modify_or_call(int index)
{
	uint32_t last = rounds(1000);

	pin(index);
	for (uint32_t i = 1; index == 0 && i <= last; i++) {
		unsigned before = calls;

		put32(crossing + 4, i);
		published = i;
		for (unsigned spins = 1; calls == before && !broken; spins++)
			relax(spins);
	}
	for (uint32_t now = 0, before = 0; index > 0 && now != last && !broken; before = now) {
		uint32_t least = published, a, b, c, d;

		/* The modified instruction may run after a serializing one. */
		__asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0) : "memory");
		now = call(crossing + 3, 0);
		if (now < least || now > last) {
			fail("crossmod: processor %d ran constant %u after %u was there", index, now, least);
			broken = true;
		}
		seen_changes += now != before;
		calls++;
		if (now == before)
			relax(64);
	}
}

void part_smc(void)
{
	modify_alone();
	detail("changes", rounds(5000));
}

/* A part of its own because QEMU's TCG with a thread for each processor runs old code here. */
void part_crossmod(void)
{
	crossing = map(PAGE, RWX);
	put_constant(crossing + 3, 0);
	together(cpus > 1 ? cpus : 2, modify_or_call);
	munmap(crossing, PAGE);
	detail("changes", rounds(1000));
	detail("seen", seen_changes);
}
