//! MC146818 clock and its CMOS memory.

use crate::cpu::{inb, outb};
use crate::report::Verdict;
use crate::{ensure, good, pic, time, trap};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;

/// Reads a register; bit 7 of the index (NMI mask) stays clear.
pub fn read(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

pub fn write(index: u8, value: u8) {
    outb(0x70, index);
    outb(0x71, value);
}

static FLAGS: AtomicU8 = AtomicU8::new(0);

/// Reads register C, which lets go of the line; collects the flags.
pub fn quiet() {
    FLAGS.fetch_or(read(C), Relaxed);
}

/// Runs `f` with periodic interrupts at 1024 Hz.
pub fn periodic<R>(f: impl FnOnce() -> R) -> R {
    let (a, b) = (read(A), read(B));
    write(A, a & 0xf0 | 6);
    write(B, b & 0x8f | 0x40);
    read(C);
    let result = f();
    write(B, b & 0x8f);
    write(A, a);
    read(C);
    result
}

#[derive(Clone, Copy, PartialEq)]
pub struct Date {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// Date and time, read outside an update. The century register is used if it makes sense.
pub fn now() -> Date {
    let mut last = raw();
    for _ in 0..10 {
        time::spin_until(10, || read(A) & 0x80 == 0);
        let again = raw();
        if again == last {
            break;
        }
        last = again;
    }
    last
}

fn raw() -> Date {
    let binary = read(B) & 4 != 0;
    let number = |v: u8| if binary { v } else { (v >> 4) * 10 + (v & 0x0f) };
    let hour = read(4);
    let mut h = number(hour & 0x7f);
    if read(B) & 2 == 0 {
        h = h % 12 + if hour & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(read(0x32)) {
        c @ 19..=29 => c,
        _ => 20,
    };
    Date {
        year: u16::from(century) * 100 + u16::from(number(read(9))),
        month: number(read(8)),
        day: number(read(7)),
        hour: h,
        minute: number(read(2)),
        second: number(read(0)),
    }
}

/// The clock shows a date, its memory keeps bytes.
pub fn check_rtc() -> Verdict {
    let d = read(D);
    ensure!(d & 0x80 != 0, "register D {d:#x}: no valid RAM and time");
    let t = now();
    ensure!(
        (1..=12).contains(&t.month) && (1..=31).contains(&t.day) && t.hour < 24 && t.minute < 60 && t.second < 60,
        "{}-{}-{} {}:{}:{}",
        t.year,
        t.month,
        t.day,
        t.hour,
        t.minute,
        t.second
    );
    for index in [0x7eu8, 0x7f] {
        let old = read(index);
        for value in [0x55, 0xaa] {
            write(index, value);
            let got = read(index | 0x80);
            if got != value {
                write(index, old);
                crate::fail!("CMOS byte {index:#x}: wrote {value:#x}, read {got:#x}");
            }
        }
        write(index, old);
    }
    outb(0x70, 0x0d);
    good!("{:04}-{:02}-{:02} {:02}:{:02}:{:02}", t.year, t.month, t.day, t.hour, t.minute, t.second)
}

/// Update-ended and alarm interrupts (alarm set to every second) come once a second, and the seconds go on by one.
/// Tolerance as for all interrupts, up to three tries.
pub fn check_update() -> Verdict {
    let vector = pic::vector(8);
    trap::clear(vector, trap::EOI_PIC, Some(quiet));
    let old = read(B);
    let alarm = [read(1), read(3), read(5)];
    for register in [1, 3, 5] {
        write(register, 0xff);
    }
    write(B, old & 0x8f | 0x30);
    read(C);
    let result = seconds(vector);
    write(B, old & 0x8f);
    for (register, value) in [1, 3, 5].into_iter().zip(alarm) {
        write(register, value);
    }
    read(C);
    result
}

fn seconds(vector: u8) -> Verdict {
    let wait = |n| time::idle_until(3000, 1 << 8, || trap::count(vector) >= n);
    // An alarm and an update that are told apart in time are two interrupts; the second is over at once.
    let settle = || {
        time::idle_until(20, 1 << 8, || false);
    };
    ensure!(wait(1), "no interrupt in 3 s");
    settle();
    let (mut us, mut all) = (0, 0);
    for _ in 0..3 {
        let (first, n, before) = (trap::stamp(vector), trap::count(vector), now().second);
        FLAGS.store(0, Relaxed);
        ensure!(wait(n + 1), "one interrupt only");
        us = time::ns(trap::stamp(vector) - first) / 1000;
        settle();
        let (flags, after) = (FLAGS.load(Relaxed), now().second);
        all |= flags;
        ensure!(flags & 0x80 != 0 && flags & 0x30 != 0, "register C {flags:#x}");
        if time::punctual(us, 1_000_000) {
            ensure!(after == (before + 1) % 60, "second {before} is followed by {after}");
            break;
        }
    }
    ensure!(time::punctual(us, 1_000_000), "one second took {us} us");
    ensure!(all & 0x30 == 0x30, "register C {all:#x}: not both of alarm and update");
    good!("one second took {us} us, register C {all:#x}")
}
