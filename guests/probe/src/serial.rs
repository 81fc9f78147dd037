//! COM1 as the console: 16550A at 3F8h, 115200 8N1, polled.

use crate::cpu::{inb, outb};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

pub const COM1: u16 = 0x3f8;

/// Offsets of the registers, by their datasheet names.
pub const RBR: u16 = 0;
pub const IER: u16 = 1;
pub const IIR: u16 = 2;
pub const FCR: u16 = 2;
pub const LCR: u16 = 3;
pub const MCR: u16 = 4;
pub const LSR: u16 = 5;
pub const MSR: u16 = 6;
pub const SCR: u16 = 7;

pub const LSR_DR: u8 = 0x01;
pub const LSR_THRE: u8 = 0x20;
pub const LSR_TEMT: u8 = 0x40;

static PRESENT: AtomicBool = AtomicBool::new(false);

/// Sets line and FIFO; also undoes whatever a test left behind.
pub fn init() {
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 0x80);
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + LCR, 0x03);
    outb(COM1 + FCR, 0x07);
    outb(COM1 + MCR, 0x0b);
    PRESENT.store(inb(COM1 + LSR) != 0xff, Relaxed);
}

pub fn put(byte: u8) {
    if !PRESENT.load(Relaxed) {
        return;
    }
    // Bounded: a UART that never empties costs the output, not the run.
    for _ in 0..1_000_000 {
        if inb(COM1 + LSR) & LSR_THRE != 0 {
            break;
        }
    }
    outb(COM1, byte);
}

/// Waits until the last bit is out, before a test takes the UART or the machine goes down.
pub fn drain() {
    for _ in 0..1_000_000 {
        if inb(COM1 + LSR) & LSR_TEMT != 0 {
            break;
        }
    }
}

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => {{
        let _ = ::core::fmt::Write::write_fmt(&mut $crate::serial::Console, format_args!($($arg)*));
    }};
}

#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::print!("{}\n", format_args!($($arg)*)) };
}
