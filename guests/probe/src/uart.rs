//! 16550A on COM1, beyond what the console needs. Output waits until the check gives the chip back.

use crate::cpu::{self, inb, outb};
use crate::report::Verdict;
use crate::serial::{self, COM1, FCR, IER, IIR, LCR, LSR, LSR_DR, LSR_TEMT, LSR_THRE, MCR, MSR, RBR, SCR};
use crate::{ensure, good, pic, skip, time, trap};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

const LOOP: u8 = 0x10;

fn ready() -> bool {
    time::spin_until(50, || inb(COM1 + LSR) & LSR_DR != 0)
}

/// Registers, loopback of modem lines and data, FIFO size, overrun, character timeout.
pub fn check() -> Verdict {
    if inb(COM1 + LSR) == 0xff {
        skip!("no UART at {COM1:#x}");
    }
    serial::drain();
    let result = inside();
    serial::init();
    result
}

fn inside() -> Verdict {
    for value in [0x55, 0xaa] {
        outb(COM1 + SCR, value);
        ensure!(inb(COM1 + SCR) == value, "SCR: wrote {value:#x}, read {:#x}", inb(COM1 + SCR));
    }
    outb(COM1 + LCR, 0x83);
    outb(COM1, 0x34);
    outb(COM1 + 1, 0x12);
    let divisor = [inb(COM1), inb(COM1 + 1)];
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + LCR, 0x03);
    ensure!(divisor == [0x34, 0x12], "divisor latch reads {divisor:x?}");
    ensure!(inb(COM1 + LCR) == 0x03, "LCR reads {:#x}", inb(COM1 + LCR));
    outb(COM1 + IER, 0xff);
    let ier = inb(COM1 + IER);
    outb(COM1 + IER, 0);
    ensure!(ier == 0x0f, "IER keeps {ier:#x} of ff");
    outb(COM1 + FCR, 0);
    let plain = inb(COM1 + IIR);
    outb(COM1 + FCR, 7);
    let fifo = inb(COM1 + IIR);
    ensure!(plain & 0xc0 == 0 && fifo & 0xc0 == 0xc0, "IIR {plain:#x} without and {fifo:#x} with FIFO: no 16550A");

    // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
    for (out, back) in [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0, 0)] {
        outb(COM1 + MCR, LOOP | out);
        let got = inb(COM1 + MSR) & 0xf0;
        ensure!(got == back, "loopback: MCR {out:#x} gives MSR {got:#x}, wanted {back:#x}");
    }

    outb(COM1 + FCR, 7);
    outb(COM1, 0x5a);
    ensure!(ready() && inb(COM1 + RBR) == 0x5a, "loopback: byte lost");
    for i in 0..16 {
        time::spin_until(50, || inb(COM1 + LSR) & LSR_TEMT != 0);
        outb(COM1, i);
    }
    time::spin_until(50, || inb(COM1 + LSR) & LSR_TEMT != 0);
    ensure!(inb(COM1 + LSR) & 2 == 0, "overrun at 16 bytes");
    outb(COM1, 0x99);
    let overrun = time::spin_until(50, || inb(COM1 + LSR) & 2 != 0);
    for i in 0..16 {
        let got = inb(COM1 + RBR);
        ensure!(got == i, "FIFO: byte {i} is {got:#x}");
    }
    ensure!(overrun, "no overrun at 17 bytes");

    // Three bytes under a trigger level of 8: reported after four character times.
    outb(COM1 + FCR, 0x87);
    outb(COM1 + IER, 1);
    for i in 0..3 {
        outb(COM1, i);
    }
    let timeout = time::spin_until(100, || inb(COM1 + IIR) & 0x0f == 0x0c);
    let iir = inb(COM1 + IIR);
    outb(COM1 + IER, 0);
    ensure!(timeout, "IIR {iir:#x}: no character timeout");
    good!("SCR, divisor, loopback, FIFO of 16, overrun, character timeout")
}

static CAUSE: AtomicU8 = AtomicU8::new(0);

fn note_cause() {
    CAUSE.store(inb(COM1 + IIR), Relaxed);
}

/// THRE interrupts: at once when enabled with an empty transmitter, and again each time they are enabled (drivers of
/// many systems start their output that way).
pub fn check_irq() -> Verdict {
    if inb(COM1 + LSR) == 0xff {
        skip!("no UART at {COM1:#x}");
    }
    serial::drain();
    let vector = pic::vector(4);
    trap::clear(vector, trap::EOI_PIC, Some(note_cause));
    pic::open(1 << 4);
    let mut result = Ok(());
    for round in 1..=3 {
        outb(COM1 + IER, 2);
        let came = time::spin_until(100, || {
            cpu::interrupt_window();
            trap::count(vector) >= round
        });
        for _ in 0..4 {
            cpu::interrupt_window();
        }
        outb(COM1 + IER, 0);
        if !came || trap::count(vector) != round || CAUSE.load(Relaxed) & 0x0f != 2 || inb(COM1 + LSR) & LSR_THRE == 0 {
            result = Err((round, trap::count(vector), CAUSE.load(Relaxed)));
            break;
        }
    }
    pic::open(0);
    if let Err((round, count, iir)) = result {
        crate::fail!("round {round}: {count} interrupts, IIR {iir:#x}");
    }
    good!("three times by enabling, IIR c2")
}
