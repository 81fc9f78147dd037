/* Locked instructions, futexes, the order of memory accesses between processors, and
 * clocks that never step back on their way from one processor to another. */
#define _GNU_SOURCE
#include <emmintrin.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "part.h"

/* i386 has two of each, and the C library hides the older names. */
#ifdef __x86_64__
#define CLOCK_CALL SYS_clock_gettime
#define FUTEX_CALL SYS_futex
#else
#define CLOCK_CALL SYS_clock_gettime32
#define FUTEX_CALL SYS_futex_time64
#endif

#define FUTEX_WAIT 0
#define FUTEX_PRIVATE 128

static uint64_t nanoseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t turned;
	int turn, members;
	uint64_t first, second;
	atomic_uint added, exchanged;
	unsigned long pair[2] __attribute__((aligned(16)));
} shared = { .mutex = PTHREAD_MUTEX_INITIALIZER, .turned = PTHREAD_COND_INITIALIZER };

/* One up, the other down, in a single CMPXCHG16B or CMPXCHG8B. */
static void move_pair(void)
{
	unsigned long low = 0, high = 0;
	bool done;

	do {
		/* It fails at first, and so reads both. */
		__asm__ volatile(
#ifdef __x86_64__
			"lock cmpxchg16b %[pair]"
#else
			"lock cmpxchg8b %[pair]"
#endif
			: "=@ccz"(done), "+a"(low), "+d"(high), [pair] "+m"(shared.pair)
			: "b"(low + 1), "c"(high - 1)
			: "memory");
	} while (!done);
}

static void contend(int index)
{
	int turns = rounds(60);

	for (int i = rounds(2000); i > 0; i--) {
		pthread_mutex_lock(&shared.mutex);
		uint64_t first = shared.first++;
		if (i % 64 == 0)
			sched_yield();
		if (shared.second++ != first)
			fail("futex: thread %d was not alone", index);
		pthread_mutex_unlock(&shared.mutex);

		atomic_fetch_add(&shared.added, 3);
		unsigned seen = shared.exchanged;
		while (!atomic_compare_exchange_weak(&shared.exchanged, &seen, seen + 5))
			continue;
		if (sizeof(long) == 4 || has_cx16)
			move_pair();
	}
	pthread_mutex_lock(&shared.mutex);
	while (turns-- > 0) {
		while (shared.turn % shared.members != index)
			pthread_cond_wait(&shared.turned, &shared.mutex);
		shared.turn++;
		pthread_cond_broadcast(&shared.turned);
	}
	pthread_mutex_unlock(&shared.mutex);
}

static void live_shortly(int index)
{
	(void)index;
	atomic_fetch_add(&shared.added, 1);
}

static void sleep_in_futex(void)
{
	static int word = 7;
	const struct timespec timeout = { 0, 20000000 };
	uint64_t from = nanoseconds(), took;

	long error = syscall(FUTEX_CALL, &word, FUTEX_WAIT | FUTEX_PRIVATE, 7, &timeout, NULL, 0);
	took = nanoseconds() - from;
	if (error != -1 || errno != ETIMEDOUT || took < 20000000)
		fail("futex: a wait for 20 ms gave %ld, error %d after %llu ns", error, errno, (unsigned long long)took);
}

void part_futex(void)
{
	uint64_t members = 2 * cpus + 2, expected = members * rounds(2000), births = rounds(100);

	shared.members = members;
	together(members, contend);
	if (shared.first != expected || shared.second != expected)
		fail("futex: the mutex let %llu of %llu through", (unsigned long long)shared.first,
		     (unsigned long long)expected);
	if (shared.added != (unsigned)(3 * expected) || shared.exchanged != (unsigned)(5 * expected))
		fail("futex: additions got lost");
	if ((sizeof(long) == 4 || has_cx16) &&
	    (shared.pair[0] != (unsigned long)expected || shared.pair[0] + shared.pair[1] != 0))
		fail("futex: exchanges of a pair got lost");
	if (shared.turn != (int)members * rounds(60))
		fail("futex: %d turns were taken", shared.turn);

	shared.added = 0;
	for (uint64_t i = 0; i < births; i += 10)
		together(10, live_shortly);
	if (shared.added != (births + 9) / 10 * 10)
		fail("futex: %u threads lived", (unsigned)shared.added);
	sleep_in_futex();
	detail("threads", members);
	detail("locked", expected);
}

/* Litmus tests of two threads. The variables are on cache lines of their own. */
static struct {
	_Alignas(64) volatile int x;
	_Alignas(64) volatile int y;
	_Alignas(64) atomic_int arrived;
	_Alignas(64) int seen[2];
} litmus;

static void meet(int generation)
{
	atomic_fetch_add(&litmus.arrived, 1);
	for (unsigned spins = 1; litmus.arrived < 2 * generation; spins++)
		relax(spins);
}

__attribute__((target("sse2"))) static void litmus_thread(int index)
{
	volatile int *mine = index ? &litmus.y : &litmus.x, *other = index ? &litmus.x : &litmus.y;
	int count = rounds(500), generation = 0;

	pin(index);
	for (int i = 0; i < count; i++) {
		/* Stores, then loads of the other's: with a fence between, both cannot miss. */
		meet(++generation);
		if (i % 2) {
			*mine = 1;
			_mm_mfence();
		} else {
			__asm__ volatile("xchgl %1, %0" : "+m"(*mine) : "r"(1) : "memory");
		}
		litmus.seen[index] = *other;
		meet(++generation);
		if (index == 0 && !litmus.seen[0] && !litmus.seen[1])
			fail("ordering: both loads went before the stores, round %d", i);
		meet(++generation);
		*mine = 0;

		/* A message and then its flag, without a fence: the flag brings the message. */
		meet(++generation);
		if (index == 0) {
			litmus.x = i + 1;
			litmus.y = i + 1;
		} else {
			int flag = litmus.y, message = litmus.x;
			if (flag == i + 1 && message != i + 1)
				fail("ordering: the flag overtook its message, round %d", i);
		}
		meet(++generation);
		*mine = 0;
	}
}

void part_ordering(void)
{
	litmus.arrived = 0;
	together(2, litmus_thread);
	detail("rounds", rounds(500));
}

static struct {
	pthread_spinlock_t lock;
	uint64_t time, tsc;
	atomic_uint back;
} latest;

/* musl asks the vDSO, which reads the clock without the kernel; the kernel must agree. */
__attribute__((target("sse2"))) static void read_clocks(int index)
{
	pin(index);
	for (int i = rounds(10000); i > 0; i--) {
		uint64_t time;
		uint32_t low, high;

		pthread_spin_lock(&latest.lock);
		if (i % 8) {
			time = nanoseconds();
		} else {
			long raw[2];
			syscall(CLOCK_CALL, CLOCK_MONOTONIC, raw);
			time = raw[0] * 1000000000ull + raw[1];
		}
		if (time < latest.time)
			fail("clock: %llu ns back on processor %d", (unsigned long long)(latest.time - time), index);
		latest.time = time;
		_mm_lfence();
		__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
		uint64_t tsc = (uint64_t)high << 32 | low;
		if (tsc < latest.tsc)
			latest.back++;
		latest.tsc = tsc;
		pthread_spin_unlock(&latest.lock);
		if (i % 128 == 0)
			sched_yield();
	}
}

void part_clock(void)
{
	uint64_t from = nanoseconds();

	pthread_spin_init(&latest.lock, PTHREAD_PROCESS_PRIVATE);
	together(cpus > 1 ? cpus : 2, read_clocks);
	if (latest.back)
		fail("clock: the TSC went back %u times", (unsigned)latest.back);
	if (latest.time <= from)
		fail("clock: no time passed");
	detail("readings", (uint64_t)rounds(10000) * (cpus > 1 ? cpus : 2));
	detail("ns", latest.time - from);
}
