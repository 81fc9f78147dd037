/*
 * Synchronous traps: each faulting instruction has to arrive as the right signal, with the
 * right code and addresses, on the alternate stack, with the interrupted FPU registers in
 * the signal frame; and to leave these registers alone after the handler has spoilt them.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "part.h"

#ifdef __x86_64__
#define REG_IP REG_RIP
#define STORE "movq"
#define BX "%%rbx"
#else
#define REG_IP REG_EIP
#define STORE "movl"
#define BX "%%ebx"
#endif

_Static_assert(offsetof(struct trap, after) == 512, "the assembler's offset");
_Static_assert(offsetof(struct trap, ip) == 1024, "the assembler's offset");
_Static_assert(offsetof(struct trap, resume) == 1024 + sizeof(void *), "the assembler's offset");
_Static_assert(offsetof(struct trap, mxcsr) == 1024 + 2 * sizeof(void *), "the assembler's offset");
#ifdef __x86_64__
#define RESUME "1032(%[trap])"
#define MXCSR "1040(%[trap])"
#else
#define RESUME "1028(%[trap])"
#define MXCSR "1032(%[trap])"
#endif

/* A function that loads the FPU from `before`, traps in `instruction`, and stores it in
 * `after` when the handler has let it go on. The program is not relocated. */
#define TRAP(name, prepare, instruction) \
	static void name(struct trap *trap, uintptr_t argument) \
	{ \
		__asm__ volatile( \
			STORE " $1f, 1024(%[trap]); " STORE " $2f, " RESUME "\n\t" \
			"fxrstor (%[trap])\n\t" \
			prepare "\n" \
			"1: " instruction "\n" \
			"2: fxsave 512(%[trap]); fninit; ldmxcsr " MXCSR \
			: "+b"(argument) : [trap] "S"(trap) \
			: "eax", "ecx", "edx", "cc", "memory", FX_CLOBBERS); \
	}

TRAP(divide, "xorl %%ecx, %%ecx; movl $1, %%eax; cltd", "divl %%ecx")
TRAP(overflow, "movl $0x80000000, %%eax; cltd; movl $-1, %%ecx", "idivl %%ecx")
TRAP(load, "", "movl (" BX "), %%eax")
TRAP(store, "xorl %%eax, %%eax", "movl %%eax, (" BX ")")
TRAP(jump, "movl $2f, %%edx", "jmp *" BX)
TRAP(illegal, "", "ud2")
TRAP(breakpoint, "", "int3")
TRAP(privileged, "", "hlt")
TRAP(selector, "movl $0xfff3, %%eax", "movl %%eax, %%es")
TRAP(x87_divide, "fld1; fldz; fdivrp %%st, %%st(1)", "fwait")
TRAP(sse_divide, "", "divps %%xmm1, %%xmm0")

enum { NONE, IP, ARGUMENT };	/* what si_addr has to be */

static const struct {
	const char *name;
	void (*run)(struct trap *trap, uintptr_t argument);
	int signal, code, address;
} traps[] = {
	{ "divide", divide, SIGFPE, FPE_INTDIV, IP },
	{ "overflow", overflow, SIGFPE, FPE_INTDIV, IP },
	{ "unmapped", load, SIGSEGV, SEGV_MAPERR, ARGUMENT },
	{ "illegal", illegal, SIGILL, ILL_ILLOPN, IP },
	{ "breakpoint", breakpoint, SIGTRAP, SI_KERNEL, NONE },
	{ "privileged", privileged, SIGSEGV, SI_KERNEL, NONE },
	{ "selector", selector, SIGSEGV, SI_KERNEL, NONE },
};

static __thread struct trap *current;
static __thread sigjmp_buf *escape;
static __thread char *stack;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	struct trap *trap = current;
	char *frame = (char *)uc->uc_mcontext.fpregs;

	if (!trap)
		abort();
	trap->signal = signal;
	trap->code = info->si_code;
	trap->address = (uintptr_t)info->si_addr;
	trap->at = uc->uc_mcontext.gregs[REG_IP];
	trap->on_stack = (uintptr_t)&uc - (uintptr_t)stack < 65536;
	trap->count++;
	if (escape)
		siglongjmp(*escape, 1);
	if (info->si_code == TRAP_TRACE && signal == SIGTRAP)
		return;
	/* i386 puts an FSAVE image of 112 bytes before the other. */
	memcpy(&trap->image, frame + (sizeof(void *) == 4 ? 112 : 0), sizeof trap->image);
	uc->uc_mcontext.gregs[REG_IP] = trap->resume;
	fx_trash();
}

struct trap *trap_begin(void)
{
	static const int signals[] = { SIGFPE, SIGSEGV, SIGILL, SIGTRAP };
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		sigaction(signals[i], &action, NULL);
	stack = malloc(65536);
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = 65536 }, NULL);
	current = aligned_alloc(16, (sizeof *current + 15) & ~(size_t)15);
	memset(current, 0, sizeof *current);
	current->mxcsr = current->before.mxcsr = 0x1f80;
	current->before.fcw = 0x37f;
	return current;
}

void trap_end(struct trap *trap)
{
	sigaltstack(&(stack_t){ .ss_flags = SS_DISABLE }, NULL);
	current = NULL;
	free(trap);
	free(stack);
}

static bool segv(struct trap *trap, void (*run)(struct trap *, uintptr_t), const void *address, int code)
{
	trap->signal = 0;
	run(trap, (uintptr_t)address);
	return trap->signal == SIGSEGV && trap->code == code && trap->address == (uintptr_t)address;
}

bool trap_read(struct trap *trap, const void *address, int code) { return segv(trap, load, address, code); }
bool trap_write(struct trap *trap, const void *address, int code) { return segv(trap, store, address, code); }
bool trap_execute(struct trap *trap, const void *address, int code) { return segv(trap, jump, address, code); }

static void go_through(struct trap *trap, void *hole, uint64_t *state, int index)
{
	for (size_t i = 0; i < sizeof traps / sizeof *traps; i++) {
		const char *name = traps[i].name;
		fx_fill(&trap->before, state);
		trap->signal = 0;
		traps[i].run(trap, (uintptr_t)hole);
		/* A breakpoint is reported behind its instruction. */
		uintptr_t at = traps[i].signal == SIGTRAP ? trap->resume : trap->ip;
		uintptr_t address = traps[i].address == IP ? trap->ip : (uintptr_t)hole;
		if (trap->signal != traps[i].signal || trap->code != traps[i].code)
			fail("traps: %s in thread %d gave signal %d code %d", name, index, trap->signal, trap->code);
		else if (trap->at != at)
			fail("traps: %s at %p was reported at %p", name, (void *)at, (void *)trap->at);
		else if (traps[i].address != NONE && trap->address != address)
			fail("traps: %s reported address %p", name, (void *)trap->address);
		else if (!trap->on_stack)
			fail("traps: %s did not use the alternate stack", name);
		else if (!fx_same(&trap->image, &trap->before))
			fail("traps: %s has other FPU registers in its frame", name);
		else if (!fx_same(&trap->after, &trap->before))
			fail("traps: %s changed the FPU registers", name);
	}
}

/* An exception of the x87 itself: unmask the division by zero alone. */
static void x87(struct trap *trap, uint64_t *state)
{
	fx_fill(&trap->before, state);
	trap->before.ftw = 0;
	trap->before.fcw = 0x37b;
	trap->before.fsw = 0;
	trap->signal = 0;
	x87_divide(trap, 0);
	if (trap->signal != SIGFPE || trap->code != FPE_FLTDIV || trap->at != trap->ip || !(trap->image.fsw & 4))
		fail("traps: x87 gave signal %d code %d status %x", trap->signal, trap->code, trap->image.fsw);
}

static void single_step(struct trap *trap)
{
	trap->count = 0;
	/* A trap after each instruction that began with TF set: 10 and the three that clear it. */
	__asm__ volatile(
#ifdef __x86_64__
		"pushfq; orl $0x100, (%%rsp); popfq\n\t"
		"nop; nop; nop; nop; nop; nop; nop; nop; nop; nop\n\t"
		"pushfq; andl $~0x100, (%%rsp); popfq"
#else
		"pushfl; orl $0x100, (%%esp); popfl\n\t"
		"nop; nop; nop; nop; nop; nop; nop; nop; nop; nop\n\t"
		"pushfl; andl $~0x100, (%%esp); popfl"
#endif
		: : : "cc", "memory");
	if (trap->count != 13)
		fail("traps: %d steps instead of 13", trap->count);
}

static void jump_out(struct trap *trap)
{
	sigjmp_buf here;
	int returned = sigsetjmp(here, 1);

	if (returned == 0) {
		escape = &here;
		divide(trap, 0);
		fail("traps: the division came back");
	}
	escape = NULL;
	/* The handler of the next trap is entered only if the signal mask came back too. */
}

static void trap_often(int index)
{
	uint64_t state = 0xd1342543de82ef95u * (index + 1);
	struct trap *trap = trap_begin();
	/* Below mmap_min_addr, where nothing is mapped. */
	void *hole = (void *)(uintptr_t)(4096 + 64 * index);

	for (int i = rounds(60); i > 0; i--) {
		go_through(trap, hole, &state, index);
		x87(trap, &state);
		single_step(trap);
		jump_out(trap);
	}
	trap_end(trap);
}

void part_traps(void)
{
	together(cpus + 3, trap_often);
	detail("threads", cpus + 3);
}

/* The same in SSE, and a part of its own because QEMU's TCG does not raise this exception. */
static void trap_simd(int index)
{
	static const float one[4] = { 1, 1, 1, 1 };
	uint64_t state = 0xaf251af3b0f025b5u * (index + 1);
	struct trap *trap = trap_begin();

	for (int i = rounds(60); i > 0; i--) {
		fx_fill(&trap->before, &state);
		memcpy(trap->before.xmm[0], one, 16);
		memset(trap->before.xmm[1], 0, 16);
		trap->before.mxcsr = 0x1f80 & ~0x200;
		trap->signal = 0;
		sse_divide(trap, 0);
		/* The flag is set, the destination is not. */
		trap->before.mxcsr |= 4;
		if (trap->signal != SIGFPE || trap->code != FPE_FLTDIV || trap->at != trap->ip ||
		    !fx_same(&trap->image, &trap->before) || !fx_same(&trap->after, &trap->before))
			fail("simd: a division gave signal %d code %d mxcsr %x", trap->signal, trap->code,
			     trap->after.mxcsr);
	}
	trap_end(trap);
}

void part_simd(void)
{
	together(cpus + 3, trap_simd);
}
