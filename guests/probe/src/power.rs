//! Ways out: ACPI power-off, the power button, the resets of a PC, a stop.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::acpi::{Acpi, acpi};
use crate::cpu::{self, inb, inw, outb, outw};
use crate::{pic, println, serial, time, trap};

/// The power button's bit in PM1_STS and PM1_EN.
const PWRBTN: u16 = 1 << 8;

static PRESSED: AtomicBool = AtomicBool::new(false);

/// Takes the machine from the firmware: SCI_EN.
fn enable(a: &Acpi) {
    if inw(a.pm1a_cnt) & 1 == 0 && a.smi_cmd != 0 && a.acpi_enable != 0 {
        outb(a.smi_cmd, a.acpi_enable);
        time::spin_until(100, || inw(a.pm1a_cnt) & 1 != 0);
    }
}

/// Sleeps until somebody presses the power button.
pub fn wait_for_button() {
    fn handler() {
        let status = acpi().pm1a_evt;
        if inw(status) & PWRBTN != 0 {
            PRESSED.store(true, Ordering::Relaxed);
        }
        // All that is set goes, or a level-triggered SCI would come again and again.
        outw(status, inw(status));
    }
    let a = acpi();
    if a.pm1a_evt == 0 || a.sci > 15 {
        die("no ACPI power button described");
    }
    enable(a);
    let irq = a.sci as u8;
    trap::clear(pic::vector(irq), trap::EOI_PIC, Some(handler));
    // A press that came before counts: its status is still there, and interrupts now.
    outw(a.pm1a_evt + a.pm1_evt_len / 2, PWRBTN);
    pic::open(1 << irq);
    println!("PROBE button awaited");
    while !PRESSED.load(Ordering::Relaxed) {
        cpu::sti_hlt_cli();
    }
    pic::open(0);
    println!("PROBE button pressed");
}

/// Turns the machine off through PM1a_CNT with the sleep type of `\_S5`; stops where that does nothing.
pub fn off() -> ! {
    cpu::cli();
    let a = acpi();
    if let (Some((type_a, type_b)), true) = (a.s5, a.pm1a_cnt != 0) {
        enable(a);
        serial::drain();
        let keep = inw(a.pm1a_cnt) & 0x0203;
        outw(a.pm1a_cnt, keep | type_a << 10 | 1 << 13);
        if a.pm1b_cnt != 0 {
            outw(a.pm1b_cnt, inw(a.pm1b_cnt) & 0x0203 | type_b << 10 | 1 << 13);
        }
        time::delay(500_000);
        println!("PROBE stopped: power-off through PM1a_CNT {:#x} had no effect; halting", a.pm1a_cnt);
    } else {
        println!("PROBE stopped: no ACPI power-off described; halting");
    }
    serial::drain();
    cpu::halt()
}

/// Stops with a reason.
pub fn die(why: &str) -> ! {
    println!("PROBE stopped: {why}");
    off()
}

/// Resets by the way that is named: `kbd`, `cf9`, `port92`, `triple`.
pub fn reset(way: &str) -> ! {
    println!("PROBE reset by {way}");
    serial::drain();
    cpu::cli();
    match way {
        "kbd" => {
            time::spin_until(100, || inb(0x64) & 2 == 0);
            outb(0x64, 0xfe);
        }
        "cf9" => {
            outb(0xcf9, 0x02);
            outb(0xcf9, 0x06);
        }
        "port92" => {
            let old = inb(0x92) & !1;
            outb(0x92, old);
            outb(0x92, old | 1);
        }
        "triple" => cpu::triple_fault(),
        _ => die("reset wants kbd, cf9, port92 or triple"),
    }
    time::delay(500_000);
    die("the reset had no effect")
}
