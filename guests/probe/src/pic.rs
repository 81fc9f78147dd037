//! The 8259A pair, with the vectors that the tests use, and the ELCR.

use crate::cpu::{inb, outb};

pub const MASTER: u16 = 0x20;
pub const SLAVE: u16 = 0xa0;
/// Edge/level control register, master half.
pub const ELCR: u16 = 0x4d0;
/// Vector of IRQ 0.
pub const BASE: u8 = 0x20;

/// Vector that the pair gives to `irq`.
pub const fn vector(irq: u8) -> u8 {
    BASE + irq
}

/// ICW1 to ICW4: edge, cascade on IR2, 8086 mode, explicit EOI; everything masked.
pub fn init() {
    for (port, base, icw3) in [(MASTER, BASE, 0x04), (SLAVE, BASE + 8, 0x02)] {
        outb(port, 0x11);
        outb(port + 1, base);
        outb(port + 1, icw3);
        outb(port + 1, 0x01);
        outb(port + 1, 0xff);
    }
}

/// Masks all lines but those in `open` (bit = IRQ); the cascade opens with any line of the slave.
pub fn open(open: u16) {
    let open = if open & 0xff00 != 0 { open | 0x04 } else { open };
    outb(MASTER + 1, !open as u8);
    outb(SLAVE + 1, !(open >> 8) as u8);
}

/// Interrupt request registers of both chips.
pub fn irr() -> u16 {
    read_ocw3(0x0a)
}

/// In-service registers of both chips.
pub fn isr() -> u16 {
    read_ocw3(0x0b)
}

fn read_ocw3(command: u8) -> u16 {
    outb(MASTER, command);
    outb(SLAVE, command);
    u16::from(inb(MASTER)) | u16::from(inb(SLAVE)) << 8
}

/// Non-specific EOI for a vector of the pair.
pub fn eoi(vector: u8) {
    if vector >= BASE + 8 {
        outb(SLAVE, 0x20);
    }
    outb(MASTER, 0x20);
}
