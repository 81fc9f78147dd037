//! Local APIC (xAPIC page or x2APIC registers) and I/O APIC.

use crate::acpi::acpi;
use crate::cpu::{self, MSR_APIC_BASE, rdmsr, wrmsr};
use crate::mem::{read32, write32};
use crate::time;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Register offsets in the xAPIC page.
pub const ID: u32 = 0x20;
pub const VERSION: u32 = 0x30;
pub const TPR: u32 = 0x80;
pub const PPR: u32 = 0xa0;
const EOI: u32 = 0xb0;
pub const LDR: u32 = 0xd0;
pub const DFR: u32 = 0xe0;
pub const SVR: u32 = 0xf0;
pub const ISR: u32 = 0x100;
pub const IRR: u32 = 0x200;
pub const ESR: u32 = 0x280;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
pub const LVT_TIMER: u32 = 0x320;
pub const LVT_LINT0: u32 = 0x350;
pub const LVT_LINT1: u32 = 0x360;
pub const LVT_ERROR: u32 = 0x370;
pub const TIMER_INITIAL: u32 = 0x380;
pub const TIMER_CURRENT: u32 = 0x390;
pub const TIMER_DIVIDE: u32 = 0x3e0;

pub const MASKED: u32 = 1 << 16;
pub const PERIODIC: u32 = 1 << 17;
pub const TSC_DEADLINE: u32 = 2 << 17;
/// ICR delivery modes and shorthands, level asserted.
pub const FIXED: u32 = 0x4000;
pub const NMI: u32 = 0x4400;
pub const INIT: u32 = 0x4500;
pub const STARTUP: u32 = 0x4600;
pub const SELF: u32 = 1 << 18;
pub const OTHERS: u32 = 3 << 18;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Whether the processor has a local APIC and it is not switched off.
pub fn present() -> bool {
    cpu::cpuid(1, 0).edx & 1 << 9 != 0 && rdmsr(MSR_APIC_BASE) & 1 << 11 != 0
}

/// Physical address of the register page.
pub fn base() -> u64 {
    rdmsr(MSR_APIC_BASE) & 0xf_ffff_f000
}

pub fn read(register: u32) -> u32 {
    if X2APIC.load(Relaxed) { rdmsr(0x800 + (register >> 4)) as u32 } else { read32(base() + u64::from(register)) }
}

pub fn write(register: u32, value: u32) {
    if X2APIC.load(Relaxed) {
        wrmsr(0x800 + (register >> 4), u64::from(value));
    } else {
        write32(base() + u64::from(register), value);
    }
}

pub fn eoi() {
    write(EOI, 0);
}

/// APIC id of the processor that asks.
pub fn id() -> u32 {
    if X2APIC.load(Relaxed) { read(ID) } else { read(ID) >> 24 }
}

/// Sends an interrupt command to one processor (the id is ignored under a shorthand).
pub fn send(id: u32, command: u32) {
    if X2APIC.load(Relaxed) {
        wrmsr(0x830, u64::from(id) << 32 | u64::from(command));
        return;
    }
    time::spin_until(10, || read(ICR_LOW) & 1 << 12 == 0);
    write(ICR_HIGH, id << 24);
    write(ICR_LOW, command);
}

/// Enables the APIC with the 8259 pair behind LINT0 (virtual wire) and NMI behind LINT1, as a BIOS leaves it.
pub fn init() {
    if !present() {
        return;
    }
    write(SVR, 0x1ff);
    write(TPR, 0);
    write(LVT_TIMER, MASKED);
    write(LVT_ERROR, MASKED);
    write(LVT_LINT0, 0x700);
    write(LVT_LINT1, 0x400);
}

/// The same on another processor, in the first one's mode; the 8259 pair has no wire there.
pub fn init_other() {
    if X2APIC.load(Relaxed) {
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 1 << 10);
    }
    write(SVR, 0x1ff);
    write(TPR, 0);
    write(LVT_TIMER, MASKED);
    write(LVT_LINT0, MASKED);
}

/// Whether any bit of a 256-bit register (ISR, IRR) is set for `vector`.
pub fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector >> 5) * 0x10) & 1 << (vector & 31) != 0
}

/// Moves to x2APIC mode.
pub fn enter_x2apic() {
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 1 << 10);
    X2APIC.store(true, Relaxed);
}

/// Goes back to xAPIC mode: only by way of off, which resets the APIC.
pub fn leave_x2apic() {
    let base = rdmsr(MSR_APIC_BASE);
    X2APIC.store(false, Relaxed);
    wrmsr(MSR_APIC_BASE, base & !(3 << 10));
    wrmsr(MSR_APIC_BASE, base & !(3 << 10) | 1 << 11);
    init();
}

pub fn in_x2apic() -> bool {
    rdmsr(MSR_APIC_BASE) & 1 << 10 != 0
}

/// The first I/O APIC of the MADT.
pub struct IoApic {
    base: u64,
}

impl IoApic {
    pub fn find() -> Option<IoApic> {
        let chip = IoApic { base: acpi().ioapic };
        (chip.base != 0 && chip.read(1) != 0xffff_ffff).then_some(chip)
    }

    pub fn read(&self, register: u32) -> u32 {
        write32(self.base, register);
        read32(self.base + 0x10)
    }

    pub fn write(&self, register: u32, value: u32) {
        write32(self.base, register);
        write32(self.base + 0x10, value);
    }

    pub fn pins(&self) -> u32 {
        (self.read(1) >> 16 & 0xff) + 1
    }

    /// Routes `pin` to the processor `id`; `low` is the lower word of the redirection entry.
    pub fn route(&self, pin: u32, id: u32, low: u32) {
        self.write(0x10 + 2 * pin, MASKED);
        self.write(0x11 + 2 * pin, id << 24);
        self.write(0x10 + 2 * pin, low);
    }

    pub fn mask_all(&self) {
        for pin in 0..self.pins() {
            self.write(0x10 + 2 * pin, MASKED);
        }
    }
}

/// Pin of an ISA IRQ and the polarity and trigger bits of its redirection entry, by the MADT's overrides.
pub fn isa_pin(irq: u8) -> (u32, u32) {
    let (gsi, flags) = acpi().gsi[usize::from(irq)];
    let low = if flags & 3 == 3 { 1 << 13 } else { 0 };
    let level = if flags >> 2 & 3 == 3 { 1 << 15 } else { 0 };
    (gsi, low | level)
}
