//! A parallel NOR flash with Intel's command set (CFI vendor set 0001), where OVMF keeps its variables.
//!
//! Sources: Intel 28F128J3 datasheet (290667) for the commands, the Common Flash Interface for the query table, and
//! edk2's QemuFlashFvbServicesRuntimeDxe, the client, for what it probes: a status that reads 00 when it was cleared,
//! blocks of 4 KiB, programming byte by byte. Locks and write suspension do not exist.
//!
//! While the array is read the chip is memory, from which processors read and execute; a command takes that away until
//! READ ARRAY brings it back. Only bits that are 1 can be programmed, to 0. Blocks that have changed go to the file
//! when the array is read again, each in one write, so that a file never holds half of a block.

use std::collections::BTreeSet;

use emu::backend::{DiskOp, DiskRequest};
use emu::{Backing, Device, DiskPort, RamBlock, Region, ResetKind, Rights, Slot, State, Widths};
use serde::{Deserialize, Serialize};

/// Bytes of an erase block.
pub const BLOCK: u64 = 4096;

const READY: u8 = 0x80;
/// Erase and program errors together: a wrong sequence.
const SEQUENCE_ERROR: u8 = 0x30;
/// Bytes of the write buffer.
const BUFFER: u64 = 32;

/// What the next access means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    #[default]
    Array,
    Status,
    Identifier,
    Query,
    Program,
    Erase,
    /// How many bytes less one, so many bytes, and the confirmation.
    BufferCount,
    Buffer(u16),
    Confirm,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Regs {
    mode: Mode,
    status: u8,
    /// Blocks that the file has not got yet.
    changed: BTreeSet<u32>,
    /// What waits in the write buffer: offset and value.
    buffer: Vec<(u64, u8)>,
}

/// The chip.
pub struct Pflash {
    regs: Regs,
    ram: RamBlock,
    machine: std::sync::Weak<emu::Machine>,
    array: Region,
    base: u64,
    disk: Option<DiskPort>,
}

impl Pflash {
    /// The chip at `base`, with these contents, which are also what the slot's first disk holds, if there is one.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn create(slot: &mut Slot, base: u64, contents: &[u8]) -> Result<Box<dyn Device>, String> {
        let len = contents.len() as u64;
        let ram = slot.ram("flash", len)?;
        slot.machine().space.ram().write(ram.start, contents);
        slot.memory(0, base, len, 0, Widths::BYTE);
        let array = slot.window(len, 1, Rights::Read, Backing::Ram(ram.start));
        let machine = std::sync::Arc::downgrade(slot.machine());
        let disk = slot.disk(0);
        let flash = Pflash { regs: Regs::default(), ram, machine, array, base, disk };
        flash.lay();
        Ok(Box::new(flash))
    }

    /// Shows the array, or the registers.
    fn lay(&self) {
        if self.regs.mode == Mode::Array {
            self.array.enable(self.base);
        } else {
            self.array.disable();
        }
    }

    fn load(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(machine) = self.machine.upgrade() {
            machine.space.ram().read(emu::RamAddr(self.ram.start.0 + offset), bytes);
        }
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(machine) = self.machine.upgrade() {
            machine.space.ram().write(emu::RamAddr(self.ram.start.0 + offset), bytes);
            self.regs.changed.insert((offset / BLOCK) as u32);
        }
    }

    fn program(&mut self, offset: u64, value: u8) {
        let mut old = [0];
        self.load(offset, &mut old);
        self.store(offset, &[old[0] & value]);
        self.regs.status |= READY;
    }

    fn erase(&mut self, offset: u64) {
        self.store(offset & !(BLOCK - 1), &[0xff; BLOCK as usize]);
        self.regs.status |= READY;
    }

    /// Passes changed blocks on.
    fn write_back(&mut self) {
        for block in std::mem::take(&mut self.regs.changed) {
            let offset = u64::from(block) * BLOCK;
            let mut bytes = vec![0; BLOCK as usize];
            self.load(offset, &mut bytes);
            if let Some(disk) = &mut self.disk {
                disk.submit(DiskRequest { tag: offset, offset, op: DiskOp::WriteBytes(bytes) });
            }
        }
    }

    fn set_mode(&mut self, mode: Mode) {
        let was = std::mem::replace(&mut self.regs.mode, mode);
        if (was == Mode::Array) != (mode == Mode::Array) {
            self.lay();
        }
        if mode == Mode::Array {
            self.write_back();
        }
    }

    fn command(&mut self, value: u8) {
        let mode = match value {
            0x10 | 0x40 => Mode::Program,
            0x20 => Mode::Erase,
            0x70 => Mode::Status,
            0x90 => Mode::Identifier,
            0x98 => Mode::Query,
            0xe8 => {
                self.regs.status |= READY;
                Mode::BufferCount
            }
            0x50 => {
                self.regs.status = 0;
                Mode::Array
            }
            _ => Mode::Array,
        };
        self.set_mode(mode);
    }

    /// The query table: Intel's command set, one region of equal blocks.
    fn query(&self, offset: u64) -> u8 {
        let blocks = (self.ram.len / BLOCK - 1) as u16;
        match offset {
            0x10..=0x12 => b"QRY"[offset as usize - 0x10],
            0x13 => 1,
            0x15 => 0x31,
            0x1b => 0x45,
            0x1c => 0x55,
            0x1f..=0x21 => 7 + (offset == 0x21) as u8 * 3,
            0x23..=0x25 => 4,
            0x27 => self.ram.len.next_power_of_two().trailing_zeros() as u8,
            0x2a => BUFFER.trailing_zeros() as u8,
            0x2c => 1,
            0x2d => blocks as u8,
            0x2e => (blocks >> 8) as u8,
            0x2f => (BLOCK >> 8) as u8,
            0x30 => (BLOCK >> 16) as u8,
            0x31..=0x33 => b"PRI"[offset as usize - 0x31],
            0x34 => b'1',
            0x35 => b'0',
            _ => 0,
        }
    }
}

impl Device for Pflash {
    fn read(&mut self, _region: u32, offset: u64, _width: u8) -> u64 {
        u64::from(match self.regs.mode {
            Mode::Identifier => [0x89, 0x18][offset as usize & 1],
            Mode::Query => self.query(offset),
            Mode::Array => {
                let mut byte = [0xff];
                self.load(offset, &mut byte);
                byte[0]
            }
            _ => self.regs.status,
        })
    }

    fn write(&mut self, _region: u32, offset: u64, _width: u8, value: u64) {
        let value = value as u8;
        match self.regs.mode {
            Mode::Program => {
                self.program(offset, value);
                self.set_mode(Mode::Status);
            }
            Mode::Erase => {
                match value {
                    0xd0 => self.erase(offset),
                    _ => self.regs.status |= READY | SEQUENCE_ERROR,
                }
                self.set_mode(Mode::Status);
            }
            Mode::BufferCount if u64::from(value) < BUFFER => {
                self.regs.buffer.clear();
                self.set_mode(Mode::Buffer(u16::from(value) + 1));
            }
            Mode::Buffer(left) => {
                self.regs.buffer.push((offset, value));
                self.set_mode(if left > 1 { Mode::Buffer(left - 1) } else { Mode::Confirm });
            }
            Mode::BufferCount | Mode::Confirm => {
                match (self.regs.mode, value) {
                    (Mode::Confirm, 0xd0) => {
                        for (offset, value) in std::mem::take(&mut self.regs.buffer) {
                            self.program(offset, value);
                        }
                    }
                    _ => self.regs.status |= READY | SEQUENCE_ERROR,
                }
                self.set_mode(Mode::Status);
            }
            Mode::Array | Mode::Status | Mode::Identifier | Mode::Query => self.command(value),
        }
    }

    /// The array survives.
    fn reset(&mut self, _: ResetKind) {
        self.write_back();
        self.regs = Regs::default();
        self.lay();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        self.lay();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::Backends;
    use emu::bench::{Bench, BenchDisk};

    const BASE: u64 = 0xffc0_0000;

    fn rig() -> (Bench, BenchDisk) {
        let b = Bench::new();
        let contents = [vec![0xff; 4096], vec![0x5a; 4096]].concat();
        let disk = BenchDisk::new(&b, contents.clone());
        let backends = Backends { disks: vec![Some(Box::new(disk.clone()))], ..Backends::default() };
        b.machine.plug_with("vars", None, backends, |s| Pflash::create(s, BASE, &contents)).unwrap();
        b.machine.reset(ResetKind::PowerOn);
        (b, disk)
    }

    fn write(b: &mut Bench, offset: u64, bytes: &[u8]) {
        bytes.iter().for_each(|byte| b.bus.write(BASE + offset, 1, u64::from(*byte)));
    }

    #[test]
    fn the_array_is_memory_until_a_command_comes() {
        let (mut b, _) = rig();
        assert_eq!(b.bus.read(BASE + 4094, 4), 0x5a5a_ffff);
        assert!(b.machine.space.map().ram_for_read(BASE).is_some(), "a processor can execute there");
        assert!(b.machine.space.map().ram_for_write(BASE).is_none());
        write(&mut b, 0, &[0x50, 0x70]);
        assert_eq!(b.bus.read(BASE, 1), 0, "by a cleared status OVMF knows a flash");
        write(&mut b, 0, &[0x98]);
        assert_eq!([0x10, 0x11, 0x12, 0x2d, 0x2f, 0x30].map(|n| b.bus.read(BASE + n, 1)), [81, 82, 89, 1, 16, 0]);
        write(&mut b, 0, &[0xff]);
        assert_eq!(b.bus.read(BASE, 1), 0xff);
    }

    #[test]
    fn programming_clears_bits_and_erasing_sets_them() {
        let (mut b, disk) = rig();
        write(&mut b, 4100, &[0x10, 0x0f]);
        write(&mut b, 4101, &[0x40, 0xff]);
        assert_eq!(b.bus.read(BASE, 1), 0x80, "ready");
        assert_eq!(disk.bytes()[4100], 0x5a, "not before the array is read");
        write(&mut b, 4101, &[0xff]);
        assert_eq!(b.bus.read(BASE + 4100, 2), 0x5a0a);
        assert_eq!(disk.bytes()[4100..4102], [0x0a, 0x5a]);
        write(&mut b, 5000, &[0x20, 0xd0, 0xff]);
        assert!(disk.bytes().iter().all(|byte| *byte == 0xff));
        write(&mut b, 0, &[0x20, 0x00, 0x70]);
        assert_eq!(b.bus.read(BASE, 1), 0xb0, "erasing was not confirmed");
    }

    #[test]
    fn the_write_buffer_is_programmed_when_it_is_confirmed() {
        let (mut b, disk) = rig();
        write(&mut b, 16, &[0xe8, 2]);
        for n in 0..3 {
            write(&mut b, 16 + n, &[n as u8]);
        }
        write(&mut b, 16, &[0xd0, 0xff]);
        assert_eq!(disk.bytes()[15..20], [0xff, 0, 1, 2, 0xff]);
        write(&mut b, 16, &[0xe8, 0xee, 0x70]);
        assert_eq!(b.bus.read(BASE, 1), 0xb0, "more than it holds");
    }

    #[test]
    fn a_reset_keeps_the_contents_and_brings_the_array_back() {
        let (mut b, disk) = rig();
        write(&mut b, 7, &[0x10, 0x77, 0x90]);
        assert_eq!(b.bus.read(BASE, 2), 0x1889);
        b.machine.reset(ResetKind::System);
        assert_eq!((b.bus.read(BASE + 7, 1), disk.bytes()[7]), (0x77, 0x77));
    }
}
