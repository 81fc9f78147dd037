//! Intel 8259A programmable interrupt controllers, the pair of a PC, with the edge/level registers (ELCR) of EISA
//! chipsets.
//!
//! Datasheet: Intel 8259A (231468); ELCR: 82371AB (290562), 4D0 and 4D1. A leaf chip with a lock of its own, because
//! wires are driven from any thread. Modelled: ICW1-4, all OCW2 rotations, special mask, poll, AEOI, special fully
//! nested mode on the primary, level mode by ELCR and by ICW1.LTIM, spurious IRQ 7 and 15 (a request that is gone
//! before INTA). Not modelled: MCS-80 mode, buffered mode (no effect on a PC).
//!
//! All guests use it, if only to mask it. FreeBSD's elcr probe wants IRQ 0, 1, 2, 8 and 13 to stay edge triggered:
//! those bits are hard-wired.

use std::sync::{Arc, Mutex};

use emu::{Access, DeviceState, IrqLine, IrqSink, Machine, ResetKind, Saved, State, Widths};
use serde::{Deserialize, Serialize};

/// Lines that are always edge triggered.
const EDGE_ONLY: [u8; 2] = [0b0000_0111, 0b0010_0001];

/// One 8259A.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Chip {
    /// Levels of the inputs.
    pins: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// ICW2.
    base: u8,
    /// ICW1.LTIM.
    level_mode: bool,
    single: bool,
    icw4_wanted: bool,
    /// The ICW expected next at the odd port, 0 for none.
    init: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    nested: bool,
    special_mask: bool,
    poll: bool,
    read_isr: bool,
    /// The line of highest priority.
    first: u8,
}

impl Chip {
    fn is_level(&self, n: u8) -> bool {
        self.level_mode || self.elcr >> n & 1 != 0
    }

    fn set_pin(&mut self, n: u8, level: bool) {
        let bit = 1 << n;
        let rising = level && self.pins & bit == 0;
        self.pins = self.pins & !bit | if level { bit } else { 0 };
        if self.is_level(n) {
            self.irr = self.irr & !bit | self.pins & bit;
        } else if rising {
            self.irr |= bit;
        } else if !level {
            // The edge latch falls with the line: a request withdrawn before INTA becomes a spurious IRQ 7.
            self.irr &= !bit;
        }
    }

    fn set_elcr(&mut self, elcr: u8) {
        self.elcr = elcr;
        // A request of a level-triggered line is the line's level, from now on.
        let level = if self.level_mode { 0xff } else { elcr };
        self.irr = self.irr & !level | self.pins & level;
    }

    /// The line to be served, if any may interrupt now. `cascade`: on the primary in special fully nested mode, further
    /// requests of the secondary pass although IRQ 2 is in service.
    fn pending(&self) -> Option<u8> {
        let requests = self.irr & !self.imr;
        if requests == 0 {
            return None;
        }
        for k in 0..8 {
            let n = (self.first + k) & 7;
            let bit = 1 << n;
            if self.isr & bit != 0 && !(self.special_mask && self.imr & bit != 0) {
                if self.nested && n == 2 && requests & bit != 0 {
                    return Some(n);
                }
                if !self.special_mask {
                    return None;
                }
                continue;
            }
            if requests & bit != 0 {
                return Some(n);
            }
        }
        None
    }

    /// The INTA cycle for line `n`.
    fn serve(&mut self, n: u8) {
        let bit = 1 << n;
        if !self.is_level(n) {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.first = (n + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
    }

    /// INTA: the vector.
    fn acknowledge(&mut self) -> (u8, Option<u8>) {
        match self.pending() {
            Some(n) => {
                self.serve(n);
                (self.base | n, Some(n))
            }
            None => (self.base | 7, None),
        }
    }

    fn in_service(&self) -> Option<u8> {
        (0..8).map(|k| (self.first + k) & 7).find(|n| {
            let bit = 1 << n;
            self.isr & bit != 0 && !(self.special_mask && self.imr & bit != 0)
        })
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            let (pins, elcr) = (self.pins, self.elcr);
            *self = Chip { pins, elcr, init: 2, ..Chip::default() };
            self.level_mode = value & 8 != 0;
            self.single = value & 2 != 0;
            self.icw4_wanted = value & 1 != 0;
            // Edges before the initialisation are forgotten; levels are not.
            self.irr = (0..8).filter(|&n| self.is_level(n)).map(|n| self.pins & 1 << n).sum();
        } else if value & 8 != 0 {
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
        } else {
            let n = value & 7;
            match value >> 5 {
                // Non-specific EOI, with rotation.
                1 | 5 => {
                    if let Some(n) = self.in_service() {
                        self.isr &= !(1 << n);
                        if value >> 5 == 5 {
                            self.first = (n + 1) & 7;
                        }
                    }
                }
                3 => self.isr &= !(1 << n),
                7 => {
                    self.isr &= !(1 << n);
                    self.first = (n + 1) & 7;
                }
                6 => self.first = (n + 1) & 7,
                rotate => self.rotate_on_auto_eoi = rotate == 4,
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            2 => {
                self.base = value & 0xf8;
                self.init = if !self.single {
                    3
                } else if self.icw4_wanted {
                    4
                } else {
                    0
                };
            }
            // ICW3: a PC's cascade is wired one way.
            3 => self.init = if self.icw4_wanted { 4 } else { 0 },
            4 => {
                self.nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = 0;
            }
            _ => self.imr = value,
        }
    }

    fn read(&mut self, odd: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(n) => {
                    self.serve(n);
                    0x80 | n
                }
                None => 0,
            };
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Pair {
    chips: [Chip; 2],
}

impl Pair {
    /// The secondary's output drives the primary's input 2.
    fn cascade(&mut self) {
        let out = self.chips[1].pending().is_some();
        self.chips[0].set_pin(2, out);
    }
}

/// The pair.
pub struct I8259 {
    pair: Mutex<Pair>,
    /// INTR of the processor.
    intr: IrqLine,
}

impl I8259 {
    /// Puts the pair at 20, A0 and 4D0; `intr` leads to the processor. Inputs are lines 0 to 15 of the returned chip.
    pub fn new(machine: &Machine, intr: IrqLine) -> Arc<I8259> {
        let pic = Arc::new(I8259 { pair: Mutex::default(), intr });
        for (region, base) in [(0, 0x20), (1, 0xa0), (2, 0x4d0)] {
            let id = machine.space.add_ports(base, 2, 0, pic.clone(), region, Widths::BYTE);
            machine.space.enable_ports(id, base, true);
        }
        machine.add_part(pic.clone());
        pic
    }

    /// The processor's INTA cycles: the vector.
    pub fn acknowledge(&self) -> u8 {
        let mut pair = self.pair.lock().unwrap();
        let (mut vector, line) = pair.chips[0].acknowledge();
        if line == Some(2) {
            vector = pair.chips[1].acknowledge().0;
        }
        self.settle(pair);
        vector
    }

    fn settle(&self, mut pair: std::sync::MutexGuard<Pair>) {
        pair.cascade();
        let intr = pair.chips[0].pending().is_some();
        // Told under the lock, so that two threads cannot tell it in the wrong order; the line is a leaf below this
        // one.
        self.intr.set(intr);
    }
}

impl IrqSink for I8259 {
    fn set_irq(&self, line: u32, level: bool) {
        let mut pair = self.pair.lock().unwrap();
        match line {
            0..=1 | 3..=7 => pair.chips[0].set_pin(line as u8, level),
            8..=15 => pair.chips[1].set_pin(line as u8 - 8, level),
            _ => return,
        }
        self.settle(pair);
    }

    /// A request under the mask counts: a handler masks its line while it works, and who masks it for good will not
    /// mind.
    fn pending(&self, line: u32) -> bool {
        let pair = self.pair.lock().unwrap();
        pair.chips.get(line as usize / 8).is_some_and(|chip| chip.irr >> (line & 7) & 1 != 0)
    }
}

impl Access for I8259 {
    fn owner(&self) -> &str {
        self.name()
    }

    fn read(&self, region: u32, offset: u64, _width: u8) -> u64 {
        let mut pair = self.pair.lock().unwrap();
        if region == 2 {
            return u64::from(pair.chips[offset as usize & 1].elcr);
        }
        let value = pair.chips[region as usize].read(offset & 1 != 0);
        self.settle(pair);
        u64::from(value)
    }

    fn write(&self, region: u32, offset: u64, _width: u8, value: u64) {
        let mut pair = self.pair.lock().unwrap();
        let value = value as u8;
        match (region, offset & 1) {
            (2, n) => pair.chips[n as usize].set_elcr(value & !EDGE_ONLY[n as usize]),
            (n, 0) => pair.chips[n as usize].write_command(value),
            (n, _) => pair.chips[n as usize].write_data(value),
        }
        self.settle(pair);
    }
}

impl DeviceState for I8259 {
    fn name(&self) -> &str {
        "i8259"
    }

    fn reset(&self, _: ResetKind) {
        let mut pair = self.pair.lock().unwrap();
        for chip in &mut pair.chips {
            *chip = Chip { pins: chip.pins, ..Chip::default() };
        }
        self.settle(pair);
    }

    fn save(&self) -> Saved {
        Saved { version: 1, state: self.pair.lock().unwrap().save(), ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let mut pair = self.pair.lock().unwrap();
        pair.load(saved.state)?;
        self.settle(pair);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    struct Cpu(Mutex<bool>);
    impl IrqSink for Cpu {
        fn set_irq(&self, _: u32, level: bool) {
            *self.0.lock().unwrap() = level;
        }
    }

    struct Rig {
        bench: Bench,
        pic: Arc<I8259>,
        cpu: Arc<Cpu>,
    }

    /// Initialised as a PC BIOS does: vectors 8 and 70, nothing masked.
    fn rig() -> Rig {
        let mut bench = Bench::new();
        let cpu = Arc::new(Cpu(Mutex::new(false)));
        let pic = I8259::new(&bench.machine, IrqLine::new(cpu.clone(), 0));
        for (port, base, cascade) in [(0x20, 0x08, 4), (0xa0, 0x70, 2)] {
            for (n, value) in [0x11, base, cascade, 1, 0].into_iter().enumerate() {
                bench.outb(port + u16::from(n > 0), value);
            }
        }
        Rig { bench, pic, cpu }
    }

    impl Rig {
        fn intr(&self) -> bool {
            *self.cpu.0.lock().unwrap()
        }

        fn raise(&self, n: u32) {
            self.pic.set_irq(n, true);
        }
    }

    #[test]
    fn the_secondary_is_served_through_the_primary_and_both_need_an_eoi() {
        let mut r = rig();
        r.raise(12);
        assert!(r.intr());
        assert_eq!(r.pic.acknowledge(), 0x74);
        assert!(!r.intr());
        r.raise(3);
        assert!(!r.intr(), "IRQ 3 is below the cascade");
        r.raise(1);
        assert_eq!(r.pic.acknowledge(), 0x09);
        r.bench.outb(0x20, 0x20);
        r.bench.outb(0xa0, 0x20);
        assert!(!r.intr());
        r.bench.outb(0x20, 0x20);
        assert_eq!(r.pic.acknowledge(), 0x0b);
    }

    #[test]
    fn an_edge_counts_once_and_a_level_until_it_is_gone() {
        let mut r = rig();
        r.raise(5);
        assert_eq!(r.pic.acknowledge(), 0x0d);
        r.bench.outb(0x20, 0x20);
        assert!(!r.intr(), "an edge that stays high is no second request");
        r.bench.outb(0x4d0, 0x20);
        r.pic.set_irq(5, false);
        r.raise(5);
        assert_eq!(r.pic.acknowledge(), 0x0d);
        r.bench.outb(0x20, 0x65);
        assert!(r.intr(), "a level asks again after the EOI");
        r.pic.set_irq(5, false);
        assert!(!r.intr());
    }

    #[test]
    fn a_line_that_is_up_asks_when_it_becomes_level_triggered() {
        let mut r = rig();
        r.raise(5);
        assert_eq!(r.pic.acknowledge(), 0x0d);
        r.bench.outb(0x20, 0x20);
        assert!(!r.intr());
        r.bench.outb(0x4d0, 0x20);
        assert!(r.intr());
    }

    #[test]
    fn a_request_withdrawn_before_inta_is_a_spurious_irq_7_without_isr() {
        let mut r = rig();
        r.raise(4);
        r.pic.set_irq(4, false);
        assert_eq!(r.pic.acknowledge(), 0x0f);
        r.bench.outb(0x20, 0x0b);
        assert_eq!(r.bench.inb(0x20), 0);
    }

    #[test]
    fn an_edge_is_pending_from_its_rise_to_its_acknowledgement() {
        let mut r = rig();
        assert!(!r.pic.pending(0) && !r.pic.pending(9));
        r.raise(0);
        r.raise(9);
        assert!(r.pic.pending(0) && r.pic.pending(9) && !r.pic.pending(1) && !r.pic.pending(16));
        assert_eq!(r.pic.acknowledge(), 0x08);
        assert!(!r.pic.pending(0), "in service, the next one is not lost");
        r.bench.outb(0x20, 0x20);
        assert_eq!(r.pic.acknowledge(), 0x71);
        assert!(!r.pic.pending(9));
    }

    #[test]
    fn a_mask_holds_a_request_until_it_is_lifted() {
        let mut r = rig();
        r.bench.outb(0x21, 0x10);
        r.raise(4);
        assert!(!r.intr());
        assert_eq!(r.bench.inb(0x21), 0x10);
        assert_eq!(r.bench.inb(0x20), 0x10);
        r.bench.outb(0x21, 0);
        assert_eq!(r.pic.acknowledge(), 0x0c);
    }

    #[test]
    fn rotation_makes_the_served_line_the_last() {
        let mut r = rig();
        r.raise(0);
        assert_eq!(r.pic.acknowledge(), 0x08);
        r.bench.outb(0x20, 0xa0);
        r.pic.set_irq(0, false);
        r.raise(0);
        r.raise(6);
        assert_eq!(r.pic.acknowledge(), 0x0e);
    }

    #[test]
    fn special_mask_mode_lets_lower_lines_through() {
        let mut r = rig();
        r.raise(1);
        assert_eq!(r.pic.acknowledge(), 0x09);
        r.bench.outb(0x21, 0x02);
        r.bench.outb(0x20, 0x68);
        r.raise(6);
        assert_eq!(r.pic.acknowledge(), 0x0e);
    }

    #[test]
    fn poll_acknowledges_and_names_the_line() {
        let mut r = rig();
        r.raise(3);
        r.bench.outb(0x20, 0x0c);
        assert_eq!(r.bench.inb(0x20), 0x83);
        assert!(!r.intr());
        r.bench.outb(0x20, 0x0b);
        assert_eq!(r.bench.inb(0x20), 0x08);
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service() {
        let mut r = rig();
        for (port, value) in [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 3), (0x21, 0)] {
            r.bench.outb(port, value);
        }
        r.raise(1);
        assert_eq!(r.pic.acknowledge(), 0x09);
        r.raise(3);
        assert_eq!(r.pic.acknowledge(), 0x0b);
    }

    #[test]
    fn the_elcr_refuses_level_mode_for_system_lines() {
        let mut r = rig();
        r.bench.outb(0x4d0, 0xff);
        r.bench.outb(0x4d1, 0xff);
        assert_eq!((r.bench.inb(0x4d0), r.bench.inb(0x4d1)), (0xf8, 0xde));
    }
}
