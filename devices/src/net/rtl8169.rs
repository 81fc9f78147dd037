//! Realtek RTL8169S and RTL8110S: gigabit Ethernet.
//!
//! RTL8169S-32/64 and RTL8110S data sheets. Only rings of descriptors (`realtek`), a PHY behind PHYAR, and frames as
//! large as RMS allows, which go over several descriptors where these are smaller.
//!
//! Modelled: filters, checksums, segmentation, VLAN tags, statistics, timer, EEPROM, link changes, loopback; the PHY with
//! the pages that drivers tune it by, which keep what is written. Interrupts are not put off (IntrMitigate). Not modelled:
//! wake-up, fibre (TBI).
//!
//! Guests: re(4) of the BSDs, Linux's r8169 (which wants the PHY's driver realtek), iPXE.

use emu::{Class, Device, Model, Params, PciIds, Slot};
use serde::{Deserialize, Serialize};

use super::realtek::{self, Chip, Core, Realtek, Registers, isr, merge, with_fcs};
use super::{MAC, SUBSYSTEM};

/// The model.
pub static MODEL: Model = Model {
    name: "rtl8169",
    summary: "Realtek 8169S/8110S gigabit Ethernet",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create,
};

/// PHYAR: write (and a read that is done), the register, and the data.
const PHYAR_FLAG: u32 = 1 << 31;
const PHYAR_KEPT: u32 = 0x1f_ffff;

/// PHYstatus.
mod phy_status {
    pub const FULL_DUPLEX: u8 = 1 << 0;
    pub const LINK: u8 = 1 << 1;
    pub const M10: u8 = 1 << 2;
    pub const M100: u8 = 1 << 3;
    pub const M1000: u8 = 1 << 4;
}

/// Bytes of the longest frame that a descriptor can tell of.
const MAX_RECEIVE: usize = 0x3fff;

/// The PHY's register that selects a page, and the pages.
const PAGE: u8 = 31;
const PAGES: usize = 8;

/// Registers that only keep what is written: wake-up frames and what drivers write there that nobody describes.
const KEPT: std::ops::RangeInclusive<u8> = 0x70..=0xd4;

/// What the 8169 has of its own.
#[derive(Clone, Serialize, Deserialize)]
struct Own {
    phyar: u32,
    page: u8,
    /// The registers of page 0 that the standard leaves to the maker, and all of the others.
    pages: Vec<u16>,
    largest: u16,
    mitigate: u16,
    early_tx: u8,
    kept: Vec<u32>,
}

impl Default for Own {
    fn default() -> Own {
        let kept = vec![0; (KEPT.end() - KEPT.start()) as usize / 4 + 1];
        Own { phyar: 0, page: 0, pages: vec![0; 32 * PAGES], largest: 0, mitigate: 0, early_tx: 0, kept }
    }
}

impl realtek::Own for Own {
    fn fits(&self) -> bool {
        let fresh = Own::default();
        (self.kept.len(), self.pages.len()) == (fresh.kept.len(), fresh.pages.len())
    }
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
    let chip = Chip {
        ids: PciIds { vendor: 0x10ec, device: 0x8169, class: 0x02_0000, revision: 0x10, ..PciIds::default() },
        version: 0x0400_0000,
        loopback: 1 << 17,
        ring: 1024,
        length_bits: 14,
        phy: 0x001c_c910,
        gigabit: true,
    };
    Ok(Box::new(Realtek { core: Core::create(slot, params, chip)?, s: Own::default() }))
}

impl Realtek<Own> {
    /// The register of the present page, if it is none of the standard's.
    fn paged(&mut self, register: u8) -> Option<&mut u16> {
        let own = self.s.page != 0 || register > 15 || matches!(register, 11..=14);
        self.s.pages.get_mut(32 * usize::from(self.s.page) + usize::from(register)).filter(|_| own)
    }

    /// PHYAR's flag says when an access is over: it falls after a write, and rises after a read.
    fn access_phy(&mut self, value: u32) {
        let register = (value >> 16 & 31) as u8;
        if value & PHYAR_FLAG == 0 {
            let data = match self.paged(register) {
                _ if register == PAGE => self.s.page.into(),
                Some(kept) => *kept,
                None => self.core.s.phy.read(register),
            };
            self.s.phyar = PHYAR_FLAG | u32::from(register) << 16 | u32::from(data);
            return;
        }
        self.s.phyar = value & PHYAR_KEPT;
        if register == PAGE {
            self.s.page = value as u8 % PAGES as u8;
        } else if let Some(kept) = self.paged(register) {
            *kept = value as u16;
        } else if self.core.s.phy.write(register, value as u16) && self.core.link() {
            self.core.s.isr |= isr::LINK_CHANGE;
        }
    }

    fn phy_status(&self) -> u8 {
        let (phy, mode) = (&self.core.s.phy, self.core.s.phy.mode());
        if !phy.link() {
            return 0;
        }
        let speed = match mode.speed {
            1000 => phy_status::M1000,
            100 => phy_status::M100,
            _ => phy_status::M10,
        };
        phy_status::LINK | speed | if mode.full_duplex { phy_status::FULL_DUPLEX } else { 0 }
    }
}

impl Registers for Realtek<Own> {
    fn get(&mut self, at: u8, _: u32) -> u32 {
        match at {
            0x38 => self.core.polling().into(),
            0x54 => {
                let config = self.core.s.config;
                u32::from_le_bytes([config[3], config[4], config[5], 0])
            }
            0x58 => self.core.timer_int(),
            0x60 => self.s.phyar,
            0x6c => self.phy_status().into(),
            0xd8 => u32::from(self.s.largest) << 16,
            0xe0 => self.core.get(at) | u32::from(self.s.mitigate) << 16,
            0xec => self.s.early_tx.into(),
            _ if KEPT.contains(&at) => self.s.kept[usize::from(at - KEPT.start()) / 4],
            _ => self.core.get(at),
        }
    }

    fn set(&mut self, at: u8, value: u32, lanes: u32) {
        let bytes = value.to_le_bytes();
        let has = |n: usize| lanes >> (8 * n) & 1 != 0;
        let high = |old: u16| (merge(u32::from(old) << 16, value, lanes) >> 16) as u16;
        match at {
            0x34 if has(3) => {
                if self.core.set_command(bytes[3]).reset {
                    let Own { page, pages, .. } = std::mem::take(&mut self.s);
                    self.s = Own { page, pages, ..Own::default() };
                }
            }
            0x38 if has(0) => self.core.poll(bytes[0]),
            0x54 => (0..3).filter(|n| has(*n)).for_each(|n| self.core.set_config(3 + n, bytes[n])),
            0x58 => self.core.set_timer_int(value, lanes),
            0x60 => self.access_phy(merge(self.s.phyar, value, lanes)),
            0xd8 => self.s.largest = high(self.s.largest),
            0xe0 => {
                self.s.mitigate = high(self.s.mitigate);
                self.core.set(at, value, lanes);
            }
            0xec if has(0) => self.s.early_tx = bytes[0],
            _ if KEPT.contains(&at) => {
                let kept = &mut self.s.kept[usize::from(at - KEPT.start()) / 4];
                *kept = merge(*kept, value, lanes);
            }
            _ => self.core.set(at, value, lanes),
        }
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(kind) = self.core.accepts(frame) else { return };
        // 0 is what it has after a reset, when drivers may not have set it yet.
        let largest = if self.s.largest == 0 { MAX_RECEIVE } else { usize::from(self.s.largest).min(MAX_RECEIVE) };
        if with_fcs(frame) > largest {
            self.core.refused();
        } else {
            self.core.receive_into_ring(frame, kind);
        }
    }
}

#[cfg(test)]
mod tests;
