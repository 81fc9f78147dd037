//! IDE drives at the two legacy places, by PIO: IDENTIFY and one sector.

use crate::cpu::{inb, inw, outb};
use crate::report::{Text, Verdict};
use crate::{ensure, good, skip, time};
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

impl Drive {
    /// Bytes 510 and 511 of sector 0, by READ SECTORS.
    pub fn signature(&self) -> Option<u16> {
        if self.packet || self.sectors == 0 {
            return None;
        }
        let control = if self.base == 0x1f0 { 0x3f6 } else { 0x376 };
        outb(self.base + 6, 0xe0 | u8::from(self.slave) << 4);
        outb(self.base + 2, 1);
        outb(self.base + 3, 0);
        outb(self.base + 4, 0);
        outb(self.base + 5, 0);
        if !command(self.base, control, self.slave, 0x20) {
            return None;
        }
        Some((0..256).fold(0, |_, _| inw(self.base)))
    }

    pub fn place(channel: usize, slave: bool) -> &'static str {
        [["primary master", "primary slave"], ["secondary master", "secondary slave"]][channel][usize::from(slave)]
    }
}

/// Every drive that is there tells its model and its size, and can read sector 0.
pub fn check() -> Verdict {
    let mut found = Text::new();
    for channel in 0..2 {
        for slave in [false, true] {
            let Some(drive) = identify(channel, slave) else { continue };
            let place = Drive::place(channel, slave);
            if !drive.packet {
                ensure!(drive.sectors > 0, "{place}: no sectors");
                ensure!(drive.signature().is_some(), "{place}: sector 0 cannot be read");
            }
            let _ = write!(found, "{place} {} {} sectors; ", drive.model.as_str().trim(), drive.sectors);
        }
    }
    if found.as_str().is_empty() {
        skip!("no drive");
    }
    good!("{found}")
}
