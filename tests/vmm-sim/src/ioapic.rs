//! The I/O APIC of the kernel: 32 pins whose asserts are counted.
//!
//! A pin is high while it has been asserted more often than deasserted. Edges under the mask are lost, as in the
//! kernel; levels are not.

use std::sync::{Arc, Mutex};

use cpu::{ApicBus, Message};
use emu::{Access, Backing, IrqSink, Machine, Rights, Widths};

pub(crate) const PINS: usize = 32;
const BASE: u64 = 0xfec0_0000;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;

struct Regs {
    id: u8,
    select: u8,
    table: [u64; PINS],
    asserts: [i32; PINS],
    /// Pins that the kernel's own timers hold up.
    kernel: u32,
}

impl Regs {
    fn new(kernel: u32) -> Regs {
        Regs { id: 0, select: 0, table: [MASKED; PINS], asserts: [0; PINS], kernel }
    }

    fn high(&self, n: usize) -> bool {
        self.asserts[n] > 0 || self.kernel >> n & 1 != 0
    }

    /// What pin `n` has to say; `edge` if it has just risen.
    fn message(&mut self, n: usize, edge: bool) -> Option<Message> {
        let e = self.table[n];
        let level = e & LEVEL != 0;
        let due = if level { self.high(n) && e & REMOTE_IRR == 0 } else { edge };
        if e & MASKED != 0 || !due {
            return None;
        }
        if level {
            self.table[n] |= REMOTE_IRR;
        }
        Some(Message {
            dest: (e >> 56) as u32,
            logical: e >> 11 & 1 != 0,
            mode: (e >> 8 & 7) as u32,
            vector: e as u8,
            level,
        })
    }
}

pub(crate) struct Ioapic {
    regs: Mutex<Regs>,
    bus: Arc<ApicBus>,
}

impl Ioapic {
    pub(crate) fn new(machine: &Arc<Machine>, bus: &Arc<ApicBus>) -> Arc<Ioapic> {
        let chip = Arc::new(Ioapic { regs: Mutex::new(Regs::new(0)), bus: bus.clone() });
        let backing = Backing::Io(chip.clone(), 0, Widths::DWORD);
        let id = machine.space.add_memory(BASE, 0x1000, 2, Rights::ReadWrite, backing);
        machine.space.enable(id, BASE, true);
        chip
    }

    /// Counts an assert or a deassert. Returns the count after it.
    pub(crate) fn count(&self, pin: usize, assert: bool) -> i32 {
        let mut r = self.regs.lock().unwrap();
        let was = r.high(pin);
        r.asserts[pin] += if assert { 1 } else { -1 };
        let count = r.asserts[pin];
        let edge = !was && r.high(pin);
        let message = r.message(pin, edge);
        drop(r);
        self.send(message);
        count
    }

    pub(crate) fn eoi(&self, vector: u8) {
        for n in 0..PINS {
            let mut r = self.regs.lock().unwrap();
            if r.table[n] & LEVEL == 0 || r.table[n] as u8 != vector || r.table[n] & REMOTE_IRR == 0 {
                continue;
            }
            r.table[n] &= !REMOTE_IRR;
            let message = r.message(n, false);
            drop(r);
            self.send(message);
        }
    }

    /// VM_REINIT: what user space asserted is forgotten.
    pub(crate) fn reset(&self) {
        let mut r = self.regs.lock().unwrap();
        *r = Regs::new(r.kernel);
    }

    /// Pins that are asserted.
    pub(crate) fn asserted(&self) -> Vec<usize> {
        let r = self.regs.lock().unwrap();
        (0..PINS).filter(|n| r.asserts[*n] > 0).collect()
    }

    fn send(&self, message: Option<Message>) {
        if let Some(m) = message {
            self.bus.send(m);
        }
    }
}

/// The kernel's own timers drive pins by level.
impl IrqSink for Ioapic {
    fn set_irq(&self, line: u32, level: bool) {
        let n = line as usize % PINS;
        let mut r = self.regs.lock().unwrap();
        let was = r.high(n);
        r.kernel = r.kernel & !(1 << n) | u32::from(level) << n;
        let edge = !was && r.high(n);
        let message = r.message(n, edge);
        drop(r);
        self.send(message);
    }
}

impl Access for Ioapic {
    fn owner(&self) -> &str {
        "vioapic"
    }

    fn read(&self, _: u32, offset: u64, _: u8) -> u64 {
        let r = self.regs.lock().unwrap();
        match offset & 0xff {
            0x00 => u64::from(r.select),
            0x10 => match r.select {
                0 | 2 => u64::from(r.id) << 24,
                1 => (PINS as u64 - 1) << 16 | 0x11,
                s @ 0x10..0x50 => r.table[(usize::from(s) - 0x10) / 2] >> (32 * (s & 1)) & 0xffff_ffff,
                _ => 0,
            },
            _ => 0,
        }
    }

    fn write(&self, _: u32, offset: u64, _: u8, value: u64) {
        let mut r = self.regs.lock().unwrap();
        match (offset & 0xff, r.select) {
            (0x00, _) => r.select = value as u8,
            (0x10, 0) => r.id = (value >> 24) as u8 & 15,
            (0x10, s @ 0x10..0x50) => {
                let n = (usize::from(s) - 0x10) / 2;
                let old = r.table[n];
                r.table[n] = if s & 1 == 0 {
                    old & (0xffff_ffff_0000_0000 | READ_ONLY) | value & 0x1_ffff & !READ_ONLY
                } else {
                    old & 0xffff_ffff | value << 32
                };
                if r.table[n] & LEVEL == 0 {
                    r.table[n] &= !REMOTE_IRR;
                }
                let message = r.message(n, false);
                drop(r);
                self.send(message);
            }
            (0x40, _) => {
                drop(r);
                self.eoi(value as u8);
            }
            _ => {}
        }
    }
}
