//! The transceiver of network cards: the registers that MDIO reaches, and MDIO itself for chips whose drivers clock it.
//!
//! IEEE 802.3, clause 22: basic control and status, identifier, advertisement, the partner's ability; a gigabit one has
//! registers 9, 10 and 15, too. The other end of the cable can do all that this one can, and autonegotiation ends at
//! once: drivers that poll for it see it complete, with the link up, at the first read.

use serde::{Deserialize, Serialize};

/// Registers.
pub mod reg {
    pub const BMCR: u8 = 0;
    pub const BMSR: u8 = 1;
    pub const PHYIDR1: u8 = 2;
    pub const PHYIDR2: u8 = 3;
    pub const ANAR: u8 = 4;
    pub const ANLPAR: u8 = 5;
    pub const ANER: u8 = 6;
    pub const GTCR: u8 = 9;
    pub const GTSR: u8 = 10;
    pub const EXTSR: u8 = 15;
}

/// BMCR.
mod bmcr {
    pub const RESET: u16 = 1 << 15;
    pub const LOOPBACK: u16 = 1 << 14;
    pub const SPEED_LSB: u16 = 1 << 13;
    pub const ANEG_ENABLE: u16 = 1 << 12;
    pub const ANEG_RESTART: u16 = 1 << 9;
    pub const DUPLEX: u16 = 1 << 8;
    pub const SPEED_MSB: u16 = 1 << 6;
}

/// BMSR.
mod bmsr {
    pub const ABLE_100: u16 = 0x6000;
    pub const ABLE_10: u16 = 0x1800;
    pub const EXTENDED_STATUS: u16 = 1 << 8;
    pub const NO_PREAMBLE: u16 = 1 << 6;
    pub const ANEG_COMPLETE: u16 = 1 << 5;
    pub const ANEG_ABLE: u16 = 1 << 3;
    pub const LINK: u16 = 1 << 2;
    pub const EXTENDED: u16 = 1;
}

/// What ANAR and ANLPAR say: selector 802.3, and 10 and 100 Mbit/s in half and full duplex.
const ABILITY: u16 = 0x01e1;
/// The partner has heard us.
const ACKNOWLEDGE: u16 = 1 << 14;

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Mbit/s.
    pub speed: u16,
    /// Both ways at once.
    pub full_duplex: bool,
}

/// A transceiver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Phy {
    id: u32,
    gigabit: bool,
    control: u16,
    advertised: u16,
    gigabit_control: u16,
    link: bool,
    /// BMSR's link bit shows a loss once, also when it is over.
    lost: bool,
}

impl Phy {
    /// One with this identifier (PHYIDR1 in the high half), whose cable is plugged or not.
    pub fn new(id: u32, gigabit: bool, link: bool) -> Phy {
        let mut phy = Phy { id, gigabit, control: 0, advertised: 0, gigabit_control: 0, link, lost: false };
        phy.reset();
        phy
    }

    /// As after power-on, or BMCR's reset. The cable stays as it is.
    pub fn reset(&mut self) {
        let fast = if self.gigabit { bmcr::SPEED_MSB } else { bmcr::SPEED_LSB };
        self.control = bmcr::ANEG_ENABLE | bmcr::DUPLEX | fast;
        self.advertised = ABILITY;
        self.gigabit_control = if self.gigabit { 0x0300 } else { 0 };
    }

    /// Whether there is a carrier.
    pub fn link(&self) -> bool {
        self.link
    }

    /// The cable was plugged or pulled. True if that changes anything.
    pub fn set_link(&mut self, link: bool) -> bool {
        self.lost |= self.link && !link;
        std::mem::replace(&mut self.link, link) != link
    }

    /// What is sent comes back (BMCR's loopback).
    pub fn loopback(&self) -> bool {
        self.control & bmcr::LOOPBACK != 0
    }

    /// Speed and duplex, negotiated or forced.
    pub fn mode(&self) -> Mode {
        let control = self.control;
        if control & bmcr::ANEG_ENABLE == 0 {
            let speed = match (control & bmcr::SPEED_MSB != 0, control & bmcr::SPEED_LSB != 0) {
                (true, _) if self.gigabit => 1000,
                (_, true) => 100,
                _ => 10,
            };
            return Mode { speed, full_duplex: control & bmcr::DUPLEX != 0 };
        }
        let common = [
            (self.gigabit_control & 0x0200 != 0, 1000, true),
            (self.gigabit_control & 0x0100 != 0, 1000, false),
            (self.advertised & 0x0100 != 0, 100, true),
            (self.advertised & 0x0080 != 0, 100, false),
            (self.advertised & 0x0040 != 0, 10, true),
        ];
        let best = common.into_iter().find(|(able, ..)| *able);
        best.map_or(Mode { speed: 10, full_duplex: false }, |(_, speed, full_duplex)| Mode { speed, full_duplex })
    }

    /// Reads a register.
    pub fn read(&mut self, register: u8) -> u16 {
        let negotiated = self.link && self.control & bmcr::ANEG_ENABLE != 0;
        match register {
            reg::BMCR => self.control,
            reg::BMSR => {
                let lost = std::mem::take(&mut self.lost);
                let able = bmsr::ABLE_100 | bmsr::ABLE_10 | bmsr::NO_PREAMBLE | bmsr::ANEG_ABLE | bmsr::EXTENDED;
                let more = if self.gigabit { bmsr::EXTENDED_STATUS } else { 0 };
                let link = if self.link && !lost { bmsr::LINK } else { 0 };
                able | more | link | if negotiated { bmsr::ANEG_COMPLETE } else { 0 }
            }
            reg::PHYIDR1 => (self.id >> 16) as u16,
            reg::PHYIDR2 => self.id as u16,
            reg::ANAR => self.advertised,
            reg::ANLPAR if negotiated => ABILITY | ACKNOWLEDGE,
            // The partner negotiates, and a page came from it.
            reg::ANER if negotiated => 0x0003,
            reg::GTCR => self.gigabit_control,
            // Both receivers are well; the partner does 1000BASE-T in full and half duplex.
            reg::GTSR if self.gigabit && negotiated => 0x3c00,
            reg::EXTSR if self.gigabit => 0x3000,
            _ => 0,
        }
    }

    /// Writes a register. True if the driver asked for a new negotiation, which is over.
    pub fn write(&mut self, register: u8, value: u16) -> bool {
        match register {
            reg::BMCR if value & bmcr::RESET != 0 => {
                self.reset();
                return true;
            }
            reg::BMCR => {
                let negotiates = bmcr::ANEG_ENABLE | bmcr::ANEG_RESTART;
                self.control = value & 0x7d80 | if self.gigabit { value & bmcr::SPEED_MSB } else { 0 };
                return value & negotiates == negotiates;
            }
            reg::ANAR => self.advertised = value & 0xbfff,
            reg::GTCR if self.gigabit => self.gigabit_control = value & 0xff00,
            _ => {}
        }
        false
    }
}

/// MDIO as drivers clock it: a frame is a preamble of ones, start 01, opcode (10 reads, 01 writes), five bits of PHY
/// address, five of register, a turnaround of two bits, and 16 bits of data. A bit is taken at MDC's rising edge. The PHY
/// puts one out behind an edge, for the station to take at the next: the zero of the turnaround is there after the first
/// edge that follows the address, the first bit of data after the second. Drivers look right after an edge (Linux's
/// e1000), while MDC is low (mii_bitbang of the BSDs) or before the next edge (Linux's tulip).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Mdio {
    mdc: bool,
    /// Bits behind the preamble, and how many.
    bits: u32,
    count: u32,
    /// What a read puts out; nothing if nobody is at the address.
    data: Option<u16>,
    out: bool,
}

/// What a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Register `register` of the PHY at `address` has to be read, and given to [`Mdio::answer`].
    Read {
        /// Of the PHY.
        address: u8,
        /// In the PHY.
        register: u8,
    },
    /// `value` is written.
    Write {
        /// Of the PHY.
        address: u8,
        /// In the PHY.
        register: u8,
        /// What is written.
        value: u16,
    },
}

impl Mdio {
    /// The chip sets MDC, and MDO as far as it drives it (else the line is pulled up).
    pub fn drive(&mut self, mdc: bool, mdo: bool) -> Option<Frame> {
        let edge = mdc && !self.mdc;
        self.mdc = mdc;
        if edge { self.clock(mdo) } else { None }
    }

    /// What the PHY puts on the line.
    pub fn data_in(&self) -> bool {
        self.out
    }

    /// The answer to [`Frame::Read`]; `None` if there is no PHY at the address, and the line stays high.
    pub fn answer(&mut self, value: Option<u16>) {
        self.data = value;
    }

    fn clock(&mut self, bit: bool) -> Option<Frame> {
        let reads = self.count >= 14 && self.bits >> (self.count - 4) & 3 == 0b10;
        match self.count {
            // Ones before the start are the preamble, and a start that is none is taken for it.
            0 => {
                self.out = true;
                if bit {
                    return None;
                }
            }
            1 if !bit => {
                self.count = 0;
                return None;
            }
            // The turnaround's second bit is a zero, if anybody is there.
            14 if reads => self.out = self.data.is_none(),
            15..=30 if reads => self.out = self.data.is_none_or(|data| data >> (30 - self.count) & 1 != 0),
            31 => self.out = true,
            _ => {}
        }
        self.bits = self.bits << 1 | u32::from(bit);
        self.count += 1;
        let field = |from: u32| (self.bits >> (self.count - from)) as u8 & 31;
        match self.count {
            14 if self.bits >> 10 & 3 == 0b10 => Some(Frame::Read { address: field(9), register: field(14) }),
            32 => {
                let write = self.bits >> 28 & 3 == 0b01;
                let (address, register, value) = (field(9), field(14), self.bits as u16);
                (self.bits, self.count) = (0, 0);
                write.then_some(Frame::Write { address, register, value })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bus(Mdio, Phy);

    impl Bus {
        fn bit(&mut self, bit: bool) -> bool {
            for mdc in [false, true] {
                match self.0.drive(mdc, bit) {
                    Some(Frame::Read { address, register }) => {
                        let value = (address == 1).then(|| self.1.read(register));
                        self.0.answer(value);
                    }
                    Some(Frame::Write { address: 1, register, value }) => {
                        self.1.write(register, value);
                    }
                    Some(Frame::Write { .. }) | None => {}
                }
            }
            self.0.data_in()
        }

        fn send(&mut self, value: u32, bits: u32) {
            for n in (0..bits).rev() {
                self.bit(value >> n & 1 != 0);
            }
        }

        fn read(&mut self, address: u32, register: u32) -> (bool, u16) {
            self.send(!0, 32);
            self.send(0b0110 << 10 | address << 5 | register, 14);
            let turnaround = self.bit(true);
            (turnaround, (0..16).fold(0, |word, _| word << 1 | u16::from(self.bit(true))))
        }

        fn write(&mut self, address: u32, register: u32, value: u32) {
            self.send(!0, 32);
            self.send(0b0101 << 28 | address << 23 | register << 18 | 0b10 << 16 | value, 32);
        }
    }

    #[test]
    fn registers_are_read_and_written_bit_by_bit() {
        let mut bus = Bus(Mdio::default(), Phy::new(0x7810_0000 | 0x1234, false, true));
        assert_eq!(bus.read(1, 2), (false, 0x7810));
        assert_eq!(bus.read(1, 3), (false, 0x1234));
        assert_eq!(bus.read(2, 2), (true, 0xffff), "nobody answers there");
        bus.write(1, 4, 0x0061);
        bus.write(3, 4, 0x01e1);
        assert_eq!(bus.read(1, 4), (false, 0x0061));
        assert_eq!(bus.1.mode(), Mode { speed: 10, full_duplex: true });
    }

    #[test]
    fn the_link_is_up_and_negotiated_at_once_and_a_loss_shows_once() {
        let mut phy = Phy::new(0x0141_0c50, true, true);
        assert_eq!(phy.read(reg::BMSR) & 0x24, 0x24);
        assert_eq!(phy.mode(), Mode { speed: 1000, full_duplex: true });
        assert!(phy.set_link(false) && phy.set_link(true) && !phy.set_link(true));
        assert_eq!(phy.read(reg::BMSR) & 4, 0);
        assert_eq!(phy.read(reg::BMSR) & 4, 4);
        assert!(phy.write(reg::BMCR, 0x1200), "a new negotiation");
        assert_eq!(phy.read(reg::BMCR) & 0x0200, 0, "is over");
        phy.write(reg::BMCR, 0x2100);
        assert_eq!(phy.mode(), Mode { speed: 100, full_duplex: true });
        assert_eq!(phy.read(reg::ANLPAR), 0, "nothing is negotiated");
        assert!(phy.write(reg::BMCR, 0x8000));
        assert_eq!(phy.read(reg::BMCR), 0x1140);
    }
}
