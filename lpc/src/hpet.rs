//! High precision event timers (HPET) as integrated in ICH and later chipsets.
//!
//! Specification: IA-PC HPET 1.0a (Intel, October 2004). A 64-bit main counter at 10 MHz and three comparators, each
//! of 32 or 64 bits, one-shot or periodic, edge or level triggered. The counter is computed from the machine's clock,
//! of which a tick is a whole number of nanoseconds: it cannot drift. Comparators are settled whenever somebody looks
//! and by one timer for the earliest match, which only runs while a comparator can interrupt or set its status bit. A
//! match that is noticed late keeps its phase; matches that have passed together are one interrupt. Not offered: FSB
//! delivery.
//!
//! Under legacy replacement comparators 0 and 1 take ISA interrupts 0 and 8 over from the 8254 and the MC146818. The
//! [`LegacyRoute`] in front of those two wires does it, and neither of the replaced chips knows. An edge is held high
//! until just before the next one, since an 8259 forgets a request whose wire falls before the acknowledge.
//!
//! Linux ticks on comparator 0 under legacy replacement until it trusts the local APIC timer; FreeBSD reads the low
//! half as a timecounter (7 and later) and uses comparators through I/O APIC pins (9 and later), both in 32-bit mode.

use std::sync::{Arc, Mutex};

use emu::{Device, DeviceState, Event, IrqLine, IrqSink, Machine, ResetKind, Saved, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};

/// Nanoseconds of a main counter tick, the most that the specification allows: Linux gives an event up as missed when
/// fewer than 128 ticks are left after it has been programmed, and an access costs some of them.
const TICK: u64 = 100;
/// Comparators.
const COUNT: usize = 3;
/// Bytes of the register block.
const LEN: u64 = 0x400;
/// Periodic matches closer together than this many ticks count as one: no guest tells them apart, and none may keep the
/// host busy with them.
const CLOSEST: u64 = 10;

const CAPABILITIES: u64 = 0x00;
const CONFIG: u64 = 0x10;
const STATUS: u64 = 0x20;
const MAIN_COUNTER: u64 = 0xf0;
const TIMER0: u64 = 0x100;

const CFG_ENABLE: u64 = 1;
const CFG_LEGACY: u64 = 2;

const TN_LEVEL: u64 = 1 << 1;
const TN_INT_ENABLE: u64 = 1 << 2;
const TN_PERIODIC: u64 = 1 << 3;
const TN_PERIODIC_CAP: u64 = 1 << 4;
const TN_SIZE_CAP: u64 = 1 << 5;
const TN_VAL_SET: u64 = 1 << 6;
const TN_32MODE: u64 = 1 << 8;
const TN_ROUTE: u64 = 0x1f << 9;
const TN_WRITABLE: u64 = TN_LEVEL | TN_INT_ENABLE | TN_PERIODIC | TN_VAL_SET | TN_32MODE | TN_ROUTE;

/// Inputs of the legacy route.
const PIT: usize = 0;
const RTC: usize = 1;
const COMPARATOR0: usize = 2;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Switch {
    replaced: bool,
    /// Levels of 8254, MC146818, comparators 0 and 1.
    levels: [bool; 4],
}

/// Who drives ISA interrupts 0 and 8: the 8254 and the MC146818, or the HPET's comparators 0 and 1.
///
/// A leaf chip between these chips and the board's wires. It is made before them, so that a restored machine knows
/// whom it listens to before their levels come back.
pub struct LegacyRoute {
    switch: Mutex<Switch>,
    out: [IrqLine; 2],
}

impl LegacyRoute {
    /// Puts the switch in front of wires 0 and 8 of the board's ISA interrupts, before [`Machine::set_isa_irqs`] is
    /// given them.
    ///
    /// # Panics
    /// When there are less than nine wires.
    pub fn new(machine: &Machine, isa: &mut [IrqLine]) -> Arc<LegacyRoute> {
        let route = Arc::new(LegacyRoute { switch: Mutex::default(), out: [isa[0].clone(), isa[8].clone()] });
        isa[0] = IrqLine::new(route.clone(), PIT as u32);
        isa[8] = IrqLine::new(route.clone(), RTC as u32);
        machine.add_part(route.clone());
        route
    }

    fn replace(&self, replaced: bool) {
        let mut s = self.switch.lock().unwrap();
        s.replaced = replaced;
        self.drive(&s);
    }

    fn drive(&self, s: &Switch) {
        let from = if s.replaced { COMPARATOR0 } else { PIT };
        for (n, out) in self.out.iter().enumerate() {
            out.set(s.levels[from + n]);
        }
    }
}

impl IrqSink for LegacyRoute {
    fn set_irq(&self, line: u32, level: bool) {
        let mut s = self.switch.lock().unwrap();
        s.levels[line as usize & 3] = level;
        self.drive(&s);
    }

    fn pending(&self, line: u32) -> bool {
        let s = self.switch.lock().unwrap();
        let from = if s.replaced { COMPARATOR0 } else { PIT };
        (line as usize).checked_sub(from).and_then(|n| self.out.get(n)).is_some_and(IrqLine::pending)
    }
}

impl DeviceState for LegacyRoute {
    fn name(&self) -> &str {
        "hpet-route"
    }

    fn reset(&self, _: ResetKind) {
        self.replace(false);
    }

    fn save(&self) -> Saved {
        Saved { version: 1, state: self.switch.lock().unwrap().save(), ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let mut s = self.switch.lock().unwrap();
        s.load(saved.state)?;
        self.drive(&s);
        Ok(())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Comparator {
    /// The writable bits of the configuration register.
    config: u64,
    /// The count at which it matches next.
    value: u64,
    /// What periodic mode adds after a match.
    period: u64,
}

impl Default for Comparator {
    fn default() -> Comparator {
        Comparator { config: 0, value: u64::MAX, period: 0 }
    }
}

impl Comparator {
    fn has(&self, bits: u64) -> bool {
        self.config & bits != 0
    }

    fn mask(&self) -> u64 {
        if self.has(TN_32MODE) { u64::from(u32::MAX) } else { u64::MAX }
    }

    /// The I/O APIC input.
    fn route(&self) -> u64 {
        self.config >> 9 & 0x1f
    }

    /// Ticks from `counter` to the next match, at least 1: a comparator that equals the counter has matched already.
    fn ahead(&self, counter: u64) -> u64 {
        (self.value.wrapping_sub(counter).wrapping_sub(1) & self.mask()).saturating_add(1)
    }

    /// Ticks between matches in periodic mode.
    fn period(&self) -> Option<u64> {
        let period = self.period & self.mask();
        (self.has(TN_PERIODIC) && period != 0).then_some(period)
    }

    fn write_value(&mut self, value: u64, mask: u64) {
        // In 32-bit mode the upper half is not there.
        let mask = mask & self.mask();
        if mask == 0 {
            return;
        }
        // Guests either write the first match under VAL_SET and then the period (Linux, FreeBSD), or both at once.
        if !self.has(TN_PERIODIC) || self.has(TN_VAL_SET) {
            self.value = merge(self.value, value, mask);
        }
        if self.has(TN_PERIODIC) {
            self.period = merge(self.period, value, mask);
        }
        self.config &= !TN_VAL_SET;
    }
}

fn merge(old: u64, new: u64, mask: u64) -> u64 {
    old & !mask | new & mask
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Regs {
    config: u64,
    /// Status bits, which only level-triggered comparators have.
    status: u64,
    /// Edge-triggered comparators whose output is still high.
    high: u64,
    /// The main counter while it is halted; while it runs, how far it is ahead of the clock's ticks.
    counter: u64,
    /// The main counter when matches were last looked for.
    seen: u64,
    comparators: [Comparator; COUNT],
}

impl Regs {
    fn enabled(&self) -> bool {
        self.config & CFG_ENABLE != 0
    }

    fn legacy(&self) -> bool {
        self.config & CFG_LEGACY != 0
    }

    /// The main counter at `ticks` of the clock.
    fn main(&self, ticks: u64) -> u64 {
        self.counter.wrapping_add(if self.enabled() { ticks } else { 0 })
    }

    /// The comparators (as bits) that have matched since the last call; periodic ones are moved on past the present.
    fn matches(&mut self, ticks: u64) -> u64 {
        let counter = self.main(ticks);
        let gone = counter.wrapping_sub(self.seen);
        let mut matched = 0;
        for (n, c) in self.comparators.iter_mut().enumerate() {
            let ahead = c.ahead(self.seen);
            if gone < ahead {
                continue;
            }
            matched |= 1 << n;
            if let Some(period) = c.period() {
                let steps = (gone - ahead) / period + 1;
                c.value = c.value.wrapping_add(period.wrapping_mul(steps)) & c.mask();
            }
        }
        self.seen = counter;
        matched
    }

    /// Whether any comparator asks for its interrupt.
    fn any_output(&self) -> bool {
        self.enabled() && (0..COUNT).any(|n| self.output(n))
    }

    /// Whether comparator `n` asks for its interrupt.
    fn output(&self, n: usize) -> bool {
        let c = &self.comparators[n];
        let asks = if c.has(TN_LEVEL) { self.status } else { self.high };
        self.enabled() && c.has(TN_INT_ENABLE) && asks >> n & 1 != 0
    }

    /// Ticks until something has to be done, if anybody waits for it.
    fn next(&self) -> Option<u64> {
        if !self.enabled() {
            return None;
        }
        let waits = self.comparators.iter().filter(|c| c.has(TN_INT_ENABLE | TN_LEVEL));
        waits
            .map(|c| {
                let ahead = c.ahead(self.seen);
                match c.period() {
                    Some(p) if p < CLOSEST && ahead < CLOSEST => ahead + (CLOSEST - ahead).div_ceil(p) * p,
                    _ => ahead,
                }
            })
            .min()
    }

    /// The 64-bit register at `at`.
    fn read(&self, at: u64, ticks: u64, routes: u32) -> u64 {
        match at {
            CAPABILITIES => TICK * 1_000_000 << 32 | u64::from(Hpet::ID),
            CONFIG => self.config,
            STATUS => self.status,
            MAIN_COUNTER => self.main(ticks),
            _ => match self.comparators.get((at.wrapping_sub(TIMER0) / 0x20) as usize) {
                Some(c) if at & 0x18 == 0 => c.config | TN_PERIODIC_CAP | TN_SIZE_CAP | u64::from(routes) << 32,
                Some(c) if at & 0x18 == 8 => c.value & c.mask(),
                _ => 0,
            },
        }
    }

    /// Writes the bytes of `mask`. Matches have been looked for just before, at `ticks` if the main counter runs.
    fn write(&mut self, at: u64, value: u64, mask: u64, ticks: impl Fn() -> u64, routes: u32) {
        match at {
            CONFIG => {
                let ran = self.enabled();
                self.config = merge(self.config, value, mask) & (CFG_ENABLE | CFG_LEGACY);
                match (ran, self.enabled()) {
                    (false, true) => self.counter = self.counter.wrapping_sub(ticks()),
                    (true, false) => (self.counter, self.high) = (self.counter.wrapping_add(ticks()), 0),
                    _ => {}
                }
            }
            STATUS => self.status &= !(value & mask),
            MAIN_COUNTER => {
                let ticks = if self.enabled() { ticks() } else { 0 };
                self.seen = merge(self.main(ticks), value, mask);
                self.counter = self.seen.wrapping_sub(ticks);
            }
            _ => {
                let n = (at.wrapping_sub(TIMER0) / 0x20) as usize;
                let Some(c) = self.comparators.get_mut(n) else { return };
                match at & 0x18 {
                    0 => {
                        c.config = merge(c.config, value, mask) & TN_WRITABLE;
                        // Software finds out by reading back which inputs there are.
                        if routes >> c.route() & 1 == 0 {
                            c.config &= !TN_ROUTE;
                        }
                        if c.has(TN_LEVEL) || !c.has(TN_INT_ENABLE) {
                            self.high &= !(1 << n);
                        }
                        if !c.has(TN_LEVEL) {
                            self.status &= !(1 << n);
                        }
                    }
                    8 => c.write_value(value, mask),
                    _ => {}
                }
            }
        }
    }
}

/// The event timer block.
pub struct Hpet {
    regs: Regs,
    route: Arc<LegacyRoute>,
    /// Comparators 0 and 1 into the legacy route.
    legacy: [Arc<IrqLine>; 2],
    /// I/O APIC inputs that comparators can be routed to.
    pins: Vec<(u8, Arc<IrqLine>)>,
    /// Their numbers as bits.
    routes: u32,
    next: Arc<Timer>,
}

impl Hpet {
    /// Where every PC has it.
    pub const BASE: u64 = 0xfed0_0000;
    /// The low half of the capability register: revision 1, three comparators, 64 bits, legacy replacement, Intel. The
    /// ACPI table repeats it.
    pub const ID: u32 = 0x8086_a201;

    /// Puts the block at `base`. `route` is the switch before ISA interrupts 0 and 8, `pins` are I/O APIC inputs
    /// (number below 32, output) that the comparators may use.
    pub fn create(slot: &mut Slot, base: u64, route: Arc<LegacyRoute>, pins: Vec<(u8, IrqLine)>) -> Box<dyn Device> {
        slot.memory(0, base, LEN, 2, Widths::QWORD);
        let legacy = [0, 1].map(|n| slot.keep(IrqLine::new(route.clone(), COMPARATOR0 as u32 + n)));
        let pins: Vec<_> = pins.into_iter().map(|(n, line)| (n & 31, slot.keep(line))).collect();
        let routes = pins.iter().fold(0, |bits, (n, _)| bits | 1 << n);
        Box::new(Hpet { regs: Regs::default(), route, legacy, pins, routes, next: slot.timer(0) })
    }

    /// Lets everything happen that has happened by now, in ticks of the clock. Nothing happens while the main counter is
    /// halted, and then nobody looks at the clock.
    fn catch_up(&mut self) -> Option<u64> {
        if !self.regs.enabled() {
            return None;
        }
        let ticks = self.next.now() / TICK;
        let matched = self.regs.matches(ticks);
        if matched != 0 {
            let waiting = (0..COUNT).filter(|n| matched >> n & 1 != 0 && self.waits(*n)).map(|n| 1 << n).sum::<u64>();
            let r = &mut self.regs;
            let level = (0..COUNT).filter(|&n| r.comparators[n].has(TN_LEVEL)).map(|n| 1 << n).sum::<u64>();
            r.status |= matched & level;
            let edges = matched & !level;
            // An output that is still up has to fall to rise again, but not while its last edge waits to be taken: the
            // two are one, and a processor that is about to take it must find it.
            r.high &= !edges | waiting;
            self.drive();
            let enabled = |n: &usize| self.regs.comparators[*n].has(TN_INT_ENABLE);
            self.regs.high |= edges & (0..COUNT).filter(enabled).map(|n| 1 << n).sum::<u64>();
            self.drive();
            self.arm();
        }
        Some(ticks)
    }

    /// Whether the last edge of comparator `n` waits in an interrupt chip.
    fn waits(&self, n: usize) -> bool {
        let r = &self.regs;
        let line = match self.legacy.get(n).filter(|_| r.legacy()) {
            Some(line) => Some(line),
            None => self.pins.iter().find(|(pin, _)| r.comparators[n].route() == u64::from(*pin)).map(|(_, line)| line),
        };
        r.output(n) && line.is_some_and(|line| line.pending())
    }

    fn drive(&self) {
        let r = &self.regs;
        for (n, line) in self.legacy.iter().enumerate() {
            line.set(r.legacy() && r.output(n));
        }
        let first = if r.legacy() { 2 } else { 0 };
        for (pin, line) in &self.pins {
            line.set((first..COUNT).any(|n| r.comparators[n].route() == u64::from(*pin) && r.output(n)));
        }
    }

    fn arm(&self) {
        let r = &self.regs;
        // While the main counter runs, the clock's ticks when it was last looked at.
        let seen = r.seen.wrapping_sub(r.counter);
        let at = |ahead: u64| seen.saturating_add(ahead).saturating_mul(TICK);
        self.next.set(r.next().map_or(u64::MAX, at));
    }
}

impl Device for Hpet {
    fn read(&mut self, _region: u32, offset: u64, _width: u8) -> u64 {
        let ticks = self.catch_up().unwrap_or_default();
        let (at, shift) = (offset & !7, 8 * (offset & 7));
        let low = self.regs.read(at, ticks, self.routes) >> shift;
        if shift == 0 { low } else { low | self.regs.read(at + 8, ticks, self.routes) << (64 - shift) }
    }

    fn write(&mut self, _region: u32, offset: u64, width: u8, value: u64) {
        let caught_up = self.catch_up();
        let now = || caught_up.unwrap_or_else(|| self.next.now() / TICK);
        let (replaced, output) = (self.regs.legacy(), self.regs.any_output());
        let (at, shift) = (offset & !7, 8 * (offset & 7));
        let mask = u64::MAX >> (64 - 8 * u32::from(width));
        self.regs.write(at, value << shift, mask << shift, now, self.routes);
        if shift != 0 && mask >> (64 - shift) != 0 {
            self.regs.write(at + 8, value >> (64 - shift), mask >> (64 - shift), now, self.routes);
        }
        if self.regs.legacy() != replaced {
            self.route.replace(!replaced);
        }
        if output || self.regs.any_output() {
            self.drive();
        }
        self.arm();
    }

    fn event(&mut self, event: Event) {
        if let Event::Timer(_) = event {
            self.catch_up();
            self.arm();
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.regs = Regs::default();
        self.route.replace(false);
        self.drive();
        self.arm();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{I8254, Mc146818};
    use emu::bench::Bench;

    const S: u64 = 1_000_000_000;

    /// A bench with 8254, RTC and HPET; I/O APIC inputs 20 and 21 are ISA wires 10 and 11.
    fn rig() -> Bench {
        let bench = Bench::new();
        let mut isa: Vec<IrqLine> = (0..16).map(|n| bench.machine.isa_irq(n)).collect();
        let route = LegacyRoute::new(&bench.machine, &mut isa);
        bench.machine.set_isa_irqs(isa);
        bench.part(I8254::create);
        bench.part(|s| Mc146818::create(s, 0, Vec::new()));
        let pins = vec![(20, bench.machine.isa_irq(10)), (21, bench.machine.isa_irq(11))];
        bench.part(|s| Hpet::create(s, Hpet::BASE, route, pins));
        bench.machine.reset(ResetKind::PowerOn);
        bench
    }

    fn get(b: &mut Bench, at: u64) -> u32 {
        b.bus.read(Hpet::BASE + at, 4) as u32
    }

    fn put(b: &mut Bench, at: u64, value: u32) {
        b.bus.write(Hpet::BASE + at, 4, u64::from(value));
    }

    fn timer(n: u64) -> u64 {
        TIMER0 + 0x20 * n
    }

    /// As Linux does it: comparator `n` every `period` ticks, in 32-bit mode, on I/O APIC input 20 or as `config` says.
    fn periodic(b: &mut Bench, n: u64, config: u64, period: u32) {
        let now = get(b, MAIN_COUNTER);
        put(b, timer(n), (config | TN_INT_ENABLE | TN_PERIODIC | TN_VAL_SET | TN_32MODE) as u32);
        put(b, timer(n) + 8, now.wrapping_add(period));
        put(b, timer(n) + 8, period);
    }

    #[test]
    fn the_counter_runs_at_its_stated_rate_without_drift_and_only_while_enabled() {
        let mut b = rig();
        assert_eq!(b.bus.read(Hpet::BASE, 8), 0x05f5_e100_8086_a201);
        b.advance(S);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER, 8), 0);
        put(&mut b, CONFIG, 1);
        b.advance(600 * S);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER, 8), 6_000_000_000);
        put(&mut b, CONFIG, 0);
        b.advance(S);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER, 8), 6_000_000_000);
        b.bus.write(Hpet::BASE + MAIN_COUNTER, 8, u64::MAX);
        put(&mut b, CONFIG, 1);
        b.advance(2 * TICK + TICK / 2);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER, 8), 1, "it wraps");
    }

    #[test]
    fn narrow_and_unaligned_accesses_see_the_same_registers() {
        let mut b = rig();
        b.bus.write(Hpet::BASE + MAIN_COUNTER, 8, 0x1122_3344_5566_7788);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER + 1, 1), 0x77);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER + 3, 4), 0x2233_4455);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER - 4, 8), 0x5566_7788_0000_0000);
        b.bus.write(Hpet::BASE + MAIN_COUNTER - 2, 4, 0xaabb_cccc);
        b.bus.write(Hpet::BASE + MAIN_COUNTER + 7, 1, 0xee);
        assert_eq!(b.bus.read(Hpet::BASE + MAIN_COUNTER, 8), 0xee22_3344_5566_aabb);
    }

    #[test]
    fn a_one_shot_interrupts_when_the_counter_passes_and_again_after_it_has_wrapped() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        put(&mut b, timer(2), (20 << 9 | TN_INT_ENABLE | TN_32MODE) as u32);
        put(&mut b, timer(2) + 8, 1000);
        b.edges(10);
        b.advance(1000 * TICK - 1);
        assert_eq!(b.edges(10), 0);
        b.advance(1);
        assert_eq!(b.edges(10), 1);
        b.advance((u64::from(u32::MAX)) * TICK);
        assert_eq!(b.edges(10), 0);
        b.advance(TICK);
        assert_eq!(b.edges(10), 1);
        put(&mut b, timer(2), (20 << 9 | TN_INT_ENABLE) as u32);
        b.bus.write(Hpet::BASE + timer(2) + 8, 8, 5 << 32);
        b.advance(5 * (TICK << 32));
        assert_eq!(b.edges(10), 1, "the upper half counts in 64-bit mode");
    }

    #[test]
    fn a_periodic_comparator_ticks_at_its_rate_for_ten_minutes() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        periodic(&mut b, 1, 21 << 9, 10_000);
        b.edges(11);
        b.advance(600 * S);
        assert_eq!(b.edges(11), 600_000);
        let (next, now) = (get(&mut b, timer(1) + 8), get(&mut b, MAIN_COUNTER));
        assert_eq!(next.wrapping_sub(now), 10_000, "the comparator shows the next match");
    }

    #[test]
    fn one_write_under_val_set_gives_first_match_and_period() {
        let mut b = rig();
        put(&mut b, timer(0), (20 << 9 | TN_INT_ENABLE | TN_PERIODIC | TN_VAL_SET) as u32);
        b.bus.write(Hpet::BASE + timer(0) + 8, 8, 300);
        assert_eq!(get(&mut b, timer(0)) as u64 & TN_VAL_SET, 0);
        put(&mut b, CONFIG, 1);
        b.edges(10);
        b.advance(900 * TICK);
        assert_eq!(b.edges(10), 3);
    }

    #[test]
    fn matches_that_are_noticed_late_are_one_interrupt_and_keep_their_phase() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        periodic(&mut b, 0, 20 << 9, 1000);
        b.edges(10);
        b.machine.clock().set(3500 * TICK);
        b.machine.timers.run_due();
        assert_eq!(b.edges(10), 1);
        b.advance(500 * TICK - 1);
        assert_eq!(b.edges(10), 0);
        b.advance(1);
        assert_eq!(b.edges(10), 1);
    }

    #[test]
    fn a_level_stays_up_until_its_status_bit_is_written() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        put(&mut b, timer(1), (20 << 9 | TN_INT_ENABLE | TN_LEVEL) as u32);
        b.bus.write(Hpet::BASE + timer(1) + 8, 8, 100);
        b.advance(200 * TICK);
        assert!(b.irq(10));
        assert_eq!(get(&mut b, STATUS), 2);
        put(&mut b, STATUS, 1);
        assert!(b.irq(10));
        put(&mut b, CONFIG, 0);
        assert!(!b.irq(10), "nothing interrupts while the block is disabled");
        put(&mut b, CONFIG, 1);
        assert!(b.irq(10), "but the status is kept");
        put(&mut b, STATUS, 2);
        assert!(!b.irq(10));
    }

    #[test]
    fn status_is_set_without_the_interrupt_enable() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        put(&mut b, timer(2), (20 << 9 | TN_LEVEL) as u32);
        b.bus.write(Hpet::BASE + timer(2) + 8, 8, 100);
        b.advance(200 * TICK);
        assert_eq!(get(&mut b, STATUS), 4);
        assert!(!b.irq(10));
    }

    #[test]
    fn legacy_replacement_takes_irq_0_and_8_over_and_gives_them_back() {
        let mut b = rig();
        // The 8254 at 1 kHz, the RTC at 1024 Hz.
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04), (0x70, 0x0b), (0x71, 0x42)] {
            b.outb(port, value);
        }
        b.edges(0);
        b.advance(S / 10);
        assert!((99..=101).contains(&b.edges(0)));
        assert!(b.irq(8));
        put(&mut b, CONFIG, 3);
        assert!(!b.irq(8));
        periodic(&mut b, 0, 0, 100_000);
        periodic(&mut b, 1, 0, 200_000);
        b.edges(0);
        b.edges(8);
        b.advance(S);
        assert_eq!((b.edges(0), b.edges(8)), (100, 50));
        put(&mut b, CONFIG, 1);
        b.edges(0);
        b.advance(S / 10);
        assert!((99..=101).contains(&b.edges(0)));
        assert!(b.irq(8), "the RTC has been waiting");
    }

    #[test]
    fn only_inputs_that_exist_can_be_chosen() {
        let mut b = rig();
        assert_eq!(get(&mut b, timer(0) + 4), 1 << 20 | 1 << 21);
        put(&mut b, timer(0), 21 << 9);
        assert_eq!(get(&mut b, timer(0)), 21 << 9 | 0x30);
        put(&mut b, timer(0), 2 << 9);
        assert_eq!(get(&mut b, timer(0)), 0x30);
    }

    #[test]
    fn a_period_of_one_tick_does_not_flood_the_host() {
        let mut b = rig();
        put(&mut b, CONFIG, 1);
        periodic(&mut b, 0, 20 << 9, 1);
        b.edges(10);
        b.advance(1_000_000);
        let edges = b.edges(10);
        assert!((900..=1001).contains(&edges), "{edges}");
    }

    #[test]
    fn a_restored_machine_hears_neither_a_replaced_8254_nor_an_old_edge() {
        let mut b = rig();
        put(&mut b, CONFIG, 3);
        periodic(&mut b, 0, 0, 100_000);
        b.advance(S / 20);
        let saved: Vec<Saved> = b.machine.parts().iter().map(|p| p.save()).collect();
        let mut c = rig();
        c.machine.clock().set(b.machine.clock().now());
        put(&mut c, CONFIG, 3);
        c.edges(0);
        for (part, s) in c.machine.parts().iter().zip(saved) {
            part.load(s).unwrap();
        }
        assert_eq!(c.irq(0), b.irq(0));
        let edges = c.edges(0);
        assert!(edges <= 1, "{edges} edges from restoring");
        for bench in [&mut b, &mut c] {
            bench.edges(0);
            bench.advance(S / 20);
            assert_eq!(bench.edges(0), 5);
        }
    }
}
