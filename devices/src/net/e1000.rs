//! Intel's gigabit Ethernet controllers: 82540EM, 82545EM (the `e1000` of bhyve(8), and what VMware shows) and 82543GC.
//!
//! PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), and the 82543GC's
//! specification update. The 82543GC differs in how drivers reach its PHY (they clock MDIO on general purpose pins)
//! and EEPROM (no EERD), and has no I/O BAR.
//!
//! Modelled: both rings with legacy, context and data descriptors, checksums and segmentation (TCP and UDP, IPv4 and
//! IPv6), VLAN tags and their filter, all address filters, buffers of every size and frames over several of them,
//! interrupt moderation (ITR, and the delays of both directions), statistics, MAC and PHY loopback, EEPROM and PHY, the
//! link while it changes. Wake-up, management, LED and flow control registers keep what is written; the card never has
//! to be woken or slowed down. Not modelled: fibre (TBI), the flash memory, PCI-X and message interrupts, half duplex.
//!
//! What drivers rely on, each with a failure behind it: CTRL.RST ends at once, also through the I/O BAR (Linux resets
//! the 82540 and 82545 there); LSC comes whenever the link comes up, and again after a negotiation (OpenBSD's em(4) and
//! FreeBSD's wait for it); STATUS.LU needs CTRL.SLU; TXDW comes for each descriptor with RS, or their watchdogs bark;
//! ICR is cleared by reading, and the line falls with it; registers read back exactly the bits that exist (ethtool's
//! self-test).
//!
//! Guests: em(4) of FreeBSD, OpenBSD and DragonFly, wm(4) of NetBSD, e1000 of Linux, iPXE, Windows.

mod context;
mod receive;
mod registers;
mod transceiver;
mod transmit;

use std::sync::Arc;

use emu::backend::Net;
use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Params, PciIds, Pin, ResetKind, Slot, State, Timer, Widths,
};
use serde::{Deserialize, Serialize};

use super::microwire::{Lines, Microwire};
use super::{MAC, Mac, SUBSYSTEM, subsystem};
use registers::*;
use transceiver::Transceiver;

/// bhyve's.
pub static E1000_82545EM: Model = Model {
    name: "e1000",
    summary: "Intel 82545EM gigabit network card",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: |slot, params| E1000::create(slot, params, &I82545EM),
};

/// A desktop's.
pub static E1000_82540EM: Model = Model {
    name: "e1000-82540em",
    summary: "Intel 82540EM gigabit network card",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: |slot, params| E1000::create(slot, params, &I82540EM),
};

/// An early server's.
pub static E1000_82543GC: Model = Model {
    name: "e1000-82543gc",
    summary: "Intel 82543GC gigabit network card",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: |slot, params| E1000::create(slot, params, &I82543GC),
};

/// Who the function is.
struct Chip {
    device: u16,
    revision: u8,
    subsystem: u16,
    phy: u32,
    /// PHY and EEPROM are reached bit by bit only, and there are no ports.
    early: bool,
}

static I82545EM: Chip = Chip { device: 0x100f, revision: 1, subsystem: 0x1008, phy: 0x0141_0c20, early: false };
static I82540EM: Chip = Chip { device: 0x100e, revision: 2, subsystem: 0x001e, phy: 0x0141_0c20, early: false };
static I82543GC: Chip = Chip { device: 0x1004, revision: 2, subsystem: 0x1004, phy: 0x0141_0c50, early: true };

const INTEL: u16 = 0x8086;

/// Regions, by their BARs.
const MEMORY: u32 = 0;
const PORTS: u32 = 2;
/// The pair of ports that reach all registers.
const IOADDR: u64 = 0;
const IODATA: u64 = 4;

/// Timers: moderation, delays, what is left of the work.
const MODERATION: u32 = 0;
const DELAY: u32 = 1;
const WORK: u32 = 2;

/// The unit of ITR and that of the delays, nanoseconds.
const ITR_UNIT: u64 = 256;
const MICROSECOND: u64 = 1024;

/// What all 64 words of the EEPROM add up to.
const EEPROM_SUM: u16 = 0xbaba;

/// MDIC.
mod mdic {
    pub const WRITE: u32 = 1;
    pub const READ: u32 = 2;
    pub const READY: u32 = 1 << 28;
    pub const INTERRUPT: u32 = 1 << 29;
    pub const ERROR: u32 = 1 << 30;
}
/// EERD.
const EERD_START: u32 = 1;
const EERD_DONE: u32 = 1 << 4;

/// A timer that each frame starts again, and one that the first of them starts: an interrupt comes with either.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Delay {
    packet: u64,
    absolute: u64,
}

impl Default for Delay {
    fn default() -> Delay {
        Delay { packet: u64::MAX, absolute: u64::MAX }
    }
}

impl Delay {
    /// An absolute time of 0 is none.
    fn start(&mut self, now: u64, packet: u64, absolute: u64) {
        self.packet = now + packet;
        if absolute != 0 {
            self.absolute = self.absolute.min(now + absolute);
        }
    }

    fn ends(&self) -> u64 {
        self.packet.min(self.absolute)
    }

    /// Nothing waits any more; whether something did.
    fn over(&mut self) -> bool {
        std::mem::take(self).ends() != u64::MAX
    }
}

/// What is saved.
#[derive(Clone, Serialize, Deserialize)]
struct Card {
    r: Registers,
    eeprom: Microwire,
    phy: Transceiver,
    /// STATUS.LU.
    up: bool,
    /// Interrupts keep apart until then.
    quiet_until: u64,
    receive_delay: Delay,
    transmit_delay: Delay,
    /// A frame that waits for descriptors, and whether it came by the multicast table.
    held: Option<(Vec<u8>, bool)>,
    out: transmit::Outgoing,
    /// IOADDR.
    index: u32,
}

struct E1000 {
    chip: &'static Chip,
    dma: DmaMem,
    irq: Arc<IrqLine>,
    net: Option<Box<dyn Net>>,
    moderation: Arc<Timer>,
    delay: Arc<Timer>,
    work: Arc<Timer>,
    /// What the backend was told: it gives nothing before that.
    ready: Option<bool>,
    /// What the EEPROM holds when it is new.
    words: Vec<u16>,
    /// Buffers: a frame that is stored, and one that is cut off.
    scratch: Vec<u8>,
    segment: Vec<u8>,
    s: Card,
}

impl E1000 {
    fn create(slot: &mut Slot, params: &Params, chip: &'static Chip) -> Result<Box<dyn Device>, String> {
        let mac = super::mac(slot, params)?;
        let ids = subsystem(params, (INTEL, chip.subsystem))?;
        slot.pci(PciIds {
            vendor: INTEL,
            device: chip.device,
            class: 0x02_0000,
            revision: chip.revision,
            sub_vendor: ids.0,
            subsystem: ids.1,
        })?;
        slot.bar(MEMORY as u8, BarKind::Mem32, 0x2_0000, MEMORY, Widths::DWORD);
        if !chip.early {
            slot.bar(PORTS as u8, BarKind::Io, 0x40, PORTS, Widths::DWORD);
        }
        slot.rom()?;
        let irq = slot.intx(Pin::A);
        let dma = slot.dma();
        let mut net = slot.backends.net.take();
        if let Some(net) = &mut net {
            net.attach(slot.cell());
        }
        let [moderation, delay, work] = [MODERATION, DELAY, WORK].map(|n| slot.timer(n));
        let words = eeprom(chip, mac, ids);
        let s = Card {
            r: Registers::default(),
            eeprom: Microwire::new(words.clone()),
            phy: Transceiver::new(chip.phy, net.is_some()),
            up: false,
            quiet_until: 0,
            receive_delay: Delay::default(),
            transmit_delay: Delay::default(),
            held: None,
            out: transmit::Outgoing::default(),
            index: 0,
        };
        let (ready, scratch, segment) = (None, Vec::new(), Vec::new());
        let mut card = E1000 { chip, dma, irq, net, moderation, delay, work, ready, words, scratch, segment, s };
        card.reset_mac();
        Ok(Box::new(card))
    }

    /// CTRL.RST: everything but the PHY and the EEPROM.
    fn reset_mac(&mut self) {
        let s = &mut self.s;
        s.r = Registers::default();
        s.eeprom.drive(Lines::default());
        let address = |n: usize| u32::from(s.eeprom.word(n));
        s.r[RAL] = address(1) << 16 | address(0);
        s.r[RAH] = RAH_AV | address(2);
        (s.up, s.quiet_until, s.held) = (false, 0, None);
        (s.receive_delay, s.transmit_delay) = (Delay::default(), Delay::default());
        s.out = transmit::Outgoing::default();
        [&self.moderation, &self.delay, &self.work].into_iter().for_each(|timer| timer.cancel());
        self.say_ready();
    }

    /// Sets causes of interrupts. The line follows at the end of the access or event.
    fn raise(&mut self, causes: u32) {
        self.s.r[ICR] |= causes;
    }

    /// Drives the line: up with a cause that is not masked, unless the last time is not yet so long ago as ITR says.
    fn update_line(&mut self) {
        if self.s.r[ICR] & self.s.r[IMS] == 0 {
            self.moderation.cancel();
            return self.irq.set(false);
        }
        if self.irq.level() {
            return;
        }
        let now = self.moderation.now();
        if now < self.s.quiet_until {
            return self.moderation.set(self.s.quiet_until);
        }
        self.s.quiet_until = now + u64::from(self.s.r[ITR]) * ITR_UNIT;
        self.irq.set(true);
    }

    /// Sets the timer of the delays to the next that ends.
    fn set_delay(&self) {
        self.delay.set(self.s.receive_delay.ends().min(self.s.transmit_delay.ends()));
    }

    fn delays_end(&mut self) {
        let now = self.delay.now();
        if self.s.receive_delay.ends() <= now {
            self.s.receive_delay.over();
            self.raise(icr::RXT0);
        }
        if self.s.transmit_delay.ends() <= now {
            self.s.transmit_delay.over();
            self.raise(icr::TXDW);
        }
        self.set_delay();
    }

    /// STATUS.LU follows the PHY, if CTRL.SLU lets it.
    fn update_link(&mut self) {
        let up = self.s.phy.link() && self.s.r[CTRL] & ctrl::SLU != 0;
        if std::mem::replace(&mut self.s.up, up) != up {
            self.raise(icr::LSC);
        }
    }

    /// The link went down and is up again.
    fn negotiated(&mut self) {
        if self.s.up {
            self.raise(icr::LSC);
        }
    }

    fn status(&self) -> u32 {
        let (control, mode) = (self.s.r[CTRL], self.s.phy.mode());
        let full = match control & ctrl::FRCDPX != 0 {
            true => control & ctrl::FD != 0,
            false => mode.full_duplex,
        };
        let speed = match (control & ctrl::FRCSPD != 0, mode.speed) {
            (true, _) => control >> 8 & 3,
            (false, 1000) => 2,
            (false, 100) => 1,
            (false, _) => 0,
        };
        u32::from(full) | u32::from(self.s.up) << 1 | speed << 6 | speed << 8
    }

    fn write_ctrl(&mut self, value: u32) {
        let risen = value & !self.s.r[CTRL];
        let mut negotiated = false;
        if value & ctrl::RST != 0 {
            self.reset_mac();
        } else {
            self.s.r.write(CTRL, value);
            if self.chip.early {
                let out = value & ctrl::MDIO_OUT == 0 || value & ctrl::MDIO != 0;
                negotiated = self.s.phy.clock(value & ctrl::MDC != 0, out);
            }
        }
        if risen & ctrl::PHY_RST != 0 && !self.chip.early {
            self.s.phy.reset();
            negotiated = true;
        }
        self.update_link();
        if negotiated {
            self.negotiated();
        }
    }

    fn read_ctrl(&self) -> u32 {
        let value = self.s.r[CTRL];
        match self.chip.early && value & ctrl::MDIO_OUT == 0 {
            true => value & !ctrl::MDIO | if self.s.phy.data() { ctrl::MDIO } else { 0 },
            false => value,
        }
    }

    fn write_mdic(&mut self, value: u32) {
        let (register, address) = ((value >> 16 & 31) as u8, (value >> 21 & 31) as u8);
        let mut done = value & 0x2fff_ffff | mdic::READY;
        match value >> 26 & 3 {
            _ if address != transceiver::ADDRESS => done |= mdic::ERROR,
            mdic::READ => done = done & !0xffff | u32::from(self.s.phy.read(register)),
            mdic::WRITE => {
                if self.s.phy.write(register, value as u16) {
                    self.negotiated();
                }
            }
            _ => done |= mdic::ERROR,
        }
        self.s.r[MDIC] = done;
        if value & mdic::INTERRUPT != 0 {
            self.raise(icr::MDAC);
        }
    }

    fn read_eecd(&self) -> u32 {
        let value = self.s.r[EECD];
        let granted = if value & eecd::REQ != 0 { eecd::GNT } else { 0 };
        value | granted | eecd::PRES | if self.s.eeprom.data_out() { eecd::DO } else { 0 }
    }

    fn write_eecd(&mut self, value: u32) {
        self.s.r.write(EECD, value);
        let line = |bit: u32| value & bit != 0;
        self.s.eeprom.drive(Lines { cs: line(eecd::CS), sk: line(eecd::SK), di: line(eecd::DI) });
    }

    fn read_register(&mut self, at: u32) -> u32 {
        match at {
            CTRL => self.read_ctrl(),
            STATUS => self.status(),
            EECD => self.read_eecd(),
            ICR => {
                let causes = std::mem::take(&mut self.s.r[ICR]);
                self.update_line();
                causes
            }
            _ => self.s.r.read(at),
        }
    }

    fn write_register(&mut self, at: u32, value: u32) {
        match at {
            CTRL => self.write_ctrl(value),
            CTRL_EXT => {
                self.s.r.write(CTRL_EXT, value);
                if self.chip.early && value & (ctrl_ext::SDP4 | ctrl_ext::SDP4_OUT) == ctrl_ext::SDP4_OUT {
                    self.s.phy.reset();
                    self.negotiated();
                }
            }
            EECD => self.write_eecd(value),
            EERD if self.chip.early => {}
            EERD if value & EERD_START != 0 => {
                let word = self.s.eeprom.word((value >> 8 & 0xff) as usize);
                self.s.r[EERD] = u32::from(word) << 16 | value & 0xff00 | EERD_DONE;
            }
            EERD => self.s.r[EERD] &= !EERD_DONE,
            MDIC if self.chip.early => {}
            MDIC => self.write_mdic(value),
            ICR => self.s.r[ICR] &= !value,
            ICS => self.raise(value & icr::ALL),
            IMS => self.s.r[IMS] |= value & icr::ALL,
            IMC => self.s.r[IMS] &= !value,
            ITR => {
                self.s.r.write(ITR, value);
                let latest = self.moderation.now() + u64::from(self.s.r[ITR]) * ITR_UNIT;
                self.s.quiet_until = self.s.quiet_until.min(latest);
            }
            RCTL | RDT => {
                self.s.r.write(at, value);
                self.refill();
            }
            TCTL | TDT => {
                self.s.r.write(at, value);
                self.transmit();
            }
            RDTR | TIDV => {
                self.s.r.write(at, value);
                let (delay, cause) = match at {
                    RDTR => (&mut self.s.receive_delay, icr::RXT0),
                    _ => (&mut self.s.transmit_delay, icr::TXDW),
                };
                if value & RDTR_FPD != 0 && delay.over() {
                    self.raise(cause);
                    self.set_delay();
                }
            }
            // The rest of a ring: where it is decides whether there is room.
            RDBAL..RDT => {
                self.s.r.write(at, value);
                self.say_ready();
            }
            _ => self.s.r.write(at, value),
        }
        self.update_line();
    }
}

/// The words of an EEPROM: address, identity, and what makes their sum right.
fn eeprom(chip: &Chip, mac: Mac, (sub_vendor, subsystem): (u16, u16)) -> Vec<u16> {
    let mut words = vec![0xffff; 64];
    for (word, pair) in words.iter_mut().zip(mac.as_chunks::<2>().0) {
        *word = u16::from_le_bytes(*pair);
    }
    // No special features, LEDs as usual.
    words[0x03..=0x07].fill(0);
    // Initialisation control 1: valid, load the identity, BARs of 32 bits, full duplex; 2: negotiates pauses.
    words[0x0a] = 0x640b;
    words[0x0b..=0x0e].copy_from_slice(&[subsystem, sub_vendor, chip.device, INTEL]);
    words[0x0f] = 0x3000;
    // Nothing wakes it.
    words[0x23..=0x24].fill(0);
    words[0x3f] = words[..0x3f].iter().fold(EEPROM_SUM, |left, word| left.wrapping_sub(*word));
    words
}

impl Device for E1000 {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        let register = match (region, offset & !3) {
            (MEMORY, at) => self.read_register(at as u32),
            (_, IOADDR) => self.s.index,
            (_, IODATA) => self.read_register(self.s.index),
            _ => 0,
        };
        u64::from(register >> (8 * (offset & 3))) & (u64::MAX >> (64 - 8 * u32::from(width)))
    }

    /// Registers are written as a whole.
    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        if width != 4 || offset & 3 != 0 {
            return;
        }
        match (region, offset) {
            (MEMORY, at) => self.write_register(at as u32, value as u32),
            (_, IOADDR) => self.s.index = value as u32 & 0x1_fffc,
            (_, IODATA) => self.write_register(self.s.index, value as u32),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(frame) if self.s.up => self.receive(frame),
            Event::Link(up) => {
                self.s.phy.set_link(up);
                self.update_link();
            }
            Event::Timer(DELAY) => self.delays_end(),
            Event::Timer(WORK) => self.transmit(),
            _ => {}
        }
        self.update_line();
    }

    fn config_write(&mut self, _: u16, _: u8) {
        // Bus mastering may be on now.
        self.transmit();
        self.update_line();
    }

    fn reset(&mut self, kind: ResetKind) {
        self.s.index = 0;
        if kind == ResetKind::PowerOn {
            self.s.eeprom = Microwire::new(self.words.clone());
        }
        self.s.phy.reset();
        self.reset_mac();
        self.irq.set(false);
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.s
    }

    fn restored(&mut self) {
        // There may be no cable here.
        if self.net.is_none() {
            self.s.phy.set_link(false);
            self.update_link();
            self.update_line();
        }
        self.ready = None;
        self.say_ready();
    }
}

#[cfg(test)]
mod tests;
