/* What the parts of the program `threads` share. */
#ifndef PART_H
#define PART_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The processors in use, and the percentage that a usual number of rounds is taken at. */
extern int cpus;
extern bool has_sse2, has_cx16, has_nx;

int rounds(int usual);

/* Count a failure of the running part; the first few are shown. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Add `name=value` to the details of the running part's result. */
void detail(const char *name, uint64_t value);

/* Run `body(index)` in `count` threads and wait for all of them. */
void together(int count, void (*body)(int index));

/* Tie the calling thread to a processor; the index is taken modulo `cpus`. */
void pin(int index);

/* Called in a loop that waits for another thread, which may share the processor. */
void relax(unsigned spins);

uint64_t next_random(uint64_t *state);

/* An FXSAVE image. On i386 the processor leaves the last eight XMM registers alone. */
struct fx {
	uint16_t fcw, fsw;
	uint8_t ftw, reserved;
	uint16_t fop;
	uint64_t fip, fdp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[8][16];
	uint8_t xmm[16][16];
	uint8_t rest[96];
} __attribute__((aligned(16)));

/* Random registers and control words with every exception masked. */
void fx_fill(struct fx *image, uint64_t *state);

/* Whether two images agree in everything that a context switch has to keep. */
bool fx_same(const struct fx *a, const struct fx *b);

/* Leave other values than anybody else's in every FPU register and control word. */
void fx_trash(void);

#ifdef __x86_64__
#define FX_CLOBBERS "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
	"xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#else
#define FX_CLOBBERS "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)"
#endif

/* What a thread's signal handler for synchronous traps keeps; see traps.c. The code that
 * traps addresses the first members by their offsets. */
struct trap {
	struct fx before, after;
	uintptr_t ip, resume;
	uint32_t mxcsr;
	/* What the handler saw. */
	int signal, code, count;
	uintptr_t address, at;
	struct fx image;
	bool on_stack;
};

/* Give the calling thread a trap record and an alternate signal stack, and take them away. */
struct trap *trap_begin(void);
void trap_end(struct trap *trap);

/* Access an address; true if that gave the SIGSEGV with this code at this address. What is
 * executed is JUMP_BACK, in case that there is no trap. */
#define JUMP_BACK "\xff\xe2" /* jmp *%edx or jmp *%rdx */
bool trap_read(struct trap *trap, const void *address, int code);
bool trap_write(struct trap *trap, const void *address, int code);
bool trap_execute(struct trap *trap, const void *address, int code);

/* The parts. */
void part_fpstate(void);
void part_traps(void);
void part_simd(void);
void part_alarms(void);
void part_futex(void);
void part_ordering(void);
void part_mprotect(void);
void part_smc(void);
void part_crossmod(void);
void part_clock(void);

#endif
