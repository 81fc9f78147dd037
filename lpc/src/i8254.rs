//! Intel 8254 programmable interval timer with the PC's port 61.
//!
//! Datasheet: Intel 8254 (231164). Counter 0 drives IRQ 0, counter 1 is the old refresh timer whose output shows in
//! port 61 bit 4, counter 2's gate is port 61 bit 0 and its output port 61 bit 5 and, through bit 1, the speaker. All
//! six modes, BCD, latches, read-back. A counter's value is computed from the machine's clock when it is read; only
//! counter 0 needs a timer. Counts load at once instead of with the next clock pulse; the difference is below a
//! microsecond.
//!
//! A tick that the host serves late keeps its phase: the next edge is counted from where this one should have been.
//! Ticks that it missed altogether are caught up, at most one in each sixteenth of a period, and so are those that
//! would have met the one before still waiting in the interrupt chip, where the two would be one: the host may have let
//! somebody else run than the processor. Kernels before tickless ones keep time by counting ticks. More than a second's
//! worth is dropped. By the instruction clock the host is never late; what the guest itself is late for is lost then,
//! as on the chip. FreeBSD latches counter 0 for DELAY and wants it monotone; OpenBSD calibrates the local APIC against
//! it.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, ResetKind, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};

/// Counts a second: 14.31818 MHz / 12.
const HZ: u64 = 1_193_182;

/// Counts between ticks that are caught up, at least: 50 us.
const CLOSEST: u64 = 60;
/// Ticks that are caught up in a period, at most.
const HASTE: u64 = 16;

const NS: u64 = 1_000_000_000;

/// Counts that have passed after `ns` nanoseconds.
fn to_counts(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / u128::from(NS)) as u64
}

/// The first nanosecond at which `counts` have passed.
fn to_ns(counts: u64) -> u64 {
    (u128::from(counts) * u128::from(NS)).div_ceil(u128::from(HZ)) as u64
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    #[default]
    Low,
    High,
    Both,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// The count as loaded, 1 to 65536; 0 before the first load ("null count").
    count: u32,
    /// The low byte of a two-byte count whose high byte has not come.
    half: Option<u8>,
    /// Reads: the high byte comes next.
    high_next: bool,
    latch: Option<u16>,
    status: Option<u8>,
    gate: bool,
    /// When the present counting started, in counts since power-on.
    started: u64,
    /// Counts that had passed when the gate stopped the counter.
    stopped: Option<u64>,
    /// One-shot modes 1 and 5: the gate has triggered.
    triggered: bool,
}

impl Counter {
    /// Counts since the present counting started.
    fn gone(&self, now: u64) -> u64 {
        self.stopped.unwrap_or_else(|| now.saturating_sub(self.started))
    }

    fn output(&self, now: u64) -> bool {
        let (gone, n) = (self.gone(now), u64::from(self.count));
        if n == 0 {
            return self.mode != 0;
        }
        match self.mode {
            0 => gone >= n,
            1 => !self.triggered || gone >= n,
            2 => self.stopped.is_some() || gone % n != n - 1,
            3 => self.stopped.is_some() || gone % n < n.div_ceil(2),
            _ => gone != n,
        }
    }

    fn value(&self, now: u64) -> u16 {
        let (gone, n) = (self.gone(now), u64::from(self.count));
        if n == 0 {
            return 0;
        }
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => n - gone % n,
            // Counts down by two, twice a period.
            3 => {
                let half = n.div_ceil(2);
                let at = gone % n;
                let in_half = if at < half { at } else { at - half };
                (n & !1) - 2 * in_half
            }
            _ => (n + wrap - gone % wrap) % wrap,
        } % wrap;
        if self.bcd { to_bcd(value) } else { value as u16 }
    }

    fn load(&mut self, value: u16, now: u64) {
        let n = if self.bcd { from_bcd(value) } else { u32::from(value) };
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let first = self.count == 0;
        let new = if n == 0 { wrap } else { n };
        match self.mode {
            // A running period ends before a new count is used; the phase of a restarted one begins now.
            2 | 3 if !first && self.stopped.is_none() && self.count == new => {}
            1 | 5 => {}
            _ => {
                self.started = now;
                if self.stopped.is_some() {
                    self.stopped = Some(0);
                }
            }
        }
        self.count = new;
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match self.mode {
            0 | 4 => {
                if gate {
                    self.started = now - self.stopped.take().unwrap_or(0);
                } else {
                    self.stopped = Some(now.saturating_sub(self.started));
                }
            }
            2 | 3 => {
                if gate {
                    self.started = now;
                    self.stopped = None;
                } else {
                    self.stopped = Some(0);
                }
            }
            _ if gate => {
                self.triggered = true;
                self.started = now;
                self.stopped = None;
            }
            _ => {}
        }
    }

    fn program(&mut self, control: u8, now: u64) {
        let (gate, mode) = (self.gate, control >> 1 & 7);
        let access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = if mode > 5 { mode - 4 } else { mode };
        *self = Counter { mode, bcd: control & 1 != 0, access, gate, started: now, ..Counter::default() };
        if !gate && matches!(mode, 0 | 2 | 3 | 4) {
            self.stopped = Some(0);
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            let null = u8::from(self.count == 0 || self.half.is_some());
            let out = u8::from(self.output(now));
            self.status = Some(out << 7 | null << 6 | access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latch.unwrap_or_else(|| self.value(now));
        match self.access {
            Access::Low => {
                self.latch = None;
                value as u8
            }
            Access::High => {
                self.latch = None;
                (value >> 8) as u8
            }
            Access::Both if self.high_next => {
                self.high_next = false;
                self.latch = None;
                (value >> 8) as u8
            }
            Access::Both => {
                self.high_next = true;
                value as u8
            }
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match self.access {
            Access::Low => self.load(u16::from(value), now),
            Access::High => self.load(u16::from(value) << 8, now),
            Access::Both => match self.half.take() {
                None => {
                    self.half = Some(value);
                    // Mode 0 stops at the first byte.
                    if self.mode == 0 {
                        self.count = 0;
                    }
                }
                Some(low) => self.load(u16::from_le_bytes([low, value]), now),
            },
        }
    }

    /// The count at which the output next rises, after `now`.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let n = u64::from(self.count);
        if n == 0 || self.stopped.is_some() {
            return None;
        }
        match self.mode {
            0 | 1 => (now < self.started + n).then(|| self.started + n),
            2 | 3 => Some(self.started + (now.saturating_sub(self.started) / n + 1) * n),
            _ => (now < self.started + n + 1).then(|| self.started + n + 1),
        }
    }
}

/// The periodic modes.
impl Counter {
    /// Whole periods since the present counting started.
    fn periods(&self, now: u64) -> u64 {
        if matches!(self.mode, 2 | 3) && self.count > 0 { self.gone(now) / u64::from(self.count) } else { 0 }
    }

    /// Whole periods that `ticks` has not counted.
    fn owes(&self, ticks: u64, now: u64) -> bool {
        self.periods(now) > ticks
    }

    /// The next count at which another part of a period, of `parts`, has passed.
    fn next_part(&self, parts: u64, now: u64) -> Option<u64> {
        let n = u64::from(self.count);
        let part = (n / parts).max(CLOSEST);
        let at = self.gone(now) % n;
        Some(now - at + (at / part + 1) * part)
    }

    /// What counting goes by.
    fn course(&self) -> (u8, u32, u64, bool) {
        (self.mode, self.count, self.started, self.stopped.is_some())
    }
}

fn to_bcd(v: u64) -> u16 {
    (v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12) as u16
}

fn from_bcd(v: u16) -> u32 {
    (0..4).rev().fold(0, |sum, k| sum * 10 + u32::from(v >> (4 * k) & 15).min(9))
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Regs {
    counters: [Counter; 3],
    /// Port 61 bits 0 to 3.
    port61: u8,
    /// Edges on IRQ 0 since counter 0 started to count periods.
    #[serde(default)]
    ticks: u64,
}

impl Regs {
    fn power_on() -> Regs {
        let mut r = Regs::default();
        // The gates of counters 0 and 1 are tied high; a BIOS leaves the tick at 18.2 Hz and refresh at 15 us.
        for (n, (mode, count)) in [(3, 0x1_0000), (2, 18)].into_iter().enumerate() {
            r.counters[n] = Counter { mode, count, access: Access::Both, gate: true, ..Counter::default() };
        }
        r.counters[2].access = Access::Both;
        r
    }
}

/// The timer.
pub struct I8254 {
    regs: Regs,
    irq0: Arc<IrqLine>,
    tick: Arc<Timer>,
    /// Guest time passes by the host's clock.
    hosted: bool,
}

impl I8254 {
    /// Puts it at 40 to 43 and 61.
    pub fn create(slot: &mut Slot) -> Box<dyn Device> {
        slot.ports(0, 0x40, 4, Widths::BYTE);
        slot.ports(1, 0x61, 1, Widths::BYTE);
        let irq0 = slot.isa_irq(0);
        let hosted = !slot.machine().clock().by_instructions();
        Box::new(I8254 { regs: Regs::power_on(), irq0, tick: slot.timer(0), hosted })
    }

    fn now(&self) -> u64 {
        to_counts(self.tick.now())
    }

    /// Whether a tick waits in the interrupt chip that the guest could have taken by now, had the host let it.
    fn waits(&self) -> bool {
        let periodic = matches!(self.regs.counters[0].mode, 2 | 3);
        self.hosted && periodic && self.irq0.level() && self.irq0.pending()
    }

    /// Drives IRQ 0, with an edge if it is one that is `due`, and sets the timer for what comes next. The wire stays up
    /// while a tick waits, which an 8259 forgets when the wire falls.
    fn drive(&mut self, out: bool, due: bool, now: u64) {
        let held = self.waits();
        if !held {
            if due {
                self.irq0.set(false);
            }
            self.regs.ticks += u64::from(out && !self.irq0.level());
            self.irq0.set(out);
        }
        let c = &self.regs.counters[0];
        let next = match (c.mode, c.output(now)) {
            // Square wave and strobes also have to fall, for the edge to come again.
            (3, true) if c.count > 0 && c.stopped.is_none() => {
                let n = u64::from(c.count);
                Some(now - c.gone(now) % n + n.div_ceil(2))
            }
            (2 | 4 | 5, true) => {
                c.next_rise(now).map(|rise| rise - 1).map(|fall| if fall > now { fall } else { now + 1 })
            }
            _ => c.next_rise(now),
        };
        let second = HZ / u64::from(c.count.max(1));
        self.regs.ticks = self.regs.ticks.max(c.periods(now).saturating_sub(second));
        let next = if c.owes(self.regs.ticks, now) {
            // One that waits does so until the host lets the processor run, which may be long.
            next.min(c.next_part(if held { 4 } else { HASTE }, now))
        } else {
            next
        };
        self.tick.set(next.map_or(u64::MAX, to_ns));
    }

    /// Brings IRQ 0 and its timer in agreement with counter 0.
    fn update(&mut self, now: u64) {
        self.drive(self.regs.counters[0].output(now), false, now);
    }
}

impl Device for I8254 {
    fn read(&mut self, region: u32, offset: u64, _width: u8) -> u64 {
        let now = self.now();
        if region == 1 {
            let out2 = self.regs.counters[2].output(now);
            // The refresh output toggles with each pulse of counter 1.
            let n1 = u64::from(self.regs.counters[1].count.max(1));
            let refresh = now / n1 & 1;
            return u64::from(self.regs.port61 & 0x0f) | refresh << 4 | u64::from(out2) << 5;
        }
        match offset {
            0..=2 => u64::from(self.regs.counters[offset as usize].read(now)),
            _ => 0xff,
        }
    }

    fn write(&mut self, region: u32, offset: u64, _width: u8, value: u64) {
        let now = self.now();
        let value = value as u8;
        if region == 1 {
            self.regs.port61 = value & 0x0f;
            self.regs.counters[2].set_gate(value & 1 != 0, now);
            return;
        }
        let course = self.regs.counters[0].course();
        match offset {
            0..=2 => self.regs.counters[offset as usize].write(value, now),
            _ if value >> 6 == 3 => {
                for n in 0..3 {
                    if value >> (n + 1) & 1 == 0 {
                        continue;
                    }
                    let c = &mut self.regs.counters[n];
                    if value & 0x20 == 0 && c.latch.is_none() {
                        c.latch = Some(c.value(now));
                    }
                    if value & 0x10 == 0 {
                        c.latch_status(now);
                    }
                }
            }
            _ => {
                let c = &mut self.regs.counters[(value >> 6) as usize];
                if value & 0x30 != 0 {
                    c.program(value, now);
                } else if c.latch.is_none() {
                    c.latch = Some(c.value(now));
                }
            }
        }
        if offset == 0 || offset == 3 {
            self.update(now);
            // Nothing is owed of what the guest has ended.
            if self.regs.counters[0].course() != course {
                self.regs.ticks = self.regs.counters[0].periods(now);
                self.update(now);
            }
        }
    }

    fn event(&mut self, event: Event) {
        if let Event::Timer(_) = event {
            let now = self.now();
            let c = &self.regs.counters[0];
            // The low half of a square wave is as good as the high one for a tick that is owed; a rate generator's low
            // count is too near to the next tick.
            let out = c.output(now) || c.mode == 3 && c.owes(self.regs.ticks, now);
            // A tick that comes late, perhaps a whole low phase late, is still an edge. (Linux without an APIC sleeps
            // on mode 4, whose low phase is one count.)
            self.drive(out, out, now);
        }
    }

    fn reset(&mut self, _: ResetKind) {
        let now = self.now();
        self.regs = Regs::power_on();
        self.regs.counters[..2].iter_mut().for_each(|c| c.started = now);
        self.update(now);
        self.regs.ticks = 0;
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    fn rig() -> Bench {
        let bench = Bench::new();
        let cell = bench.part(I8254::create);
        cell.with(|d| d.reset(ResetKind::PowerOn));
        bench
    }

    fn load(bench: &mut Bench, control: u8, count: u16) {
        bench.outb(0x43, control);
        let port = 0x40 + u16::from(control >> 6);
        bench.outb(port, count as u8);
        bench.outb(port, (count >> 8) as u8);
    }

    fn count(bench: &mut Bench, n: u8) -> u16 {
        bench.outb(0x43, n << 6);
        let port = 0x40 + u16::from(n);
        u16::from_le_bytes([bench.inb(port), bench.inb(port)])
    }

    #[test]
    fn rate_generator_interrupts_once_a_period() {
        for control in [0x34, 0x36] {
            let mut bench = rig();
            load(&mut bench, control, 1193);
            bench.edges(0);
            bench.advance(to_ns(1193 * 100) + 10);
            assert_eq!(bench.edges(0), 100, "control {control:02x}");
        }
    }

    #[test]
    fn a_thousand_hertz_for_ten_minutes_does_not_drift() {
        let mut bench = rig();
        load(&mut bench, 0x34, 1193);
        bench.edges(0);
        bench.advance(600 * NS);
        assert_eq!(bench.edges(0) as u64, to_counts(600 * NS) / 1193);
    }

    #[test]
    fn ticks_that_the_host_missed_are_caught_up_one_by_one_in_phase() {
        for control in [0x34, 0x36] {
            let mut bench = rig();
            load(&mut bench, control, 10_000);
            bench.edges(0);
            bench.machine.clock().set(to_ns(35_000));
            bench.machine.timers.run_due();
            let mut ticks = bench.edges(0);
            assert_eq!(ticks, 1, "the chip cannot hold more than one");
            let mut edges = Vec::new();
            for at in (35_500..70_500).step_by(500) {
                bench.advance(to_ns(at) + 10 - bench.machine.clock().now());
                let n = bench.edges(0);
                assert!(n <= 1, "the 8259 would see one edge of two");
                edges.extend((n > 0).then_some(at));
                ticks += n;
            }
            assert_eq!(edges, [36_000, 36_500, 40_000, 50_000, 60_000, 70_000], "{control:02x}");
            assert_eq!(ticks, 7, "{control:02x}");
        }
    }

    #[test]
    fn no_more_than_a_second_is_caught_up_and_nothing_across_a_new_count() {
        let mut bench = rig();
        load(&mut bench, 0x34, 1193);
        bench.edges(0);
        bench.machine.clock().set(600 * NS);
        bench.machine.timers.run_due();
        bench.advance(10 * NS);
        let ticks = bench.edges(0) as u64;
        assert!((11_000..=11_010).contains(&ticks), "{ticks}");
        bench.machine.clock().set(620 * NS);
        load(&mut bench, 0x34, 11_932);
        bench.edges(0);
        bench.advance(NS);
        assert_eq!(bench.edges(0), 99);
    }

    #[test]
    fn a_look_at_the_counter_does_not_cost_a_tick() {
        let mut bench = rig();
        load(&mut bench, 0x34, 10_000);
        bench.edges(0);
        // The guest is faster than the thread that serves the timers.
        for at in [10_500, 20_500] {
            bench.machine.clock().set(to_ns(at));
            bench.outb(0x43, 0);
            bench.inb(0x40);
            bench.inb(0x40);
        }
        bench.advance(to_ns(100_000) + 10 - bench.machine.clock().now());
        assert_eq!(bench.edges(0), 10);
    }

    #[test]
    fn a_strobe_that_is_served_late_is_still_an_edge_and_comes_once() {
        let mut bench = rig();
        load(&mut bench, 0x38, 5000);
        bench.edges(0);
        bench.machine.clock().set(to_ns(5100));
        bench.machine.timers.run_due();
        assert_eq!(bench.edges(0), 1);
        bench.advance(NS);
        assert_eq!(bench.edges(0), 0);
    }

    #[test]
    fn terminal_count_raises_once_and_stays() {
        let mut bench = rig();
        load(&mut bench, 0x30, 5000);
        assert!(!bench.irq(0));
        bench.edges(0);
        bench.advance(to_ns(4999));
        assert!(!bench.irq(0));
        bench.advance(to_ns(2));
        assert!(bench.irq(0));
        bench.advance(NS);
        assert!(bench.irq(0));
        assert_eq!(bench.edges(0), 1);
    }

    #[test]
    fn a_latched_count_stands_still_until_both_bytes_are_read() {
        let mut bench = rig();
        load(&mut bench, 0x34, 60_000);
        bench.advance(to_ns(1000));
        bench.outb(0x43, 0x00);
        bench.advance(to_ns(500));
        assert_eq!(u16::from_le_bytes([bench.inb(0x40), bench.inb(0x40)]), 59_000);
        let now = count(&mut bench, 0);
        assert!((58_498..=58_500).contains(&now), "{now}");
    }

    #[test]
    fn the_square_wave_counts_by_two_and_never_shows_more_than_its_count() {
        let mut bench = rig();
        load(&mut bench, 0x36, 1001);
        for _ in 0..3000 {
            bench.advance(900);
            let v = count(&mut bench, 0);
            assert!(v <= 1001 && v.is_multiple_of(2), "{v}");
        }
    }

    #[test]
    fn counter_2_waits_for_its_gate_and_shows_its_output_in_port_61() {
        let mut bench = rig();
        bench.outb(0x61, 0);
        load(&mut bench, 0xb0, 1000);
        bench.advance(to_ns(5000));
        assert_eq!(bench.inb(0x61) & 0x21, 0);
        bench.outb(0x61, 1);
        bench.advance(to_ns(999));
        assert_eq!(bench.inb(0x61) & 0x20, 0);
        bench.advance(to_ns(2));
        assert_eq!(bench.inb(0x61) & 0x21, 0x21);
    }

    #[test]
    fn read_back_gives_status_before_count() {
        let mut bench = rig();
        bench.outb(0x43, 0x34);
        bench.outb(0x43, 0xe2);
        assert_eq!(bench.inb(0x40) & 0x7f, 0x74, "null count before the load");
        load(&mut bench, 0x34, 2000);
        bench.outb(0x43, 0xc2);
        assert_eq!(bench.inb(0x40), 0xb4);
        assert_eq!(u16::from_le_bytes([bench.inb(0x40), bench.inb(0x40)]), 2000);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut bench = rig();
        load(&mut bench, 0x35, 0x1000);
        bench.advance(to_ns(1));
        assert_eq!(count(&mut bench, 0), 0x0999);
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let mut bench = rig();
        let first = bench.inb(0x61) & 0x10;
        bench.advance(to_ns(18) + 1);
        assert_ne!(bench.inb(0x61) & 0x10, first);
    }
}
