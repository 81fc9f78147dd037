//! Motorola MC146818A real-time clock with the CMOS memory of a PC.
//!
//! Datasheet: MC146818A (ADI856). Ports 70 (index; bit 7 masks NMI, kept only) and 71 (data), and the second bank of
//! 128 bytes of PIIX and later at 72 and 73. Time of day runs with the machine's clock from a start that the machine
//! gives; periodic (122 us to 500 ms), alarm and update-ended interrupts on IRQ 8; UIP for the 244 us before an update;
//! BCD or binary, 12 or 24 hours; SET and the divider's reset stop the clock. Daylight saving does not exist.
//!
//! FreeBSD takes its statistics clock (128 Hz, 1024 Hz while profiling) from the periodic interrupt while there is no
//! local APIC timer; a periodic tick that comes late keeps its phase, and ticks that cannot be told apart are lost.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, ResetKind, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};

const NS: u64 = 1_000_000_000;
/// The time base.
const CRYSTAL: u64 = 32_768;

const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
/// The century byte's place on PCs.
const CENTURY: usize = 0x32;

const A_UIP: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;

/// Nanoseconds before the update during which UIP reads 1.
const UIP: u64 = 244_000;

const UPDATE: u32 = 0;
const PERIODIC: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    index: u8,
    index2: u8,
    /// 256 bytes; the clock's own registers among them are made when read.
    cmos: Vec<u8>,
    /// Seconds since 1970 that the clock shows at `epoch`.
    base: i64,
    /// Nanoseconds of guest time at which a second began.
    epoch: u64,
    /// The clock stands (SET, or divider in reset) at `base`.
    stopped: bool,
    /// When periodic ticks are counted from.
    phase: u64,
    /// Those that a poller of register C has seen.
    #[serde(default)]
    seen: u64,
}

impl Default for Regs {
    fn default() -> Regs {
        let mut cmos = vec![0; 256];
        cmos[REG_A] = 0x26;
        cmos[REG_B] = B_24H;
        cmos[REG_D] = 0x80;
        Regs { index: 0, index2: 0, cmos, base: 0, epoch: 0, stopped: false, phase: 0, seen: 0 }
    }
}

/// Days since 1970 of a date in the proleptic Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Year, month and day of a day number.
fn date(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (era * 400 + yoe + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

impl Regs {
    fn b(&self) -> u8 {
        self.cmos[REG_B]
    }

    fn encode(&self, v: i64) -> u8 {
        let v = v as u8;
        if self.b() & B_BINARY != 0 { v } else { v / 10 << 4 | v % 10 }
    }

    fn decode(&self, v: u8) -> i64 {
        i64::from(if self.b() & B_BINARY != 0 { v } else { (v >> 4) * 10 + (v & 15) })
    }

    fn encode_hour(&self, h: i64) -> u8 {
        if self.b() & B_24H != 0 {
            return self.encode(h);
        }
        let h12 = if h % 12 == 0 { 12 } else { h % 12 };
        self.encode(h12) | if h >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, v: u8) -> i64 {
        if self.b() & B_24H != 0 {
            return self.decode(v);
        }
        self.decode(v & 0x7f) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
    }

    fn seconds(&self, now: u64) -> i64 {
        self.base + if self.stopped { 0 } else { (now.saturating_sub(self.epoch) / NS) as i64 }
    }

    /// The clock's registers at `now`.
    fn time_register(&self, index: usize, now: u64) -> u8 {
        let t = self.seconds(now);
        let (day, second) = (t.div_euclid(86_400), t.rem_euclid(86_400));
        let (year, month, dom) = date(day);
        match index {
            0 => self.encode(second % 60),
            2 => self.encode(second / 60 % 60),
            4 => self.encode_hour(second / 3600),
            // 1 January 1970 was a Thursday; Sunday is 1.
            6 => self.encode((day + 4).rem_euclid(7) + 1),
            7 => self.encode(dom),
            8 => self.encode(month),
            9 => self.encode(year.rem_euclid(100)),
            _ => self.encode(year.div_euclid(100)),
        }
    }

    /// Seconds since 1970 that the registers as given by `r` say.
    fn time_of(&self, r: impl Fn(usize) -> u8) -> i64 {
        let month = self.decode(r(8)).clamp(1, 12);
        let year = self.decode(r(CENTURY)) * 100 + self.decode(r(9));
        days(year, month, self.decode(r(7)).max(1)) * 86_400
            + self.decode_hour(r(4)) * 3600
            + self.decode(r(2)) * 60
            + self.decode(r(0))
    }

    /// Cycles of 32768 Hz between periodic ticks. Most of them are no whole number of nanoseconds.
    fn period(&self) -> Option<u64> {
        let rate = self.cmos[REG_A] & 15;
        if rate == 0 || self.stopped_divider() {
            return None;
        }
        // Rates 1 and 2 are those of 8 and 9.
        let rate = if rate < 3 { rate + 7 } else { rate };
        Some(1 << (rate - 1))
    }

    /// Periodic ticks up to now.
    fn ticks(&self, now: u64, period: u64) -> u64 {
        let ns = now.saturating_sub(self.phase);
        (u128::from(ns) * u128::from(CRYSTAL) / u128::from(NS * period)) as u64
    }

    /// When periodic tick `n` comes.
    fn tick_at(&self, n: u64, period: u64) -> u64 {
        self.phase + (u128::from(n) * u128::from(NS * period)).div_ceil(u128::from(CRYSTAL)) as u64
    }

    fn stopped_divider(&self) -> bool {
        self.cmos[REG_A] >> 4 & 7 >= 6
    }

    fn alarm_matches(&self, now: u64) -> bool {
        [0, 2, 4].into_iter().all(|n| {
            let alarm = self.cmos[n + 1];
            alarm >= 0xc0 || alarm == self.time_register(n, now)
        })
    }
}

/// The clock.
pub struct Mc146818 {
    regs: Regs,
    /// Seconds since 1970 at guest time 0.
    start: i64,
    /// What the firmware put into CMOS.
    contents: Vec<(u8, u8)>,
    irq8: Arc<IrqLine>,
    update: Arc<Timer>,
    periodic: Arc<Timer>,
}

impl Mc146818 {
    /// Puts the clock at 70 to 73. `start` is its time at guest time 0, in seconds since 1970, `contents` what a BIOS
    /// would have put into CMOS (index, value).
    pub fn create(slot: &mut Slot, start: i64, contents: Vec<(u8, u8)>) -> Box<dyn Device> {
        slot.ports(0, 0x70, 4, Widths::BYTE);
        let irq8 = slot.isa_irq(8);
        let (update, periodic) = (slot.timer(UPDATE), slot.timer(PERIODIC));
        let mut rtc = Mc146818 { regs: Regs::default(), start, contents, irq8, update, periodic };
        rtc.power_on();
        Box::new(rtc)
    }

    fn power_on(&mut self) {
        self.regs = Regs { base: self.start, ..Regs::default() };
        for &(index, value) in &self.contents {
            self.regs.cmos[index as usize] = value;
        }
    }

    fn now(&self) -> u64 {
        self.update.now()
    }

    fn raise(&mut self, flags: u8) {
        self.regs.cmos[REG_C] |= flags;
        self.settle();
    }

    /// IRQF and the wire from flags and enables.
    fn settle(&mut self) {
        let c = self.regs.cmos[REG_C] & (C_PF | C_AF | C_UF);
        let irq = c & self.regs.b() & (B_PIE | B_AIE | B_UIE) != 0;
        self.regs.cmos[REG_C] = c | if irq { C_IRQF } else { 0 };
        self.irq8.set(irq);
    }

    /// Sets the timers for what the enables ask for. Nothing runs that nobody waits for.
    fn schedule(&mut self) {
        let now = self.now();
        if self.regs.stopped || self.regs.b() & (B_AIE | B_UIE) == 0 {
            self.update.cancel();
        } else {
            let gone = now.saturating_sub(self.regs.epoch) / NS;
            self.update.set(self.regs.epoch + (gone + 1) * NS);
        }
        match self.regs.period() {
            Some(period) if self.regs.b() & B_PIE != 0 => {
                let ticks = self.regs.ticks(now, period);
                self.periodic.set(self.regs.tick_at(ticks + 1, period));
            }
            _ => self.periodic.cancel(),
        }
    }

    fn read_cmos(&mut self, index: usize) -> u8 {
        let now = self.now();
        match index {
            0 | 2 | 4 | 6..=9 | CENTURY if !self.regs.stopped => self.regs.time_register(index, now),
            REG_A => {
                let into = now.saturating_sub(self.regs.epoch) % NS;
                let uip = !self.regs.stopped && into >= NS - UIP;
                self.regs.cmos[REG_A] | if uip { A_UIP } else { 0 }
            }
            REG_C => {
                // Without an enable nobody keeps the flags; a poller of UF or PF sees what has passed.
                let c = self.regs.cmos[REG_C] | self.polled(now);
                self.regs.cmos[REG_C] = 0;
                self.settle();
                c
            }
            REG_D => 0x80,
            _ => self.regs.cmos[index],
        }
    }

    /// Flags of events that passed without a timer since the last read of C, which the cells behind the registers hold.
    fn polled(&mut self, now: u64) -> u8 {
        let mut flags = 0;
        if !self.regs.stopped && self.regs.b() & B_UIE == 0 && now.saturating_sub(self.regs.epoch) >= NS {
            let gone = now.saturating_sub(self.regs.epoch) / NS;
            self.regs.base += gone as i64;
            self.regs.epoch += gone * NS;
            flags |= C_UF;
        }
        if let Some(period) = self.regs.period()
            && self.regs.b() & B_PIE == 0
            && self.regs.ticks(now, period) > self.regs.seen
        {
            self.regs.seen = self.regs.ticks(now, period);
            flags |= C_PF;
        }
        flags
    }

    fn write_cmos(&mut self, index: usize, value: u8) {
        let now = self.now();
        match index {
            0 | 2 | 4 | 6..=9 | CENTURY if !self.regs.stopped => {
                let r = |n: usize| if n == index { value } else { self.regs.time_register(n, now) };
                let change = self.regs.time_of(r) - self.regs.seconds(now);
                self.regs.base += change;
                if index == 0 {
                    // Writing the seconds starts a second.
                    self.regs.base = self.regs.seconds(now);
                    self.regs.epoch = now;
                }
            }
            REG_A => {
                self.regs.cmos[REG_A] = value & 0x7f;
                (self.regs.phase, self.regs.seen) = (now, 0);
                self.run_or_stop(now);
            }
            REG_B => {
                self.regs.cmos[REG_B] = if value & B_SET != 0 { value & !B_UIE } else { value };
                self.run_or_stop(now);
                self.settle();
            }
            REG_C | REG_D => {}
            _ => self.regs.cmos[index] = value,
        }
        self.schedule();
    }

    fn run_or_stop(&mut self, now: u64) {
        let stop = self.regs.b() & B_SET != 0 || self.regs.stopped_divider();
        if stop == self.regs.stopped {
            return;
        }
        if stop {
            // While it stands the registers are memory: a date may pass through one that does not exist.
            for n in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
                self.regs.cmos[n] = self.regs.time_register(n, now);
            }
            self.regs.base = self.regs.seconds(now);
        } else {
            self.regs.base = self.regs.time_of(|n| self.regs.cmos[n]);
            // The first update comes half a second after the divider is released.
            self.regs.epoch = now.saturating_sub(NS / 2);
        }
        self.regs.stopped = stop;
    }
}

impl Device for Mc146818 {
    fn read(&mut self, _region: u32, offset: u64, _width: u8) -> u64 {
        u64::from(match offset {
            1 => self.read_cmos(self.regs.index as usize & 0x7f),
            3 => self.regs.cmos[0x80 | self.regs.index2 as usize & 0x7f],
            2 => self.regs.index2,
            // The index cannot be read back on an AT.
            _ => 0xff,
        })
    }

    fn write(&mut self, _region: u32, offset: u64, _width: u8, value: u64) {
        let value = value as u8;
        match offset {
            0 => self.regs.index = value,
            1 => self.write_cmos(self.regs.index as usize & 0x7f, value),
            2 => self.regs.index2 = value & 0x7f,
            _ => self.regs.cmos[0x80 | self.regs.index2 as usize & 0x7f] = value,
        }
    }

    fn event(&mut self, event: Event) {
        let Event::Timer(id) = event else { return };
        if id == PERIODIC {
            self.raise(C_PF);
        } else {
            let alarm = self.regs.alarm_matches(self.now());
            self.raise(C_UF | if alarm { C_AF } else { 0 });
        }
        self.schedule();
    }

    fn reset(&mut self, kind: ResetKind) {
        if kind == ResetKind::PowerOn {
            self.power_on();
        } else {
            // The battery keeps time and memory; RESET# clears the enables.
            self.regs.cmos[REG_B] &= !(B_PIE | B_AIE | B_UIE);
            self.regs.cmos[REG_C] = 0;
            self.regs.index = 0;
        }
        self.settle();
        self.schedule();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        self.regs.cmos.resize(256, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    /// Thursday, 31 December 2009, 23:59:58.
    const START: i64 = 1_262_303_998;

    fn rig() -> Bench {
        let bench = Bench::new();
        bench.part(|slot| Mc146818::create(slot, START, vec![(0x10, 0x40), (0x0e, 7)]));
        bench
    }

    fn get(b: &mut Bench, index: u8) -> u8 {
        b.outb(0x70, index);
        b.inb(0x71)
    }

    fn put(b: &mut Bench, index: u8, value: u8) {
        b.outb(0x70, index);
        b.outb(0x71, value);
    }

    fn time(b: &mut Bench) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|n| get(b, n))
    }

    #[test]
    fn the_year_turns_with_all_its_registers() {
        let mut b = rig();
        assert_eq!(time(&mut b), [0x20, 0x09, 0x12, 0x31, 5, 0x23, 0x59, 0x58]);
        b.advance(2 * NS);
        assert_eq!(time(&mut b), [0x20, 0x10, 0x01, 0x01, 6, 0, 0, 0]);
    }

    #[test]
    fn dates_and_day_numbers_agree_over_four_centuries() {
        for d in -200_000..100_000 {
            let (y, m, dom) = date(d);
            assert_eq!(days(y, m, dom), d);
        }
        assert_eq!(date(11_016), (2000, 2, 29));
    }

    #[test]
    fn twelve_hours_and_binary_show_the_same_time() {
        let mut b = rig();
        put(&mut b, 0x0b, 0);
        assert_eq!(get(&mut b, 4), 0x91);
        put(&mut b, 0x0b, 4);
        assert_eq!(get(&mut b, 4), 0x80 | 11);
        b.advance(2 * NS);
        assert_eq!(get(&mut b, 4), 12);
    }

    #[test]
    fn a_time_that_is_set_runs_on_from_there() {
        let mut b = rig();
        put(&mut b, 0x0b, 0x82);
        for (n, v) in [(0x32, 0x19), (9, 0x99), (8, 2), (7, 0x28), (4, 0x12), (2, 0x34), (0, 0x56)] {
            put(&mut b, n, v);
        }
        b.advance(10 * NS);
        assert_eq!(get(&mut b, 0), 0x56, "SET stops the clock");
        put(&mut b, 0x0b, 0x02);
        b.advance(NS / 2 - 1);
        assert_eq!(get(&mut b, 0), 0x56);
        b.advance(1);
        assert_eq!(time(&mut b), [0x19, 0x99, 2, 0x28, 1, 0x12, 0x34, 0x57]);
    }

    #[test]
    fn periodic_interrupts_come_at_their_rate_and_stop_while_c_is_not_read() {
        let mut b = rig();
        put(&mut b, 0x0a, 0x26);
        put(&mut b, 0x0b, 0x42);
        let mut ticks = 0;
        for _ in 0..100_000 {
            b.advance(10_000);
            if b.irq(8) {
                ticks += 1;
                assert_eq!(get(&mut b, 0x0c) & 0xc0, 0xc0);
                assert!(!b.irq(8));
            }
        }
        assert_eq!(ticks, 1024);
        b.edges(8);
        b.advance(NS);
        assert_eq!(b.edges(8), 1);
    }

    #[test]
    fn the_fastest_rate_does_not_drift_in_ten_minutes() {
        let mut b = rig();
        put(&mut b, 0x0a, 0x23);
        put(&mut b, 0x0b, 0x42);
        let start = b.machine.clock().now();
        let mut ticks = 0;
        while b.machine.clock().now() < start + 600 * NS {
            let next = b.machine.timers.next().min(start + 600 * NS);
            b.advance(next - b.machine.clock().now());
            if b.irq(8) {
                ticks += 1;
                get(&mut b, 0x0c);
            }
        }
        assert_eq!(ticks, 600 * 8192);
    }

    #[test]
    fn ticks_that_come_too_late_are_one_and_the_next_is_in_phase() {
        let mut b = rig();
        put(&mut b, 0x0a, 0x26);
        put(&mut b, 0x0b, 0x42);
        let start = b.machine.clock().now();
        b.machine.clock().set(start + NS / 2 + 1000);
        b.machine.timers.run_due();
        assert_eq!(b.edges(8), 1);
        get(&mut b, 0x0c);
        b.advance(NS / 1024 - 1001);
        assert_eq!(b.edges(8), 0);
        b.advance(2);
        assert_eq!(b.edges(8), 1);
    }

    #[test]
    fn a_poller_sees_each_tick_once() {
        let mut b = rig();
        put(&mut b, 0x0a, 0x23);
        let mut ticks = 0;
        for _ in 0..100_000 {
            b.advance(10_000);
            ticks += u32::from(get(&mut b, 0x0c) & 0x40 != 0);
        }
        assert_eq!(ticks, 8192);
    }

    #[test]
    fn the_alarm_rings_at_its_time_and_dont_care_every_second() {
        let mut b = rig();
        for (n, v) in [(5, 0x00), (3, 0x00), (1, 0x05), (0x0b, 0x22)] {
            put(&mut b, n, v);
        }
        b.advance(6 * NS);
        assert!(!b.irq(8));
        b.advance(NS);
        assert!(b.irq(8));
        assert_eq!(get(&mut b, 0x0c) & 0xa0, 0xa0);
        put(&mut b, 5, 0xff);
        put(&mut b, 3, 0xff);
        put(&mut b, 1, 0xff);
        b.advance(NS);
        assert!(b.irq(8));
    }

    #[test]
    fn uip_is_set_just_before_the_update_only() {
        let mut b = rig();
        assert_eq!(get(&mut b, 0x0a), 0x26);
        b.advance(NS - 100_000);
        assert_eq!(get(&mut b, 0x0a), 0xa6);
        b.advance(100_000);
        assert_eq!(get(&mut b, 0x0a), 0x26);
    }

    #[test]
    fn a_poller_sees_the_update_flag_without_enabling_it() {
        let mut b = rig();
        get(&mut b, 0x0c);
        assert_eq!(get(&mut b, 0x0c) & 0x10, 0);
        b.advance(NS);
        assert_eq!(get(&mut b, 0x0c) & 0x90, 0x10);
        assert_eq!(get(&mut b, 0x0c) & 0x10, 0);
        assert_eq!(get(&mut b, 0), 0x59);
    }

    #[test]
    fn cmos_survives_a_reset_but_not_power() {
        let mut b = rig();
        let cells = b.machine.parts();
        put(&mut b, 0x40, 0x99);
        put(&mut b, 0x0b, 0x72);
        cells[0].reset(ResetKind::System);
        assert_eq!((get(&mut b, 0x40), get(&mut b, 0x0b)), (0x99, 0x02));
        cells[0].reset(ResetKind::PowerOn);
        assert_eq!((get(&mut b, 0x40), get(&mut b, 0x0e)), (0, 7));
    }
}
