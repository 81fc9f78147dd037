//! Details that the manuals promise and that some machines leave out without any guest minding. They are tried one by
//! one; what is missing is named, as a skip, and `need=strict` turns that into a failure.

use crate::cpu::{self, inb, outb};
use crate::exceptions::{self, NON_CANONICAL};
use crate::mem::{self, WINDOW, write32};
use crate::report::{Text, Verdict};
use crate::serial::{self, COM1, MCR, MSR};
use crate::trap::{self, Caught, DB, Frame, GP, MF, NP, PF, SS, UD, XM};
use crate::{apic, catch, good, intr, skip, time, x87};
use core::arch::asm;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn is(got: Option<Caught>, vector: u64, error: u64) -> bool {
    got.is_some_and(|c| c.vector == vector && c.error == error)
}

fn lock_mov() -> bool {
    is(catch!(".byte 0xf0, 0x89, 0x07"; in("rdi") WINDOW, out("rax") _), UD, 0)
}

fn into() -> bool {
    is(catch!(".byte 0xce";), UD, 0)
}

fn mov_cs() -> bool {
    is(catch!(".byte 0x8e, 0xc8"; in("rax") trap::CODE), UD, 0)
}

fn stack_fault() -> bool {
    is(catch!("mov al, [rsp + {p}]"; p = in(reg) NON_CANONICAL, out("al") _), SS, 0)
}

/// A read-modify-write of an absent page reports a write.
fn modify_fault() -> bool {
    is(catch!("add dword ptr [{p}], 1"; p = in(reg) WINDOW), PF, 2)
        && is(catch!("lock xadd [{p}], eax"; p = in(reg) WINDOW, out("eax") _), PF, 2)
}

/// The error code of a fault through the IDT is eight times the vector, plus 2.
fn idt_error() -> bool {
    trap::clear_gate(0x93);
    let c = catch!("int 0x93";);
    trap::reset_gate(0x93);
    is(c, NP, 0x93 * 8 + 2)
}

/// A reserved bit in an entry that is present reports P as well as RSVD.
fn reserved_entry() -> bool {
    let Some(frame) = mem::pages(1) else { return true };
    if cpu::cpuid(0x8000_0008, 0).eax & 0xff >= 52 || mem::map(WINDOW, frame | 1 << 51, mem::W).is_none() {
        return true;
    }
    let c = catch!("mov al, [{p}]"; p = in(reg) WINDOW, out("al") _);
    mem::unmap_window();
    is(c, PF, 9)
}

fn unknown_msr() -> bool {
    is(intr::catch_rdmsr(0x4fff_0123), GP, 0)
}

fn non_canonical_msr() -> bool {
    let old = cpu::rdmsr(cpu::MSR_LSTAR);
    let fault = is(intr::catch_wrmsr(cpu::MSR_LSTAR, NON_CANONICAL), GP, 0);
    cpu::wrmsr(cpu::MSR_LSTAR, old);
    fault
}

fn reserved_efer() -> bool {
    let old = cpu::rdmsr(cpu::MSR_EFER);
    let fault = is(intr::catch_wrmsr(cpu::MSR_EFER, old | 1 << 40), GP, 0);
    cpu::wrmsr(cpu::MSR_EFER, old);
    fault
}

/// The ninth load sets IE, SF and C1, a pop of nothing IE and SF without C1.
fn x87_stack() -> bool {
    let (over, under): (u16, u16);
    // SAFETY: the unit is this module's for the moment.
    unsafe {
        asm!("fninit", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fnstsw ax",
            "mov {o:x}, ax", "fninit", "fstp st(0)", "fnstsw ax", "fninit", o = out(reg) over, out("ax") under);
    }
    over & 0x241 == 0x241 && under & 0x241 == 0x041
}

/// An unmasked exception is reported by any waiting instruction, not by FWAIT alone.
fn x87_waiting() -> bool {
    let c = catch!("fninit", "mov word ptr [{p}], 0x037b", "fldcw [{p}]", "fld1", "fldz", "fdivp st(1), st(0)", "fld1";
        p = in(reg) x87::area());
    // SAFETY: clears what is pending.
    unsafe { asm!("fninit") };
    is(c, MF, 0)
}

/// A write to an MMX register sets exponent and sign of the x87 register to ones.
fn mmx_exponent() -> bool {
    // SAFETY: the area takes the 108 bytes of FNSAVE.
    unsafe { asm!("fninit", "movq mm3, {v}", "fnsave [{p}]", "fninit", p = in(reg) x87::area(), v = in(reg) 5u64) };
    x87::extended(28 + 30) == (5, 0xffff)
}

fn denormal_flag() -> bool {
    let slots = x87::area();
    write32(slots, 0x1f80);
    write32(slots + 8, 0x1f80);
    // SAFETY: MXCSR is put back.
    unsafe {
        asm!("ldmxcsr [{p}]", "movq xmm0, {a}", "addsd xmm0, xmm0", "stmxcsr [{p} + 4]", "ldmxcsr [{p} + 8]",
            p = in(reg) slots, a = in(reg) 1u64, out("xmm0") _);
    }
    mem::read32(slots + 4) & 0x3f == 2
}

fn simd_exception() -> bool {
    let slots = x87::area();
    write32(slots, 0x1f80 & !0x200);
    let c = catch!("ldmxcsr [{p}]", "movq xmm0, {one}", "xorps xmm1, xmm1", "divsd xmm0, xmm1";
        p = in(reg) slots, one = in(reg) 1.0f64.to_bits(), out("xmm0") _, out("xmm1") _);
    write32(slots, 0x1f80);
    // SAFETY: the usual value.
    unsafe { asm!("ldmxcsr [{p}]", p = in(reg) slots) };
    is(c, XM, 0)
}

/// Of two NaNs the first operand is the result.
fn first_nan() -> bool {
    let a = 0x7ff8_0000_0000_1234u64;
    let r: u64;
    // SAFETY: registers only.
    unsafe {
        asm!("movq xmm0, {a}", "movq xmm1, {b}", "addsd xmm0, xmm1", "movq {r}, xmm0", a = in(reg) a,
            b = in(reg) 0x7ff8_0000_0000_5678u64, r = out(reg) r, out("xmm0") _, out("xmm1") _);
    }
    r == a
}

fn reserved_mxcsr() -> bool {
    let slots = x87::area();
    // SAFETY: the area takes 512 bytes and is aligned.
    unsafe { asm!("fxsave64 [{p}]", p = in(reg) slots) };
    write32(slots + 24, 0x8000_1f80);
    is(catch!("fxrstor64 [{p}]"; p = in(reg) slots), GP, 0)
        && is(catch!("ldmxcsr [{p} + 24]"; p = in(reg) slots), GP, 0)
}

fn misaligned_fxsave() -> bool {
    is(catch!("fxsave64 [{p}]"; p = in(reg) x87::area() + 8), GP, 0)
}

static AT: AtomicU64 = AtomicU64::new(0);

fn note(f: &mut Frame) -> bool {
    if f.vector != DB {
        return false;
    }
    AT.store(f.rip, Relaxed);
    f.rflags &= !trap::TF;
    true
}

/// No single-step trap between MOV SS and the next instruction.
fn mov_ss_shadow() -> bool {
    trap::set_hook(Some(note));
    let wanted: u64;
    // SAFETY: SS gets the value that it has; the hook clears TF at the first trap.
    unsafe {
        asm!("lea {w}, [rip + 78f]", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov ss, {s:e}", "nop", "78: nop",
            w = out(reg) wanted, s = in(reg) trap::DATA);
    }
    trap::set_hook(None);
    AT.load(Relaxed) == wanted
}

/// DR7.GD makes a move to a debug register #DB with DR6.BD.
fn general_detect() -> bool {
    cpu::set_dr6(0xffff_0ff0);
    cpu::set_dr7(0x400 | 1 << 13);
    let c = catch!("mov {t}, dr0"; t = out(reg) _);
    cpu::set_dr7(0x400);
    c.is_some_and(|c| c.vector == DB && c.dr6 & 1 << 13 != 0)
}

fn pit_gate() -> bool {
    time::start_channel2(0, 0xffff);
    outb(0x61, inb(0x61) & 0xfc);
    let held = time::latch(2);
    time::delay(200);
    time::latch(2).abs_diff(held) <= 1
}

fn pit_bcd() -> bool {
    outb(0x43, 0x95);
    outb(0x42, 0x99);
    let good = (0..200).all(|_| {
        let v = inb(0x42);
        v & 0x0f <= 9 && v >> 4 <= 9
    });
    time::start_channel2(2, 0);
    good
}

/// Entries of the local vector table cannot be unmasked while the APIC is disabled by software.
fn lvt_mask() -> bool {
    if !apic::present() {
        return true;
    }
    apic::write(apic::SVR, 0xff);
    apic::write(apic::LVT_LINT1, 0x400);
    let masked = apic::read(apic::LVT_LINT1) & apic::MASKED != 0;
    apic::init();
    masked
}

/// A vector below 16 is noted in the ESR, as sent (bit 5) or as received (bit 6).
fn esr() -> bool {
    if !apic::present() {
        return true;
    }
    apic::write(apic::ESR, 0);
    apic::send(0, apic::FIXED | apic::SELF | 3);
    apic::write(apic::ESR, 0);
    let errors = apic::read(apic::ESR);
    apic::write(apic::ESR, 0);
    errors & 0x60 != 0
}

fn uart_delta() -> bool {
    serial::drain();
    outb(COM1 + MCR, 0x10);
    inb(COM1 + MSR);
    outb(COM1 + MCR, 0x12);
    let (first, second) = (inb(COM1 + MSR), inb(COM1 + MSR));
    serial::init();
    first & 0x0f == 1 && second & 0x0f == 0
}

/// A detail and the way to try it; true is right.
type Detail = (&'static str, fn() -> bool);

const DETAILS: &[Detail] = &[
    ("#UD for LOCK MOV", lock_mov),
    ("#UD for INTO", into),
    ("#UD for MOV CS", mov_cs),
    ("one trap for a step of REP", || exceptions::rep_traps() == 3),
    ("#SS for a non-canonical stack access", stack_fault),
    ("W in the error code of a read-modify-write", modify_fault),
    ("the error code of a fault through the IDT", idt_error),
    ("P in the error code of a reserved bit", reserved_entry),
    ("#GP for an unknown MSR", unknown_msr),
    ("#GP for a non-canonical LSTAR", non_canonical_msr),
    ("#GP for reserved EFER bits", reserved_efer),
    ("x87 stack faults", x87_stack),
    ("#MF at any waiting instruction", x87_waiting),
    ("MMX exponents", mmx_exponent),
    ("MXCSR.DE", denormal_flag),
    ("#XM", simd_exception),
    ("the first of two NaNs", first_nan),
    ("#GP for reserved MXCSR bits", reserved_mxcsr),
    ("#GP for a misaligned FXSAVE", misaligned_fxsave),
    ("no #DB behind MOV SS", mov_ss_shadow),
    ("DR7.GD", general_detect),
    ("8254 gate in mode 0", pit_gate),
    ("8254 BCD counting", pit_bcd),
    ("LVT masked in a disabled APIC", lvt_mask),
    ("ESR", esr),
    ("delta bits in UART loopback", uart_delta),
];

/// Tries them all.
pub fn check() -> Verdict {
    let mut missing = Text::new();
    let mut n = 0;
    for (name, detail) in DETAILS {
        if !detail() {
            n += 1;
            let _ = write!(missing, "{}{name}", if n == 1 { "" } else { ", " });
        }
    }
    if n > 0 {
        skip!("without {missing}");
    }
    good!("all {} details", DETAILS.len())
}
