//! Marvell's 88E1000 and 88E1011, the PHYs of these cards: registers 16 to 31 are its own.

use serde::{Deserialize, Serialize};

use crate::net::phy::{Frame, Mdio, Mode, Phy};

/// Where the PHY answers.
pub const ADDRESS: u8 = 1;

/// Its own registers that have a meaning here: control, status, which interrupt it was, and extended control.
const SPECIFIC_CONTROL: u8 = 16;
const SPECIFIC_STATUS: u8 = 17;
const INTERRUPT_STATUS: u8 = 19;
const EXTENDED_CONTROL: u8 = 20;

/// The PHY, and the bus to it where drivers clock that themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transceiver {
    phy: Phy,
    own: [u16; 16],
    mdio: Mdio,
}

impl Transceiver {
    pub fn new(id: u32, link: bool) -> Transceiver {
        let mut new = Transceiver { phy: Phy::new(id, true, link), own: [0; 16], mdio: Mdio::default() };
        new.reset();
        new
    }

    /// The reset pin. The cable stays as it is.
    pub fn reset(&mut self) {
        self.phy.reset();
        self.mdio = Mdio::default();
        self.own = [0; 16];
        // The pairs of the cable may be crossed; the clocks are those of 25 MHz.
        *self.own(SPECIFIC_CONTROL) = 0x0068;
        *self.own(EXTENDED_CONTROL) = 0x0070;
    }

    pub fn link(&self) -> bool {
        self.phy.link()
    }

    pub fn set_link(&mut self, link: bool) -> bool {
        self.phy.set_link(link)
    }

    /// What is sent comes back.
    pub fn loops(&self) -> bool {
        self.phy.loopback()
    }

    pub fn mode(&self) -> Mode {
        self.phy.mode()
    }

    fn own(&mut self, register: u8) -> &mut u16 {
        &mut self.own[usize::from(register & 15)]
    }

    pub fn read(&mut self, register: u8) -> u16 {
        match register {
            // Resolved; speed, duplex and link.
            SPECIFIC_STATUS => {
                let Mode { speed, full_duplex } = self.phy.mode();
                let speed = match speed {
                    1000 => 2 << 14,
                    100 => 1 << 14,
                    _ => 0,
                };
                let up = if self.phy.link() { 1 << 11 | 1 << 10 } else { 0 };
                speed | if full_duplex { 1 << 13 } else { 0 } | up
            }
            16.. => *self.own(register),
            _ => self.phy.read(register),
        }
    }

    /// True if the link was negotiated again.
    pub fn write(&mut self, register: u8, value: u16) -> bool {
        match register {
            SPECIFIC_STATUS | INTERRUPT_STATUS => false,
            16.. => {
                *self.own(register) = value;
                false
            }
            _ => self.phy.write(register, value),
        }
    }

    /// The driver clocks a bit. True as of [`Transceiver::write`].
    pub fn clock(&mut self, mdc: bool, mdo: bool) -> bool {
        match self.mdio.drive(mdc, mdo) {
            Some(Frame::Read { address, register }) => {
                let value = (address == ADDRESS).then(|| self.read(register));
                self.mdio.answer(value);
                false
            }
            Some(Frame::Write { address: ADDRESS, register, value }) => self.write(register, value),
            Some(Frame::Write { .. }) | None => false,
        }
    }

    /// What the PHY says on the bus.
    pub fn data(&self) -> bool {
        self.mdio.data_in()
    }
}
