//! Faults and traps in 64-bit mode at privilege level 0: vector, error code, saved RIP, and what must not have changed.

use crate::mem::Racy;
use crate::report::{Bad, Verdict};
use crate::trap::{self, Caught, Frame};
use crate::{catch, cpu, ensure, good, intr, skip, start};
use core::arch::{asm, global_asm};

/// The exception must have come, with this vector and this error code.
pub fn expect(what: &str, got: Option<Caught>, vector: u64, error: u64) -> Result<Caught, Bad> {
    match got {
        Some(c) if c.vector == vector && c.error == error => Ok(c),
        Some(c) => Err(Bad::Fail(crate::text!(
            "{what}: exception {} error {:#x}, wanted {vector} error {error:#x}",
            c.vector,
            c.error
        ))),
        None => Err(Bad::Fail(crate::text!("{what}: no exception, wanted {vector}"))),
    }
}

/// An address that no mode of translation can reach: bit 47 is not copied to bits 48 to 63.
pub const NON_CANONICAL: u64 = 1 << 63;

/// #DE: divisor zero and quotient overflow leave the registers alone.
pub fn check_divide() -> Verdict {
    let (mut a, mut d, at): (u64, u64, u64);
    let c = catch!("lea {at}, [rip + 78f]", "78: div ecx"; at = out(reg) at,
        inout("rax") 0x1234u64 => a, inout("rdx") 0x5678u64 => d, in("rcx") 0u64);
    let c = expect("DIV by 0", c, trap::DE, 0)?;
    ensure!(c.rip == at, "DIV by 0: saved RIP {:#x}, instruction at {at:#x}", c.rip);
    ensure!(a == 0x1234 && d == 0x5678, "DIV by 0 changed RAX to {a:#x}, RDX to {d:#x}");
    let c = catch!("idiv rcx"; inout("rax") 1u64 << 63 => a, inout("rdx") u64::MAX => d, in("rcx") u64::MAX);
    expect("IDIV overflow", c, trap::DE, 0)?;
    ensure!(a == 1 << 63 && d == u64::MAX, "IDIV overflow changed RAX to {a:#x}");
    let c = catch!("div cl"; inout("rax") 0x1_00ffu64 => a, in("rcx") 1u64);
    ensure!(c.is_none() && a == 0x1_00ff, "DIV CL of 00FFh by 1: {a:#x}");
    let c = catch!("div cl"; inout("rax") 0x0100u64 => a, in("rcx") 1u64);
    expect("DIV CL of 0100h by 1", c, trap::DE, 0)?;
    ensure!(a == 0x0100, "DIV CL overflow changed AX to {a:#x}");
    good!("DIV, IDIV")
}

/// #UD: opcodes that 64-bit mode does not have, LOCK where it is not allowed.
pub fn check_undefined() -> Verdict {
    expect("UD2", catch!("ud2";), trap::UD, 0)?;
    expect("UD1", catch!("ud1 eax, eax";), trap::UD, 0)?;
    expect("PUSH ES", catch!(".byte 0x06";), trap::UD, 0)?;
    expect("DAA", catch!(".byte 0x27";), trap::UD, 0)?;
    expect("LOCK ADD register", catch!(".byte 0xf0, 0x01, 0xc0"; out("rax") _), trap::UD, 0)?;
    good!("5 encodings")
}

/// #GP, #SS and #NP with their error codes.
pub fn check_protection() -> Verdict {
    let c =
        catch!("lea {at}, [rip + 78f]", "78: mov al, [{p}]"; at = out(reg) _, p = in(reg) NON_CANONICAL, out("al") _);
    expect("non-canonical load", c, trap::GP, 0)?;
    let c = catch!("mov ds, {s:e}"; s = in(reg) 0x80);
    expect("selector behind the GDT", c, trap::GP, 0x80)?;
    let c = catch!("mov ds, {s:e}"; s = in(reg) trap::ABSENT);
    expect("absent segment", c, trap::NP, trap::ABSENT)?;
    let c = catch!("mov ss, {s:e}"; s = in(reg) trap::ABSENT);
    expect("absent stack segment", c, trap::SS, trap::ABSENT)?;
    let c = catch!("mov ss, {s:e}"; s = in(reg) trap::USER_DATA | 3);
    expect("stack segment of ring 3", c, trap::GP, trap::USER_DATA)?;
    trap::clear_gate(0x93);
    let c = catch!("int 0x93";);
    trap::reset_gate(0x93);
    ensure!(c.is_some_and(|c| c.vector == trap::NP && c.error & 7 == 2), "INT through an absent gate: no #NP");
    let c = catch!("movaps xmm0, [{p}]"; p = in(reg) cpu_words() + 8, out("xmm0") _);
    expect("misaligned MOVAPS", c, trap::GP, 0)?;
    let c = catch!(".fill 15, 1, 0x66", "nop";);
    expect("16-byte instruction", c, trap::GP, 0)?;
    good!("8 ways")
}

/// What control registers refuse. A machine that lets one of these through is lost, so they are tried on demand only.
pub fn check_control() -> Verdict {
    if !start::listed("need", "exc-control") && !start::listed("only", "exc-control") {
        skip!("a machine without these checks would crash; tried by need=exc-control");
    }
    let write_cr0 = |v: u64| catch!("mov cr0, {v}"; v = in(reg) v);
    let write_cr4 = |v: u64| catch!("mov cr4, {v}"; v = in(reg) v);
    expect("CR4 bit 63", write_cr4(cpu::cr4() | 1 << 63), trap::GP, 0)?;
    expect("CR4.PAE off in long mode", write_cr4(cpu::cr4() & !(1 << 5)), trap::GP, 0)?;
    expect("CR0 bit 32", write_cr0(cpu::cr0() | 1 << 32), trap::GP, 0)?;
    expect("CR0.PE off with PG on", write_cr0(cpu::cr0() & !1), trap::GP, 0)?;
    expect("CR0.PG off in 64-bit code", write_cr0(cpu::cr0() & !(1 << 31)), trap::GP, 0)?;
    expect("CR0.NW without CD", write_cr0(cpu::cr0() & !(1 << 30) | 1 << 29), trap::GP, 0)?;
    expect("CR8 above 15", catch!("mov cr8, {v}"; v = in(reg) 16u64), trap::GP, 0)?;
    expect("MOV CR1", catch!(".byte 0x0f, 0x20, 0xc8"; out("rax") _), trap::UD, 0)?;
    let lme = intr::catch_wrmsr(cpu::MSR_EFER, cpu::rdmsr(cpu::MSR_EFER) & !(1 << 8));
    expect("EFER.LME off with paging on", lme, trap::GP, 0)?;
    good!("9 ways")
}

#[repr(align(64))]
struct Words(Racy<[u64; 16]>);
static WORDS: Words = Words(Racy::new([0; 16]));

fn cpu_words() -> u64 {
    WORDS.0.get() as u64
}

/// #BP is a trap, in both encodings.
pub fn check_breakpoint() -> Verdict {
    let at: u64;
    let c = catch!("lea {at}, [rip + 78f]", "int3", "78:"; at = out(reg) at);
    let c = expect("INT3", c, trap::BP, 0)?;
    ensure!(c.rip == at, "INT3: saved RIP {:#x}, next instruction {at:#x}", c.rip);
    let c = catch!("lea {at}, [rip + 78f]", ".byte 0xcd, 3", "78:"; at = out(reg) _);
    expect("INT 3", c, trap::BP, 0)?;
    good!("INT3, INT 3")
}

/// A fault while #GP is being delivered is #DF, on the stack of its own gate.
pub fn check_double_fault() -> Verdict {
    trap::clear_gate(trap::GP as u8);
    let c = catch!("mov al, [{p}]"; p = in(reg) NON_CANONICAL, out("al") _);
    trap::reset_gate(trap::GP as u8);
    expect("absent #GP gate", c, trap::DF, 0)?;
    good!("#GP, then #NP, gives #DF")
}

static LOG: Racy<([(u64, u64); 24], usize)> = Racy::new(([(0, 0); 24], 0));

/// Notes RIP and DR6 of a debug exception and goes on.
fn log(f: &mut Frame) -> bool {
    if f.vector != trap::DB {
        return false;
    }
    // SAFETY: only debug exceptions of the boot processor come here, one at a time.
    let (entries, n) = unsafe { &mut *LOG.get() };
    if *n < entries.len() {
        entries[*n] = (f.rip, cpu::dr6());
        *n += 1;
    } else {
        f.rflags &= !trap::TF;
    }
    cpu::set_dr6(0xffff_0ff0);
    f.rflags |= trap::RF;
    true
}

fn start_log() {
    // SAFETY: no debug exception is armed yet.
    unsafe { (*LOG.get()).1 = 0 };
    cpu::set_dr6(0xffff_0ff0);
    trap::set_hook(Some(log));
}

fn stop_log() -> &'static [(u64, u64)] {
    trap::set_hook(None);
    // SAFETY: nothing is armed any more.
    let (entries, n) = unsafe { &*LOG.get() };
    &entries[..*n]
}

unsafe extern "C" {
    fn step_run(scratch: *mut u64);
    safe static step_a: u8;
    safe static step_b: u8;
    safe static step_c: u8;
    safe static step_d: u8;
    safe static step_e: u8;
    safe static step_f: u8;
}

global_asm!(
    r#"
    .text
    .globl step_run, step_a, step_b, step_c, step_d, step_e, step_f
step_run:
    mov ecx, 3
    xor eax, eax
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    nop
step_a:
    add rax, 1
step_b:
    rep stosb
step_c:
    jmp step_d
    ud2
step_d:
    pushfq
    and qword ptr [rsp], -0x101
step_e:
    popfq
step_f:
    ret
    "#
);

fn single_step() -> &'static [(u64, u64)] {
    start_log();
    // SAFETY: the routine uses 3 bytes of the scratch words and clears TF itself.
    unsafe { step_run(WORDS.0.get().cast()) };
    stop_log()
}

/// Traps with RIP at a REP STOSB of count 3: one before it and two in it.
pub fn rep_traps() -> usize {
    single_step().iter().filter(|l| l.0 == &raw const step_b as u64).count()
}

/// TF traps after each instruction but the POPF that sets it, and after each step of a REP.
pub fn check_single_step() -> Verdict {
    let at = |s: *const u8| s as u64;
    let (a, b, c, d) = (at(&raw const step_a), at(&raw const step_b), at(&raw const step_c), at(&raw const step_d));
    let (e, f) = (at(&raw const step_e), at(&raw const step_f));
    let log = single_step();
    for (i, (rip, dr6)) in log.iter().enumerate() {
        ensure!(dr6 & 0x400f == 0x4000, "trap {i} at {rip:#x}: DR6 {dr6:#x}");
    }
    let reps = log.iter().filter(|l| l.0 == b).count();
    ensure!((3..=4).contains(&reps), "{reps} traps at REP STOSB, wanted one before and two in it");
    let mut others = log.iter().map(|l| l.0).filter(|rip| *rip != b);
    for (i, wanted) in [a, c, d].into_iter().enumerate() {
        let got = others.next().unwrap_or(0);
        ensure!(got == wanted, "trap {i} beside REP at {:+#x}, wanted {:+#x}", got.wrapping_sub(a) as i64, wanted - a);
    }
    let pushed = others.next().unwrap_or(0);
    ensure!(d < pushed && pushed < e, "trap after PUSHF at {pushed:#x}");
    ensure!(others.next() == Some(e) && others.next() == Some(f), "no trap after AND or after POPF");
    ensure!(others.next().is_none(), "traps after TF was cleared");
    good!("9 traps, three of them at one REP STOSB")
}

/// Loads breakpoint 0 with `address` and `dr7`.
fn arm(address: u64, dr7: u64) {
    // SAFETY: a debug register holds an address that the processor only compares.
    unsafe { asm!("mov dr0, {}", in(reg) address, options(nostack)) };
    cpu::set_dr7(dr7 | 0x400);
}

/// Debug registers: execution, write, read-write and port breakpoints.
pub fn check_debug_registers() -> Verdict {
    let word = cpu_words();
    start_log();
    let at: u64;
    // SAFETY: the label is an instruction of this block; the hook sets RF, so it runs after the fault.
    unsafe {
        asm!("lea {at}, [rip + 78f]", "mov dr0, {at}", "mov {t:e}, 0x402", "mov dr7, {t}", "nop", "78: nop",
            at = out(reg) at, t = out(reg) _);
    }
    cpu::set_dr7(0x400);
    let seen = stop_log();
    ensure!(seen.len() == 1 && seen[0].0 == at, "execution: {} exceptions, wanted 1", seen.len());
    ensure!(seen[0].1 & 0xf == 1, "execution: DR6 {:#x}", seen[0].1);

    // R/W0 = 1 or 3, LEN0 = 4 bytes; the neighbour word must not trigger.
    for (name, rw, wanted) in [("write", 1u64, 2), ("read-write", 3, 3)] {
        start_log();
        arm(word, 2 | rw << 16 | 3 << 18);
        let after: u64;
        // SAFETY: the scratch words belong to this module.
        unsafe {
            asm!("mov dword ptr [{p} + 4], 1", "mov dword ptr [{p}], 1", "78: mov {t:e}, [{p}]",
                "mov byte ptr [{p} + 3], 1", "lea {t}, [rip + 78b]", p = in(reg) word, t = out(reg) after);
        }
        cpu::set_dr7(0x400);
        let seen = stop_log();
        ensure!(seen.len() == wanted, "{name}: {} exceptions, wanted {wanted}", seen.len());
        ensure!(seen[0].0 == after, "{name}: not reported behind the store, RIP {:#x} for {after:#x}", seen[0].0);
        ensure!(seen[0].1 & 0xf == 1, "{name}: DR6 {:#x}", seen[0].1);
    }

    // R/W0 = 2 is a port when CR4.DE is set.
    let cr4 = cpu::cr4();
    cpu::set_cr4(cr4 | 1 << 3);
    start_log();
    arm(0x61, 2 | 2 << 16);
    cpu::inb(0x61);
    cpu::inb(0x60 + 2);
    cpu::set_dr7(0x400);
    let seen = stop_log().len();
    let alias = catch!("mov {t}, dr5"; t = out(reg) _);
    cpu::set_cr4(cr4);
    ensure!(seen == 1, "port: {seen} exceptions, wanted 1");
    expect("DR5 with CR4.DE", alias, trap::UD, 0)?;
    good!("execute, write, read-write, port")
}

/// Compatibility mode: a 32-bit code segment under long mode, with instructions that 64-bit mode lost.
pub fn check_compatibility() -> Verdict {
    let (sum, stack): (u64, u64);
    let before = cpu::rflags();
    // SAFETY: code and stack lie below 4 GiB, so the 32-bit part reaches both; it ends in the 64-bit segment again.
    unsafe {
        asm!(
            "mov r8, rsp",
            "push {code32}",
            "lea rax, [rip + 78f]",
            "push rax",
            "retfq",
            ".code32",
            "78:",
            "mov eax, 0x19",
            "add al, 0x28",
            "daa",
            "inc eax",
            "pushad",
            "popad",
            "mov ecx, 0xffffffff",
            "inc ecx",
            "jnz 79f",
            "add eax, 0x100",
            "79:",
            ".byte 0xea",
            ".long 76f",
            ".word 8",
            ".code64",
            "76:",
            "mov rdx, rsp",
            "sub rdx, r8",
            code32 = const trap::CODE32,
            out("rax") sum,
            out("rdx") stack,
            out("rcx") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    // 19h + 28h = 41h, adjusted to 47 (BCD), + 1, + 100h.
    ensure!(sum == 0x148, "EAX {sum:#x}, wanted 0x148");
    ensure!(stack == 0, "RSP off by {stack:#x}");
    ensure!(cpu::rflags() & 0x200 == before & 0x200, "IF changed");
    good!("far return in, far jump out")
}
