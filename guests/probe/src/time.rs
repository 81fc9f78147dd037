//! Time for the program itself: the TSC, measured once against channel 2 of the 8254.

use crate::cpu::{self, inb, outb};
use crate::{pic, start, trap};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Input clock of the 8254, in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// Clock of the ACPI PM timer, in Hz.
pub const PM_HZ: u64 = 3_579_545;

static TSC_HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// Set once IRQ 0 has been seen to arrive: waiting may then sleep.
static TICKS: AtomicBool = AtomicBool::new(false);

/// TSC cycles per second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Relaxed)
}

/// Nanoseconds of `cycles` of the TSC.
pub fn ns(cycles: u64) -> u64 {
    (u128::from(cycles) * 1_000_000_000 / u128::from(tsc_hz())) as u64
}

/// TSC cycles of `us` microseconds.
pub fn cycles(us: u64) -> u64 {
    (u128::from(us) * u128::from(tsc_hz()) / 1_000_000) as u64
}

/// Reads a counter together with the TSC: of some tries, the one that took least, so that a host which takes the
/// processor away in between spoils nothing. Returns (TSC in the middle, value).
pub fn sample(mut read: impl FnMut() -> u64) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..12 {
        let before = cpu::rdtsc();
        let value = read();
        let took = cpu::rdtsc().wrapping_sub(before);
        if took < best.0 {
            best = (took, before.wrapping_add(took / 2), value);
        }
    }
    (best.1, best.2)
}

/// Starts channel 2 in mode `mode` with reload `count` (0 = 65536); gate on, speaker off.
pub fn start_channel2(mode: u8, count: u16) {
    outb(0x61, inb(0x61) & 0xfc);
    outb(0x43, 0xb0 | mode << 1);
    outb(0x42, count as u8);
    outb(0x42, (count >> 8) as u8);
    outb(0x61, inb(0x61) & 0xfc | 1);
}

/// Starts channel 0 in mode 2 (rate generator) with reload `count` (0 = 65536).
pub fn start_channel0(count: u16) {
    outb(0x43, 0x34);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}

/// Latches and reads the count of a channel.
pub fn latch(channel: u8) -> u16 {
    outb(0x43, channel << 6);
    let port = 0x40 + u16::from(channel);
    let low = inb(port);
    u16::from(low) | u16::from(inb(port)) << 8
}

/// One measurement of the TSC over 10 ms of channel 2, in Hz; 0 if one of the two stands still.
pub fn measure_tsc() -> u64 {
    start_channel2(2, 0);
    let (t0, c0) = sample(|| u64::from(latch(2)));
    let mut passes = 0;
    let (t1, c1) = loop {
        let (t1, c1) = sample(|| u64::from(latch(2)));
        passes += 1;
        if c0.wrapping_sub(c1) & 0xffff >= PIT_HZ / 100 || passes == 1_000_000 {
            break (t1, c1);
        }
    };
    match c0.wrapping_sub(c1) & 0xffff {
        0 => 0,
        ticks => (u128::from(t1.wrapping_sub(t0)) * u128::from(PIT_HZ) / u128::from(ticks)) as u64,
    }
}

/// Takes the middle of three measurements: the host may take the processor away in one of them.
pub fn calibrate() {
    let mut hz = [measure_tsc(), measure_tsc(), measure_tsc()];
    hz.sort_unstable();
    if hz[1] != 0 {
        TSC_HZ.store(hz[1], Relaxed);
    }
}

/// Allows [`idle_until`] to sleep.
pub fn ticks_work() {
    TICKS.store(true, Relaxed);
}

/// Spins until `done` or `ms` are over; false when they are. Bounded even where the TSC stands still.
pub fn spin_until(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = cpu::rdtsc();
    let limit = cycles(ms * 1000);
    for _ in 0..200_000_000u64 {
        if done() {
            return true;
        }
        if cpu::rdtsc().wrapping_sub(start) > limit {
            break;
        }
        cpu::pause();
    }
    done()
}

/// Like [`spin_until`], but sleeps in HLT with the lines in `lines` open. IRQ 0 ticks at 100 Hz beside them, so a lost
/// interrupt ends the wait and not the run. Returns with interrupts off and all lines masked.
pub fn idle_until(ms: u64, lines: u16, mut done: impl FnMut() -> bool) -> bool {
    let tick = TICKS.load(Relaxed);
    if tick {
        trap::clear(pic::vector(0), trap::EOI_PIC, None);
        start_channel0((PIT_HZ / 100) as u16);
    }
    pic::open(lines | u16::from(tick));
    let start = cpu::rdtsc();
    let limit = cycles(ms * 1000);
    let mut passes = 0u64;
    let result = loop {
        if done() {
            break true;
        }
        if cpu::rdtsc().wrapping_sub(start) > limit || passes == 200_000_000 {
            break false;
        }
        passes += 1;
        if tick { cpu::sti_hlt_cli() } else { cpu::interrupt_window() }
    };
    pic::open(0);
    result
}

/// The measurement in microseconds that comes nearest to `wanted`, of up to ten; the first within 2 % ends it.
/// Interrupts are late whenever the host is busy, but seldom ten times in a row.
pub fn nearest<E>(wanted: u64, mut measure: impl FnMut() -> Result<u64, E>) -> Result<u64, E> {
    let mut best = measure()?;
    for _ in 0..9 {
        if best.abs_diff(wanted) * 50 <= wanted {
            break;
        }
        let again = measure()?;
        if again.abs_diff(wanted) < best.abs_diff(wanted) {
            best = again;
        }
    }
    Ok(best)
}

/// Whether interrupts that should take `wanted` microseconds took `us`: at most 15 % early (the first may have been
/// late) and, since a busy host delays all of them, 300 % late. `late=N` sets the percentage for both.
pub fn punctual(us: u64, wanted: u64) -> bool {
    let late = start::number("late");
    us * 100 >= wanted * (100 - late.unwrap_or(15).min(100)) && us * 100 <= wanted * (100 + late.unwrap_or(300))
}

/// Spins for `us` microseconds.
pub fn delay(us: u64) {
    let start = cpu::rdtsc();
    let limit = cycles(us);
    let mut passes = 0u64;
    while cpu::rdtsc().wrapping_sub(start) < limit && passes < 200_000_000 {
        passes += 1;
        cpu::pause();
    }
}
