/* FPU state: that threads keep theirs over context switches, and over timer signals whose
 * handlers use the FPU themselves. */
#define _GNU_SOURCE
#include <emmintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#include "part.h"

#define XMM_COUNT (sizeof(void *) * 2)

static const uint32_t mxcsr_default = 0x1f80;

void fx_fill(struct fx *image, uint64_t *state)
{
	static const uint16_t precision[] = { 0x000, 0x200, 0x300 };

	memset(image, 0, sizeof *image);
	image->fcw = 0x7f | precision[next_random(state) % 3] | (next_random(state) & 3) << 10;
	image->fsw = next_random(state) & 0x7f00;
	image->ftw = 0xff;
	image->mxcsr = mxcsr_default | (next_random(state) & 3) << 13 | (next_random(state) & 0x3f);
	for (int i = 0; i < 8; i++) {
		/* Normal numbers, so that FXSAVE finds every register in its most common form. */
		uint64_t mantissa = next_random(state) | 1ull << 63;
		uint16_t exponent = 0x3f00 + (next_random(state) & 0x1ff);
		memcpy(image->st[i], &mantissa, 8);
		memcpy(image->st[i] + 8, &exponent, 2);
	}
	for (size_t i = 0; i < XMM_COUNT; i++) {
		uint64_t half[2] = { next_random(state), next_random(state) };
		memcpy(image->xmm[i], half, 16);
	}
}

bool fx_same(const struct fx *a, const struct fx *b)
{
	if (a->fcw != b->fcw || a->fsw != b->fsw || a->ftw != b->ftw || a->mxcsr != b->mxcsr)
		return false;
	for (int i = 0; i < 8; i++)
		if (memcmp(a->st[i], b->st[i], 10))
			return false;
	return !memcmp(a->xmm, b->xmm, XMM_COUNT * 16);
}

void fx_trash(void)
{
	static const uint16_t fcw = 0x0c7f;
	static const uint32_t mxcsr = 0x7fbf;

	__asm__ volatile(
		"fninit; fldcw %0; fldpi; fldpi; fldpi; fldpi; fldpi; fldpi; fldpi; fldpi\n\t"
		"ldmxcsr %1; pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm1, %%xmm1; pcmpeqd %%xmm2, %%xmm2\n\t"
		"pcmpeqd %%xmm3, %%xmm3; pcmpeqd %%xmm4, %%xmm4; pcmpeqd %%xmm5, %%xmm5\n\t"
		"pcmpeqd %%xmm6, %%xmm6; pcmpeqd %%xmm7, %%xmm7\n\t"
#ifdef __x86_64__
		"pcmpeqd %%xmm8, %%xmm8; pcmpeqd %%xmm15, %%xmm15"
#endif
		: : "m"(fcw), "m"(mxcsr) : FX_CLOBBERS);
}

#ifdef __x86_64__
#define YIELD "movl $24, %%eax; syscall"
#define YIELD_CLOBBERS "rax", "rcx", "r11"
#else
#define YIELD "movl $158, %%eax; int $0x80"
#define YIELD_CLOBBERS "eax"
#endif

/* Nothing that the compiler makes may run between loading the registers and looking at
 * them again: hence the system calls and the waiting loops in assembler. */
static void hold(const struct fx *in, struct fx *out, unsigned yields, unsigned spins)
{
	__asm__ volatile(
		"fxrstor (%[in])\n\t"
		"1: " YIELD "\n\t"
		"decl %[yields]; jnz 1b\n\t"
		"2: decl %[spins]; jnz 2b\n\t"
		"fxsave (%[out])\n\t"
		"fninit; ldmxcsr %[mxcsr]"
		: [yields] "+b"(yields), [spins] "+d"(spins)
		: [in] "S"(in), [out] "D"(out), [mxcsr] "m"(mxcsr_default)
		: YIELD_CLOBBERS, "cc", "memory", FX_CLOBBERS);
}

static void hold_state(int index)
{
	uint64_t state = 0x9e3779b97f4a7c15u * (index + 1);
	struct fx in, out;

	for (int i = rounds(40); i > 0; i--) {
		fx_fill(&in, &state);
		memset(&out, 0, sizeof out);
		if (i % 2)
			hold(&in, &out, 8, 1);
		else
			hold(&in, &out, 1, 300000);
		if (!fx_same(&in, &out))
			fail("fpstate: thread %d lost its FPU registers", index);
	}
}

static uint64_t switches(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_nvcsw + usage.ru_nivcsw;
}

void part_fpstate(void)
{
	uint64_t before = switches();
	together(2 * cpus + 2, hold_state);
	detail("switches", switches() - before);
	if (switches() == before)
		fail("fpstate: no context switch happened");
}

struct sums {
	uint64_t x87, sse[2];
	uint32_t single[4], integer[4];
};

/* Sums whose every rounding counts. */
__attribute__((target("sse2"), noinline)) static void sum(struct sums *sums, int terms)
{
	long double x87 = 0;
	__m128d sse = _mm_setzero_pd();
	__m128 single = _mm_setzero_ps();
	__m128i integer = _mm_set1_epi32(12345);

	for (int i = 1; i <= terms; i++) {
		x87 += 1.0L / i;
		sse = _mm_add_pd(sse, _mm_div_pd(_mm_set_pd(1, 3), _mm_set1_pd(i)));
		single = _mm_add_ps(single, _mm_sqrt_ps(_mm_cvtepi32_ps(_mm_set_epi32(i, 2, i + 1, 5))));
		integer = _mm_add_epi32(_mm_shuffle_epi32(integer, 0x39), _mm_mul_epu32(integer, _mm_set1_epi32(i)));
	}
	memset(sums, 0, sizeof *sums);
	memcpy(&sums->x87, &x87, 8); /* the mantissa */
	_mm_storeu_pd((double *)sums->sse, sse);
	_mm_storeu_ps((float *)sums->single, single);
	_mm_storeu_si128((__m128i *)sums->integer, integer);
}

static atomic_int alarms;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
	fx_trash();
}

void part_alarms(void)
{
	struct sums expected, got;
	struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { 0 };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct timespec from, now;
	int wanted = rounds(100), terms = 20000, passes = 0;

	sum(&expected, terms);
	alarms = 0;
	sigaction(SIGALRM, &action, NULL);
	clock_gettime(CLOCK_MONOTONIC, &from);
	setitimer(ITIMER_REAL, &often, NULL);
	do {
		sum(&got, terms);
		passes++;
		if (memcmp(&expected, &got, sizeof got))
			fail("alarms: the sums of pass %d differ", passes);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (alarms < wanted && now.tv_sec - from.tv_sec < 60);
	setitimer(ITIMER_REAL, &never, NULL);
	if (alarms < wanted)
		fail("alarms: %d signals of %d came in 60 s", (int)alarms, wanted);
	detail("signals", alarms);
	detail("passes", passes);
}
