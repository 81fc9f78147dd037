//! Wrappers for the instructions that Rust has no words for.
//!
//! They are safe functions: the program owns the machine, programs no DMA, and none of the ports and registers written
//! through them moves memory that Rust knows of. The few that can (control registers, MSRs) are used by code that
//! restores what it found.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

macro_rules! ports {
    ($($read:ident, $write:ident, $ty:ty, $reg:tt;)*) => {$(
        #[inline]
        pub fn $read(port: u16) -> $ty {
            let value: $ty;
            // SAFETY: reading a port does not touch memory.
            unsafe { asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value, options(nomem, nostack)) };
            value
        }
        #[inline]
        pub fn $write(port: u16, value: $ty) {
            // SAFETY: writing a port does not touch memory that Rust knows of (module text).
            unsafe { asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value, options(nostack)) };
        }
    )*};
}

ports! {
    inb, outb, u8, "al";
    inw, outw, u16, "ax";
    inl, outl, u32, "eax";
}

macro_rules! registers {
    ($($read:ident, $write:ident, $reg:literal;)*) => {$(
        #[inline]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: a read of a control or debug register at privilege level 0.
            unsafe { asm!(concat!("mov {}, ", $reg), out(reg) value, options(nostack)) };
            value
        }
        #[inline]
        pub fn $write(value: u64) {
            // SAFETY: module text.
            unsafe { asm!(concat!("mov ", $reg, ", {}"), in(reg) value, options(nostack)) };
        }
    )*};
}

registers! {
    cr0, set_cr0, "cr0";
    cr2, set_cr2, "cr2";
    cr3, set_cr3, "cr3";
    cr4, set_cr4, "cr4";
    cr8, set_cr8, "cr8";
    dr6, set_dr6, "dr6";
}

pub const MSR_APIC_BASE: u32 = 0x1b;
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
pub const MSR_EFER: u32 = 0xc000_0080;
pub const MSR_STAR: u32 = 0xc000_0081;
pub const MSR_LSTAR: u32 = 0xc000_0082;
pub const MSR_FMASK: u32 = 0xc000_0084;
pub const MSR_GS_BASE: u32 = 0xc000_0101;
pub const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const MSR_TSC_AUX: u32 = 0xc000_0103;

/// Reads an MSR that is known to exist.
#[inline]
pub fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: reading an MSR does not touch memory.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes an MSR that is known to exist.
#[inline]
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: module text.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) };
}

#[inline]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: CR4.TSD stays clear.
    unsafe { _rdtsc() }
}

#[inline]
pub fn cli() {
    // SAFETY: masking interrupts has no effect on memory.
    unsafe { asm!("cli", options(nostack)) };
}

/// Loads DR7, the breakpoint control register.
#[inline]
pub fn set_dr7(value: u64) {
    // SAFETY: module text; breakpoints end in the handler of #DB.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack)) };
}

/// Waits for one interrupt and leaves interrupts off: no interrupt can slip in between the test and the wait.
#[inline]
pub fn sti_hlt_cli() {
    // SAFETY: all gates are set up before the first use, on stacks of their own.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Opens the interrupt window for one instruction.
#[inline]
pub fn interrupt_window() {
    // SAFETY: as `sti_hlt_cli`; STI itself holds interrupts off for the first NOP.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Lets interrupts come for a hundred turns of a loop. Kernels that interpret guests look for them now and then alone,
/// and can miss a window of one instruction any number of times.
pub fn interrupts_for_a_while() {
    // SAFETY: as `sti_hlt_cli`.
    unsafe {
        asm!("sti", "2:", "pause", "dec {n:e}", "jnz 2b", "cli", n = inout(reg) 100 => _, options(nostack));
    }
}

#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

#[inline]
pub fn invlpg(address: u64) {
    // SAFETY: drops a translation; the tables are the truth.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Reloads CR3, which drops every non-global translation.
pub fn flush_tlb() {
    set_cr3(cr3());
}

pub fn rflags() -> u64 {
    let flags: u64;
    // SAFETY: pushes and pops one word; the option nostack is not given.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing happens any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

pub fn triple_fault() -> ! {
    let none = [0u16; 5];
    // SAFETY: the machine ends here; with a limit of zero no gate can be fetched.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) none.as_ptr(), options(noreturn)) };
}
