//! Intel 82093AA I/O APIC, as integrated in later chipsets (version 11h, 24 inputs).
//!
//! Datasheet: 82093AA (290566). A leaf chip with a lock of its own. Level-triggered inputs set remote IRR when their
//! message is accepted and send again at the end of interrupt while the wire is still up. Edge-triggered inputs latch
//! an edge while masked, as the integrated parts do; Linux's timer check relies on the interrupt that comes when it
//! unmasks. Delivery status always reads idle. Not modelled: the arbitration register beyond its value, SMI delivery.

use std::sync::{Arc, Mutex};

use emu::{Access, Backing, DeviceState, IrqSink, Machine, MsiSink, ResetKind, Rights, Saved, State, Widths};
use serde::{Deserialize, Serialize};

/// Number of inputs.
const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    id: u8,
    select: u8,
    table: Vec<u64>,
    /// Levels of the inputs.
    pins: u32,
    /// Edges that came while the input was masked.
    latched: u32,
}

impl Default for Regs {
    fn default() -> Regs {
        Regs { id: 0, select: 0, table: vec![MASKED; PINS], pins: 0, latched: 0 }
    }
}

/// The message of an entry, in the form of an MSI.
fn message(entry: u64) -> (u64, u32) {
    let dest = entry >> 56;
    let logical = entry >> 11 & 1;
    let addr = 0xfee0_0000 | dest << 12 | logical << 2;
    (addr, (entry & 0x7ff) as u32 | (entry & LEVEL) as u32)
}

impl Regs {
    /// Messages that input `n` has to send now.
    fn evaluate(&mut self, n: usize) -> Option<(u64, u32)> {
        let entry = self.table[n];
        let bit = 1 << n;
        if entry & MASKED != 0 {
            return None;
        }
        if entry & LEVEL != 0 {
            if self.pins & bit == 0 || entry & REMOTE_IRR != 0 {
                return None;
            }
            self.table[n] |= REMOTE_IRR;
        } else {
            if self.latched & bit == 0 {
                return None;
            }
            self.latched &= !bit;
        }
        Some(message(entry))
    }

    fn read(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => (PINS as u32 - 1) << 16 | 0x11,
            r @ 0x10..0x40 => {
                let entry = self.table[(r as usize - 0x10) / 2];
                if r & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write(&mut self, value: u32) -> Option<(u64, u32)> {
        match self.select {
            0 => {
                self.id = (value >> 24) as u8 & 0xf;
                None
            }
            r @ 0x10..0x40 => {
                let n = (r as usize - 0x10) / 2;
                let old = self.table[n];
                let kept = REMOTE_IRR | DELIVERY_STATUS;
                self.table[n] = if r & 1 == 0 {
                    old & (0xffff_ffff_0000_0000 | kept) | u64::from(value) & 0x1_ffff & !kept
                } else {
                    old & 0xffff_ffff | u64::from(value) << 32
                };
                // Changing the input to edge forgets the level's state; Linux clears a stuck remote IRR that way.
                if self.table[n] & LEVEL == 0 {
                    self.table[n] &= !REMOTE_IRR;
                }
                self.evaluate(n)
            }
            _ => None,
        }
    }
}

/// The I/O APIC.
pub struct IoApic {
    regs: Mutex<Regs>,
    to: Arc<dyn MsiSink>,
}

impl IoApic {
    /// Puts one at `base`; its messages go to `to`. Inputs are lines 0 to 23 of the returned chip.
    pub fn new(machine: &Machine, base: u64, to: Arc<dyn MsiSink>) -> Arc<IoApic> {
        let chip = Arc::new(IoApic { regs: Mutex::default(), to });
        let backing = Backing::Io(chip.clone(), 0, Widths::DWORD);
        let id = machine.space.add_memory(base, 0x1000, 2, Rights::ReadWrite, backing);
        machine.space.enable(id, base, true);
        machine.add_part(chip.clone());
        chip
    }

    /// A level-triggered interrupt ended at a local APIC.
    pub fn eoi(&self, vector: u8) {
        let messages: Vec<_> = {
            let mut r = self.regs.lock().unwrap();
            (0..PINS)
                .filter_map(|n| {
                    let entry = r.table[n];
                    if entry & LEVEL == 0 || entry as u8 != vector {
                        return None;
                    }
                    r.table[n] &= !REMOTE_IRR;
                    r.evaluate(n)
                })
                .collect()
        };
        for (addr, data) in messages {
            self.to.msi(addr, data);
        }
    }

    fn send(&self, message: Option<(u64, u32)>) {
        if let Some((addr, data)) = message {
            self.to.msi(addr, data);
        }
    }
}

impl IrqSink for IoApic {
    fn set_irq(&self, line: u32, level: bool) {
        let n = line as usize;
        if n >= PINS {
            return;
        }
        let mut r = self.regs.lock().unwrap();
        let bit = 1 << n;
        if level && r.pins & bit == 0 {
            r.latched |= bit;
        }
        r.pins = r.pins & !bit | if level { bit } else { 0 };
        let message = r.evaluate(n);
        drop(r);
        self.send(message);
    }

    fn pending(&self, line: u32) -> bool {
        let r = self.regs.lock().unwrap();
        let Some(&entry) = r.table.get(line as usize) else { return false };
        if entry & LEVEL != 0 || entry & MASKED != 0 {
            return r.latched >> line & 1 != 0;
        }
        drop(r);
        let (addr, data) = message(entry);
        self.to.pending(addr, data)
    }
}

impl Access for IoApic {
    fn owner(&self) -> &str {
        self.name()
    }

    fn read(&self, _: u32, offset: u64, _: u8) -> u64 {
        let r = self.regs.lock().unwrap();
        let (value, shift) = match offset & 0xff & !3 {
            0x00 => (u32::from(r.select), 8 * (offset & 3)),
            0x10 => (r.read(), 8 * (offset & 3)),
            _ => (0, 0),
        };
        u64::from(value) >> shift
    }

    fn write(&self, _: u32, offset: u64, _: u8, value: u64) {
        let mut r = self.regs.lock().unwrap();
        match offset & 0xff {
            0x00 => r.select = value as u8,
            0x10 => {
                let message = r.write(value as u32);
                drop(r);
                self.send(message);
            }
            // The EOI register of version 20h parts, which writes by older kernels do not reach.
            _ => {}
        }
    }
}

impl DeviceState for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn reset(&self, _: ResetKind) {
        let mut r = self.regs.lock().unwrap();
        let pins = r.pins;
        *r = Regs { pins, ..Regs::default() };
    }

    fn save(&self) -> Saved {
        Saved { version: 1, state: self.regs.lock().unwrap().save(), ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let mut new = Regs::default();
        new.load(saved.state)?;
        if new.table.len() != PINS {
            return Err(format!("{} redirection entries", new.table.len()));
        }
        *self.regs.lock().unwrap() = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::{Bench, Messages};

    const BASE: u64 = 0xfec0_0000;

    struct Rig {
        bench: Bench,
        chip: Arc<IoApic>,
        sent: Arc<Messages>,
    }

    fn rig() -> Rig {
        let bench = Bench::new();
        let sent: Arc<Messages> = Arc::default();
        let chip = IoApic::new(&bench.machine, BASE, sent.clone());
        Rig { bench, chip, sent }
    }

    impl Rig {
        fn write(&mut self, reg: u8, value: u32) {
            self.bench.bus.write(BASE, 4, u64::from(reg));
            self.bench.bus.write(BASE + 0x10, 4, u64::from(value));
        }

        fn read(&mut self, reg: u8) -> u32 {
            self.bench.bus.write(BASE, 4, u64::from(reg));
            self.bench.bus.read(BASE + 0x10, 4) as u32
        }
    }

    #[test]
    fn an_edge_sends_one_message_with_destination_and_vector() {
        let mut r = rig();
        r.write(0x15, 3 << 24);
        r.write(0x14, 0x0931);
        r.chip.set_irq(2, true);
        r.chip.set_irq(2, true);
        assert_eq!(r.sent.take(), [(0xfee0_3004, 0x131)]);
        r.chip.set_irq(2, false);
        assert!(r.sent.take().is_empty());
    }

    #[test]
    fn a_level_waits_for_its_eoi_and_comes_again_while_the_wire_is_up() {
        let mut r = rig();
        r.write(0x30, 0x8055);
        r.chip.set_irq(16, true);
        r.chip.set_irq(16, false);
        r.chip.set_irq(16, true);
        assert_eq!(r.sent.take(), [(0xfee0_0000, 0x8055)]);
        assert_eq!(r.read(0x30) & 1 << 14, 1 << 14);
        r.chip.eoi(0x54);
        assert!(r.sent.take().is_empty());
        r.chip.eoi(0x55);
        assert_eq!(r.sent.take().len(), 1);
        r.chip.set_irq(16, false);
        r.chip.eoi(0x55);
        assert!(r.sent.take().is_empty());
        assert_eq!(r.read(0x30) & 1 << 14, 0);
    }

    #[test]
    fn an_edge_under_the_mask_comes_when_it_is_lifted() {
        let mut r = rig();
        r.chip.set_irq(4, true);
        assert!(r.sent.take().is_empty());
        r.write(0x18, 0x40);
        assert_eq!(r.sent.take().len(), 1);
    }

    #[test]
    fn version_and_id_read_as_on_the_chip_and_read_only_bits_stay() {
        let mut r = rig();
        assert_eq!(r.read(1), 0x0017_0011);
        r.write(0, 0xff00_0000);
        assert_eq!(r.read(0), 0x0f00_0000);
        r.write(0x10, 0xffff_ffff);
        assert_eq!(r.read(0x10), 0x0001_afff & !(1 << 12));
        r.bench.bus.write(BASE, 1, 0x3f);
        assert_eq!(r.bench.bus.read(BASE, 4), 0x3f);
        assert_eq!(r.read(0x50), 0);
    }
}
