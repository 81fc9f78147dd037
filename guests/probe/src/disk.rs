//! IDE drives at the two legacy places: IDENTIFY, and the first sectors by PIO and by bus-master DMA.

use crate::cpu::{inb, inw, outb, outl};
use crate::report::{Text, Verdict};
use crate::{ensure, fail, good, mem, pci, skip, text, time};
use core::fmt::Write;

const BSY: u8 = 0x80;
const DRQ: u8 = 0x08;
const ERR: u8 = 0x01;

pub struct Drive {
    pub packet: bool,
    pub model: Text,
    pub sectors: u64,
    base: u16,
    slave: bool,
}

fn command(base: u16, control: u16, slave: bool, byte: u8) -> bool {
    outb(base + 6, 0xe0 | u8::from(slave) << 4);
    for _ in 0..4 {
        inb(control);
    }
    if inb(base + 7) == 0xff || inb(base + 7) & BSY != 0 && !time::spin_until(500, || inb(base + 7) & BSY == 0) {
        return false;
    }
    outb(control, 2);
    outb(base + 7, byte);
    for _ in 0..4 {
        inb(control);
    }
    inb(base + 7) != 0 && time::spin_until(2000, || inb(base + 7) & BSY == 0) && inb(base + 7) & (ERR | DRQ) == DRQ
}

/// IDENTIFY DEVICE, and IDENTIFY PACKET DEVICE where the signature asks for it.
pub fn identify(channel: usize, slave: bool) -> Option<Drive> {
    let (base, control) = [(0x1f0, 0x3f6), (0x170, 0x376)][channel];
    let mut packet = false;
    if !command(base, control, slave, 0xec) {
        if (inb(base + 4), inb(base + 5)) != (0x14, 0xeb) {
            return None;
        }
        packet = true;
        if !command(base, control, slave, 0xa1) {
            return None;
        }
    }
    let mut words = [0u16; 256];
    for word in &mut words {
        *word = inw(base);
    }
    let mut model = Text::new();
    let mut end = 47;
    while end > 27 && words[end - 1] == 0x2020 {
        end -= 1;
    }
    for word in &words[27..end] {
        let _ = model.write_char(char::from((word >> 8) as u8));
        let _ = model.write_char(char::from(*word as u8));
    }
    let number = |at: usize, n: usize| (0..n).fold(0, |v, i| v | u64::from(words[at + i]) << (16 * i));
    let sectors = if words[83] & 1 << 10 != 0 { number(100, 4) } else { number(60, 2) };
    Some(Drive { packet, model, sectors, base, slave })
}

/// How many sectors are read.
const SECTORS: u64 = 64;

impl Drive {
    /// Starts a command that reads the first sectors; how many.
    fn read(&self, byte: u8) -> Option<u64> {
        if self.packet || self.sectors == 0 {
            return None;
        }
        let count = self.sectors.min(SECTORS);
        outb(self.base + 6, 0xe0 | u8::from(self.slave) << 4);
        outb(self.base + 2, count as u8);
        for n in 3..6 {
            outb(self.base + n, 0);
        }
        command(self.base, self.control(), self.slave, byte).then_some(count)
    }

    fn control(&self) -> u16 {
        if self.base == 0x1f0 { 0x3f6 } else { 0x376 }
    }

    /// Reads the first sectors by READ SECTORS: their digest, and whether they start with a boot sector.
    pub fn read_pio(&self) -> Option<(u32, bool)> {
        let count = self.read(0x20)?;
        let (mut hash, mut boot) = (Hash::new(), false);
        for n in 0..count {
            if !time::spin_until(2000, || inb(self.control()) & BSY == 0) || inb(self.base + 7) & (ERR | DRQ) != DRQ {
                return None;
            }
            for at in 0..256 {
                let word = inw(self.base);
                hash.add(word);
                boot |= (n, at, word) == (0, 255, 0xaa55);
            }
        }
        Some((hash.0, boot))
    }

    /// And by READ DMA, through a table of two regions: their digest, or what went wrong. `None` if there is no bus
    /// master.
    pub fn read_dma(&self) -> Option<Result<u32, Text>> {
        let base = bus_master()? + if self.base == 0x1f0 { 0 } else { 8 };
        let mark = mem::mark();
        let result = self.dma_at(base);
        mem::release(mark);
        Some(result)
    }

    fn dma_at(&self, base: u16) -> Result<u32, Text> {
        // Ten pages for the table and the regions, which must not cross a piece of 64 KiB.
        let table = mem::pages(26).map(|at| at.next_multiple_of(0x1_0000)).ok_or(text!("no memory"))?;
        let (first, second) = (table + 0x8000, table + 0x1000);
        let bytes = self.sectors.min(SECTORS) * 512;
        let split = ((bytes / 4) & !511).max(512).min(bytes);
        mem::write32(table, first as u32);
        mem::write32(table + 4, split as u32 | if split == bytes { 1 << 31 } else { 0 });
        mem::write32(table + 8, second as u32);
        mem::write32(table + 12, (bytes - split) as u32 | 1 << 31);
        outb(base, 0x08);
        outb(base + 2, 0x06);
        outl(base + 4, table as u32);
        self.read(0xc8).ok_or(text!("READ DMA is refused"))?;
        outb(base, 0x09);
        let done = time::spin_until(2000, || inb(base + 2) & 0x07 != 0x01 && inb(self.control()) & BSY == 0);
        let (status, drive) = (inb(base + 2), inb(self.base + 7));
        outb(base, 0);
        if !done || status & 0x03 != 0 || drive & (BSY | DRQ | ERR) != 0 {
            return Err(text!("DMA ends with bus master {status:#x}, drive {drive:#x}"));
        }
        let mut hash = Hash::new();
        for at in (0..bytes).step_by(2) {
            let at = if at < split { first + at } else { second + (at - split) };
            hash.add(mem::read_le(at, 2) as u16);
        }
        Ok(hash.0)
    }

    pub fn place(channel: usize, slave: bool) -> &'static str {
        [["primary master", "primary slave"], ["secondary master", "secondary slave"]][channel][usize::from(slave)]
    }
}

/// FNV-1a over words.
struct Hash(u32);

impl Hash {
    fn new() -> Hash {
        Hash(0x811c_9dc5)
    }

    fn add(&mut self, word: u16) {
        self.0 = (self.0 ^ u32::from(word)).wrapping_mul(0x0100_0193);
    }
}

/// The ports of the first IDE function's bus master, after letting it master the bus.
fn bus_master() -> Option<u16> {
    let mut found = None;
    if pci::present() {
        pci::walk(|f| {
            if f.class() & 0xff_ff80 == 0x01_0180 && found.is_none() {
                f.enable_bus_master();
                f.each_bar(|n, bar| {
                    if n == 4 && bar.io {
                        found = Some(bar.base as u16);
                    }
                });
            }
        });
    }
    found
}

/// Every drive that is there tells its model and its size; disks give the same by PIO and by DMA.
pub fn check() -> Verdict {
    let mut found = Text::new();
    for channel in 0..2 {
        for slave in [false, true] {
            let Some(drive) = identify(channel, slave) else { continue };
            let place = Drive::place(channel, slave);
            let _ = write!(found, "{place} {} {} sectors", drive.model.as_str().trim(), drive.sectors);
            if !drive.packet {
                ensure!(drive.sectors > 0, "{place}: no sectors");
                let Some((pio, _)) = drive.read_pio() else { fail!("{place}: the first sectors cannot be read") };
                match drive.read_dma() {
                    Some(Ok(dma)) => {
                        ensure!(dma == pio, "{place}: {dma:08x} by DMA, {pio:08x} by PIO");
                        let _ = write!(found, " {pio:08x} by PIO and DMA");
                    }
                    Some(Err(why)) => fail!("{place}: {why}"),
                    None => {
                        let _ = write!(found, " {pio:08x} by PIO");
                    }
                }
            }
            let _ = write!(found, "; ");
        }
    }
    if found.as_str().is_empty() {
        skip!("no drive");
    }
    good!("{found}")
}
