//! Realtek RTL8139C and RTL8139C+: fast Ethernet.
//!
//! RTL8139C and RTL8139C+ data sheets. Revision 20 is the C+, which can work with rings of descriptors (`realtek`); both
//! have the 8139's own mode: four transmit descriptors in registers, and a ring of bytes that frames are received into,
//! each behind a header of status and length (with FCS), on a boundary of four bytes. Drivers tell the two by the
//! revision: re(4) and 8139cp take 20, rl(4) and 8139too what is lower.
//!
//! Modelled: filters, checksums, segmentation and VLAN tags in C+ mode, statistics, timer, EEPROM, PHY, loopback, link
//! changes. Frames come in whole, so that early interrupts (ERTH, MULINT) come with their last byte. Not modelled: wake-up.

use emu::{Class, Device, Model, Param, ParamKind, Params, PciIds, Slot};
use serde::{Deserialize, Serialize};

use super::phy::reg;
use super::realtek::{self, Chip, Core, Realtek, Registers, cpcr, cr, isr, merge, with_fcs};
use super::{MAC, SUBSYSTEM, crc32_le};

/// The model.
pub static MODEL: Model = Model {
    name: "rtl8139",
    summary: "Realtek 8139 fast Ethernet",
    class: Class::Network,
    keys: &[
        MAC,
        Param {
            name: "revision",
            kind: ParamKind::Choice(&["10", "20"]),
            default: "20",
            help: "20: 8139C+, which re(4) and 8139cp drive; 10: 8139C, for rl(4) and 8139too",
        },
        SUBSYSTEM,
    ],
    create,
};

/// Transmit status of a descriptor (TSD).
mod tsd {
    pub const SIZE: u32 = 0x1fff;
    /// The chip is done, and the descriptor is the driver's.
    pub const OWN: u32 = 1 << 13;
    pub const TOK: u32 = 1 << 15;
    pub const ERTXTH: u32 = 0x3f << 16;
    pub const CRS: u32 = 1 << 31;
    /// Bits that TSAD has of all four, and where.
    pub const SUMMARY: [(u32, u32); 4] = [(13, 0), (30, 4), (14, 8), (15, 12)];
}

/// Receive configuration: the size of the ring, and whether a frame may go on past its end.
const RCR_SIZE_SHIFT: u32 = 11;
const RCR_WRAP: u32 = 1 << 7;
const RCR_EARLY: u32 = 0xf << 24;

/// Status in the header of a received frame; the bits above say what it was taken in for.
const ROK: u16 = 1;
/// Bytes of that header.
const HEADER: usize = 4;
/// What was received early came to a good end (ERSR).
const ER_GOOD: u8 = 1 << 3;
/// CAPR is so far behind the place that the driver reads next.
const CAPR_BEHIND: u16 = 16;

/// Bytes of the longest frame that is sent from a descriptor, and that is received, with FCS.
const MAX_SEND: usize = 1792;
const MAX_RECEIVE: usize = 4096;
/// The backend waits while less than this is free: a frame with a VLAN tag, its header, and what keeps full and empty
/// apart.
const ROOM: usize = 1536;

/// The revision of an 8139C+.
const PLUS: u8 = 0x20;

/// Registers that only keep what is written: PHY parameters and wake-up frames.
const KEPT: std::ops::RangeInclusive<u8> = 0x78..=0xd4;

/// What the 8139 has of its own.
#[derive(Clone, Serialize, Deserialize)]
struct Own {
    tsd: [u32; 4],
    /// The descriptor that is sent next.
    next: usize,
    start: u32,
    capr: u16,
    cbr: u16,
    early: u8,
    config5: u8,
    kept: Vec<u32>,
}

impl Default for Own {
    fn default() -> Own {
        let kept = vec![0; (KEPT.end() - KEPT.start()) as usize / 4 + 1];
        let capr = 0u16.wrapping_sub(CAPR_BEHIND);
        Own { tsd: [tsd::OWN; 4], next: 0, start: 0, capr, cbr: 0, early: 0, config5: 0, kept }
    }
}

impl realtek::Own for Own {
    fn fits(&self) -> bool {
        self.next < self.tsd.len() && self.kept.len() == Own::default().kept.len()
    }
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
    let plus = params.get("revision") != Some("10");
    let chip = Chip {
        ids: PciIds {
            vendor: 0x10ec,
            device: 0x8139,
            class: 0x02_0000,
            revision: if plus { PLUS } else { 0x10 },
            ..PciIds::default()
        },
        version: if plus { 0x7480_0000 } else { 0x7400_0000 },
        loopback: 3 << 17,
        ring: 64,
        length_bits: 13,
        phy: 0,
        gigabit: false,
    };
    Ok(Box::new(Realtek { core: Core::create(slot, params, chip)?, s: Own::default() }))
}

impl Realtek<Own> {
    /// Bytes of the receive ring.
    fn size(&self) -> usize {
        8192 << (self.core.s.rcr >> RCR_SIZE_SHIFT & 3)
    }

    /// Bytes of the ring that hold frames.
    fn used(&self) -> usize {
        let read = self.s.capr.wrapping_add(CAPR_BEHIND);
        usize::from(self.s.cbr.wrapping_sub(read)) & (self.size() - 1)
    }

    /// Whether it is an 8139C+.
    fn plus(&self) -> bool {
        self.core.chip.ids.revision == PLUS
    }

    fn in_rings(&self, direction: u16) -> bool {
        self.plus() && self.core.s.cpcr & direction != 0
    }

    fn command(&mut self, value: u8) {
        let started = self.core.set_command(value);
        if started.reset {
            let kept = std::mem::take(&mut self.s.kept);
            self.s = Own { config5: self.s.config5, kept, ..Own::default() };
        }
        if started.receiver {
            (self.s.cbr, self.s.capr) = (0, 0u16.wrapping_sub(CAPR_BEHIND));
        }
        if started.transmitter {
            self.s.next = 0;
        }
        self.transmit();
    }

    /// Sends what is in the four descriptors, in turn.
    fn transmit(&mut self) {
        for _ in 0..self.s.tsd.len() {
            let n = self.s.next;
            let status = self.s.tsd[n];
            if status & tsd::OWN != 0 || self.core.s.command & cr::TE == 0 {
                return;
            }
            let mut frame = vec![0; (status & tsd::SIZE) as usize];
            let mut carrier = true;
            if (1..=MAX_SEND).contains(&frame.len()) {
                let at = self.core.get(0x20 + 4 * n as u8);
                self.core.dma.read(at.into(), &mut frame);
                carrier = self.core.send(&mut frame);
            }
            self.s.tsd[n] = status | tsd::OWN | tsd::TOK | if carrier { 0 } else { tsd::CRS };
            self.s.next = (n + 1) % self.s.tsd.len();
            self.core.s.isr |= isr::TOK;
        }
    }

    /// Puts a frame into the ring of bytes.
    fn store(&mut self, frame: &[u8], kind: u16) {
        let (size, length) = (self.size(), with_fcs(frame));
        let taken = (HEADER + length).next_multiple_of(4);
        if taken >= size - self.used() {
            self.core.missed();
            return self.core.starve();
        }
        let mut bytes = Vec::with_capacity(HEADER + length);
        bytes.extend_from_slice(&(kind | ROK).to_le_bytes());
        bytes.extend_from_slice(&(length as u16).to_le_bytes());
        bytes.extend_from_slice(frame);
        bytes.extend_from_slice(&(!crc32_le(frame)).to_le_bytes());
        let at = usize::from(self.s.cbr) & (size - 1);
        // With 64 KiB there is nothing behind the end.
        let past_the_end = self.core.s.rcr & RCR_WRAP != 0 && size < 1 << 16;
        let (first, rest) = bytes.split_at(if past_the_end { bytes.len() } else { bytes.len().min(size - at) });
        self.core.dma.write(u64::from(self.s.start) + at as u64, first);
        self.core.dma.write(self.s.start.into(), rest);
        self.s.cbr = ((at + taken) & (size - 1)) as u16;
        if self.core.s.rcr & RCR_EARLY != 0 {
            self.s.early |= ER_GOOD;
        }
        self.core.received(kind);
        if size - self.used() < ROOM {
            self.core.starve();
        }
    }

    /// The driver has read.
    fn set_capr(&mut self, value: u16) {
        self.s.capr = value;
        if self.core.starved() && !self.in_rings(cpcr::RX) && self.size() - self.used() >= ROOM {
            self.core.feed();
        }
    }

    fn media_status(&self) -> u8 {
        let phy = &self.core.s.phy;
        (if phy.link() { 0 } else { 1 << 2 }) | if phy.mode().speed == 10 { 1 << 3 } else { 0 }
    }

    /// TSAD: what became of all four descriptors.
    fn summary(&self) -> u32 {
        let bit = |n: usize, from: u32| self.s.tsd[n] >> from & 1;
        tsd::SUMMARY.iter().map(|(from, to)| (0..4).map(|n| bit(n, *from) << (*to + n as u32)).sum::<u32>()).sum()
    }

    fn write_phy(&mut self, register: u8, value: u16) {
        if self.core.s.phy.write(register, value) && self.core.link() {
            self.core.s.isr |= isr::LINK_CHANGE;
        }
    }
}

impl Registers for Realtek<Own> {
    fn get(&mut self, at: u8, lanes: u32) -> u32 {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        match at {
            0x10 | 0x14 if self.in_rings(cpcr::TX | cpcr::RX) => self.core.get(at),
            0x10..=0x1c => self.s.tsd[usize::from(at - 0x10) / 4],
            0x30 => self.s.start,
            0x34 => {
                let empty = if self.used() == 0 { cr::BUFE } else { 0 };
                u32::from(self.s.early) << 16 | self.core.get(at) | u32::from(empty) << 24
            }
            0x38 => pair(self.s.capr, self.s.cbr),
            0x54 => self.core.timer_int(),
            0x58 => {
                let config = self.core.s.config;
                u32::from_le_bytes([self.media_status(), config[3], config[4], 0])
            }
            0x60 => pair(self.summary() as u16, self.core.s.phy.read(reg::BMCR)),
            // BMSR's link bit changes when it is read.
            0x64 => {
                let status = if lanes & 0xffff != 0 { self.core.s.phy.read(reg::BMSR) } else { 0 };
                pair(status, self.core.s.phy.read(reg::ANAR))
            }
            0x68 => pair(self.core.s.phy.read(reg::ANLPAR), self.core.s.phy.read(reg::ANER)),
            // CSCR: connected.
            0x74 if self.core.link() => 0x0408,
            0xd8 => u32::from_le_bytes([self.s.config5, if self.plus() { self.core.polling() } else { 0 }, 0, 0]),
            0xe0..=0xe8 if !self.plus() => 0,
            _ if KEPT.contains(&at) => self.s.kept[usize::from(at - KEPT.start()) / 4],
            _ => self.core.get(at),
        }
    }

    fn set(&mut self, at: u8, value: u32, lanes: u32) {
        let bytes = value.to_le_bytes();
        let has = |n: u32| lanes >> (8 * n) & 1 != 0;
        match at {
            0x10 | 0x14 if self.in_rings(cpcr::TX | cpcr::RX) => self.core.set(at, value, lanes),
            0x10..=0x1c => {
                let status = &mut self.s.tsd[usize::from(at - 0x10) / 4];
                *status = merge(*status, value, lanes) & (tsd::SIZE | tsd::OWN | tsd::ERTXTH);
                self.transmit();
            }
            0x30 => self.s.start = merge(self.s.start, value, lanes),
            0x34 => {
                self.s.early &= !((value & lanes) >> 16) as u8;
                if has(3) {
                    self.command(bytes[3]);
                }
            }
            0x38 => self.set_capr(merge(self.s.capr.into(), value, lanes) as u16),
            0x54 => self.core.set_timer_int(value, lanes),
            0x58 => {
                (3..5).filter(|n| has(*n - 2)).for_each(|n| self.core.set_config(n as usize, bytes[n as usize - 2]))
            }
            0x60 if lanes >> 16 != 0 => self.write_phy(reg::BMCR, (value >> 16) as u16),
            0x64 if lanes >> 16 != 0 => self.write_phy(reg::ANAR, (value >> 16) as u16),
            0xd8 => {
                if has(0) {
                    self.s.config5 = bytes[0] & 0x7f;
                }
                if has(1) && self.plus() {
                    self.core.poll(bytes[1]);
                }
            }
            0xe0..=0xe8 if !self.plus() => {}
            _ if KEPT.contains(&at) => {
                let kept = &mut self.s.kept[usize::from(at - KEPT.start()) / 4];
                *kept = merge(*kept, value, lanes);
            }
            _ => self.core.set(at, value, lanes),
        }
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(kind) = self.core.accepts(frame) else { return };
        if with_fcs(frame) > MAX_RECEIVE {
            self.core.refused();
        } else if self.in_rings(cpcr::RX) {
            self.core.receive_into_ring(frame, kind);
        } else {
            self.store(frame, kind);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
